"""The numbers behind the charts of `report.html`: means over seeds, ready to be drawn.

Everything here is small: a thousand runs make as many numbers as ten of as many configurations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import polars as pl
from scipy import stats

from incrs.results import POOLED
from incrs.runs import Runs
from incrs.summary import Line

GROUP = ("log", "model")
POINT = (*GROUP, "label", "scenario", "period")
SERIES = ("mean", "low", "high", "gap", "gapLow", "gapHigh")
"""What `curves` gives of each period."""


def rounded(value: float | None, digits: int = 6) -> float | None:
    """Return a number as the page holds it; None where there is none."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def of_metric(runs: Runs, metric: str) -> pl.DataFrame:
    """Return the rows of one metric that have a value: who, where, when and how much."""
    words = ("folder", *GROUP, "label", "scenario", "role")
    return (
        runs.table.lazy()
        .filter(pl.col("metric") == metric, pl.col("value").is_not_null())
        .select(pl.col(words).cast(pl.String), "seed", "period", "value")
        .collect()
    )


def means(table: pl.DataFrame, role: str) -> dict[tuple[str, str, str], float]:
    """Return (log, model, label) -> pooled mean over seeds and the periods of a role."""
    pooled = table.filter(pl.col("scenario") == POOLED, pl.col("role") == role)
    found = pooled.group_by(*GROUP, "label").agg(pl.col("value").mean())
    return {(a, b, c): value for a, b, c, value in found.iter_rows()}


def curves(table: pl.DataFrame, rivals: Mapping[tuple[str, str, str], str]) -> pl.DataFrame:
    """Return a row per log, model, label, scenario and period of a table of one metric.

    rivals: (log, model, label) -> the label that it is compared to.  mean, low, high: over seeds, the
    lowest and the highest.  gap, gapLow, gapHigh: the difference to the rival, paired by seed, and its
    95% t-interval where there are two seeds or more.
    """
    names = ("log", "model", "label", "rival")
    pairs = pl.DataFrame(
        [(*key, rival) for key, rival in rivals.items()],
        dict.fromkeys(names, pl.String),
        orient="row",
    )
    same = ["log", "model", "scenario", "seed", "period"]
    other = table.select(*same, rival="label", other="value")
    paired = table.join(pairs, on=names[:3], how="left").join(
        other, on=[*same, "rival"], how="left"
    )
    value, gap = pl.col("value"), pl.col("gap")
    found = (
        paired.with_columns(gap=value - pl.col("other"))
        .group_by(*POINT, maintain_order=True)
        .agg(
            mean=value.mean(),
            low=value.min(),
            high=value.max(),
            gap=gap.mean(),
            error=gap.std() / gap.count().sqrt(),
            n=gap.count(),
        )
    )
    quantile = {n: float(stats.t.ppf(0.975, n - 1)) for n in found["n"].unique() if n > 1}
    times = pl.col("n").replace_strict(quantile, default=None, return_dtype=pl.Float64)
    half = pl.col("error") * times
    return found.with_columns(gapLow=gap - half, gapHigh=gap + half)


def groups(
    runs: Runs, table: pl.DataFrame, lines: Sequence[Line], deployed: Set[tuple[str, str, str]]
) -> list[dict[str, Any]]:
    """Return for each log and model what its charts show: periods, scenarios, curves and points.

    deployed: (log, model, label) of the answers, which are shown whatever else is.
    """
    names = period_names(runs)
    rivals = {(one.data, one.model, one.updater): one.baseline for one in lines if one.baseline}
    drawn = curves(table, {key: rival for key, rival in rivals.items() if rival != key[2]})
    parts = drawn.partition_by(*GROUP, as_dict=True, maintain_order=True)
    roles = {
        (log, period): found
        for log, period, found in table.select("log", "period", "role").unique().iter_rows()
    }
    found = []
    for (log, model), part in parts.items():
        own = [line for line in lines if (line.data, line.model) == (log, model)]
        periods = sorted(part["period"].unique())
        scenarios = part["scenario"].unique(maintain_order=True).to_list()
        where = pl.DataFrame({"period": periods}, schema={"period": part.schema["period"]})
        some = []
        for (label, scenario), one in part.group_by("label", "scenario", maintain_order=True):
            one = where.join(one, on="period", how="left", maintain_order="left")
            series = {name: [rounded(v) for v in one[name]] for name in SERIES}
            kept = {name: v for name, v in series.items() if any(x is not None for x in v)}
            some.append({"label": label, "scenario": scenarios.index(scenario), **kept})
        found.append(
            {
                "name": f"{log} · {model}",
                "periods": [
                    {"name": names.get((log, t), str(t)), "role": roles[log, t]} for t in periods
                ],
                "scenarios": [
                    "all together" if s == POOLED else f"scenario {s}" for s in scenarios
                ],
                "curves": some,
                "first": [line.updater for line in own if (log, model, line.updater) in deployed],
                "points": [
                    {
                        "label": line.updater,
                        "seconds": rounded(line.seconds, 4),
                        "value": rounded(line.value),
                        "spread": rounded(line.deviation),
                    }
                    for line in own
                ],
            }
        )
    return found


def period_names(runs: Runs) -> dict[tuple[str, int], str]:
    """Return (log, period) -> what people call the period."""
    logs = dict(runs.table.select("folder", "log").unique().cast(pl.String).iter_rows())
    return {
        (logs[folder], timing["period"] + 1): timing["scored"]
        for folder, record in runs.records.items()
        for timing in record.get("timings", ())
        if timing.get("scored") and folder in logs
    }
