"""Significance agrees with scipy, finds nothing where there is nothing, and knows what a pair is worth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from incrs.significance import (
    cautious_half_width,
    compare,
    effect_size,
    holm,
    t_interval,
    t_test,
    wilcoxon,
)

DICE = np.random.default_rng(0)
DRAWS = DICE.standard_normal((20, 1000, 30))  # draws, comparisons, pairs
NULLS = DRAWS[0]


@pytest.mark.parametrize("gaps", [NULLS[0], NULLS[1] + 0.4, NULLS[2, :5], np.round(NULLS[3], 1)])
def test_intervals_and_tests_agree_with_scipy(gaps: np.ndarray) -> None:
    theirs = stats.ttest_1samp(gaps, 0)
    low, high = theirs.confidence_interval(0.95)
    mean, half = t_interval(gaps)
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
    assert t_test(gaps) == pytest.approx(theirs.pvalue)
    assert wilcoxon(gaps) == pytest.approx(stats.wilcoxon(gaps).pvalue)
    found = compare(gaps[None])
    assert found is not None
    assert (found.t_p, found.wilcoxon_p) == (t_test(gaps), wilcoxon(gaps))


def test_many_comparisons_at_once_are_the_same_as_one_by_one() -> None:
    assert t_test(NULLS)[7] == pytest.approx(t_test(NULLS[7]))
    assert wilcoxon(NULLS)[7] == pytest.approx(wilcoxon(NULLS[7]))


def test_identical_runs_have_no_difference() -> None:
    found = compare(np.zeros((5, 6)))
    assert found is not None and found.same and not found.sure
    assert (found.difference, found.half_width, found.cautious, found.effect) == (0, 0, 0, 0)
    assert (found.t_p, found.wilcoxon_p) == (1, 1)
    some = NULLS[:3].copy()
    some[1] = 0
    assert t_test(some)[1] == wilcoxon(some)[1] == 1
    assert t_test(some)[2] == pytest.approx(t_test(NULLS[2]))


def test_the_same_difference_in_every_pair_is_sure() -> None:
    found = compare(np.full((2, 3), 0.1))
    assert found is not None and found.sure and not found.same
    assert (found.t_p, found.effect) == (0, np.inf)


@pytest.mark.parametrize("test", [t_test, wilcoxon])
def test_false_positives_are_as_rare_as_promised(test) -> None:
    rates = (test(DRAWS) < 0.05).mean(axis=1)
    assert 0.047 < rates.mean() < 0.053
    assert 0.04 < np.median(rates) < 0.06  # of 1,000 alone, luck makes 3.7% to 6.4%
    assert rates.min() > 0.03 and rates.max() < 0.07


def test_the_cautious_interval_alone_knows_that_pairs_go_together() -> None:
    shape = (1000, 5, 6)
    seeds, periods, rest = (
        DICE.standard_normal(size) for size in ((1000, 5, 1), (1000, 1, 6), shape)
    )
    gaps = seeds + periods + rest
    assert (t_test(gaps.reshape(1000, 30)) < 0.05).mean() > 0.25
    halves = np.array([cautious_half_width(one) for one in gaps])
    assert 0.02 < (np.abs(gaps.mean((1, 2))) > halves).mean() < 0.07


def test_what_is_missing_is_left_out() -> None:
    gaps = NULLS[:3, :4].copy()
    gaps[2, 1:] = np.nan
    found = compare(gaps)
    assert found is not None
    assert (found.pairs, found.seeds, found.periods) == (9, 3, 4)
    assert found.difference == pytest.approx(np.nanmean(gaps))
    over_seeds, over_periods = (t_interval(np.nanmean(gaps, axis=axis))[1] for axis in (1, 0))
    assert found.cautious == pytest.approx(max(over_seeds, over_periods))
    empty = np.pad(gaps, ((0, 1), (0, 1)), constant_values=np.nan)
    assert compare(empty) == found


def test_one_seed_or_one_period_has_no_cautious_interval_and_one_pair_none_at_all() -> None:
    for gaps in (NULLS[:1], NULLS[:, :1]):
        found = compare(gaps)
        assert found is not None and found.cautious is None and not found.sure
    assert compare(NULLS[:1, :1]) is None
    assert compare(np.empty((0, 0))) is None


def test_the_effect_sizes_interval_holds_the_truth_as_often_as_promised() -> None:
    found = [effect_size(one[:8] + 0.5) for one in NULLS]
    assert 0.93 < np.mean([low <= 0.5 <= high for _, low, high in found]) < 0.97
    one = NULLS[0] + 0.5
    effect, low, high = effect_size(one)
    assert effect == pytest.approx(one.mean() / one.std(ddof=1))
    for end, share in ((low, 0.975), (high, 0.025)):  # by its definition
        t = effect * np.sqrt(30)
        assert stats.nct.cdf(t, 29, end * np.sqrt(30)) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 30, 1000])
@pytest.mark.parametrize("t", [0, 1e-9, -1, 30, 999, 1001, 1e9])
def test_the_effect_sizes_interval_stands_extremes(n: int, t: float) -> None:
    drawn = DICE.standard_normal(n)
    drawn = (drawn - drawn.mean()) / drawn.std(ddof=1)
    effect, low, high = effect_size(drawn + t / np.sqrt(n))
    assert low < effect < high
    assert effect == pytest.approx(t / np.sqrt(n), rel=1e-3, abs=1e-9)


def test_holm_corrects_as_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.7, 0.6]) == [1, 1]
    assert holm([]) == []
