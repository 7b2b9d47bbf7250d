"""The door that compares runs: `python -m incrs.report multirun/2026-01-31/10-00-00 [more folders]`

One line per data, model and updater: means over seeds and test periods, the paired difference in
pooled AUC (of runs that rank: Recall) to a baseline updater with its 95% interval, and the median seconds
that an update took.  `--metric ndcg_10` compares by another number of results.csv.
`--role tune` reads the tune periods instead, the only ones that settings may be chosen on.
`--markdown` prints what a README can hold.
`--published` adds what the papers print for the runs' logs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.table import Table
from scipy import stats

from incrs import results
from incrs.console import terminal
from incrs.errors import Mistake
from incrs.published import show_published
from incrs.results import POOLED, Row
from incrs.show import scenarios_of

TEXT = ("data", "model", "updater")
"""The columns of the summary that hold words."""


class Finished(NamedTuple):
    """One run as the report reads it."""

    record: Mapping[str, Any]
    rows: list[Row]


class Line(NamedTuple):
    """One line of the summary: means over seeds and periods of one configuration.

    value: of the metric that the summary is by, pooled and by scenario.  second: of the one beside it.
    """

    data: str
    model: str
    updater: str
    seeds: int
    value: float
    second: float
    by_scenario: dict[str, float]
    difference: float | None
    half_width: float | None
    seconds: float


def find_runs(folders: Sequence[Path]) -> list[Finished]:
    """Read every run below the folders.  Raises Mistake where there is none."""
    found = sorted({file.parent for folder in folders for file in folder.rglob("run.json")})
    runs = [
        Finished(json.loads((one / "run.json").read_text()), results.read(one / results.FILE))
        for one in found
        if (one / results.FILE).exists()
    ]
    if not runs:
        raise Mistake(
            f"no run with results below {' '.join(map(str, folders))}: give a run or sweep folder"
        )
    return runs


def _label(run: Finished, runs: Sequence[Finished]) -> str:
    """Return the updater's name, with the settings that tell it from runs of the same name."""
    about = run.record["about"]
    same = [
        r
        for r in runs
        if all(r.record["about"][k] == about[k] for k in ("data", "model", "updater"))
    ]
    if len({r.record["about"]["run"] for r in same}) == 1:
        return str(about["updater"])
    shared = set.intersection(*(set(r.record["overrides"]) for r in same))
    own = [o for o in run.record["overrides"] if o not in shared and not o.startswith("seed=")]
    own = [o.removeprefix("updater.").removeprefix(f"{about['updater']}.") for o in own]
    return " ".join([about["updater"], *own])


def paired(these: Mapping[Any, float], those: Mapping[Any, float]) -> tuple[float, float] | None:
    """Return the mean difference over the keys of both and the half-width of its 95% t-interval."""
    gaps = np.array([these[key] - those[key] for key in these if key in those])
    if len(gaps) < 2:
        return None
    half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps))
    return float(gaps.mean()), float(half)


SECOND = {"auc": "logloss", "logloss": "auc", "gauc": "auc", "recall": "ndcg", "ndcg": "recall"}


def metrics_of(runs: Sequence[Finished], metric: str | None) -> tuple[str, str]:
    """Return the metric asked for, or that all the runs are shown by, and the one to show beside it.

    Raises Mistake where a run has no such number.
    """
    if metric is None:
        own = {results.headline(run.rows) for run in runs if run.rows}
        return own.pop() if len(own) == 1 else ("auc", "logloss")
    held = {row.metric: None for run in runs for row in run.rows if row.scenario == POOLED}
    if metric not in held:
        raise Mistake(
            f"--metric {metric}: the runs have no such number, they have {', '.join(held)}"
        )
    word, _, rest = metric.partition("_")
    return metric, "_".join([SECOND.get(word, "auc"), *([rest] if rest else [])])


def summarise(
    runs: Sequence[Finished], baseline: str, role: str, metrics: tuple[str, str]
) -> list[Line]:
    """Return a line per configuration, pairs taken over (seed, period) within data and model."""
    main, second = metrics
    groups: dict[tuple[str, str, str], list[Finished]] = {}
    for run in runs:
        about = run.record["about"]
        groups.setdefault((about["data"], about["model"], _label(run, runs)), []).append(run)

    def values(group: Sequence[Finished], metric: str, scenario: str) -> dict[Any, float]:
        return {
            (row.seed, row.period): row.value
            for run in group
            for row in run.rows
            if (row.metric, row.scenario, row.role) == (metric, scenario, role)
            and row.value is not None
        }

    lines = []
    for (data, model, label), group in groups.items():
        pooled = values(group, main, POOLED)
        if not pooled:
            continue
        rival = groups.get((data, model, baseline))
        gap = paired(pooled, values(rival, main, POOLED)) if rival and label != baseline else None
        later = [t for run in group for t in run.record["timings"][1:]]
        lines.append(
            Line(
                data,
                model,
                label,
                len({run.record["about"]["seed"] for run in group}),
                _mean(pooled),
                _mean(values(group, second, POOLED)),
                {
                    name: _mean(found)
                    for name in scenarios_of(group[0].rows)
                    if name != POOLED and (found := values(group, main, name))
                },
                gap[0] if gap else None,
                gap[1] if gap else None,
                float(np.median([update_seconds(t) for t in later])) if later else 0.0,
            )
        )
    models = list(dict.fromkeys((line.data, line.model) for line in lines))
    sign = 1 if main.startswith("logloss") else -1
    return sorted(
        lines, key=lambda line: (models.index((line.data, line.model)), sign * line.value)
    )


def update_seconds(timing: Mapping[str, Any]) -> float:
    """Return what an update cost: training on D_t, and learning from D_{t+1} once it was scored."""
    return float(timing["fit_seconds"] + timing.get("learn_next_seconds", 0.0))


def _mean(values: Mapping[Any, float]) -> float:
    return float(np.mean(list(values.values()))) if values else float("nan")


def cells_of(
    lines: Sequence[Line], baseline: str, metrics: tuple[str, str]
) -> list[dict[str, str]]:
    """Return the summary as text: a mapping from head to cell for each line."""
    main, second = map(results.title, metrics)
    names = list(dict.fromkeys(name for line in lines for name in line.by_scenario))
    found = []
    for line in lines:
        gap = "-"
        if line.difference is not None and line.half_width is not None:
            gap = f"{line.difference:+.4f} ± {line.half_width:.4f}"
        cells = {"data": line.data, "model": line.model, "updater": line.updater}
        cells |= {"seeds": str(line.seeds), main: f"{line.value:.4f}"}
        cells |= {f"minus {baseline} (95%)": gap, second: f"{line.second:.4f}"}
        cells |= {"s/period": f"{line.seconds:.2f}"}
        cells |= {f"{main} {n}": f"{line.by_scenario.get(n, float('nan')):.4f}" for n in names}
        found.append(cells)
    return found


def show_summary(
    runs: Sequence[Finished],
    baseline: str = "finetune",
    role: str | None = None,
    markdown: bool = False,
    metric: str | None = None,
) -> None:
    """Print the summary of the runs over the periods of a role; None: test, or tune if none is.

    metric: what to compare by, None for what the runs are shown by: see `metrics_of`.
    """
    metrics = metrics_of(runs, metric)
    if role is None:
        role = "test" if any(row.role == "test" for run in runs for row in run.rows) else "tune"
    lines = summarise(runs, baseline, role, metrics)
    if not lines:
        raise Mistake(f"--role {role}: the runs have no period of that role")
    cells = cells_of(lines, baseline, metrics)
    main, second = map(results.title, metrics)
    logs = sorted({line.data for line in lines})
    whole = {*TEXT, "seeds", main, f"minus {baseline} (95%)", "s/period"}
    heads = [head for head in cells[0] if head != "data" or len(logs) > 1]
    if markdown:
        rule = ["---" if head in TEXT else "---:" for head in heads]
        for row in (heads, rule, *([one[head] for head in heads] for one in cells)):
            print("| " + " | ".join(row) + " |")
        return
    means = f"{', '.join(logs)}: means over seeds and {role} periods"
    first = [head for head in heads if head in whole]
    others = [head for head in heads if head in TEXT or head not in whole]
    for title, shown in ((means, first), (f"{second}, and {main} by scenario", others)):
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for head in shown:
            words = head in TEXT
            table.add_column(head, justify="left" if words else "right", overflow="fold")
        for one in cells:
            table.add_row(*(one[head] for head in shown))
        terminal.print(table)
    waiting = sum(not run.record["finished"] for run in runs)
    if waiting:
        terminal.print(
            f"{waiting} of {len(runs)} runs are not finished; their periods so far count"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m incrs.report", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folders", nargs="+", type=Path, help="run or sweep folders")
    parser.add_argument("--baseline", default="finetune", help="updater to take differences to")
    parser.add_argument("--role", choices=("tune", "test"), help="periods to read (test)")
    parser.add_argument("--metric", help="number of results.csv to compare by")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--published", action="store_true", help="add the papers' own figures")
    given = parser.parse_args(arguments)
    try:
        runs = find_runs(given.folders)
        show_summary(runs, given.baseline, given.role, given.markdown, given.metric)
        if given.published:
            logs = sorted({str(run.record["about"]["data"]) for run in runs})
            show_published(logs, given.markdown)
    except Mistake as mistake:
        print(f"incrs: {mistake}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
