"""Metrics against someone else's, and against their definitions pair by pair."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from incrs.metrics import auc, gauc, logloss, ndcg, recall


def pairwise_auc(score: np.ndarray, label: np.ndarray) -> float | None:
    wins = [(a > b) + (a == b) / 2 for a in score[label == 1] for b in score[label == 0]]
    return float(np.mean(wins)) if wins else None


def drawn(seed: int, n: int = 200, levels: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    score = random.integers(levels, size=n) / levels
    return score.astype(np.float32), random.integers(2, size=n), random.integers(25, size=n)


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_pairs_won_with_ties_counting_half(seed: int) -> None:
    score, label, _ = drawn(seed)
    assert auc(score, label).value == pytest.approx(pairwise_auc(score, label), abs=1e-12)


@pytest.mark.parametrize("levels", [3, 50, 10**6])
def test_auc_agrees_with_torchmetrics(levels: int) -> None:
    score, label, _ = drawn(1, 5000, levels)
    theirs = binary_auroc(torch.tensor(score), torch.tensor(label)).item()
    assert auc(score, label).value == pytest.approx(theirs, abs=1e-6)


def test_auc_counts_its_rows_and_positives() -> None:
    assert auc(np.array([0.1, 0.2, 0.3]), np.array([0, 1, 1])) == (1.0, 3, 2)


@pytest.mark.parametrize("label", [[0, 0], [1, 1], []])
def test_auc_of_one_class_is_empty_and_never_one_half(label: list[int]) -> None:
    assert auc(np.arange(len(label), dtype=float), np.array(label)).value is None


def test_scores_that_are_not_finite_have_no_value() -> None:
    score, label = np.array([np.nan, 0.0]), np.array([0, 1])
    assert auc(score, label).value is None
    assert gauc(score, label, label).value is None
    assert logloss(score, label).value is None


@pytest.mark.parametrize("seed", range(5))
def test_gauc_is_the_row_weighted_mean_over_users_with_both_classes(seed: int) -> None:
    score, label, user = drawn(seed)
    values, weights, positives = [], [], 0
    for one in np.unique(user):
        mine = user == one
        value = pairwise_auc(score[mine], label[mine])
        if value is not None:
            values.append(value)
            weights.append(mine.sum())
            positives += int(label[mine].sum())
    measured = gauc(score, label, user)
    assert measured.value == pytest.approx(np.average(values, weights=weights), abs=1e-12)
    assert (measured.rows, measured.positives) == (sum(weights), positives)


def test_gauc_without_a_user_of_both_classes_is_empty() -> None:
    assert gauc(np.array([0.1, 0.9]), np.array([0, 1]), np.array([7, 8])) == (None, 0, 0)


def test_logloss_is_exact_where_probabilities_saturate() -> None:
    logit, label = np.array([0.5, -2.0, 800.0, -800.0]), np.array([1, 0, 0, 1])
    expected = (np.log1p(np.exp(-0.5)) + np.log1p(np.exp(-2.0)) + 800 + 800) / 4
    assert logloss(logit, label).value == pytest.approx(expected, rel=1e-12)


def ranked(scores: np.ndarray, cutoff: int, random: np.random.Generator) -> tuple[float, float]:
    """Return hit and gain of the first of the scores, in one random order of those that tie."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], random.random()))
    rank = order.index(0)
    return float(rank < cutoff), 1 / math.log2(rank + 2) if rank < cutoff else 0.0


@pytest.mark.parametrize("cutoff", [1, 3, 8, 50])
def test_recall_and_ndcg_are_those_of_sorted_lists(cutoff: int) -> None:
    random = np.random.default_rng(0)
    score = random.random((40, 21))
    above = (score[:, 1:] > score[:, :1]).sum(1)
    level = np.zeros(40, np.int64)
    hits, gains = zip(*(ranked(row, cutoff, random) for row in score), strict=True)
    assert recall(above, level, cutoff) == (pytest.approx(np.mean(hits), abs=1e-12), 40, 40)
    assert ndcg(above, level, cutoff) == (pytest.approx(np.mean(gains), abs=1e-12), 40, 40)


@pytest.mark.parametrize("cutoff", [1, 2, 5])
def test_ties_count_as_the_mean_over_all_orders_of_them(cutoff: int) -> None:
    score = np.array([0.5, 0.9, 0.5, 0.1, 0.5, 0.2])  # one above the first, two level with it
    ranks = [
        sorted(order, key=lambda i: -score[i]).index(0)
        for order in itertools.permutations(range(6))
    ]
    above, level = np.array([1]), np.array([2])
    hits = np.mean([rank < cutoff for rank in ranks])
    gains = np.mean([1 / math.log2(rank + 2) * (rank < cutoff) for rank in ranks])
    assert recall(above, level, cutoff).value == pytest.approx(hits, abs=1e-12)
    assert ndcg(above, level, cutoff).value == pytest.approx(gains, abs=1e-12)


def test_a_model_that_ranks_nothing_is_at_chance_and_one_without_numbers_has_no_value() -> None:
    above, level = np.zeros(7, np.int64), np.full(7, 999)
    assert recall(above, level, 20).value == pytest.approx(20 / 1000)
    broken = np.array([0, -1, 3])
    assert recall(broken, broken, 20) == ndcg(broken, broken, 20) == (None, 3, 3)
    assert recall(above[:0], level[:0], 20) == (None, 0, 0)
