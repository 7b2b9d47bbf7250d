"""`results.csv`: what a run measured, one tidy row per number.

Nothing in it differs between two runs of one configuration; timings live in `run.json`.

    import polars as pl
    pl.read_csv("multirun/2026-01-31/10-00-00/results.csv").filter(metric="auc", scenario="all")
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from incrs import metrics
from incrs.data.base import Schema
from incrs.period import Period

FILE = "results.csv"
POOLED = "all"
"""The scenario name of a number read on all scenarios' rows together."""
RECALL = re.compile(r"(?:recall|hr)_(\d+)")
"""The metrics that a run which ranks, or seeks, is shown by."""


class Run(NamedTuple):
    """What names a run: `run` is a digest of its configuration, the same on every machine."""

    run: str
    data: str
    model: str
    updater: str
    seed: int


class Row(NamedTuple):
    """One number of one run: the columns of `results.csv`; `value` is empty where undefined."""

    run: str
    data: str
    model: str
    updater: str
    seed: int
    period: int
    role: str
    scenario: str
    metric: str
    value: float | None
    rows: int
    positives: int


def measure(
    run: Run,
    schema: Schema,
    period: Period,
    logit: np.ndarray,
    known: Mapping[str, int],
    places: np.ndarray | None = None,
    cutoffs: Sequence[int] = (),
) -> list[Row]:
    """Return the rows that period's scores give, pooled first, then scenario by scenario.

    logit: (n,) float32 scores of the period's rows in their order.  known: vocabulary -> how many of
    its ids appeared in earlier periods; ids are numbered by first appearance.  places: (m, 2) how many
    candidates are above and level with each positive that has an item, None where nothing was ranked.
    Metrics: auc, logloss, recall_K and ndcg_K of every cutoff K (where positives were ranked), gauc
    (where the log has users), oracle_auc and oracle_logloss (where the truth is known). Of the pooled
    rows also collapsed, 1 where the scores are all equal or not finite, else 0, and all but gauc and
    the oracle's of the rows whose user, or item, is met for the first time in this period, of the
    others, and of the four kinds of both: auc_new_users, auc_known_items, auc_new_users_known_items,
    ...; rows without a user or item are in none.
    """
    who = {"users": schema.user, "items": schema.item}
    columns = {kind: schema.column(field) for kind, field in who.items() if field is not None}
    label, scenario, *ids = (
        torch.cat(parts).cpu().numpy()
        for parts in zip(
            *(
                (rows.label, rows.scenario, *(rows.fields[:, j] for j in columns.values()))
                for rows in period.parts()
            ),
            strict=True,
        )
    )
    id_of = dict(zip(columns, ids, strict=True))
    user = id_of.get("users")
    truth = None if period.truth is None else period.truth.cpu().numpy()
    if places is not None:
        ranked = (label == 1) & (id_of["items"] > 0)

    def of(where: np.ndarray) -> dict[str, metrics.Measured]:
        found = {
            "auc": metrics.auc(logit[where], label[where]),
            "logloss": metrics.logloss(logit[where], label[where]),
        }
        if places is not None:
            above, level = places[where[ranked]].T
            for k in cutoffs:
                found[f"recall_{k}"] = metrics.recall(above, level, k)
                found[f"ndcg_{k}"] = metrics.ndcg(above, level, k)
        return found

    groups: list[tuple[str, np.ndarray]] = [(POOLED, np.ones(len(label), dtype=bool))]
    groups += [(name, scenario == s) for s, name in enumerate(schema.scenarios)]
    rows = []
    for name, where in groups:
        found = of(where)
        if user is not None:
            found["gauc"] = metrics.gauc(logit[where], label[where], user[where])
        if truth is not None:
            odds = np.log(truth[where]) - np.log1p(-truth[where])
            found["oracle_auc"] = metrics.auc(truth[where], label[where])
            found["oracle_logloss"] = metrics.logloss(odds, label[where])
        if name == POOLED:
            dead = float(has_collapsed(logit))
            found["collapsed"] = metrics.Measured(dead, *found["auc"][1:])
            first = {kind: known[schema.fields[str(who[kind])]] for kind in columns}
            for kind, part in new_and_known(id_of, first).items():
                found |= {f"{metric}_{kind}": value for metric, value in of(part).items()}
        rows += [
            Row(*run, period.index, str(period.role), name, metric, *measured)
            for metric, measured in found.items()
        ]
    return rows


def new_and_known(ids: Mapping[str, np.ndarray], known: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return masks of the rows with new and with known ids of each kind, and of all pairs of these.

    ids: users, items or both -> (n,).  known: how many ids of the kind there were before.
    """
    parts = {
        kind: {
            f"new_{kind}": values >= known[kind],
            f"known_{kind}": (values > 0) & (values < known[kind]),
        }
        for kind, values in ids.items()
    }
    found = {name: where for one in parts.values() for name, where in one.items()}
    if len(parts) == 2:
        users, items = parts.values()
        for one, other in itertools.product(users, items):
            found[f"{one}_{other}"] = users[one] & items[other]
    return found


def headline(rows: Iterable[Row]) -> tuple[str, str]:
    """Return the two metrics that are shown of a run: of the largest cutoff where it ranks."""
    cutoffs = {int(found[1]): found[0] for row in rows if (found := RECALL.fullmatch(row.metric))}
    most = max(cutoffs, default=0)
    return (cutoffs[most], f"ndcg_{most}") if cutoffs else ("auc", "logloss")


def title(metric: str) -> str:
    """Return what people call a metric: AUC new users, Recall@20."""
    word, *rest = metric.split("_")
    words = {
        "auc": "AUC",
        "logloss": "log loss",
        "gauc": "GAUC",
        "recall": "Recall",
        "hr": "HR",
        "ndcg": "NDCG",
    }
    cutoff = f"@{rest.pop(0)}" if rest and rest[0].isdigit() else ""
    return " ".join([words.get(word, word) + cutoff, *rest])


def has_collapsed(logit: np.ndarray) -> bool:
    """Return whether a period's scores rank nothing: all equal, or not all finite.  logit: (n,)."""
    if not np.isfinite(logit).all():
        return True
    return len(logit) > 1 and bool(logit.min() == logit.max())


def to_csv(rows: Iterable[Row]) -> str:
    """Return the rows as CSV text, floats in the shortest form that reads back to the same."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return out.getvalue()


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows to `path` whole or not at all."""
    replace_text(path, to_csv(rows))


def read(path: Path) -> list[Row]:
    """Read back what `write` wrote."""
    with path.open(newline="") as file:
        lines = csv.reader(file)
        next(lines)
        return [
            Row(
                *(run, data, model, updater, int(seed), int(period), role, scenario, metric),
                value=float(value) if value else None,
                rows=int(rows),
                positives=int(positives),
            )
            for (
                *(run, data, model, updater, seed, period, role, scenario, metric),
                value,
                rows,
                positives,
            ) in lines
        ]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give where to write a file that then takes its place at `path`; nothing stays where that fails."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old one or the new one, never a part."""
    with replacing(path) as partial, partial.open("w", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
