"""What a run leaves on disk: results, run.json, the serving weights and the place to go on from.

    results.csv                     one tidy row per number
    run.json                        configuration, versions, data, timings: all it takes to repeat it
    serving/period=0007.safetensors the weights that serve period 7, learnt from periods 0 .. 6;
                                    row k of a table is the log's id k, or with admission or expiry
                                    what period=0007.ids.safetensors says
    checkpoint/period=0006-scored/  what training on period 7 starts from; only the last is kept.
                                    `-scored` where period 7 had come and was scored. There is one after
                                    the last period, and before that after every one, but that
                                    writing them shall take a hundredth of the time at most
    findings.csv                    what updaters found out in each period, where any does
    selection.csv, selection.png, pruned/       what a selector kept: see `incrs.selection`
    curves.png, findings_*.png, losses.csv      for people
    wandb.json, wandb/              the run's name at Weights & Biases and its files, where it is asked for

Everything is written whole or not at all, so a run killed at any moment can go on.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from incrs import results, states
from incrs.dashboard import Timing
from incrs.errors import Mistake, is_full
from incrs.module import ScenarioModule
from incrs.results import Row, replace_text, replacing
from incrs.roster import Roster
from incrs.updaters.base import Weights

PAUSE = 100
"""Times as long as it took to write a checkpoint passes until the next one."""


class Done(NamedTuple):
    """How far a run is: the last period learnt, and whether the one after it was scored."""

    period: int
    scored: bool


class RunFolder:
    """Reads and writes the files of one run.  path: the folder; made when first written to."""

    def __init__(self, path: Path):
        self.path = path
        self._next = -math.inf  # when a checkpoint is due, by the monotonic clock

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() >= self._next

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep the folder for this process while inside.  Raises Mistake where another one has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / ".lock"
        with file.open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if file.stat().st_ino != os.fstat(handle.fileno()).st_ino:
                    raise FileNotFoundError  # its last owner just took it away
            except (BlockingIOError, FileNotFoundError):
                raise Mistake(
                    f"{self.path}: another process is working on this run; wait for it, or stop it"
                ) from None
            try:
                yield
            finally:
                file.unlink(missing_ok=True)  # somebody may have taken the folder away

    @contextmanager
    def written(self) -> Iterator[None]:
        """Raise Mistake where the disk turns out to be full, or the folder is removed, while inside."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            ours = isinstance(error, SafetensorError) or str(self.path) in str(error)
            if ours and not self.path.exists():
                raise Mistake(
                    f"{self.path}: the folder was removed while the run worked in it; start the run again"
                ) from error
            if not is_full(error):
                raise
            how = f", then go on with resume={self.path}" if self.record else ""
            raise Mistake(
                f"{self.path}: the disk is full ({' '.join(str(error).split())}): free some of it{how}; "
                "what was saved before is whole"
            ) from error

    @property
    def results(self) -> Path:
        """The path of results.csv."""
        return self.path / results.FILE

    @property
    def record(self) -> dict[str, Any]:
        """What run.json says; empty where there is none."""
        file = self.path / "run.json"
        try:
            return json.loads(file.read_text()) if file.exists() else {}
        except ValueError as error:
            raise Mistake(f"{file} cannot be read, so nothing can go on there: {error}") from error

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write run.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        replace_text(self.path / "run.json", json.dumps(record, indent=2) + "\n")

    def timing(self, period: int) -> Timing | None:
        """Return what run.json says that a period cost so far."""
        for one in self.record.get("timings", []):
            if one["period"] == period:
                return Timing(**{key: one[key] for key in Timing._fields if key in one})
        return None

    def add_timing(self, timing: Timing) -> None:
        """Add what a period cost to run.json, in the place of an earlier try at it."""
        record = self.record
        kept = [one for one in record.get("timings", []) if one["period"] < timing.period]
        seconds = timing.fit_seconds
        rate = round(timing.rows_trained / seconds) if timing.rows_trained and seconds else None
        record["timings"] = [*kept, timing._asdict() | {"rows_per_second": rate}]
        self.write_record(record)

    def read_serving(self, period: int) -> Weights:
        """Return the weights that serve `period`."""
        return states.load(self.path / "serving" / f"period={period:04d}.safetensors")

    def write_serving(self, period: int, weights: Weights, roster: Roster) -> None:
        """Write the weights that serve `period` and, where it is not the row's number, each row's id."""
        folder = self.path / "serving"
        folder.mkdir(parents=True, exist_ok=True)
        written = {f"period={period:04d}.safetensors": weights}
        if roster.selective:
            written = {f"period={period:04d}.ids.safetensors": roster.ids} | written
        for name, tensors in written.items():
            with replacing(folder / name) as partial:
                states.save(tensors, partial)

    def save(self, period: int, scored: bool, module: ScenarioModule, roster: Roster) -> None:
        """Write the checkpoint after `period`, then drop the one before it.

        scored: whether the period after it had come and was scored.
        """
        began = time.monotonic()
        parent = self.path / "checkpoint"
        target = parent / (f"period={period:04d}" + ("-scored" if scored else ""))
        partial = parent / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            states.save(module.backbone.state_dict(), partial / "backbone.safetensors")
            states.write(partial / "optimizer", states.flat_optimizer(module.optimizer_state))
            states.write(partial / "roster", roster.state_dict())
            for name, updater in module.updaters.items():
                states.write(partial / f"updater-{name}", updater.state_dict())
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for old in parent.glob("period=*"):
            if old != target:
                shutil.rmtree(old)
        ended = time.monotonic()
        self._next = ended + PAUSE * (ended - began)

    def restore(self, module: ScenarioModule, roster: Roster) -> Done | None:
        """Load the last checkpoint into module and roster; return how far it is, None if there is none."""
        found = sorted((self.path / "checkpoint").glob("period=*"))
        if not found:
            return None
        roster.load_state_dict(states.read(found[-1] / "roster"))
        weights = states.load(found[-1] / "backbone.safetensors")
        optimizer_state = states.packed_optimizer(states.read(found[-1] / "optimizer"))
        sizes = {v: len(weights[name]) for name, (_, v) in module.backbone.tables().items()}
        ids = {name: ids[: sizes.get(name)] for name, ids in roster.ids.items()}
        module.restore(weights, optimizer_state, ids)
        for name, updater in module.updaters.items():
            updater.load_state_dict(states.read(found[-1] / f"updater-{name}"))
        period, _, scored = found[-1].name.removeprefix("period=").partition("-")
        return Done(int(period), bool(scored))

    def rows_until(self, period: int) -> list[Row]:
        """Return the rows of results.csv up to and including `period`."""
        if not self.results.exists():
            return []
        return [row for row in results.read(self.results) if row.period <= period]

    def write_results(self, rows: Sequence[Row]) -> None:
        """Write results.csv."""
        self.path.mkdir(parents=True, exist_ok=True)
        results.write(self.results, rows)
