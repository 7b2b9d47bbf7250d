"""What one run shows at its end: a table of periods by scenarios, and curves as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from incrs.console import number, terminal
from incrs.results import POOLED, Row, Run, replacing


def scenarios_of(rows: Iterable[Row]) -> list[str]:
    """Return the scenarios of the rows in their order, `all` last."""
    names = dict.fromkeys(row.scenario for row in rows if row.metric == "auc")
    return [name for name in names if name != POOLED] + [POOLED]


def show_run(rows: Sequence[Row], about: Run, names: Mapping[int, str]) -> None:
    """Print a run's tables: periods by scenarios, AUC then log loss, and those of who is new."""
    if not rows:
        terminal.print("no period was scored yet: the log ends with the warm-up")
        return
    for metric, title in (("auc", "AUC"), ("logloss", "log loss")):
        terminal.print(table_of_run(rows, metric, f"{title}: {' · '.join(about[1:4])}", names))
    table = table_of_news(rows)
    if table.columns:
        terminal.print(table)


def table_of_run(rows: Sequence[Row], metric: str, title: str, names: Mapping[int, str]) -> Table:
    """Return the table of one metric: a line for each period, a column for each scenario.

    names: what people call the periods, by index.
    """
    wanted = [(name, metric) for name in scenarios_of(rows)]
    if any(row.metric == f"oracle_{metric}" for row in rows):
        wanted.append((POOLED, f"oracle_{metric}"))
    value = {(row.period, row.scenario, row.metric): row.value for row in rows}
    roles = {row.period: row.role for row in rows}
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("period", justify="right")
    table.add_column("role")
    for name, what in wanted:
        table.add_column(name if what == metric else "oracle", justify="right")

    def cells(periods: Sequence[int]) -> list[str]:
        found = []
        for name, what in wanted:
            there = [v for t in periods if (v := value.get((t, name, what))) is not None]
            found.append(number(float(np.mean(there)) if there else None))
        return found

    for period, role in roles.items():
        dead = value.get((period, POOLED, "collapsed"))
        table.add_row(
            names.get(period, str(period)), role + (" collapsed" if dead else ""), *cells([period])
        )
    table.add_section()
    for role in dict.fromkeys(roles.values()):
        table.add_row("mean", role, *cells([t for t, r in roles.items() if r == role]))
    return table


def table_of_news(rows: Sequence[Row]) -> Table:
    """Return AUC, log loss and share of the rows of new and of known users and items.

    Means over the test periods, or the tune periods where there is no test period.
    """
    role = "test" if any(row.role == "test" for row in rows) else "tune"
    table = Table(title=f"who is new: {role} periods", title_justify="left", box=box.SIMPLE_HEAD)
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.role == role and row.scenario == POOLED:
            found.setdefault(row.metric, []).append(row)
    groups = [name.removeprefix("auc_") for name in found if name.startswith("auc_")]
    if not groups:
        return table
    table.add_column("")
    for group in groups:
        table.add_column(group.replace("_", " "), justify="right")
    for metric, label in (("auc", "AUC"), ("logloss", "log loss")):
        means = [
            [row.value for row in found[f"{metric}_{group}"] if row.value is not None]
            for group in groups
        ]
        table.add_row(label, *(number(float(np.mean(m)) if m else None) for m in means))
    every = sum(row.rows for row in found["auc"])
    shares = [sum(row.rows for row in found[f"auc_{group}"]) / every for group in groups]
    table.add_row("rows", *(f"{share:.1%}" for share in shares))
    return table


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw AUC by period, a panel for each scenario, the oracle dotted where it is known."""
    names = scenarios_of(rows)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        across = min(3, len(names))
        down = -(-len(names) // across)
        figure = Figure(figsize=(3.6 * across, 2.6 * down), layout="constrained")
        axes = np.atleast_1d(figure.subplots(down, across, squeeze=False)).ravel()
        for axis, name in zip(axes, names, strict=False):
            for metric, style in (("auc", "o-"), ("oracle_auc", "k:")):
                found = [r for r in rows if r.scenario == name and r.metric == metric]
                if found:
                    values = [np.nan if r.value is None else r.value for r in found]
                    label = "oracle" if metric == "oracle_auc" else found[0].updater
                    axis.plot([r.period for r in found], values, style, label=label, markersize=3)
            axis.set_title(f"scenario {name}" if name != POOLED else "all scenarios")
            axis.set_xlabel("period")
            axis.set_ylabel("AUC")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.25)
        for axis in axes[len(names) :]:
            axis.remove()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
        with replacing(path) as partial:
            figure.savefig(partial, dpi=150, format="png")
