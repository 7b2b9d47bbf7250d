"""`findings.csv`: what updaters found out about the weights they make, one tidy row per number.

A name is `<group>.<what>`: the group of weights, with dots or without, and what was measured of it,
without. `findings_<updater>.png` has a panel for each group, with a line over periods for each `<what>`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from incrs.results import replace_text, replacing

FILE = "findings.csv"
PANELS = 12
"""A picture has at most so many groups, the first ones."""


class Finding(NamedTuple):
    """One number that an updater found out when it learnt from `period`: the columns of the file."""

    period: int
    updater: str
    name: str
    value: float


def of(period: int, updater: str, found: Mapping[str, float]) -> list[Finding]:
    """Return the rows of what an updater found out in a period."""
    return [Finding(period, updater, name, float(value)) for name, value in found.items()]


def write(folder: Path, rows: Sequence[Finding]) -> None:
    """Write the rows into a run's folder, whole or not at all; nothing where there is none."""
    if rows:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([Finding._fields, *rows])
        replace_text(folder / FILE, out.getvalue())


def read(folder: Path, until: int | None = None) -> list[Finding]:
    """Read back what `write` wrote, up to and including the period `until`."""
    if not (folder / FILE).exists():
        return []
    with (folder / FILE).open(newline="") as file:
        lines = csv.reader(file)
        next(lines)
        rows = [Finding(int(t), updater, name, float(value)) for t, updater, name, value in lines]
    return [row for row in rows if until is None or row.period <= until]


def draw(folder: Path) -> None:
    """Draw a picture for each updater in findings.csv; see the top of this file."""
    rows = read(folder)
    for updater in dict.fromkeys(row.updater for row in rows):
        own = [row for row in rows if row.updater == updater]
        draw_updater(updater, own, folder / f"findings_{updater}.png")


def draw_updater(updater: str, rows: Iterable[Finding], path: Path) -> None:
    """Draw one updater's findings, a panel for each group."""
    lines: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        group, _, what = row.name.rpartition(".")
        lines.setdefault(group, {}).setdefault(what, []).append((row.period, row.value))
    shown = list(lines)[:PANELS]
    names = list(dict.fromkeys(what for group in shown for what in lines[group]))
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, max(2, len(names))))
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        across = min(3, len(shown))
        down = -(-len(shown) // across)
        wide, high = 3.6 * across, 2.2 * down + 1.0
        figure = Figure(figsize=(wide, high))
        figure.subplots_adjust(
            left=0.6 / wide, right=1 - 0.1 / wide, bottom=0.9 / high, top=1 - 0.6 / high
        )
        axes = figure.subplots(
            down, across, squeeze=False, sharex=True, gridspec_kw={"wspace": 0.25, "hspace": 0.35}
        ).ravel()
        handles = {}
        for axis, group in zip(axes, shown, strict=False):
            for what, points in lines[group].items():
                colour = colours[names.index(what)]
                (handles[what],) = axis.plot(
                    *np.transpose(points), "o-", color=colour, markersize=3
                )
            axis.set_title(group, y=1.0)  # its place given: matplotlib asks every tick otherwise
            if axis.dataLim.y0 > 0 and axis.dataLim.y1 > 10 * axis.dataLim.y0:
                axis.set_yscale("log")
                axis.yaxis.set_minor_locator(NullLocator())
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.25)
        for axis in axes[len(shown) :]:
            axis.remove()
        for axis in axes[max(0, len(shown) - across) : len(shown)]:
            axis.set_xlabel("period")
            axis.tick_params(labelbottom=True)
        of_all = f" ({len(shown)} of {len(lines)} groups)" if len(shown) < len(lines) else ""
        figure.suptitle(f"{updater}{of_all}", x=0.01, ha="left")
        labels = [what for what in names if what in handles]
        figure.legend([handles[x] for x in labels], labels, loc="lower center", ncols=6)
        with replacing(path) as partial:
            figure.savefig(partial, dpi=150, format="png", pil_kwargs={"compress_level": 1})
