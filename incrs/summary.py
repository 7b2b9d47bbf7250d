"""The summary of some runs: a line for each data, model and updater, and what it adds to a baseline.

runs = find_runs([Path("multirun/2026-01-31/10-00-00")])
lines = summarise(runs, "finetune", "test", metrics_of(runs))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from incrs import results
from incrs.errors import Mistake
from incrs.labels import settings_of
from incrs.results import POOLED
from incrs.runs import Runs, swept
from incrs.significance import Comparison, compare, holm

FAMILY = ("log", "model")
"""Within these updaters are compared; their tests are one family for Holm's correction."""
LINE = (*FAMILY, "label")
Key = tuple[str, str, str]
"""What LINE says of one line."""
Grid = dict[tuple[int, int], float]
"""(seed, period) -> value."""
SECOND = {"auc": ("logloss",), "recall": ("ndcg",), "hr": ("ndcg",), "ndcg": ("recall", "hr")}
"""What is shown beside a metric: the first of these that there is, else AUC."""


class Line(NamedTuple):
    """One line of the summary: means over seeds and periods of one configuration.

    data: name of the log, `#2` where runs of that name are of another.  updater: with the settings that
    tell it apart.  value: of the metric that the summary is by, pooled, and by_scenario; deviation: its
    standard deviation over seeds' means, None of one seed.  second: of the metric beside it.
    baseline: the updater it is compared to, None where there is none.  gap: the paired differences;
    relative: their mean as a share of the baseline's value, above zero where it is better.  p,
    wilcoxon_p: after Holm's correction.  seconds: median of an update, None where none was timed.
    """

    data: str
    model: str
    updater: str
    seeds: int
    periods: int
    value: float
    deviation: float | None
    second: float | None
    by_scenario: dict[str, float]
    baseline: str | None
    gap: Comparison | None
    relative: float | None
    p: float | None
    wilcoxon_p: float | None
    seconds: float | None

    @property
    def star(self) -> str:
        """`*` for p below .05, in brackets where the cautious interval holds zero all the same."""
        if self.p is None or self.p >= 0.05 or self.gap is None:
            return ""
        return "*" if self.gap.sure else "(*)"


def metrics_of(runs: Runs, metric: str | None = None) -> tuple[str, str]:
    """Return the metric asked for, or that all the runs are shown by, and the one to show beside it.

    Raises Mistake where no run has such a number.
    """
    pooled = (
        runs.table.filter(scenario=POOLED).select("folder", "metric").unique(maintain_order=True)
    )
    held = pooled.with_columns(pl.col("metric").cast(pl.String))
    if metric is None:
        cutoff = pl.col("metric").str.extract(f"^{results.RECALL.pattern}$").cast(pl.Int64)
        ranked = held.with_columns(cutoff=cutoff).drop_nulls("cutoff").sort("cutoff")
        widest = ranked.group_by("folder").last()
        own = widest.select("metric", "cutoff").unique().rows()
        if len(own) != 1 or len(widest) < held["folder"].n_unique():
            return "auc", "logloss"
        return own[0][0], f"ndcg_{own[0][1]}"
    names = held["metric"].unique(maintain_order=True).to_list()
    if metric not in names:
        raise Mistake(
            f"--metric {metric}: the runs have no such number, they have {', '.join(names)}"
        )
    word, _, rest = metric.partition("_")
    others = ["_".join([one, *([rest] if rest else [])]) for one in SECOND.get(word, ("auc",))]
    return metric, next((one for one in others if one in names), others[0])


def lower_is_better(metric: str) -> bool:
    """Return whether a smaller value of the metric is the better one."""
    return metric.startswith(("logloss", "oracle_logloss", "collapsed"))


def summarise(runs: Runs, baseline: str, role: str, metrics: tuple[str, str]) -> list[Line]:
    """Return the lines of the periods of a role, best first within each log and model.

    baseline: an updater as its line names it.  Where only lines with settings have its name, a line is
    compared to the one that shares its settings outside of the updater, such as the learning rate.
    metrics: what the summary is by, and the number beside it.
    """
    main, second = metrics
    asked = (pl.col("role") == role) & pl.col("value").is_not_nan()
    table = runs.table.filter(asked & pl.col("metric").is_in(list(metrics)))
    pooled = table.filter(scenario=POOLED, metric=main)
    if pooled.is_empty():
        return []
    seeds = pooled.group_by(*LINE, "seed", maintain_order=True).agg(pl.col("value").mean())
    deviation = _keyed(seeds.group_by(LINE).agg(pl.col("value").std()))
    second_values = table.filter(scenario=POOLED, metric=second)
    beside = _keyed(second_values.group_by(LINE).agg(pl.col("value").mean()))
    others = table.filter(pl.col("scenario") != POOLED, metric=main)
    means = others.group_by(*LINE, "scenario", maintain_order=True).agg(pl.col("value").mean())
    by_scenario: dict[Key, dict[str, float]] = {}
    for data, model, label, scenario, value in means.iter_rows():
        by_scenario.setdefault((data, model, label), {})[scenario] = value
    grids: dict[Key, Grid] = {}
    cells = pooled.select(*LINE, "seed", "period", "value")
    for data, model, label, seed, period, value in cells.iter_rows():
        grids.setdefault((data, model, label), {})[seed, period] = value
    rivals, seconds = _rivals(runs, baseline), _seconds(runs)
    lines = []
    for key, grid in grids.items():
        data, model, label = key
        rival = rivals.get(key, "")
        theirs = grids.get((data, model, rival))
        gap, relative = (None, None) if theirs is None or rival == label else _gap(grid, theirs)
        if relative is not None and lower_is_better(main):
            relative = -relative
        lines.append(
            Line(
                *key,
                len({seed for seed, _ in grid}),
                len({period for _, period in grid}),
                float(np.mean(list(grid.values()))),
                deviation[key],
                beside.get(key),
                by_scenario.get(key, {}),
                rival if theirs is not None else None,
                gap,
                relative,
                None,
                None,
                seconds.get(key),
            )
        )
    families = list(dict.fromkeys((line.data, line.model) for line in lines))
    sign = 1 if lower_is_better(main) else -1
    corrected = [line for family in families for line in _corrected(lines, family)]
    return sorted(
        corrected, key=lambda line: (families.index((line.data, line.model)), sign * line.value)
    )


def update_seconds(timing: Mapping[str, Any]) -> float:
    """Return what an update cost: training on D_t, and learning from D_{t+1} once it was scored."""
    return float(timing["fit_seconds"] + timing.get("learn_next_seconds", 0.0))


def _keyed(table: pl.DataFrame) -> dict[Key, float | None]:
    return {(data, model, label): value for data, model, label, value in table.iter_rows()}


def _gap(mine: Grid, theirs: Grid) -> tuple[Comparison | None, float | None]:
    """Return what the pairs of both say, and the mean difference as a share of theirs."""
    both = mine.keys() & theirs.keys()
    seeds, periods = (sorted({key[i] for key in both}) for i in (0, 1))
    gaps = np.full((len(seeds), len(periods)), np.nan)
    for seed, period in both:
        gap = mine[seed, period] - theirs[seed, period]
        gaps[seeds.index(seed), periods.index(period)] = gap
    found = compare(gaps)
    level = np.mean([theirs[key] for key in both]) if both else 0.0
    return found, float(found.difference / level) if found and level else None


def _rivals(runs: Runs, baseline: str) -> dict[Key, str]:
    """Return line -> the label of the baseline that it is compared to, where there is one."""
    varied = swept(runs)
    settings: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    named: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    folders = runs.table.select(*LINE, "folder").unique(LINE, maintain_order=True)
    for log, model, label, folder in folders.iter_rows():
        record = runs.records[folder]
        settings.setdefault((log, model), {})[label] = settings_of(record)
        if record["about"]["updater"] == baseline or label == baseline:
            outside = {k: v for k, v in varied[folder].items() if not k.startswith("updater.")}
            named.setdefault((log, model), {})[label] = outside
    found = {}
    for family, rivals in named.items():
        for label, own in settings[family].items():
            alike = [one for one, given in rivals.items() if given.items() <= own.items()]
            if baseline in rivals:
                found[(*family, label)] = baseline
            elif len(rivals) == 1 or len(alike) == 1:
                found[(*family, label)] = next(iter(rivals)) if len(rivals) == 1 else alike[0]
    return found


def _seconds(runs: Runs) -> dict[Key, float]:
    """Return line -> the median seconds of an update; the warm-up is none."""
    timed: dict[Key, list[float]] = {}
    for log, model, label, folder in runs.table.select(*LINE, "folder").unique().iter_rows():
        later = runs.records[folder].get("timings", [])[1:]
        timed.setdefault((log, model, label), []).extend(map(update_seconds, later))
    return {key: float(np.median(some)) for key, some in timed.items() if some}


def _corrected(lines: list[Line], family: tuple[str, str]) -> list[Line]:
    """Return a family's lines with p-values that take the size of the family into account."""
    own = [line for line in lines if (line.data, line.model) == family]
    tested = [(line, line.gap) for line in own if line.gap is not None]
    t_p, wilcoxon_p = holm([g.t_p for _, g in tested]), holm([g.wilcoxon_p for _, g in tested])
    p = {line.updater: both for (line, _), *both in zip(tested, t_p, wilcoxon_p, strict=True)}
    return [
        line._replace(p=p[line.updater][0], wilcoxon_p=p[line.updater][1])
        if line.updater in p
        else line
        for line in own
    ]
