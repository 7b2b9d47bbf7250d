"""The report as one picture, for a README or a paper: period by period, a column for each log and model.

python -m incrs.report multirun/2026-01-31/10-00-00 --picture report.png     # or .svg, .pdf
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from incrs import figures, results
from incrs.errors import Mistake
from incrs.results import POOLED, replacing
from incrs.runs import Runs
from incrs.summary import Line

MOST = 8
"""Lines of one panel: the best, and the baseline."""


def draw(
    path: Path,
    runs: Runs,
    lines: Sequence[Line],
    baseline: str,
    role: str,
    metrics: tuple[str, str],
) -> None:
    """Draw the pooled metric by period and its difference to the baseline into `path`, by its ending.

    Bands: the lowest and highest seed above, the 95% t-interval of a period's pairs below.
    """
    form = path.suffix.removeprefix(".")
    if form not in Figure().canvas.get_supported_filetypes():
        raise Mistake(f"--picture {path}: give a file that ends in .png, .svg or .pdf")
    rivals = {
        (line.data, line.model, line.updater): line.baseline for line in lines if line.baseline
    }
    found = figures.curves(figures.of_metric(runs, metrics[0]), rivals)
    found = found.filter(scenario=POOLED).sort("period")
    groups = list(dict.fromkeys((line.data, line.model) for line in lines))
    title = results.title(metrics[0])
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(max(6.0, 3.2 * len(groups)), 5.2), layout="constrained")
        axes = figure.subplots(2, len(groups), squeeze=False, sharex="col")
        styles = _styles(lines, baseline)
        for column, (data, model) in enumerate(groups):
            own = [line for line in lines if (line.data, line.model) == (data, model)]
            shown = [one for one in own if one.updater == one.baseline]
            shown += [one for one in own if one not in shown][: MOST - len(shown)]
            scored = runs.table.filter(log=data, role=role)["period"].unique().to_list()
            for line in shown:
                curve = found.filter(log=data, model=model, label=line.updater)
                curve = curve.filter(pl.col("period").is_in(scored))
                _band(axes[0, column], curve, ("mean", "low", "high"), line.updater, styles)
                if line.gap is not None:
                    _band(
                        axes[1, column], curve, ("gap", "gapLow", "gapHigh"), line.updater, styles
                    )
            several = len({data for data, _ in groups}) > 1
            axes[0, column].set_title(f"{data}, {model}" if several else model)
            axes[1, column].axhline(0, color="black", linewidth=0.8)
            axes[1, column].set_xlabel(f"{role} period")
            axes[1, column].xaxis.get_major_locator().set_params(integer=True)
        if len({data for data, _ in groups}) == 1:
            figure.suptitle(groups[0][0])
        axes[0, 0].set_ylabel(title)
        axes[1, 0].set_ylabel(f"{title} minus {baseline}'s")
        handles = {
            label: handle
            for axis in axes[0]
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        letters = 13 * figure.get_figwidth()  # that fit side by side
        across = max(1, int(letters // (8 + max(map(len, handles)))))
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=min(across, 6)
        )
        with replacing(path) as partial:
            figure.savefig(partial, dpi=150, format=form)


def _styles(lines: Sequence[Line], baseline: str) -> dict[str, tuple[str, str]]:
    """Return label -> colour and line style: black for the baseline, ten colours again for the others."""
    others = dict.fromkeys(line.updater for line in lines if line.updater != baseline)
    styles = {
        label: (f"C{i % 10}", ("-", "--", ":")[i // 10 % 3]) for i, label in enumerate(others)
    }
    return styles | {baseline: ("black", "-")}


def _band(
    axis: Axes,
    curve: pl.DataFrame,
    names: tuple[str, str, str],
    label: str,
    styles: dict[str, tuple[str, str]],
) -> None:
    """Draw a curve and the band around it where there is one."""
    x, (mean, low, high) = curve["period"], (curve[name].to_numpy() for name in names)
    colour, style = styles[label]
    axis.plot(x, mean, style, color=colour, marker="o", markersize=3, label=label)
    axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.grid(alpha=0.25)
