"""What a search has found: a table of the best trials, a file of all, a picture of each setting."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from incrs.results import replace_text, replacing, title
from incrs.search import Choice, Range

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

STATES = {"COMPLETE": "whole", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
SHOWN = 10
"""Trials in the table."""


def ranked(trials: Sequence[FrozenTrial], minimal: bool) -> list[FrozenTrial]:
    """Return the trials, best first: whole ones, pruned ones, then those without a value."""
    order = list(STATES)

    def key(one: FrozenTrial) -> tuple[int, float, int]:
        value = one.value if one.value is not None else 0.0
        return order.index(one.state.name), value if minimal else -value, one.number

    return sorted((one for one in trials if one.state.name in STATES), key=key)


def settings_of(trial: FrozenTrial) -> Mapping[str, str]:
    """Return what a trial tried, as it is written on a command line."""
    found: Mapping[str, str] = trial.user_attrs.get("settings", {})
    return found


def metric_of(trials: Sequence[FrozenTrial]) -> str:
    """Return the number that the trials were judged by."""
    return next(
        (str(t.user_attrs["metric"]) for t in trials if t.user_attrs.get("metric")), "value"
    )


def write(trials: Sequence[FrozenTrial], settings: Sequence[str], path: Path) -> None:
    """Write a line for each trial: its number, state, value, tune periods, seconds and settings."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["trial", "state", metric_of(trials), "periods", "seconds", *settings])
    for one in trials:
        tried = settings_of(one)
        value = "" if one.value is None else one.value
        seconds = round(one.user_attrs.get("seconds", 0.0), 3)
        head = [one.number, STATES.get(one.state.name, ""), value, len(one.intermediate_values)]
        lines.writerow([*head, seconds, *(tried.get(name, "") for name in settings)])
    replace_text(path, out.getvalue())


def show(trials: Sequence[FrozenTrial], minimal: bool) -> None:
    """Print the best trials and how many there were of each kind."""
    counts = [
        f"{count} {word}"
        for name, word in STATES.items()
        if (count := sum(one.state.name == name for one in trials))
    ]
    best = ranked(trials, minimal)[:SHOWN]
    names = list(dict.fromkeys(name for one in best for name in settings_of(one)))
    heading = f"best of {len(trials)} trials ({', '.join(counts)}): means over tune periods"
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD)
    last = [name.rpartition(".")[2] for name in names]
    short = [one if last.count(one) == 1 else name for one, name in zip(last, names, strict=True)]
    for head in ("trial", title(metric_of(trials)), *short, "periods", "s", ""):
        table.add_column(head, justify="right" if head else "left", overflow="fold")
    for one in best:
        value = "-" if one.value is None else f"{one.value:.4f}"
        tried = [settings_of(one).get(name, "-") for name in names]
        periods, seconds = len(one.intermediate_values), one.user_attrs.get("seconds", 0.0)
        state = STATES[one.state.name]
        table.add_row(str(one.number), value, *tried, str(periods), f"{seconds:.1f}", state)
    Console(highlight=False, soft_wrap=True).print(table)


def draw(
    trials: Sequence[FrozenTrial],
    search: Mapping[str, Range | Choice],
    minimal: bool,
    path: Path,
) -> None:
    """Draw the trials' values against every setting that was searched."""
    there = [one for one in ranked(trials, minimal) if one.value is not None]
    with mpl.rc_context({"font.size": 9}):
        width = min(len(search), 3)
        height = -(-len(search) // width)
        figure = Figure(figsize=(4 * width, 3.2 * height), layout="constrained")
        axes = figure.subplots(height, width, squeeze=False).ravel()
        for axis, (name, values) in zip(axes, search.items(), strict=False):
            _draw_one(axis, there, name, values)
            axis.set_xlabel(name)
        for axis in axes[len(search) :]:
            axis.axis("off")
        axes[0].set_ylabel(f"{title(metric_of(trials))}, mean over tune periods")
        handles, labels = axes[0].get_legend_handles_labels()
        if len(handles) > 1:
            figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
        with replacing(path) as partial:
            figure.savefig(partial, dpi=120, format="png")


def _draw_one(axis: Axes, trials: Sequence[FrozenTrial], name: str, values: Range | Choice) -> None:
    """Draw one setting: whole trials filled, pruned ones (their mean so far) hollow, the best a star."""
    own = [one for one in trials if name in settings_of(one)]
    for state, style in (("PRUNED", "none"), ("COMPLETE", "C0")):
        some = [one for one in own if one.state.name == state]
        x = [_place(settings_of(one)[name], values) for one in some]
        y = [float(one.value or 0) for one in some]
        if some:
            edge = "C7" if style == "none" else style
            axis.scatter(x, y, s=28, facecolors=style, edgecolors=edge, label=STATES[state])
    if own and own[0] is trials[0]:
        x = [_place(settings_of(own[0])[name], values)]
        axis.scatter(
            x, [float(own[0].value or 0)], s=140, marker="*", color="C1", label="best", zorder=3
        )
    if isinstance(values, Choice):
        axis.set_xticks(range(len(values.options)), values.options)
        axis.set_xlim(-0.5, len(values.options) - 0.5)
    elif values.log:
        axis.set_xscale("log")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _place(value: str, values: Range | Choice) -> float:
    return values.options.index(value) if isinstance(values, Choice) else float(value)
