"""The prepared log on disk: one folder, written whole or not at all.

    <folder>/schema.json                    what the columns mean (Schema)
    <folder>/manifest.json                  the raw files it came from; every period's name, rows,
                                            positives, digest, sums of its numbers, ids known at its end
    <folder>/vocab/<vocabulary>.parquet     value, id, first_period, count
    <folder>/period=0000/rows.parquet       time, label, scenario, field.<f>, list.<l>, number.<n>

A period's file depends on no later period and is never rewritten; numbers are kept as they are and
standardised when read, so any number of periods can be added behind.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from incrs.data.base import ListField, Schema
from incrs.data.encode import Rows, Vocabulary
from incrs.errors import Mistake
from incrs.period import Batch

FORMAT = 1


@dataclass(frozen=True)
class Store:
    """A prepared log. periods: the manifest's entry of each period, in order."""

    folder: Path
    schema: Schema
    periods: Sequence[Mapping[str, Any]]

    @staticmethod
    def open(folder: Path, sources: Sequence[Mapping[str, Any]]) -> Store | None:
        """Return the store in `folder`, or None unless it was made from exactly these sources."""
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            schema = json.loads((folder / "schema.json").read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None
        if manifest["format"] != FORMAT or manifest["sources"] != list(sources):
            return None
        lists = {name: ListField(**field) for name, field in schema.pop("lists").items()}
        return Store(folder, Schema(lists=lists, **schema), manifest["periods"])

    def scale(self, pretrain: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (N,) mean and (N,) standard deviation of the numbers in the first periods."""
        names = len(self.schema.numbers)
        total, mean, squares = np.zeros(names), np.zeros(names), np.zeros(names)
        for period in self.periods[:pretrain]:
            n, m, s = (np.array(period["numbers"][key]) for key in ("count", "mean", "squares"))
            both = np.maximum(total + n, 1)
            squares = squares + s + (m - mean) ** 2 * total * n / both
            mean = mean + (m - mean) * n / both
            total = total + n
        deviation = np.sqrt(squares / np.maximum(total, 1))
        return mean, np.where(deviation > 1e-12 * (1 + np.abs(mean)), deviation, 1.0)

    def fingerprint(self, periods: int, pretrain: int) -> str:
        """Return the digest of the first periods' rows, their schema and the numbers' scale."""
        digest = hashlib.sha256(json.dumps(asdict(self.schema)).encode())
        for period in self.periods[:periods]:
            digest.update(f"{period['name']} {period['digest']}".encode())
        for part in self.scale(pretrain):
            digest.update(part.tobytes())
        return digest.hexdigest()[:32]

    def read(self, t: int, mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> Batch:
        """Load the rows of period t as packed tensors; a missing number becomes the mean, 0."""
        frame = pl.read_parquet(period_file(self.folder, t), memory_map=False)
        fields = frame.select(f"field.{name}" for name in self.schema.fields)
        numbers = np.empty((len(frame), len(self.schema.numbers)), np.float32)
        for j, name in enumerate(self.schema.numbers):
            numbers[:, j] = (frame[f"number.{name}"].to_numpy() - mean[j]) / deviation[j]
        return Batch(
            fields=_tensor(fields.to_numpy(order="c"), np.int32).reshape(len(frame), -1),
            lists={name: _tensor(frame[f"list.{name}"].to_numpy()) for name in self.schema.lists},
            numbers=torch.from_numpy(np.nan_to_num(numbers, copy=False)),
            scenario=_tensor(frame["scenario"].to_numpy(), np.int64),
            label=_tensor(frame["label"].to_numpy(), np.float32),
        )


def _tensor(array: NDArray[Any], dtype: type[np.generic] | None = None) -> torch.Tensor:
    """Return a contiguous tensor of its own memory."""
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def period_file(folder: Path, t: int) -> Path:
    """Return where period t lies."""
    return folder / f"period={t:04d}" / "rows.parquet"


def write_period(
    folder: Path, t: int, name: str, rows: Rows, fields: Sequence[str], numbers: Sequence[str]
) -> dict[str, Any]:
    """Write the rows of period t below `folder`; return its entry in the manifest."""
    columns: dict[str, Any] = {
        "time": pl.Series(rows.time).cast(pl.Datetime("us", "UTC")),
        "label": rows.label,
        "scenario": rows.scenario,
    }
    columns |= {f"field.{field}": rows.fields[:, j] for j, field in enumerate(fields)}
    columns |= {f"list.{field}": ids for field, ids in rows.lists.items()}
    columns |= {f"number.{number}": rows.numbers[:, j] for j, number in enumerate(numbers)}
    file = period_file(folder, t)
    file.parent.mkdir(parents=True)
    pl.DataFrame(columns).write_parquet(file)

    digest = hashlib.sha256()
    for column, values in columns.items():
        digest.update(column.encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    count = np.isfinite(rows.numbers).sum(axis=0)
    mean = np.nansum(rows.numbers, axis=0) / np.maximum(count, 1)
    squares = np.nansum((rows.numbers - mean) ** 2, axis=0)
    return {
        "name": name,
        "rows": len(rows.label),
        "positives": int(rows.label.sum()),
        "digest": digest.hexdigest()[:32],
        "numbers": {
            "count": count.tolist(),
            "mean": mean.tolist(),
            "squares": squares.tolist(),
        },
    }


def write_rest(
    folder: Path,
    schema: Schema,
    sources: Sequence[Mapping[str, Any]],
    periods: Sequence[Mapping[str, Any]],
    vocabularies: Mapping[str, Vocabulary],
) -> None:
    """Write the schema, the vocabularies and, last, the manifest."""
    (folder / "vocab").mkdir(parents=True)
    for name, vocabulary in vocabularies.items():
        known = [period["known"][name] for period in periods]
        ids = np.arange(1, len(vocabulary), dtype=np.int32)
        frame = pl.DataFrame(
            {
                "value": vocabulary.values[1:],
                "id": ids,
                "first_period": np.searchsorted(known, ids, side="right").astype(np.int32),
                "count": vocabulary.counts[1:],
            }
        )
        frame.write_parquet(folder / "vocab" / f"{quote(name, safe='')}.parquet")
    manifest = {"format": FORMAT, "sources": list(sources), "periods": list(periods)}
    for file, content in (("schema.json", asdict(schema)), ("manifest.json", manifest)):
        (folder / file).write_text(json.dumps(content, indent=1) + "\n")


def reuse_or_build(
    folder: Path, sources: Sequence[Mapping[str, Any]], build: Callable[[Path, Path], None]
) -> Store:
    """Return the store in `folder`, made anew unless it was made from exactly these sources.

    build: writes a store into its first argument; its second is room for temporary files. Neither is
    left behind when it fails, nor after the next preparation when the process was killed.
    """
    store = Store.open(folder, sources)
    if store is not None:
        return store
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f".{folder.name}.lock"):
            store = Store.open(folder, sources)  # another process may just have made it
            if store is None:
                _build(folder, build)
                store = Store.open(folder, sources)
    except OSError as error:
        raise Mistake(
            f"data.store={folder.parent.parent}: the log cannot be prepared there: {error}"
        ) from error
    assert store is not None
    return store


def _build(folder: Path, build: Callable[[Path, Path], None]) -> None:
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):  # we hold the lock: nobody's
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        new, room = work / "store", work / "room"
        new.mkdir()
        room.mkdir()
        build(new, room)
        if folder.exists():
            folder.rename(work / "old")
        new.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock that the system releases when the process ends, however it ends."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
