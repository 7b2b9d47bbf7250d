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
from incrs.results import POOLED, Row, Run, headline, replacing
from incrs.results import title as titled


def scenarios_of(rows: Iterable[Row]) -> list[str]:
    """Return the scenarios of the rows in their order, `all` last."""
    rows = list(rows)
    main, _ = headline(rows)
    names = dict.fromkeys(row.scenario for row in rows if row.metric == main)
    return [name for name in names if name != POOLED] + [POOLED]


def show_run(rows: Sequence[Row], about: Run, names: Mapping[int, str]) -> None:
    """Print a run's tables: periods by scenarios, of the two metrics it is shown by, and who is new."""
    if not rows:
        terminal.print("no period was scored yet: the log ends with the warm-up")
        return
    for metric in headline(rows):
        title = f"{titled(metric)}: {' · '.join(about[1:4])}"
        terminal.print(table_of_run(rows, metric, title, names))
    table = table_of_news(rows)
    if table.row_count:
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
    """Return the table of new and known users and items: their share of the rows, and their metrics.

    A line for each kind and for each pair of kinds that has rows. Means over the test periods, or the
    tune periods where there is no test period.
    """
    role = "test" if any(row.role == "test" for row in rows) else "tune"
    main, second = headline(rows)
    table = Table(title=f"who is new: {role} periods", title_justify="left", box=box.SIMPLE_HEAD)
    for head in ("", titled(main), titled(second), "rows"):
        table.add_column(head, justify="right" if head else "left")
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.role == role and row.scenario == POOLED:
            found.setdefault(row.metric, []).append(row)
    every = sum(row.rows for row in found.get(main, ()))
    for name in found:
        group = name.removeprefix(f"{main}_")
        count = sum(row.rows for row in found[name])
        if group == name or not count:
            continue
        cells = []
        for metric in (main, second):
            values = [r.value for r in found[f"{metric}_{group}"] if r.value is not None]
            cells.append(number(float(np.mean(values)) if values else None))
        table.add_row(group.replace("_", " "), *cells, f"{count / every:.1%}")
    return table


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw the run's first metric by period, a panel for each scenario, the oracle's dotted if known."""
    names, (main, _) = scenarios_of(rows), headline(rows)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        across = min(3, len(names))
        down = -(-len(names) // across)
        wide, high = 3.6 * across, 2.6 * down
        figure = Figure(figsize=(wide, high))
        inches = {"left": 0.6, "right": wide - 0.1, "bottom": 0.45, "top": high - 0.55}
        figure.subplots_adjust(
            **{
                side: x / (wide if side in ("left", "right") else high)
                for side, x in inches.items()
            },
            wspace=0.25,
            hspace=0.5,
        )
        axes = np.atleast_1d(figure.subplots(down, across, squeeze=False)).ravel()
        for axis, name in zip(axes, names, strict=False):
            for metric, style in ((main, "o-"), (f"oracle_{main}", "k:")):
                found = [r for r in rows if r.scenario == name and r.metric == metric]
                if found:
                    values = [np.nan if r.value is None else r.value for r in found]
                    label = "oracle" if metric != main else found[0].updater
                    axis.plot([r.period for r in found], values, style, label=label, markersize=3)
            title = f"scenario {name}" if name != POOLED else "all scenarios"
            axis.set_title(title, y=1.0)  # its place given: matplotlib asks every tick otherwise
            axis.set_xlabel("period")
            axis.set_ylabel(titled(main))
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.25)
        for axis in axes[len(names) :]:
            axis.remove()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="upper right", ncols=2)
        with replacing(path) as partial:
            figure.savefig(partial, dpi=150, format="png", pil_kwargs={"compress_level": 1})
