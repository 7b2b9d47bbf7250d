"""What a trial of a search is judged by: the mean over its tune periods so far."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from incrs import results
from incrs.dashboard import Timing, Watcher
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.period import Role
from incrs.results import POOLED, Row, headline
from incrs.signals import uninterrupted

if TYPE_CHECKING:
    import optuna


class Stopped(Exception):
    """A trial is not worth going on with."""


class NoSuchMetric(Mistake):
    """The number to judge by is none that runs have."""


class Judge(Watcher):
    """Reports a trial's mean over its tune periods so far; ends the run where the pruner says so.

    It ends before the next period is trained on, when all of the one scored is on disk.
    folder: of the run.  metric: pooled, None for the one that the run is shown by.  periods: tune
    periods, after the last of which there is nothing to save.
    """

    def __init__(self, folder: RunFolder, trial: optuna.Trial, metric: str | None, periods: int):
        self._folder, self._trial, self._periods = folder, trial, periods
        self.metric = metric
        self._values: dict[int, float | None] = {}
        self._hopeless = False

    def run_begins(self) -> None:
        """Take up what the run had scored before it was stopped, and what the pruner says of it."""
        if self._folder.results.exists():
            self._take(results.read(self._folder.results))
            with uninterrupted():
                if max(self._reported, default=None) == len(self._values) - 1:
                    self._ask()

    def period_begins(self, period: int, name: str, steps: int) -> None:
        """Stop here where the pruner said so."""
        if self._hopeless:
            raise Stopped

    def period_learnt(self, losses: Sequence[float], timing: Timing) -> None:
        """Stop here, too: an updater may train on nothing."""
        if self._hopeless:
            raise Stopped

    def period_scored(self, rows: Sequence[Row], timing: Timing) -> None:
        """Report the mean so far and ask whether to go on."""
        self._take(rows)
        step = len(self._values) - 1
        if self.value is None:
            return
        with uninterrupted():
            if step not in self._reported:
                self._trial.report(self.value, step)
            self._ask()

    def _ask(self) -> None:
        self._hopeless = len(self._values) < self._periods and self._trial.should_prune()

    @property
    def _reported(self) -> dict[int, float]:
        return self._trial.study.trials[self._trial.number].intermediate_values

    @property
    def scored(self) -> int:
        """How many tune periods were scored."""
        return len(self._values)

    @property
    def value(self) -> float | None:
        """The mean over the tune periods so far that have the number."""
        there = [value for value in self._values.values() if value is not None]
        return statistics.fmean(there) if there else None

    def _take(self, rows: Sequence[Row]) -> None:
        pooled = [row for row in rows if row.scenario == POOLED]
        if any(row.role != Role.TUNE for row in pooled):
            raise RuntimeError("a trial has scored a period that is none of the tune periods")
        metric = self.metric or headline(rows)[0]
        if pooled and metric not in {row.metric for row in pooled}:
            known = ", ".join(dict.fromkeys(row.metric for row in pooled))
            raise NoSuchMetric(f"metric={metric}: the runs have no such number, they have {known}")
        self.metric = metric
        self._values |= {row.period: row.value for row in pooled if row.metric == metric}
