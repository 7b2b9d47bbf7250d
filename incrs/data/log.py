"""Any CSV or Parquet log, declared in yaml: `conf/data/log.yaml` lists every option.

A row's fields are the declared columns of the log itself and of the side tables. All else follows
from the row's time: ids are given in order of first appearance, histories hold strictly earlier
positives, numbers are standardised on the pretrain periods.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from incrs.data.base import Schema, Source
from incrs.data.build import build
from incrs.data.declaration import Declaration
from incrs.data.scan import find_files
from incrs.data.store import Store, reuse_or_build
from incrs.errors import Mistake
from incrs.period import Period, Role

NOT_CONTENT = ("store", "help", "variant", "pretrain", "tune", "test")  # same prepared store


@dataclass(kw_only=True, eq=False)
class LogSource(Declaration, Source):
    """A log read from files; its arguments are the options of `Declaration`.

    `prepare` writes `<store>/<name>/<digest of the declaration>` once and reuses it until a raw file
    changes its size or time. Raises Mistake, from `prepare` alone, when the declaration does not fit
    the files.
    """

    def prepare(self) -> None:
        """Check the declaration, then open the prepared store or make it."""
        self.check()
        root = Path(self.path).expanduser().resolve()
        globs = [self.files] if isinstance(self.files, str) else self.files
        found = find_files(root, globs, "data.files", self.help)
        side = [find_files(root, [j["file"]], "data.joins", self.help) for j in self.joins]
        files = [file for file in found if not any(file in part for part in side)]
        if not files:
            raise Mistake(
                f"data.files={self.files}: only side tables match; name the log's own files"
            )
        sources = [
            {
                "file": str(f.relative_to(root)),
                "size": f.stat().st_size,
                "mtime_ns": f.stat().st_mtime_ns,
            }
            for f in (*files, *(file for part in side for file in part))
        ]
        declared = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in NOT_CONTENT
        }
        text = json.dumps(declared | {"path": str(root)}, sort_keys=True, default=list)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = Path(self.store).expanduser() / self.name / digest
        self._store: Store = reuse_or_build(
            self.folder, sources, lambda new, room: build(self, files, side, sources, new, room)
        )
        self.roles: Sequence[Role] = self.assign(len(self._store.periods))
        self.schema: Schema = self._store.schema
        self.fingerprint: str = self._store.fingerprint(len(self.roles), self.pretrain)
        self._scale = self._store.scale(self.pretrain)

    def read(self, t: int) -> Period:
        """Load period t from the prepared store."""
        rows = self._store.read(t, *self._scale)
        return Period(t, self._store.periods[t]["name"], self.roles[t], rows)
