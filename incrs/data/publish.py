"""How a store comes to its folder: made beside it, moved there, the manifest last.

A kill at any moment leaves the store as it was or as it will be; what else it leaves is removed by the
next preparation. One process at a time writes.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import polars as pl

from incrs.data.store import Store, state_folder
from incrs.errors import Mistake, is_full


def prepared(
    folder: Path, plan: Callable[[Store | None], Callable[[Path, Path], None] | None]
) -> Store:
    """Return the store in `folder`, made or grown where `plan` says so.

    plan: given the store there is, returns None when it will do, else what writes the new parts: into
    its first argument, the second is room for temporary files. Neither folder is left behind when it
    fails, nor after the next preparation when the process was killed.
    """
    place = folder.parent
    try:
        store = Store.open(folder)
        if store is not None and plan(store) is None:
            if _leftovers(store):
                _clean_if_idle(folder)
            return store
        place.mkdir(parents=True, exist_ok=True)
        with _locked(place / f".{folder.name}.lock"):
            _clean(folder)
            write = plan(Store.open(folder))  # another process may just have done it
            if write is not None:
                _write(folder, write)
            store = Store.open(folder)
    except (OSError, pl.exceptions.PolarsError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        if is_full(error):
            raise Mistake(
                f"data.store={place.parent}: its disk is full ({why}): free some of it, or set data.store "
                "to a folder on another disk"
            ) from error
        raise Mistake(
            f"data.store={place.parent}: the log cannot be prepared there: {why}"
        ) from error
    assert store is not None
    return store


def _write(folder: Path, write: Callable[[Path, Path], None]) -> None:
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        new, room = work / "store", work / "room"
        new.mkdir()
        room.mkdir()
        write(new, room)
        for path in (new, *new.rglob("*")):
            _sync(path)
        _publish(new, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(new: Path, folder: Path) -> None:
    """Move a whole store to its place, or new parts to theirs: the manifest comes last."""
    if not (folder / "manifest.json").exists():
        new.rename(folder)  # over nothing, or over an empty folder
        _sync(folder.parent)
        return
    places = {folder}
    for file in sorted(new.rglob("*.parquet")):
        target = folder / file.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
        places |= {target.parent, target.parent.parent}
    for path in sorted(places):
        _sync(path)
    (new / "manifest.json").replace(folder / "manifest.json")
    _sync(folder)
    _clean(folder)


def _leftovers(store: Store) -> list[Path]:
    """Return what lies beside and in a store that is no part of it: a killed process left it."""
    folder, periods = store.folder, len(store.periods)
    found = list(folder.parent.glob(f".{folder.name}.*.tmp"))
    number = re.compile(r"period=(\d+)")
    for part in folder.glob("period=*"):
        match = number.fullmatch(part.name)
        found += [part] if match and int(match[1]) >= periods else []
    found += set(folder.glob("state/period=*")) - {state_folder(folder, periods - 1)}
    return found


def _clean(folder: Path) -> None:
    """Remove what killed processes left; the lock is ours, so nobody is using it."""
    store = Store.open(folder)
    left = _leftovers(store) if store else folder.parent.glob(f".{folder.name}.*.tmp")
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def _clean_if_idle(folder: Path) -> None:
    with suppress(OSError), _locked(folder.parent / f".{folder.name}.lock", wait=False) as mine:
        if mine:
            _clean(folder)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(file: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock that the system releases when the process ends, however it ends.

    Gives whether the lock is held: without `wait` it may be another's.
    """
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
