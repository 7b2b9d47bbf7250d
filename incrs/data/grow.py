"""What a prepared store lacks: the raw files that are new, and why others may not be.

Periods are only ever added. A file that is prepared already may go, or be given another time, but not
change; a side table may change when there is a new day to be joined with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from incrs.data.build import build
from incrs.data.declaration import Declaration
from incrs.data.raw import describe, untouched
from incrs.data.store import Store, write_manifest
from incrs.errors import Mistake

WHOLE = {"period": ("count", "random"), "negatives_from": ("all",)}
Entries = Mapping[str, Mapping[str, Any]]


def plan(
    log: Declaration,
    root: Path,
    files: Sequence[Path],
    side_files: Sequence[Sequence[Path]],
    old: Store | None,
) -> Callable[[Path, Path], None] | None:
    """Return what writes the periods that the store `old` lacks, or None where it has them all.

    root: the folder that files are named from.  Raises Mistake when the store cannot grow by the files.
    """
    tables = list(dict.fromkeys(file for part in side_files for file in part))
    new = [file for file in files if old is None or str(file.relative_to(root)) not in old.logs]
    logs: Entries = {}
    if old is not None:
        logs = {**old.logs, **_again(old, False, files, root)}
        if not new:
            _again(old, True, tables, root)
            return None
        _check_whole(log, new, old)

    def write(folder: Path, room: Path) -> None:
        found = {file: describe(file, root) for file in (*new, *tables)}
        periods = build(log, new, side_files, old, folder, room)
        for file, entry in found.items():
            if not untouched(file, entry):
                raise Mistake(f"{file} changed while it was read: prepare again when it is whole")
        fresh, joined = (
            {found[file]["file"]: found[file] for file in part} for part in (new, tables)
        )
        write_manifest(folder, periods, {**logs, **fresh}, joined)

    return write


def _again(old: Store, joined: bool, files: Sequence[Path], root: Path) -> Entries:
    """Return the entries of known files whose time is another but whose content is not.

    joined: the files are side tables, of which none may be new.

    Only a file with another size or time is opened.  Raises Mistake when one changed.
    """
    known = old.tables if joined else old.logs
    found: dict[str, Mapping[str, Any]] = {}
    for file in files:
        entry = known.get(str(file.relative_to(root)))
        if entry is None and not joined:
            continue
        if entry is not None and untouched(file, entry):
            continue
        now = describe(file, root)
        if entry is None or now["sha256"] != entry["sha256"]:
            also = ", or give it together with a new file of the log" if joined else ""
            raise Mistake(
                f"{file} changed since it was prepared, and a written period is never rewritten: give "
                f"the old file back{also}, or delete the folder {old.folder} to prepare the log anew"
            )
        found[now["file"]] = now
    return found


def _check_whole(log: Declaration, new: Sequence[Path], old: Store) -> None:
    settings = [f"data.{k}={getattr(log, k)}" for k, v in WHOLE.items() if getattr(log, k) in v]
    settings += ["data.filters"] if log.filters else []
    if settings:
        raise Mistake(
            f"{settings[0]} looks at the whole log, so its prepared store cannot grow by "
            f"{', '.join(file.name for file in new)}: take that away, or delete the folder "
            f"{old.folder} to prepare the log anew"
        )
