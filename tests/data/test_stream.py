"""The stream hands periods out in time order and nothing before its time."""

from __future__ import annotations

import pytest
import torch

from incrs.data.stream import BatchLoader, PeriodStream
from tests.conftest import SmallSource


def test_pairs_begin_after_the_warm_up_and_end_with_no_next_period(
    small_source: SmallSource,
) -> None:
    pairs = list(PeriodStream(small_source, 20).pairs())
    assert [len(history) for history, _ in pairs] == [2, 3, 4, 5, 6]
    assert [n if n is None else n.index for _, n in pairs] == [2, 3, 4, 5, None]


def test_the_stream_refuses_to_hand_out_a_later_period(small_source: SmallSource) -> None:
    history, _ = next(iter(PeriodStream(small_source, 20).pairs()))
    for later in (2, 5, -3):
        with pytest.raises(IndexError, match="has not happened yet"):
            history[later]
    assert [period.index for period in history[0:6]] == [0, 1]
    assert [period.index for period in history] == [0, 1]
    assert history[-1].index == 1


def test_a_period_is_loaded_only_when_it_is_asked_for(small_source: SmallSource) -> None:
    asked, read = [], small_source.read
    small_source.read = lambda t: asked.append(t) or read(t)  # type: ignore[method-assign]
    pairs = PeriodStream(small_source, 20).pairs()
    next(pairs)
    assert asked == [2]


def test_a_loader_gives_every_row_once_in_an_order_of_its_seed(small_source: SmallSource) -> None:
    period = small_source.read(0)

    def epoch(loader: BatchLoader) -> torch.Tensor:
        return torch.cat([batch.numbers for batch in loader])

    one, two = BatchLoader(period, 16, seed=5), BatchLoader(period, 16, seed=5)
    first, second = epoch(one), epoch(one)
    assert torch.equal(first, epoch(two))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, period.rows.numbers.sort(0).values)
    assert len(one) == len(list(one)) == 4


def test_rows_stay_together_and_in_order_when_scoring(small_source: SmallSource) -> None:
    period = small_source.read(1)
    batches = list(BatchLoader(period, 16))
    assert torch.equal(torch.cat([b.fields for b in batches]), period.rows.fields)
    assert torch.equal(torch.cat([b.lists["tags"] for b in batches]), period.rows.lists["tags"])
    assert torch.equal(torch.cat([b.label for b in batches]), period.rows.label)
