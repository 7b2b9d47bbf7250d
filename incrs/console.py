"""What a person sees while a run goes on: a progress bar and one line per period."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from incrs.dashboard import Timing, Watcher
from incrs.results import POOLED, Row, Run, headline, title

terminal = Terminal(highlight=False, soft_wrap=True)


def line(text: str) -> None:
    """Print one line."""
    terminal.print(text, markup=False)


class Progressing(Watcher):
    """Shows the steps of the period in training, and a line for each period scored.

    about: the run's name.  periods: how many there are to train on.
    """

    def __init__(self, about: Run, periods: int):
        self._title = f"{about.model} · {about.updater} · {about.data} · seed {about.seed}"
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            console=terminal,
            transient=True,
            disable=not terminal.is_terminal,
        )
        self._periods = periods
        self._task = self._bar.add_task("", total=None)

    def run_begins(self) -> None:
        """Print the run's name, and begin the bar."""
        line(self._title)
        self._bar.start()

    def period_begins(self, period: int, name: str, steps: int) -> None:
        """Begin a bar of its own for the period."""
        text = f"period {period} of {self._periods - 1}"
        self._bar.reset(self._task, total=steps, description=f"{text} ({name})")

    def step_done(self) -> None:
        """Move the bar."""
        self._bar.advance(self._task)

    def period_learnt(self, losses: Sequence[float], timing: Timing) -> None:
        """Say so where no other period follows."""
        if timing.period == self._periods - 1:
            line(f"  {timing.name}  learnt; its model serves what comes next")

    def period_scored(self, rows: Sequence[Row], timing: Timing) -> None:
        """Print the period's line."""
        value = {(row.scenario, row.metric): row.value for row in rows}
        main, second = headline(rows)
        scenarios = [s for s, metric in value if metric == main and s != POOLED]
        parts = [f"{s} {number(value[s, main])}" for s in scenarios]
        oracle = value.get((POOLED, f"oracle_{main}"))
        best = "" if oracle is None else f" of {number(oracle)}"
        line(
            f"  {timing.scored}  {rows[0].role:<4}  {title(main)} {number(value[POOLED, main])}{best}  "
            f"{title(second)} {number(value[POOLED, second])}  by scenario {'  '.join(parts)}  "
            f"{timing.fit_seconds + timing.score_seconds:.1f} s{', training shared' * timing.shared}"
        )

    def run_ends(self, finished: bool) -> None:
        """Take the bar away."""
        self._bar.stop()


def number(value: float | None) -> str:
    """Return a metric with four decimals, or a dash where it is not defined."""
    return "-" if value is None else f"{value:.4f}"
