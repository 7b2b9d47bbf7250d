"""Raw files in pieces: every byte is looked at once, so a damaged file is refused and never guessed at.

What polars would read without a word (a line with too few values, a file that breaks off inside its
last line) is found here; a piece is small, so memory does not grow with the file.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import polars as pl

from incrs.data.jsonl import json_keys, json_pieces
from incrs.errors import Mistake

BLOCK = 1 << 20  # bytes looked at at once
PIECE = 8 << 20  # bytes of text parsed at once
ROWS = 1 << 18  # rows of Parquet read at once
ENDS = {
    "csv": (".csv",),
    "json": (".json", ".jsonl", ".ndjson"),
    "parquet": (".parquet",),
}
BROKEN = (
    OSError,
    EOFError,
    zlib.error,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,  # polars' own way to refuse some damaged files
)


def describe(file: Path, root: Path) -> dict[str, Any]:
    """Return how a file is known again: its path below `root`, size, mtime_ns and sha256."""
    with reading(file):
        stat = file.stat()
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    name = str(file.relative_to(root))
    return {"file": name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest}


def untouched(file: Path, known: Mapping[str, Any]) -> bool:
    """Return whether a file has the size and time that are `known`; it is not opened."""
    with reading(file):
        stat = file.stat()
    return stat.st_size == known["size"] and stat.st_mtime_ns == known["mtime_ns"]


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into a Mistake that names it."""
    try:
        yield
    except BROKEN as error:
        why = (str(error) or type(error).__name__).splitlines()[0].strip()
        raise Mistake(
            f"{file} cannot be read: {why}: it must be a whole Parquet file, or one of CSV "
            "or JSON lines, gzipped or not"
        ) from error


def kind_of(file: Path) -> str:
    """Return csv, json or parquet, by the end of the file's name."""
    name = file.name.removesuffix(".gz")
    return next((kind for kind, ends in ENDS.items() if name.endswith(ends)), "csv")


def columns_of(
    file: Path,
    separator: str,
    kind: str | None = None,
    wanted: Collection[str] = (),
    header: Sequence[str] = (),
) -> list[str]:
    """Return the names of a file's columns; blanks around them are dropped.

    kind: csv, json or parquet; None: see `kind_of`.  wanted: keys that a file of JSON lines is
    searched for to its end; others count where they are near its beginning.  header: the names of a
    CSV file that has none in its first line.
    """
    if (kind or kind_of(file)) == "json":
        with reading(file), _opened(file) as stream:
            return json_keys(file, stream, PIECE, BLOCK, wanted)
    return list(_names(file, separator, kind or kind_of(file), header))


def pieces(
    file: Path,
    separator: str,
    columns: Sequence[str],
    kind: str | None = None,
    header: Sequence[str] = (),
) -> Iterator[pl.DataFrame]:
    """Yield `columns` of a file piece by piece, in the rows' order; values of text files are text.

    kind, header: see `columns_of`.
    Raises Mistake when the file is damaged: nothing of the last piece is then yielded.
    """
    kind = kind or kind_of(file)
    if kind == "json":
        with reading(file), _opened(file) as stream:
            yield from json_pieces(file, stream, PIECE, BLOCK, columns)
        return
    held = _names(file, separator, kind, header)
    chosen = [held[column] for column in columns]
    new_names = dict(zip(chosen, columns, strict=True))
    if kind == "parquet":
        lazy = pl.scan_parquet(file, glob=False).select(chosen)
        with reading(file):
            size = int(lazy.select(pl.len()).collect().item())
        for start in range(0, size, ROWS):
            with reading(file):
                frame = lazy.slice(start, ROWS).collect()
            yield frame.rename(new_names)
        return
    for lines in _lines(file, separator, header):
        with reading(file):
            frame = pl.read_csv(
                BytesIO(lines), separator=separator, infer_schema=False, columns=chosen
            )
        yield frame.select(chosen).rename(new_names)


def _names(file: Path, separator: str, kind: str, header: Sequence[str]) -> dict[str, str]:
    """Return the columns of a file: name without blanks -> name in the file."""
    if header and kind == "csv":
        return {name: name for name in header}
    with reading(file):
        if kind == "parquet":
            names = pl.scan_parquet(file, glob=False).collect_schema().names()
        else:
            with _opened(file) as stream:
                block = stream.read(BLOCK)
            if not block:
                raise Mistake(f"{file} cannot be read: it is empty, without even a header")
            end = _ends(np.frombuffer(block, np.uint8), False)[:1].tolist()
            first = block[: end[0] + 1] if end else block
            names = pl.read_csv(BytesIO(first), separator=separator, infer_schema=False).columns
    held: dict[str, str] = {}
    for name in names:
        if held.setdefault(name.strip(), name) != name:
            raise Mistake(f"{file} cannot be read: it has two columns {name.strip()!r}")
    return held


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """Open a file of text, gzipped or not, whatever its name says."""
    with file.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        if zipped:
            with gzip.GzipFile(fileobj=stream) as unzipped:
                yield cast(BinaryIO, unzipped)
        else:
            yield stream


def _outside(block: np.ndarray, inside: bool) -> np.ndarray:
    """Return for each byte whether it is outside of quotes; `inside`: the first one is not."""
    quotes = block == ord('"')
    if not inside and not quotes.any():
        return np.ones(len(block), bool)
    return (np.cumsum(quotes, dtype=np.int32) + inside) & 1 == 0


def _ends(block: np.ndarray, inside: bool) -> np.ndarray:
    return np.flatnonzero((block == ord("\n")) & _outside(block, inside))


def _lines(file: Path, separator: str, names: Sequence[str]) -> Iterator[bytes]:
    """Yield a CSV file's lines, about PIECE bytes at once, the header before each piece.

    names: of the columns, where the file has no header.
    Raises Mistake when a line has more or fewer values than the header, or a byte is no UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    held, whole, header = bytearray(), 0, b""  # of `held`, the first `whole` bytes are lines
    inside, carried, width, newlines, first = False, 0, -1, 0, True
    if names:
        header, width, first = (separator.join(names) + "\n").encode(), len(names) - 1, False

    def ragged(line: int, values: int) -> Mistake:
        return Mistake(
            f"{file} cannot be read: line {line} has {values + 1} values but the "
            f"{'declared ' if names else ''}header has {width + 1}: mend that line, or see whether "
            f"data.separator={separator!r} is right"
        )

    with reading(file), _opened(file) as stream:
        while block := stream.read(BLOCK):
            try:
                decoder.decode(block)
            except (
                UnicodeDecodeError
            ) as error:  # a multi-byte character may go on in the next block
                line = newlines + error.object[: error.start].count(b"\n") + 1
                raise Mistake(
                    f"{file} cannot be read: line {line} is not UTF-8: save the file in that encoding"
                ) from error
            if names and not held and not newlines:
                block = block.removeprefix(codecs.BOM_UTF8)
            data = np.frombuffer(block, np.uint8)
            outside = _outside(data, inside)
            ends = np.flatnonzero((data == ord("\n")) & outside)
            marks = np.flatnonzero((data == ord(separator)) & outside)
            inside ^= bool(np.count_nonzero(data == ord('"')) & 1)
            if len(ends):
                before = np.searchsorted(marks, ends)
                values = np.diff(before, prepend=0)
                values[0] += carried
                carried = len(marks) - int(before[-1])
                if width < 0:
                    width, header = int(values[0]), bytes(held) + block[: ends[0] + 1]
                wrong = np.flatnonzero(values != width)
                if len(wrong):
                    line = newlines + block[: ends[wrong[0]]].count(b"\n") + 1
                    raise ragged(line, int(values[wrong[0]]))
                whole = len(held) + int(ends[-1]) + 1
            else:
                carried += len(marks)
            newlines += block.count(b"\n")
            held += block
            if whole >= PIECE:
                lines = bytes(held[:whole])
                del held[:whole]
                whole = 0
                yield lines if first else header + lines
                first = False
        rest = len(held) - whole
        if rest and width >= 0:
            if inside or carried < width:
                raise Mistake(
                    f"{file} cannot be read: it breaks off inside its last line, line {newlines + 1}: "
                    "give the whole file"
                )
            if carried > width:
                raise ragged(newlines + 1, carried)
    if held:
        yield bytes(held) if first else header + held
