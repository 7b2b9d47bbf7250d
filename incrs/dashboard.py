"""What watches a run: the contract of a watcher, and the ones that write for other tools.

Watchers are told what happened; nothing they do changes a number.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from incrs.results import Row


class Timing(NamedTuple):
    """What one period cost.

    period, name: the period trained on.  scored: the name of the one scored, empty after the last.
    fit_seconds, score_seconds: wall clock.  rows_trained: summed over epochs.  rows_scored: rows.
    """

    period: int
    name: str
    scored: str
    fit_seconds: float
    score_seconds: float
    rows_trained: int
    rows_scored: int


class Watcher:
    """Is told what happens in a run; every default does nothing."""

    def period_begins(self, period: int, name: str, steps: int) -> None:
        """Training on `period` begins; it takes `steps` optimizer steps."""

    def step_done(self) -> None:
        """One optimizer step was taken."""

    def period_done(self, rows: Sequence[Row], losses: Sequence[float], timing: Timing) -> None:
        """A period was trained and, unless it is the last (then no rows), the next one scored.

        rows: what the scores gave.  losses: the training loss of every step.
        """

    def run_ends(self) -> None:
        """The run is over, well or not."""


class LossCsv(Watcher):
    """Writes `losses.csv` into the run folder: the training loss of every `every`-th step.

    folder: the run folder.  every: steps, at least 1.
    """

    def __init__(self, folder: str, every: int = 10):
        self.path, self.every = Path(folder) / "losses.csv", every

    def period_done(self, rows: Sequence[Row], losses: Sequence[float], timing: Timing) -> None:
        """Append the period's losses."""
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(("period", "step", "loss"))
            for step in range(0, len(losses), self.every):
                writer.writerow((timing.period, step, losses[step]))
