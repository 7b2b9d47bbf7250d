"""AUC, per-user AUC and log loss of clicks, Recall and NDCG of ranks: exact, ties averaged, once a period.

Every function takes flat numpy arrays and returns a float; a group with one class only has no AUC
and gives None, never 0.5.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Counts = NDArray[np.int64]


class Measured(NamedTuple):
    """A metric's value (None where it is not defined) with the rows and positives it was read on."""

    value: float | None
    rows: int
    positives: int


def _mean_ranks(score: Array, group: Array | None = None) -> NDArray[np.float64]:
    """Return the rank (from 1) of each score within its group, ties sharing the mean rank; (n,)."""
    order = np.argsort(score, kind="stable") if group is None else np.lexsort((score, group))
    ordered = score[order]
    first = np.ones(len(score), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    start_of_group = np.zeros(len(score), dtype=np.int64)
    if group is not None:
        new = np.ones(len(score), dtype=bool)
        new[1:] = group[order][1:] != group[order][:-1]
        first |= new
        start_of_group = np.flatnonzero(new)[np.cumsum(new) - 1]
    run = np.cumsum(first) - 1
    starts = np.flatnonzero(first)
    ends = np.append(starts[1:], len(score))
    ranks = np.empty(len(score), dtype=np.float64)
    ranks[order] = ((starts + ends - 1) / 2 + 1)[run] - start_of_group
    return ranks


def auc(score: Array, label: Array) -> Measured:
    """Area under the ROC curve: the chance that a click outscores a non-click, a tie counting half.

    score: (n,) floats, higher = more likely clicked (NaN: no value).  label: (n,) 0 or 1.
    """
    rows, positives = len(label), int(np.sum(label == 1))
    negatives = rows - positives
    if not positives or not negatives or np.isnan(score).any():
        return Measured(None, rows, positives)
    wins = _mean_ranks(score)[label == 1].sum() - positives * (positives + 1) / 2
    return Measured(float(wins / (positives * negatives)), rows, positives)


def gauc(score: Array, label: Array, user: Array) -> Measured:
    """Per-user AUC averaged with the user's rows as weight (Zhu et al., KDD 2017).

    Users with one class only are left out, of `rows` and `positives` as well.  user: (n,) ids.
    """
    if not len(label) or np.isnan(score).any():
        return Measured(None, 0, 0)
    _, index = np.unique(user, return_inverse=True)
    clicked = label == 1
    rows = np.bincount(index).astype(np.float64)
    positives = np.bincount(index, weights=clicked)
    negatives = rows - positives
    ranks = np.bincount(index, weights=np.where(clicked, _mean_ranks(score, index), 0.0))
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        return Measured(None, 0, 0)
    wins = ranks[both] - positives[both] * (positives[both] + 1) / 2
    per_user = wins / (positives[both] * negatives[both])
    value = float(np.average(per_user, weights=rows[both]))
    return Measured(value, int(rows[both].sum()), int(positives[both].sum()))


def logloss(logit: Array, label: Array) -> Measured:
    """Mean binary cross-entropy in nats, from logits, without clipping.  logit, label: (n,)."""
    rows, positives = len(label), int(np.sum(label == 1))
    if not rows or not np.isfinite(logit).all():
        return Measured(None, rows, positives)
    z, y = logit.astype(np.float64), label.astype(np.float64)
    return Measured(float(np.mean(np.logaddexp(0.0, z) - y * z)), rows, positives)


def recall(above: Counts, level: Counts, cutoff: int) -> Measured:
    """Recall@K of one positive each: the share of positives among the first K of their lists.

    above, level: (n,) how many candidates score higher than a positive, and how many the same: those
    share its places, and every order of them counts alike. Below 0: the scores were no numbers.
    """
    return _of_places(np.clip((cutoff - above) / np.maximum(level + 1, 1), 0, 1), above)


def ndcg(above: Counts, level: Counts, cutoff: int) -> Measured:
    """NDCG@K of one positive each: the mean of 1 / log2(rank + 2), rank from 0, and 0 from rank K on.

    above, level: as for `recall`; over the ranks above .. above + level the gains are averaged.
    """
    gains = np.cumsum(np.append(0, 1 / np.log2(np.arange(cutoff) + 2)))
    first, end = (np.clip(rank, 0, cutoff) for rank in (above, above + level + 1))
    return _of_places((gains[end] - gains[first]) / np.maximum(level + 1, 1), above)


def _of_places(values: NDArray[np.float64], above: Counts) -> Measured:
    rows = len(values)
    if not rows or bool((above < 0).any()):
        return Measured(None, rows, rows)
    return Measured(float(values.mean()), rows, rows)
