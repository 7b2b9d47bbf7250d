"""The prepared log on disk: one folder that grows period by period.

    <folder>/schema.json                    what the columns mean (Schema, but for the sizes)
    <folder>/manifest.json                  the raw files it came from; every period's name, rows,
                                            positives, digest, sums of its numbers, ids known at its end
    <folder>/vocab/<vocabulary>.parquet     value, id, first_period
    <folder>/period=0000/rows.parquet       time, label, scenario, field.<f>, list.<l>, number.<n>,
                                            outcome.<b>
    <folder>/state/period=0013/*.parquet    what the next period needs of those before it

A period's file depends on no later period and is never rewritten; numbers are kept as they are and
standardised when read. What counts is what the manifest lists: it is replaced last and at once, so a
reader meets the store as it was or as it will be, and so does the next preparation after a kill.
Vocabularies only get longer: what is beyond the ids the manifest knows is not part of the store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
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

FORMAT = 2
ENTRY = {"file", "size", "mtime_ns", "sha256"}  # of a raw file in the manifest
PERIOD = {"name", "rows", "positives", "digest", "numbers", "known"}
GROUP = 1 << 17  # rows of a period's file that are read at once, at least
STATE = Mapping[str, Mapping[str, NDArray[np.int64]]]


@dataclass(frozen=True)
class Store:
    """A prepared log. periods: the manifest's entry of each period, in order.

    logs, tables: path below the log's folder -> the manifest's entry of each raw file.
    """

    folder: Path
    schema: Schema
    periods: Sequence[Mapping[str, Any]]
    logs: Mapping[str, Mapping[str, Any]]
    tables: Mapping[str, Mapping[str, Any]]

    @staticmethod
    def open(folder: Path) -> Store | None:
        """Return the store in `folder`, or None where there is none.

        Raises Mistake when what is there is no store that this version reads.
        """
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            found = manifest["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder, "its manifest.json cannot be read") from error
        if found != FORMAT:
            raise Mistake(
                f"the prepared store {folder} has format {found} but this version reads format "
                f"{FORMAT}: delete that folder, and the log is prepared anew"
            )
        try:
            periods = list(manifest["periods"])
            files = [{one["file"]: one for one in manifest[kind]} for kind in ("logs", "tables")]
            entries = [(PERIOD, one) for one in periods]
            entries += [(ENTRY, one) for kind in files for one in kind.values()]
            if not periods or any(not keys <= set(one) for keys, one in entries):
                raise KeyError
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(folder, "its manifest.json lacks a part") from error
        try:
            content = json.loads((folder / "schema.json").read_text())
            known = periods[-1]["known"]
            content["vocabularies"] = {name: known[name] for name in content["vocabularies"]}
            content["lists"] = {
                name: ListField(**field) for name, field in content["lists"].items()
            }
            schema = Schema(**{"of_item": None, **content})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(folder, "its schema.json cannot be read") from error
        return Store(folder, schema, periods, files[0], files[1])

    def vocabulary(self, name: str) -> pl.DataFrame:
        """Return the value, id and first_period of every id of a vocabulary but 0, by id."""
        frame = self._parquet(vocabulary_file(self.folder, name))
        known = self.schema.vocabularies[name] - 1
        if len(frame) < known:
            raise _damaged(self.folder, f"its vocabulary {name} is too short")
        return frame.head(known)

    def state(self, names: Iterable[str]) -> STATE:
        """Return what the period after the last one needs besides the vocabularies."""
        folder = state_folder(self.folder, len(self.periods) - 1)
        frames = {name: self._parquet(folder / f"{name}.parquet") for name in names}
        return {
            name: {column.name: column.to_numpy() for column in frame}
            for name, frame in frames.items()
        }

    def _parquet(self, file: Path, start: int = 0, count: int | None = None) -> pl.DataFrame:
        try:
            if (start, count) != (0, None):
                return pl.scan_parquet(file, glob=False).slice(start, count).collect()
            return pl.read_parquet(file, memory_map=False, glob=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            part = file.relative_to(self.folder)
            raise _damaged(self.folder, f"its file {part} cannot be read") from error

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

    def fingerprints(self, pretrain: int) -> list[str]:
        """Return for each period the digest of the rows up to it, their schema and the numbers' scale."""
        meaning = asdict(self.schema) | {"vocabularies": list(self.schema.vocabularies)}
        for key in ("of_item", "sampled"):  # they say nothing of what is in the rows
            del meaning[key]
        if not self.schema.behaviours:
            del meaning["behaviours"]
        digest, found = hashlib.sha256(json.dumps(meaning).encode()), []
        for part in self.scale(pretrain):
            digest.update(part.tobytes())
        for period in self.periods:
            digest.update(f"{period['name']} {period['digest']}".encode())
            found.append(digest.hexdigest()[:32])
        return found

    def read(
        self,
        t: int,
        mean: NDArray[np.float64],
        deviation: NDArray[np.float64],
        start: int = 0,
        count: int | None = None,
    ) -> Batch:
        """Load `count` rows of period t (None: the rest) as packed tensors, from row `start` on.

        A missing number becomes the mean, 0.
        """
        frame = self._parquet(period_file(self.folder, t), start, count)
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
            outcome=self._outcome(frame),
        )

    def _outcome(self, frame: pl.DataFrame) -> torch.Tensor | None:
        if not self.schema.behaviours:
            return None
        columns = frame.select(f"outcome.{name}" for name in self.schema.behaviours)
        return _tensor(columns.to_numpy(order="c"), np.int8)


def _tensor(array: NDArray[Any], dtype: type[np.generic] | None = None) -> torch.Tensor:
    """Return a contiguous tensor of its own memory."""
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))


def period_file(folder: Path, t: int) -> Path:
    """Return where period t lies."""
    return folder / f"period={t:04d}" / "rows.parquet"


def write_period(
    folder: Path,
    t: int,
    name: str,
    rows: Rows,
    fields: Sequence[str],
    numbers: Sequence[str],
    behaviours: Sequence[str] = (),
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
    columns |= {f"outcome.{one}": rows.outcome[:, k] for k, one in enumerate(behaviours)}
    file = period_file(folder, t)
    file.parent.mkdir(parents=True)
    pl.DataFrame(columns).write_parquet(file, row_group_size=GROUP)

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


def vocabulary_file(folder: Path, name: str) -> Path:
    """Return where a vocabulary lies."""
    return folder / "vocab" / f"{quote(name, safe='')}.parquet"


def state_folder(folder: Path, t: int) -> Path:
    """Return where the state after period t lies."""
    return folder / "state" / f"period={t:04d}"


def write_rest(
    folder: Path,
    schema: Schema,
    periods: Sequence[Mapping[str, Any]],
    vocabularies: Mapping[str, Vocabulary],
    state: STATE,
) -> None:
    """Write the schema, the vocabularies and the state after the last of all `periods`."""
    (folder / "vocab").mkdir(parents=True)
    for name, vocabulary in vocabularies.items():
        known = [period["known"][name] for period in periods]
        ids = np.arange(1, len(vocabulary), dtype=np.int32)
        first = np.searchsorted(known, ids, side="right").astype(np.int32)
        columns = {"value": vocabulary.values[1:], "id": ids, "first_period": first}
        pl.DataFrame(columns).write_parquet(vocabulary_file(folder, name))
    for name, arrays in state.items():
        file = state_folder(folder, len(periods) - 1) / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(dict(arrays)).write_parquet(file)
    content = asdict(schema) | {"vocabularies": list(schema.vocabularies)}
    if not schema.behaviours:
        del content["behaviours"]  # as stores from before there were these
    (folder / "schema.json").write_text(json.dumps(content, indent=1) + "\n")


def write_manifest(
    folder: Path,
    periods: Sequence[Mapping[str, Any]],
    logs: Mapping[str, Mapping[str, Any]],
    tables: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the manifest, with the raw files by name."""
    files = {
        kind: [entries[name] for name in sorted(entries)]
        for kind, entries in (("logs", logs), ("tables", tables))
    }
    manifest = {"format": FORMAT, **files, "periods": list(periods)}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _damaged(folder: Path, what: str) -> Mistake:
    return Mistake(
        f"the prepared store {folder} is damaged, {what}: delete that folder, and the log is prepared anew"
    )
