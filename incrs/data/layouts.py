"""Files of one log that call the same things by other names, are one scenario each, or name nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from incrs.data.raw import columns_of, pieces
from incrs.errors import Mistake


class Layout:
    """What the declared columns are in a file: renamed ones, ones of one value, ones that it does not name.

    entries: of data.file_columns; those whose `files` match the file's name count, the last one most.
    """

    def __init__(self, entries: Sequence[Mapping[str, Any]], file: Path) -> None:
        self.file, self.columns, self.values = file, dict[str, str](), dict[str, str]()
        self.header: Sequence[str] = ()
        for one in entries:
            if file.match(str(one["files"])):
                self.header = one.get("header") or self.header
                self.columns |= one.get("columns") or {}
                self.values |= {k: str(v) for k, v in (one.get("values") or {}).items()}

    def names(self, separator: str, kind: str | None, wanted: Collection[str]) -> list[str]:
        """Return the names that the file's columns go by, its own ones included.

        Raises Mistake where one that is wanted stands for a column that the file lacks.
        """
        asked = [self.columns.get(name, name) for name in wanted]
        held = columns_of(self.file, separator, kind, asked, self.header)
        for name in wanted:
            if self.columns.get(name, name) not in held and name in self.columns:
                raise Mistake(
                    f"data.file_columns: there is no column {self.columns[name]!r} in {self.file.name} to "
                    f"be read as {name!r}; columns: {', '.join(held)}"
                )
        there = [name for name, column in self.columns.items() if column in held]
        return list(dict.fromkeys([*held, *there, *self.values]))

    def pieces(
        self, separator: str, kind: str | None, names: Sequence[str]
    ) -> Iterator[pl.DataFrame]:
        """Yield the columns `names` piece by piece, as `raw.pieces` does."""
        source = {n: self.columns.get(n, n) for n in names if n not in self.values}
        constant = [pl.lit(self.values[n], pl.String).alias(n) for n in names if n in self.values]
        asked = list(dict.fromkeys(source.values()))
        for frame in pieces(self.file, separator, asked, kind, self.header):
            renamed = [pl.col(column).alias(name) for name, column in source.items()]
            yield frame.select(*renamed, *constant).select(names)
