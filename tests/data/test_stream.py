"""The stream hands periods out in time order and nothing before its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from incrs import together
from incrs.data.stream import BatchLoader, PeriodStream
from incrs.period import Batch, Period, Stored
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


def on_disk(period: Period, sizes: Sequence[int], buffer: int) -> Period:
    """Return the same period, read part by part."""
    parts = [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]
    rows = period.rows
    return replace(period, content=Stored(sizes, lambda i: rows.take(parts[i]), buffer), truth=None)


@pytest.mark.parametrize("sizes", [[7, 20, 1, 32], [60], [30, 30], [1] * 60])
@pytest.mark.parametrize("buffer", [1, 25, 1000])
def test_rows_on_disk_come_once_an_epoch_in_whole_batches(
    small_source: SmallSource, sizes: list[int], buffer: int
) -> None:
    period = small_source.read(0)
    stored = on_disk(period, sizes, buffer)
    assert len(stored) == 60
    loader = BatchLoader(stored, 16, seed=3)
    first, second = list(loader), list(loader)
    again = list(BatchLoader(stored, 16, seed=3))
    for batches in (first, second):
        assert [len(batch.label) for batch in batches] == [16, 16, 16, 12]
        came = torch.cat([batch.numbers for batch in batches])
        assert torch.equal(came.sort(0).values, period.rows.numbers.sort(0).values)
    orders = [torch.cat([batch.numbers for batch in one]) for one in (first, second, again)]
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], period.rows.numbers)

    scored = list(BatchLoader(stored, 16))
    assert [len(batch.label) for batch in scored] == [16, 16, 16, 12]
    assert torch.equal(torch.cat([batch.fields for batch in scored]), period.rows.fields)


def test_no_more_than_the_buffer_and_a_part_is_in_memory(small_source: SmallSource) -> None:
    period, held, most = small_source.read(0), 0, 0
    rows = period.rows

    def read(i: int) -> Batch:
        nonlocal held, most
        held += 5
        most = max(most, held)
        return rows.take(slice(5 * i, 5 * i + 5))

    stored = replace(period, content=Stored([5] * 12, read, 20), truth=None)
    for batch in BatchLoader(stored, 10, seed=0):
        held -= len(batch.label)
    assert held == 0
    assert most <= 2 * 20 + 10  # the block in use, and the one behind it


def test_periods_in_memory_and_on_disk_join(small_source: SmallSource) -> None:
    one, two = small_source.read(0), small_source.read(1)
    both = Period.concat([on_disk(one, [40, 20], 30), two])
    assert len(both) == 120
    assert both.name == two.name
    assert torch.equal(both.rows.fields, Period.concat([one, two]).rows.fields)
    assert len(both.take(slice(0, 0))) == 0
    assert torch.equal(both.take(slice(3, 9)).rows.label, one.rows.label[3:9])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("parts", [None, [25, 35]])
def test_processes_share_every_batch_between_them(
    small_source: SmallSource,
    count: int,
    parts: list[int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    period = small_source.read(0)
    if parts is not None:
        period = on_disk(period, parts, 40)
    for seed in (None, 4):
        alone = list(BatchLoader(period, 14, seed, unknown_rate=0.1 if seed else 0))
        assert [len(batch.label) for batch in alone] == [14, 14, 14, 14, 4]
        monkeypatch.setattr(together, "processes", lambda: count)
        shares, positions = [], []
        for rank in range(count):
            monkeypatch.setattr(together, "rank", lambda rank=rank: rank)
            loader = BatchLoader(period, 14, seed, unknown_rate=0.1 if seed else 0)
            shares.append(list(loader))
            positions.append(loader.positions())
        monkeypatch.undo()
        for i, batch in enumerate(alone):
            mine = [share[i] for share in shares]
            assert torch.equal(torch.cat([part.fields for part in mine]), batch.fields)
            assert torch.equal(torch.cat([part.numbers for part in mine]), batch.numbers)
        if seed is None:
            numbers = torch.empty(60, 1)
            for where, share in zip(positions, shares, strict=True):
                numbers[where] = torch.cat([part.numbers for part in share])
            assert torch.equal(numbers, period.rows.numbers)
