"""The door that compares runs: `python -m incrs.report multirun/2026-01-31/10-00-00 [more folders]`

One line per data, model and updater: means over seeds and test periods, the paired difference in
pooled AUC to a baseline updater with its 95% interval, and the median seconds that an update took.
`--role tune` reads the tune periods instead, the only ones that settings may be chosen on.
`--markdown` prints what a README can hold.
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
from incrs.results import POOLED, Row
from incrs.show import scenarios_of

TEXT = ("data", "model", "updater")
"""The columns of the summary that hold words."""


class Finished(NamedTuple):
    """One run as the report reads it."""

    record: Mapping[str, Any]
    rows: list[Row]


class Line(NamedTuple):
    """One line of the summary: means over seeds and periods of one configuration."""

    data: str
    model: str
    updater: str
    seeds: int
    auc: float
    logloss: float
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


def summarise(runs: Sequence[Finished], baseline: str, role: str) -> list[Line]:
    """Return a line per configuration, pairs taken over (seed, period) within data and model."""
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
        auc = values(group, "auc", POOLED)
        if not auc:
            continue
        rival = groups.get((data, model, baseline))
        gap = paired(auc, values(rival, "auc", POOLED)) if rival and label != baseline else None
        later = [t for run in group for t in run.record["timings"][1:]]
        lines.append(
            Line(
                data,
                model,
                label,
                len({run.record["about"]["seed"] for run in group}),
                _mean(auc),
                _mean(values(group, "logloss", POOLED)),
                {
                    name: _mean(values(group, "auc", name))
                    for name in scenarios_of(group[0].rows)
                    if name != POOLED
                },
                gap[0] if gap else None,
                gap[1] if gap else None,
                float(np.median([t["fit_seconds"] for t in later])) if later else 0.0,
            )
        )
    models = list(dict.fromkeys((line.data, line.model) for line in lines))
    return sorted(lines, key=lambda line: (models.index((line.data, line.model)), -line.auc))


def _mean(values: Mapping[Any, float]) -> float:
    return float(np.mean(list(values.values()))) if values else float("nan")


def cells_of(lines: Sequence[Line], baseline: str) -> list[dict[str, str]]:
    """Return the summary as text: a mapping from head to cell for each line."""
    names = list(dict.fromkeys(name for line in lines for name in line.by_scenario))
    found = []
    for line in lines:
        gap = "-"
        if line.difference is not None and line.half_width is not None:
            gap = f"{line.difference:+.4f} ± {line.half_width:.4f}"
        cells = {"data": line.data, "model": line.model, "updater": line.updater}
        cells |= {"seeds": str(line.seeds), "AUC": f"{line.auc:.4f}"}
        cells |= {f"minus {baseline} (95%)": gap, "log loss": f"{line.logloss:.4f}"}
        cells |= {"s/period": f"{line.seconds:.2f}"}
        cells |= {f"AUC {n}": f"{line.by_scenario.get(n, float('nan')):.4f}" for n in names}
        found.append(cells)
    return found


def show_summary(
    runs: Sequence[Finished],
    baseline: str = "finetune",
    role: str | None = None,
    markdown: bool = False,
) -> None:
    """Print the summary of the runs over the periods of a role; None: test, or tune if none is."""
    if role is None:
        role = "test" if any(row.role == "test" for run in runs for row in run.rows) else "tune"
    lines = summarise(runs, baseline, role)
    if not lines:
        raise Mistake(f"--role {role}: the runs have no period of that role")
    cells = cells_of(lines, baseline)
    logs = sorted({line.data for line in lines})
    whole = {*TEXT, "seeds", "AUC", f"minus {baseline} (95%)", "s/period"}
    heads = [head for head in cells[0] if head != "data" or len(logs) > 1]
    if markdown:
        rule = ["---" if head in TEXT else "---:" for head in heads]
        for row in (heads, rule, *([one[head] for head in heads] for one in cells)):
            print("| " + " | ".join(row) + " |")
        return
    means = f"{', '.join(logs)}: means over seeds and {role} periods"
    first = [head for head in heads if head in whole]
    second = [head for head in heads if head in TEXT or head not in whole]
    for title, shown in ((means, first), ("log loss, and AUC by scenario", second)):
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
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    given = parser.parse_args(arguments)
    try:
        show_summary(find_runs(given.folders), given.baseline, given.role, given.markdown)
    except Mistake as mistake:
        print(f"incrs: {mistake}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
