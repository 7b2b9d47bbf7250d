"""How sure a difference between two updaters is: functions of the paired differences alone.

A pair is one seed and one period that both updaters have a number of.  Differences are (..., n) arrays,
the tests and intervals over the last axis; `compare` takes them as (seeds, periods).

Pairs are not drawn independently: all seeds meet the same periods, and all periods of a seed begin with
the same weights.  The tests that papers print, over all pairs, then find too much: where seeds and
periods each scatter as much as what is left, 5 seeds by 6 periods of no difference are called one in
35% of cases instead of 5%.  The cautious interval holds its 5% there: it is the wider of the two
over the seeds' means and over the periods' means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

LEVEL = 0.95
"""What every interval covers; a star is for p below the rest."""


class Comparison(NamedTuple):
    """What paired differences say.

    difference: their mean.  half_width: of its t-interval over all pairs.  cautious: half the width of
    the cautious interval, None with one seed or one period.  effect: Cohen's d_z, the mean over the
    standard deviation of the differences, infinite where they are all the same but zero; effect_low,
    effect_high: its interval.  t_p, wilcoxon_p: of both tests, uncorrected.
    """

    pairs: int
    seeds: int
    periods: int
    difference: float
    half_width: float
    cautious: float | None
    effect: float
    effect_low: float
    effect_high: float
    t_p: float
    wilcoxon_p: float

    @property
    def same(self) -> bool:
        """Whether there is no difference in any pair."""
        return self.difference == 0 == self.half_width

    @property
    def sure(self) -> bool:
        """Whether the cautious interval leaves out zero."""
        return self.cautious is not None and abs(self.difference) > self.cautious


def compare(gaps: np.ndarray) -> Comparison | None:
    """Return what the differences say, None with fewer than two.  gaps: (seeds, periods), nan for no pair."""
    found = gaps[~np.isnan(gaps)]
    if len(found) < 2:
        return None
    mean, half = t_interval(found)
    there = ~np.isnan(gaps)
    seeds, periods = int(there.any(axis=1).sum()), int(there.any(axis=0).sum())
    return Comparison(
        len(found),
        seeds,
        periods,
        float(mean),
        float(half),
        cautious_half_width(gaps) if seeds > 1 and periods > 1 else None,
        *effect_size(found),
        float(t_test(found)),
        float(wilcoxon(found)),
    )


def t_interval(gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (...) of the differences (..., n) and the half-width of its t-interval."""
    n = gaps.shape[-1]
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * _deviation(gaps) / math.sqrt(n)
    return gaps.mean(axis=-1), half


def t_test(gaps: np.ndarray) -> np.ndarray:
    """Return the two-sided p (...) of the paired t-test of differences (..., n); 1 where all are zero."""
    return np.asarray(2 * stats.t.sf(np.abs(_t(gaps)), gaps.shape[-1] - 1))


def wilcoxon(gaps: np.ndarray) -> np.ndarray:
    """Return the two-sided p (...) of the signed-rank test of differences (..., n); zeros are left out."""
    some = np.asarray(gaps.any(axis=-1))
    ranked = np.where(some[..., None], gaps, 1.0)  # of zeros alone scipy would divide by zero
    return np.where(some, stats.wilcoxon(ranked, axis=-1).pvalue, 1.0)


def cautious_half_width(gaps: np.ndarray) -> float:
    """Return half the wider of the intervals over seeds' and over periods' means.

    gaps: (seeds, periods), two of each at least that hold a pair; nan for no pair.
    """
    halves = []
    for axis in (0, 1):
        kept = (
            gaps[:, ~np.isnan(gaps).all(axis=0)] if axis == 0 else gaps[~np.isnan(gaps).all(axis=1)]
        )
        halves.append(t_interval(np.nanmean(kept, axis=axis))[1])
    return float(max(halves))


def effect_size(gaps: np.ndarray) -> tuple[float, float, float]:
    """Return Cohen's d_z of differences (n,) and its interval, by the noncentral t distribution."""
    t, n = float(_t(gaps)), len(gaps)
    shares = np.array([(1 + LEVEL) / 2, (1 - LEVEL) / 2])
    if (
        abs(t) > 1000
    ):  # where nothing but the deviation is uncertain, and the inverse loses its digits
        ends = np.sort(t * np.sqrt(stats.chi2.ppf(shares, n - 1) / (n - 1)))
    else:
        ends = special.nctdtrinc(n - 1, shares, t)
    found = np.array([t, *ends]) / math.sqrt(n)
    return float(found[0]), float(found[1]), float(found[2])


def holm(p: Sequence[float]) -> list[float]:
    """Return the p-values of one family after Holm's correction, in their order (Holm, 1979)."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(p) else steps
    return corrected.tolist()


def _deviation(gaps: np.ndarray) -> np.ndarray:
    """Return the standard deviation over the last axis, zero where only rounding tells values apart."""
    deviation = gaps.std(axis=-1, ddof=1)
    return np.where(deviation > 1e-12 * np.abs(gaps).max(axis=-1), deviation, 0.0)


def _t(gaps: np.ndarray) -> np.ndarray:
    """Return the t statistic: 0 where all differences are zero, infinite where they are all the same."""
    mean, error = gaps.mean(axis=-1), _deviation(gaps) / math.sqrt(gaps.shape[-1])
    same = error == 0
    t = mean / np.where(same, 1.0, error)
    return np.where(same, np.where(mean == 0, 0.0, np.copysign(np.inf, mean)), t)
