"""Text files with one JSON object a line, in pieces: a line that is no whole object is refused.

A missing key is an empty value; a number is written the short way, so `3` and `3.0` are one id.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import polars as pl

from incrs.errors import Mistake

BOM = b"\xef\xbb\xbf"


def json_pieces(
    file: Path, stream: BinaryIO, size: int, block: int, columns: Sequence[str]
) -> Iterator[pl.DataFrame]:
    """Yield the values at the keys `columns` as text, about `size` bytes of lines at once.

    block: bytes read at once.  Raises Mistake where a line is no whole JSON object.
    """
    before = 0
    for lines in _whole_lines(stream, size, block):
        try:
            frame = _parsed(lines, columns)
        except pl.exceptions.PolarsError as error:
            raise _broken(file, lines, before) from error
        before += lines.count(b"\n")
        yield frame


def json_keys(
    file: Path, stream: BinaryIO, size: int, block: int, wanted: Collection[str]
) -> list[str]:
    """Return the keys in the first `block` bytes of lines, and those of `wanted` that come later.

    The file is read on until each wanted key had a value.
    """
    keys: dict[str, None] = {}
    lines = _whole_lines(stream, block, block)
    first = next(lines, b"")
    for line in first.splitlines():
        with suppress(ValueError):  # refused when the rows are read
            found = json.loads(line)
            keys |= dict.fromkeys(found if isinstance(found, dict) else ())
    if not keys:
        raise _broken(file, first, 0)
    for part in lines:
        missing = [key for key in wanted if key not in keys]
        if not missing:
            break
        with suppress(pl.exceptions.PolarsError):
            frame = _parsed(part, missing)
            keys |= {key: None for key in missing if frame[key].null_count() < len(frame)}
    return list(keys)


def _parsed(lines: bytes, columns: Sequence[str]) -> pl.DataFrame:
    return pl.read_ndjson(BytesIO(lines), schema=dict.fromkeys(columns, pl.String))


def _whole_lines(stream: BinaryIO, size: int, block: int) -> Iterator[bytes]:
    held = bytearray()
    first = True
    while read := stream.read(block):
        held += read.removeprefix(BOM) if first else read
        first = False
        end = held.rfind(b"\n") + 1
        if end >= size:
            yield bytes(held[:end])
            del held[:end]
    if held:
        yield bytes(held)


def _broken(file: Path, lines: bytes, before: int) -> Mistake:
    """Return the Mistake that names the first bad line; `before` lines came before these."""
    each = lines.splitlines(keepends=True)

    def bad(count: int) -> bool:
        try:
            _parsed(b"".join(each[:count]), ["key"])
        except pl.exceptions.PolarsError:
            return True
        return False

    line = before + bisect_left(range(1, len(each)), True, key=bad) + 1
    return Mistake(
        f'{file} cannot be read: line {line} is no whole JSON object such as {{"user": 1}}: mend that '
        "line, or give the whole file, with one object in each line"
    )
