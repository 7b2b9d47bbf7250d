"""The cut into equally many rows, against sorting all of them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from incrs.data import cut


@pytest.mark.parametrize("bins", [2, 5, 64, 1 << 19])
@pytest.mark.parametrize("spread", [1, 3, 1000, 10**15])
def test_the_rows_at_the_borders_are_those_of_a_sort(
    monkeypatch: pytest.MonkeyPatch, bins: int, spread: int
):
    monkeypatch.setattr(cut, "BINS", bins)
    dice = np.random.default_rng(bins)
    time = dice.integers(-spread, spread, size=500)
    time[100:160] = time[0]  # a long tie
    row = np.arange(500)
    parts = [slice(0, 7), slice(7, 7), slice(7, 300), slice(300, 500)]
    order = np.lexsort((row, time))
    for ranks in (np.arange(49, 500, 50), np.arange(500), np.array([0]), np.array([499])):
        got = cut.last_rows(lambda: ((time[part], row[part]) for part in parts), ranks)
        assert got == list(zip(time[order[ranks]], row[order[ranks]], strict=True))


def test_names_are_sorted_as_numbers_where_all_are():
    assert cut.ordered(["10", "9", "8.5"]) == ["8.5", "9", "10"]
    assert cut.ordered(["10", "9", "x"]) == ["10", "9", "x"]
    assert cut.ordered(["2", "nan", "10"]) == ["10", "2", "nan"]
    assert cut.ordered(["1.0", "1"]) == cut.ordered(["1", "1.0"])


@pytest.mark.parametrize("count", [1, 7, 250, 500, 501])
def test_equal_counts_are_named_by_the_place_in_a_sort(count: int):
    dice = np.random.default_rng(count)
    time, row = dice.integers(40, size=500), np.arange(500)
    time[dice.random(500) < 0.3] = 7
    frame = pl.DataFrame({cut.TIME: time, cut.ROW: row})
    names = cut.by_count(lambda: [(time[:300], row[:300]), (time[300:], row[300:])], count)
    got = [*names(frame[:123]), *names(frame[123:])]
    place = np.empty(500, int)
    place[np.lexsort((row, time))] = row
    size = 500 // count
    assert got == [str(p // size + 1) if size and p < size * count else None for p in place]


def test_rows_are_drawn_by_their_scenarios_shares_and_the_seed():
    parts = [pl.Series(["a"] * 10 + ["b"] * 7, dtype=pl.String), pl.Series([None, "a", "b", "b"])]
    draws = []
    for seed in (0, 0, 1):
        names = cut.by_chance(iter(parts), [0.6, 0.1, 0.3], seed)
        periods = [names(part) for part in parts]
        both = pl.DataFrame({"in": pl.concat(parts), "period": pl.concat(periods)})
        draws.append(both["period"].to_list())
        sizes = {
            value: [
                both.filter(pl.col("in").eq_missing(value), period=str(k)).height for k in (1, 2, 3)
            ]
            for value in ("a", "b", None)
        }
        assert sizes == {"a": [7, 1, 3], "b": [5, 1, 3], None: [1, 0, 0]}
    assert draws[0] == draws[1] != draws[2]


def test_shares_that_are_no_round_numbers_lose_no_row():
    names = cut.by_chance([pl.Series(["a"] * 10)], [1 / 3, 1 / 3, 1 / 3], 0)
    assert sorted(names(pl.Series(["a"] * 10))) == ["1"] * 3 + ["2"] * 4 + ["3"] * 3
