"""Sensitivity: how the summary's number moves with a setting that was swept, and with two of them.

The papers' figures of lambda, k and hidden size.  A chart has a line for each choice of the other
settings, with spreads over seeds; a map shows two settings at once.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from incrs.figures import rounded
from incrs.results import POOLED
from incrs.runs import Runs, swept
from incrs.summary import Line

MOST = 8
"""Lines of a chart; where there would be more, it shows means over the other settings."""

Tries = Sequence[tuple[Mapping[str, str], float]]
"""Of each run the settings that were swept, by name, and its mean."""


def charts_of(
    runs: Runs, table: pl.DataFrame, lines: Sequence[Line], baseline: str, role: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the charts of one setting and the maps of two, of every number that was swept.

    table: the rows of the metric that the lines are by.  role: the periods to take means over.
    """
    pooled = table.filter(pl.col("scenario") == POOLED, pl.col("role") == role)
    each = pooled.group_by("log", "folder", maintain_order=True).agg(pl.col("value").mean())
    varied = swept(runs)
    tries: dict[tuple[str, str, str], list[tuple[dict[str, str], float]]] = {}
    for log, folder, value in each.iter_rows():
        about = runs.records[folder]["about"]
        who = (log, about["model"], about["updater"])
        tries.setdefault(who, []).append((varied.get(folder, {}), value))
    base = {(line.data, line.model): line.value for line in lines if line.updater == baseline}
    telling = [i for i in range(2) if len({who[i] for who in tries}) > 1]  # log, model
    sweeps, maps = [], []
    for who, some in tries.items():
        updater = who[2]
        keys = dict.fromkeys(key for own, _ in some for key in own)
        numeric = [key for key in keys if is_swept(key, [own for own, _ in some])]
        short = {key: key.removeprefix("updater.").removeprefix(f"{updater}.") for key in keys}
        title = {"title": " \u00b7 ".join([updater, *(who[i] for i in telling)])}
        for key in numeric:
            chart = chart_of(key, short, some)
            if chart:
                sweeps.append(title | chart | {"base": rounded(base.get(who[:2]))})
        maps += [title | map_of(*pair, short, some) for pair in itertools.combinations(numeric, 2)]
    return sweeps, [one for one in maps if len(one["x"]) > 1 < len(one["y"])]


def is_swept(key: str, tried: Sequence[Mapping[str, str]]) -> bool:
    """Return whether a setting took two numbers or more, and nothing else."""
    values = {own[key] for own in tried if key in own}
    return len(values) > 1 and all(_is_number(value) for value in values)


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def chart_of(key: str, short: Mapping[str, str], some: Tries) -> dict[str, Any] | None:
    """Return the chart of one setting, None where nothing but it differs nowhere.

    short: settings by their name -> what people call them.
    """
    tried = [(own, value) for own, value in some if key in own]
    others = [k for k in short if k != key]
    lines = _lines(key, others, tried)
    if len(lines) > MOST or not lines:
        lines, others = _lines(key, [], tried), []
    if not lines:
        return None
    named = [i for i in range(len(others)) if len({rest[i] for rest in lines}) > 1]
    numbers = sorted({n for values in lines.values() for n in values})
    log, place = _axis(numbers)
    means = not others and len(short) > 1
    return {
        "head": short[key],
        "log": log,
        "ticks": [[place[n], f"{n:g}"] for n in numbers],
        "means": means,
        "lines": [
            {
                "name": ", ".join(
                    f"{short[others[i]]}={rest[i]}" for i in named if rest[i] is not None
                ),
                "x": [f"{n:g}" for n in values],
                "at": [place[n] for n in values],
                "value": [rounded(statistics.fmean(found)) for found in values.values()],
                "spread": [
                    rounded(statistics.stdev(found)) if len(found) > 1 and not means else None
                    for found in values.values()
                ],
            }
            for rest, values in lines.items()
        ],
    }


def _lines(
    key: str, others: Sequence[str], tried: Tries
) -> dict[tuple[str | None, ...], dict[float, list[float]]]:
    """Return choice of the others -> value of the setting, in its order -> means of the runs.

    Choices that met one value alone make no line.
    """
    lines: dict[tuple[str | None, ...], dict[float, list[float]]] = {}
    for own, value in sorted(tried, key=lambda one: float(one[0][key])):
        rest = tuple(own.get(k) for k in others)
        lines.setdefault(rest, {}).setdefault(float(own[key]), []).append(value)
    return {rest: values for rest, values in lines.items() if len(values) > 1}


def _axis(numbers: Sequence[float]) -> tuple[bool, dict[float, float]]:
    """Return whether a log scale spreads the numbers better, and number -> place on the axis.

    numbers: ascending.  Zero stands half a decade left of the least number above it.
    """
    above = [n for n in numbers if n > 0]
    if numbers[0] < 0 or len(above) < 2 or above[-1] / above[0] < 8:
        return False, {n: n for n in numbers}
    by_log = [math.log10(n) for n in above]
    log = _least_gap(by_log) >= _least_gap(above)
    if not log:
        return False, {n: n for n in numbers}
    return True, {0.0: by_log[0] - 0.5} | dict(zip(above, by_log, strict=True))


def _least_gap(places: Sequence[float]) -> float:
    """Return the least distance of neighbours as a share of the whole."""
    gaps = [b - a for a, b in itertools.pairwise(places)]
    return min(gaps) / (places[-1] - places[0])


def map_of(across: str, down: str, short: Mapping[str, str], some: Tries) -> dict[str, Any]:
    """Return the map of two settings: means over seeds, and over the settings that are neither."""
    found: dict[tuple[str, str], list[float]] = {}
    for own, value in some:
        if across in own and down in own:
            found.setdefault((own[across], own[down]), []).append(value)
    x = sorted({a for a, _ in found}, key=float)
    y = sorted({b for _, b in found}, key=float)
    rows = [[found.get((a, b)) for a in x] for b in y]
    means = [[rounded(statistics.fmean(cell)) if cell else None for cell in row] for row in rows]
    return {"across": short[across], "down": short[down], "x": x, "y": y, "value": means}
