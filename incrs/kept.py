"""Whole runs that need not be computed again: what a finished one left, for the next that computes the same.

The files are hard links where the folders are on one disk, so they take no room of their own as long as
the run's folder is there. A file of the run that was changed by hand is noticed, and the run is computed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError

from incrs import results, states
from incrs.dashboard import Timing, Watcher
from incrs.folder import RunFolder
from incrs.results import Row
from incrs.shelf import LISTED, Shelf
from incrs.signals import uninterrupted

TIMINGS = ".timings.json"


class Kept:
    """One run on the shelf.  key: a digest of all that its files depend on.  folder: the run's own."""

    def __init__(self, shelf: Shelf, key: str, folder: RunFolder):
        self._shelf, self._name, self._folder = shelf, f"run-{key}", folder

    def keep(self) -> None:
        """Put the finished run on the shelf: all but its record and what is Weights & Biases' own."""

        def write(to: Path) -> None:
            for file in sorted(self._folder.path.rglob("*")):
                part = file.relative_to(self._folder.path)
                apart = part.name.startswith((".", "run.json")) or part.parts[0].startswith("wandb")
                if file.is_file() and not apart:
                    link(file, to / part)
            (to / TIMINGS).write_text(json.dumps(self._folder.record["timings"]))

        with self._shelf.claimed(self._name):
            if self._shelf.find(self._name) is None:
                self._shelf.put(self._name, write)

    def take(self, watchers: Sequence[Watcher]) -> list[Row] | None:
        """Fill the run's folder and tell the watchers what happened; None where there is no such run.

        Its timings are what the run took when it was computed, all marked as shared. Watchers are told
        losses where those are still on the shelf.
        """
        entry = self._shelf.find(self._name)
        partial = self._folder.path / ".kept.partial"
        if entry is None or (self._folder.path / "checkpoint").exists():
            return None
        try:
            listed = json.loads((entry / TIMINGS).read_text())
            shutil.rmtree(partial, ignore_errors=True)
            for file in entry.rglob("*"):
                if file.is_file() and file.name not in (TIMINGS, LISTED):
                    link(file, partial / file.relative_to(entry))
        except (FileNotFoundError, ValueError):  # it went meanwhile
            shutil.rmtree(partial, ignore_errors=True)
            return None
        timings = [Timing(**{k: one[k] for k in Timing._fields}) for one in listed]
        timings = [one._replace(shared=bool(one.phase)) for one in timings]
        rows = results.read(partial / results.FILE)
        try:
            tell(watchers, timings, rows, self._shelf)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        marked = [old | new._asdict() for old, new in zip(listed, timings, strict=True)]
        with uninterrupted():
            self._folder.write_record(self._folder.record | {"timings": marked})
            for part in sorted(partial.iterdir(), key=lambda part: part.name == "checkpoint"):
                target = (
                    self._folder.path / part.name
                )  # the checkpoint last: it says that all is there
                if target.is_dir():
                    shutil.rmtree(target)
                part.replace(target)
            partial.rmdir()
        return rows


def tell(
    watchers: Sequence[Watcher], timings: Sequence[Timing], rows: Sequence[Row], shelf: Shelf
) -> None:
    """Tell watchers of a run that has been."""
    for timing in timings:
        losses = losses_of(shelf, timing.phase)
        found = [row for row in rows if row.period == timing.period + 1]
        for watcher in watchers:
            watcher.period_learnt(losses, timing)
            if found:
                watcher.period_scored(found, timing)


def losses_of(shelf: Shelf, phase: str) -> list[float]:
    """Return the losses of a phase's steps, none where it is no longer on the shelf."""
    try:
        file = shelf.folder / f"phase-{phase}" / "rest.safetensors"
        return [float(x) for x in states.load(file)["losses"]]
    except (OSError, SafetensorError, KeyError):
        return []


def link(file: Path, target: Path) -> None:
    """Give a file another name, or copy it where the two places share no disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)
