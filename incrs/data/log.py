"""Any log of CSV, JSON or Parquet files, declared in yaml: `conf/data/log.yaml` lists every option.

A row's fields are the declared columns of the log itself and of the side tables. All else follows
from the row's time: ids are given in order of first appearance, histories hold strictly earlier
positives, numbers are standardised on the pretrain periods.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from incrs.data.base import Schema, Source
from incrs.data.declaration import Declaration
from incrs.data.fetch import choose, fetch
from incrs.data.grow import plan
from incrs.data.publish import prepared
from incrs.data.scan import find_beside, find_files
from incrs.data.store import Store
from incrs.errors import Mistake
from incrs.period import Batch, Period, Role, Stored

NOT_CONTENT = (  # the prepared store is the same
    *("store", "help", "variant", "variants", "download", "archives"),
    *("pretrain", "tune", "test", "memory_rows"),
)
LATER = (  # they count where they are set: stores from before there were these remain
    *("format", "time_year", "keep", "required", "filters"),
    *("item_columns", "history_of", "history_events", "behaviours", "file_columns"),
    *("missing", "period_shares", "period_seed"),
)
PARTS = 16  # of the rows on disk that are shuffled at once


@dataclass(kw_only=True, eq=False)
class LogSource(Declaration, Source):
    """A log read from files; its arguments are the options of `Declaration`.

    `prepare` writes `<store>/<name>/<digest of the declaration>`. A later one reads the new files alone
    and adds their periods; files that are prepared already may go but not change. Raises Mistake, from
    `prepare` alone, when the declaration, the files and the store do not fit together.
    """

    def prepare(self) -> None:
        """Check the declaration, fetch the log where asked to, open the prepared store or make it."""
        self.check()
        root = Path(self.path).expanduser().resolve()
        self._fetch(root)
        globs = [self.files] if isinstance(self.files, str) else self.files
        found = find_files(root, globs, "data.files", self.help, self.format is not None)
        side = [
            find_beside(found, join["file"], self.help)
            if isinstance(join["file"], dict)
            else find_files(root, [join["file"]], "data.joins", self.help)
            for join in self.joins
        ]
        files = [file for file in found if not any(file in part for part in side)]
        if not files:
            raise Mistake(
                f"data.files={self.files}: only side tables match; name the log's own files"
            )
        declared = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in NOT_CONTENT
        }
        declared = {k: v for k, v in declared.items() if v or k not in LATER}
        text = json.dumps(declared | {"path": str(root)}, sort_keys=True, default=list)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = Path(self.store).expanduser() / self.name / digest
        self._store: Store = prepared(self.folder, partial(plan, self, root, files, side))
        self.roles: Sequence[Role] = self.assign(len(self._store.periods))
        self.schema: Schema = self._store.schema
        self.fingerprints: Sequence[str] = self._store.fingerprints(self.pretrain)[
            : len(self.roles)
        ]
        self._scale = self._store.scale(self.pretrain)

    def _fetch(self, root: Path) -> None:
        archive = choose(self.archives, self.variant)
        if type(self.download) is not bool:
            raise Mistake(f"data.download={self.download}: give true or false")
        if self.download and archive is None:
            known = ", ".join(str(one["variant"]) for one in self.archives)
            of = f" for data.variant={self.variant}, only for {known}" if known else ""
            raise Mistake(
                f"data.download=true: data.archives has no archive{of}; declare its url there, or put the "
                "log into a folder and give data.path=FOLDER"
            )
        if self.download and archive is not None:
            fetch(archive, root)

    def read(self, t: int) -> Period:
        """Load period t from the prepared store."""
        count, most = self._store.periods[t]["rows"], self.memory_rows
        content: Batch | Stored
        if most is None or count <= most:
            content = self._store.read(t, *self._scale)
        else:
            starts = range(0, count, max(1, most // PARTS))
            sizes = [min(starts.step, count - start) for start in starts]
            read = partial(self._store.read, t, *self._scale)
            content = Stored(sizes, lambda i: read(starts[i], sizes[i]), most)
        return Period(t, self._store.periods[t]["name"], self.roles[t], content)
