"""SPMF against its formulas, and its reservoirs against what a uniform sample must be."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from incrs.data.stream import PeriodStream
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.module import ScenarioModule
from incrs.period import Batch, Period, Role, Stored
from incrs.results import Run
from incrs.roster import Roster
from incrs.runner import run
from incrs.updaters.spmf import SPMF, Reservoir, draw, flat, logits, rank_weights, slots
from tests.conftest import SmallBackbone, SmallSource
from tests.test_roster import Living, backbone_of


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(start: int, stop: int, positive: bool = True) -> Batch:
    """Return rows that hold their own number."""
    number = torch.arange(start, stop)
    label = torch.full((len(number),), float(positive))
    tags = {"tags": number.int().view(-1, 1)}
    return Batch(number.int().view(-1, 1), tags, number.float().view(-1, 1), number, label)


def test_weights_are_the_exponential_of_the_rank_and_highest_for_the_lowest_score() -> None:
    logit = torch.tensor([0.3, -2.0, 5.0, 0.1])
    expected = [math.exp(rank / 4) for rank in (2, 4, 1, 3)]
    np.testing.assert_allclose(rank_weights(logit).numpy(), expected, rtol=1e-12)
    assert len(rank_weights(torch.zeros(0))) == 0


def test_draws_are_successive_draws_in_proportion_to_the_weights() -> None:
    weight, times = rank_weights(torch.tensor([3.0, 2.0, 1.0, 0.0])), 20_000
    random, counts = seeded(0), np.zeros((4, 4))
    for _ in range(times):
        first, second = draw(weight, 2, random).tolist()
        counts[first, second] += 1
    w = [math.exp((i + 1) / 4) for i in range(4)]
    for i, j in itertools.product(range(4), repeat=2):
        chance = 0.0 if i == j else w[i] / sum(w) * w[j] / (sum(w) - w[i])
        spread = math.sqrt(times * chance * (1 - chance))
        assert abs(counts[i, j] - times * chance) <= 4 * spread, (i, j)


def test_a_draw_of_more_than_there_are_is_all_of_them() -> None:
    assert sorted(draw(torch.ones(3).double(), 9, seeded(0)).tolist()) == [0, 1, 2]
    assert len(draw(torch.ones(3).double(), 0, seeded(0))) == 0


@pytest.mark.parametrize("parts", [[12], [3, 1, 0, 8], [4, 1, 1, 1, 5]], ids=str)
def test_every_row_and_every_pair_is_held_with_the_same_probability(parts: list[int]) -> None:
    capacity, total, times, random = 4, 12, 1500, seeded(1)
    alone, paired = np.zeros(total), np.zeros((total, total))
    for _ in range(times):
        held, at = np.full(capacity, -1), 0
        for count in parts:
            places, rows = slots(capacity, at, count, random)
            assert len(places.unique()) == len(places)
            held[places.numpy()] = at + rows.numpy()
            at += count
        assert len({*held}) == capacity
        assert held.min() >= 0
        alone[held] += 1
        paired[np.ix_(held, held)] += 1
    pairs = paired[np.triu_indices(total, 1)]
    for counts, chance in ((alone, 4 / 12), (pairs, 4 / 12 * 3 / 11)):
        z = (counts - times * chance) / math.sqrt(times * chance * (1 - chance))
        assert (z**2).mean() < 1 + 4 * math.sqrt(2 / len(counts))
        assert abs(z).max() < 4.5


def test_a_row_enters_with_the_size_over_the_rows_so_far() -> None:
    capacity, seen, times, random = 5, 8, 3000, seeded(2)
    entered, place_of = np.zeros(4), np.zeros(5)
    for _ in range(times):
        places, rows = slots(capacity, seen, 4, random)
        entered[rows] += 1
        place_of[places[rows == 3]] += 1
    # row i enters, and none of the rows behind it takes its place
    after = [math.prod(1 - 1 / (seen + j + 1) for j in range(i + 1, 4)) for i in range(4)]
    chance = np.array([capacity / (seen + i + 1) * after[i] for i in range(4)])
    assert (np.abs(entered - times * chance) < 4 * np.sqrt(times * chance * (1 - chance))).all()
    assert np.ptp(place_of) < 8 * math.sqrt(place_of.mean())


def test_a_reservoir_holds_whole_rows() -> None:
    reservoir, random = Reservoir(10), seeded(3)
    for start in range(0, 100, 7):
        reservoir.add(numbered(start, min(start + 7, 100)), random)
    rows = reservoir.rows(slice(0, reservoir.held))
    assert reservoir.seen == 100
    assert len(rows.scenario.unique()) == reservoir.held == 10
    for column in (rows.fields, rows.lists["tags"], rows.numbers):
        assert torch.equal(column[:, 0].long(), rows.scenario)


def test_a_reservoir_with_room_holds_every_row() -> None:
    reservoir = Reservoir(10)
    reservoir.add(numbered(0, 4), seeded(0))
    reservoir.add(numbered(4, 7), seeded(1))
    assert reservoir.rows(slice(0, reservoir.held)).scenario.tolist() == list(range(7))


def prepared(
    updater: SPMF, source: SmallSource, roster: Roster | None = None
) -> tuple[ScenarioModule, PeriodStream]:
    """Return a module that went through the warm-up and what came of its random weights."""
    optimizer = partial(torch.optim.Adam, lr=0.01)
    module = ScenarioModule(SmallBackbone(), {"spmf": updater}, optimizer, 3)
    stream = PeriodStream(source, 32, roster)
    first = [source.read(t) for t in range(stream.warmup)]
    for period in first:
        stream.roster.see(period)
    torch.manual_seed(7)
    whole = Period.concat(first)
    assert updater.training_period(module, first, whole) is whole
    module.follow(stream.roster.admit())
    return module, stream


@pytest.mark.parametrize(("ratio", "fraction"), [(0.5, 0.4), (1.5, 1.0), (0.2, 0.1)])
def test_a_period_is_trained_on_with_drawn_rows_of_the_past(ratio: float, fraction: float) -> None:
    updater, source = SPMF(fraction, ratio=ratio), SmallSource()
    module, _ = prepared(updater, source)
    past = Period.concat([source.read(0), source.read(1)]).rows
    positives = int(past.label.sum())
    held = [reservoir.held for reservoir in updater.reservoirs]
    assert held == [round(fraction * (120 - positives)), round(fraction * positives)]
    period = source.read(2)
    trained = updater.training_period(module, [period], period)
    asked = int(ratio * int(period.rows.label.sum()))
    drawn = trained.rows.take(slice(0, len(trained) - 60))
    assert int(drawn.label.sum()) == min(asked, held[1])
    assert len(drawn.label) - int(drawn.label.sum()) == min(asked, held[0])
    rest = trained.rows.take(slice(len(drawn.label), None))
    assert all(map(torch.equal, flat(rest).values(), flat(period.rows).values()))
    known = {tuple(row) for row in past.numbers.tolist()}
    numbers = [tuple(row) for row in drawn.numbers.tolist()]
    assert {*numbers} <= known
    assert len({*numbers}) == len(numbers), "without replacement"
    assert (trained.index, trained.role) == (2, Role.TUNE)


def test_low_scores_are_drawn_more_often() -> None:
    updater, source = SPMF(1.0, ratio=0.3), SmallSource()
    module, _ = prepared(updater, source)
    positives = updater.reservoirs[1].rows(slice(0, updater.reservoirs[1].held))
    logit = dict(
        zip(
            positives.numbers[:, 0].tolist(),
            logits(module, updater.reservoirs[1]).tolist(),
            strict=True,
        )
    )
    median = sorted(logit.values())[len(logit) // 2]
    state, low, drawn = updater.state_dict(), 0, 0
    state = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
    for seed in range(150):
        updater.load_state_dict(state)
        torch.manual_seed(seed)
        period = source.read(2)
        rows = updater.training_period(module, [period], period).rows.take(slice(0, -60))
        found = [logit[x] for x in rows.numbers[rows.label == 1, 0].tolist()]
        low, drawn = low + sum(x < median for x in found), drawn + len(found)
    # by successive draws a little less than without their end, exp(.75) / (exp(.25) + exp(.75))
    assert 0.57 < low / drawn < 0.63


@pytest.mark.parametrize(
    "options",
    [{}, {"vocabulary": "fixed"}, {"admission": 3}, {"admission": 2, "expiry": 2}, {"expiry": 1}],
    ids=str,
)
def test_the_reservoir_is_scored_as_the_log_would_be(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("incrs.updaters.spmf.BLOCK", 17)
    updater, source = SPMF(1.0), Living(8)
    roster = Roster(source.schema, **options)
    optimizer = partial(torch.optim.Adam, lr=0.01)
    module = ScenarioModule(backbone_of("star", source.schema), {"spmf": updater}, optimizer, 2)
    stream = PeriodStream(source, 16, roster)
    for t in range(2, 7):
        period = Period.concat([source.read(i) for i in range(3)]) if t == 2 else source.read(t)
        for one in [source.read(i) for i in range(3)] if t == 2 else [period]:
            roster.see(one)
        module.train()
        updater.training_period(module, [period], period)
        assert module.backbone.training
        module.follow(roster.admit())
        with torch.no_grad():
            for name, _ in module.backbone.tables().items():
                module.backbone.get_parameter(name).normal_(generator=seeded(t))
        module.eval()
        for reservoir in updater.reservoirs:
            held = replace(period, content=reservoir.rows(slice(0, reservoir.held)))
            with torch.no_grad():
                expected = [module.backbone(batch).logit for batch in stream.loader(held)]
            torch.testing.assert_close(logits(module, reservoir), torch.cat(expected))


def test_rows_on_disk_are_taken_part_by_part() -> None:
    def on_disk(period: Period) -> Period:
        parts = [period.rows.take(slice(start, start + 20)) for start in (0, 20, 40)]
        return replace(period, content=Stored([20, 20, 20], parts.__getitem__, 30), truth=None)

    class Disk(SmallSource):
        def read(self, t: int) -> Period:
            return on_disk(super().read(t))

    seen = []
    for source in (SmallSource(), Disk()):
        updater = SPMF(0.5)
        module, _ = prepared(updater, source)
        period = source.read(2)
        trained = updater.training_period(module, [period], period)
        seen.append((len(trained), [r.seen for r in updater.reservoirs]))
        assert isinstance(trained.content, type(period.content))
        assert [r.held for r in updater.reservoirs] == [r.capacity for r in updater.reservoirs]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("options", [{"fraction": 0.5}, {"rows": 40}])
def test_memory_stays_what_it_is_over_fifty_periods(options: dict[str, float]) -> None:
    updater, source = SPMF(**options), SmallSource(periods=53)
    module, _ = prepared(updater, source)
    sizes = set()
    for t in range(2, 53):
        torch.manual_seed(t)
        period = source.read(t)
        assert len(updater.training_period(module, [period], period)) <= 60 + 60
        tensors = [v for v in updater.state_dict().values() if isinstance(v, torch.Tensor)]
        sizes.add(sum(v.untyped_storage().nbytes() for v in tensors))
        assert sum(r.held for r in updater.reservoirs) == (40 if "rows" in options else 60)
    assert len(sizes) == 1
    assert sum(r.seen for r in updater.reservoirs) == 53 * 60


def test_a_reservoir_larger_than_the_warm_up_fills_later() -> None:
    updater, source = SPMF(rows=200), SmallSource()
    module, _ = prepared(updater, source)
    held = [sum(r.held for r in updater.reservoirs)]
    for t in range(2, 6):
        period = source.read(t)
        updater.training_period(module, [period], period)
        held.append(sum(r.held for r in updater.reservoirs))
    assert held[0] == 120
    assert held == sorted(held)
    assert 190 <= held[-1] <= 200


def test_a_day_without_rows_or_without_positives_draws_nothing() -> None:
    updater, source = SPMF(), SmallSource()
    module, _ = prepared(updater, source)
    for where in (slice(0, 0), source.read(2).rows.label == 0):
        period = source.read(2).take(where)
        assert updater.training_period(module, [period], period) is period


def test_the_same_seed_draws_the_same_rows_and_leaves_the_global_random_state_alone() -> None:
    found = []
    for seed in (3, 3, 4):
        updater, source = SPMF(), SmallSource()
        module, _ = prepared(updater, source)
        torch.manual_seed(seed)
        before, period = torch.get_rng_state(), source.read(2)
        found.append(updater.training_period(module, [period], period).rows.numbers)
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_reservoir_that_is_not_full_survives_a_resume(tmp_path: Path) -> None:
    def go(periods: int, folder: Path) -> bytes:
        optimizer = partial(torch.optim.Adam, lr=0.01)
        module = ScenarioModule(SmallBackbone(), {"spmf": SPMF(rows=300)}, optimizer, 3)
        trainer = partial(L.Trainer, accelerator="cpu")
        stream = PeriodStream(SmallSource(periods=periods), 32)
        about = Run("0", "small", "small", "spmf", 0)
        run(stream, module, trainer, RunFolder(folder), about)
        return (folder / "serving" / f"period={periods:04d}.safetensors").read_bytes()

    go(4, tmp_path / "grown")
    assert go(6, tmp_path / "grown") == go(6, tmp_path / "whole")


@pytest.mark.parametrize("options", [{"fraction": 0}, {"fraction": 1.1}, {"rows": 1}, {"ratio": 0}])
def test_a_setting_that_makes_no_sense_is_refused_by_name(options: dict[str, float]) -> None:
    with pytest.raises(Mistake, match=rf"updater\.spmf\.{next(iter(options))}="):
        SPMF(**options)
