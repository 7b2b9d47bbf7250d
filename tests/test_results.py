"""results.csv: what is measured, and that it reads back to the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from incrs import metrics, results
from incrs.results import POOLED, Row, Run
from tests.conftest import SCHEMA, SmallSource

NAMES = ("auc", "logloss", "gauc")
KNOWN = {"user": 15, "item": 31}
ABOUT = Run("0a1b2c3d", "small", "star", "incmsr", 3)


def measured(logit: np.ndarray | None = None) -> list[Row]:
    period = SmallSource().read(3)
    if logit is None:
        logit = np.random.default_rng(0).normal(size=len(period)).astype(np.float32)
    return results.measure(ABOUT, SCHEMA, period, logit, KNOWN)


def test_every_scenario_and_the_pool_are_measured() -> None:
    rows = measured()
    assert list(dict.fromkeys(row.scenario for row in rows)) == [POOLED, "home", "search", "feed"]
    names = [row.metric for row in rows if row.scenario == POOLED]
    groups = [f"{w}_{kind}" for kind in ("users", "items") for w in ("new", "known")]
    groups += [f"{u}_users_{i}_items" for u in ("new", "known") for i in ("new", "known")]
    split = [f"{metric}_{group}" for group in groups for metric in NAMES[:2]]
    assert names == [*NAMES, "oracle_auc", "oracle_logloss", "collapsed", *split]
    pooled = next(row for row in rows if row.metric == "auc")
    assert pooled.rows == sum(r.rows for r in rows if r.metric == "auc" and r.scenario != POOLED)
    assert (pooled.period, pooled.role) == (3, "test")


def test_new_users_are_measured_apart_from_known_ones() -> None:
    period = SmallSource().read(3)
    user, label = period.rows.fields[:, 0].numpy(), period.rows.label.numpy()
    logit = np.random.default_rng(0).normal(size=len(period)).astype(np.float32)
    found = {row.metric: row[-3:] for row in measured(logit) if row.scenario == POOLED}
    new, known = user >= 15, (user > 0) & (user < 15)
    assert found["auc_new_users"] == metrics.auc(logit[new], label[new])
    assert found["logloss_known_users"] == metrics.logloss(logit[known], label[known])
    assert found["auc_new_items"] == (None, 0, 0)
    both = found["auc_new_users"][1] + found["auc_known_users"][1]
    assert both == len(period) - (user == 0).sum() < len(period)


def test_the_four_kinds_of_user_and_item_are_measured_apart() -> None:
    period = SmallSource().read(3)
    user, item = period.rows.fields.numpy().T
    logit = np.random.default_rng(0).normal(size=len(period)).astype(np.float32)
    known = {"user": 15, "item": 12}
    rows = results.measure(ABOUT, SCHEMA, period, logit, known)
    found = {row.metric: row[-3:] for row in rows if row.scenario == POOLED}
    where = (user >= 15) & (item > 0) & (item < 12)
    expected = metrics.auc(logit[where], period.rows.label.numpy()[where])
    assert found["auc_new_users_known_items"] == expected
    cells = [
        found[f"auc_{u}_users_{i}_items"][1] for u in ("new", "known") for i in ("new", "known")
    ]
    assert sum(cells) == ((user > 0) & (item > 0)).sum()


def test_ranks_are_measured_pooled_by_scenario_and_by_who_is_new() -> None:
    period = SmallSource().read(3)
    rows = period.rows
    asked = (rows.label.numpy() == 1) & (rows.fields[:, 1].numpy() > 0)
    places = np.random.default_rng(0).integers(0, 9, (asked.sum(), 2))
    logit = np.zeros(len(period), np.float32)
    found = {
        (row.scenario, row.metric): row[-3:]
        for row in results.measure(ABOUT, SCHEMA, period, logit, KNOWN, places, [2, 5])
    }
    assert found[POOLED, "recall_5"] == metrics.recall(*places.T, 5)
    search = rows.scenario.numpy()[asked] == 1
    assert found["search", "ndcg_2"] == metrics.ndcg(*places[search].T, 2)
    new = rows.fields[:, 0].numpy()[asked] >= 15
    expected = metrics.recall(*places[new].T, 2)
    assert found[POOLED, "recall_2_new_users"] == expected
    assert found[POOLED, "ndcg_5_new_users_new_items"] == (None, 0, 0)


def test_a_run_is_shown_by_its_largest_cutoff_where_it_ranks() -> None:
    rows = measured()
    assert results.headline(rows) == ("auc", "logloss")
    more = [rows[0]._replace(metric=f"recall_{k}") for k in (5, 20, 10)]
    assert results.headline([*rows, *more]) == ("recall_20", "ndcg_20")
    named = ("logloss", "ndcg_20", "recall_5_new_users", "auc_known_items")
    assert [results.title(one) for one in named] == [
        *("log loss", "NDCG@20", "Recall@5 new users", "AUC known items")
    ]


def test_a_scenario_is_measured_on_its_own_rows() -> None:
    period = SmallSource().read(3)
    logit = np.random.default_rng(0).normal(size=len(period)).astype(np.float32)
    where = period.rows.scenario.numpy() == 1
    expected = metrics.auc(logit[where], period.rows.label.numpy()[where])
    found = next(r for r in measured(logit) if r.scenario == "search" and r.metric == "auc")
    assert (found.value, found.rows, found.positives) == expected


def test_rows_read_back_to_the_same_and_write_the_same_bytes(tmp_path: Path) -> None:
    rows = [*measured(), Row(*ABOUT, 4, "test", "a,b", "auc", None, 3, 0)]
    results.write(tmp_path / "a.csv", rows)
    again = results.read(tmp_path / "a.csv")
    assert again == rows
    assert results.to_csv(again) == (tmp_path / "a.csv").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize("logit", [0.7, np.nan, np.inf])
def test_a_collapsed_model_is_marked(logit: float) -> None:
    rows = measured(np.full(60, logit, dtype=np.float32))
    assert next(row.value for row in rows if row.metric == "collapsed") == 1
    assert next(row.value for row in measured() if row.metric == "collapsed") == 0
