"""The learner trains the generator alone, on the rows of the batch, and equals training on whole tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from incrs.data.stream import AlignedLoader, PeriodStream
from incrs.errors import Mistake
from incrs.models.base import Backbone
from incrs.models.embedding_mlp import EmbeddingMLP
from incrs.models.star import STAR
from incrs.period import Batch, Period, Stored
from incrs.runner import Fit
from incrs.updaters import renumbering
from incrs.updaters.learner import Known, WeightLearner
from incrs.updaters.renumbering import Needed, Renumbering
from tests.conftest import SCHEMA, SmallBackbone, SmallSource


class Scaled(nn.Module):
    """Makes each of two models by a factor for each of its tensors."""

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = list(names)
        self.factors = nn.Parameter(torch.linspace(0.5, 1.5, 2 * len(names)).view(2, -1))

    def forward(self, known: Known, needed: Needed) -> list[dict[str, Tensor]]:
        return [
            {name: known[name][0] * f for name, f in zip(self.names, factors, strict=True)}
            for factors in self.factors.unbind()
        ]


def made(
    backbone: Backbone, optimizer: Callable[..., Optimizer] = torch.optim.SGD
) -> WeightLearner:
    weights = {name: (w.detach().clone(),) for name, w in backbone.named_parameters()}
    buffers = {name: w.clone() for name, w in backbone.named_buffers()}
    return WeightLearner(
        backbone, Scaled(list(weights)), weights, [0.25, 0.75], [buffers, buffers], optimizer
    )


def rows(t: int, count: int = 12) -> Batch:
    return SmallSource().read(t).rows.take(slice(0, count))


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renumbering, "SMALL", 0)


@pytest.mark.parametrize("second", [rows(1, 5), None, rows(1, 0)], ids=["rows", "none", "empty"])
def test_batches_are_renumbered_by_the_rows_they_hold(all_large: None, second) -> None:
    batches = (rows(0), second)
    found, held, needed = Renumbering(EmbeddingMLP(SCHEMA, 0))(batches)
    user, item, tag = (held[f"embedding.tables.{name}"] for name in ("user", "item", "tag"))
    seen = [batch for batch in batches if batch is not None]
    ids = torch.cat([batch.fields[:, 0] for batch in seen])
    assert sorted(user.tolist()) == sorted({0, *ids.tolist()})
    last = set() if second is None else set(second.fields[:, 0].tolist())
    assert user[0] == 0
    few = len({0, *last})
    assert needed["embedding.tables.user"] == [len(user), few]
    assert sorted(user[:few].tolist()) == sorted({0, *last})
    expected = {0}
    for batch in seen:
        expected |= {*batch.fields[:, 1].tolist(), *batch.lists["history"].flatten().tolist()}
    assert sorted(item.tolist()) == sorted(expected)
    assert item[0] == tag[0] == 0
    for before, after in zip(batches, found, strict=True):
        if before is None:
            assert after is None
            continue
        assert torch.equal(user[after.fields[:, 0]], before.fields[:, 0])
        assert torch.equal(item[after.fields[:, 1]], before.fields[:, 1])
        assert torch.equal(item[after.lists["history"]], before.lists["history"])
        assert torch.equal(tag[after.lists["tags"]], before.lists["tags"])
        assert torch.equal(after.lists["tags"] == 0, before.lists["tags"] == 0)
        assert after.fields.dtype == after.lists["tags"].dtype == torch.int32
        assert after.label is before.label
    assert torch.equal(batches[0].fields, rows(0).fields)  # the batch itself is never changed


def test_ids_of_small_tables_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renumbering, "SMALL", 21)
    renumbered = Renumbering(EmbeddingMLP(SCHEMA, 0))
    assert list(renumbered.tables) == ["embedding.tables.item"]
    (found,), _, _ = renumbered([rows(0)])
    assert torch.equal(found.fields[:, 0], rows(0).fields[:, 0])
    assert found.lists["tags"] is not rows(0).lists["tags"]
    assert torch.equal(found.lists["tags"], rows(0).lists["tags"])
    monkeypatch.setattr(renumbering, "SMALL", 1000)
    assert Renumbering(EmbeddingMLP(SCHEMA, 0))([rows(0), None])[1:] == ({}, {})


def step(backbone: Backbone, batches: Sequence[Batch | None]) -> tuple[Tensor, Tensor]:
    one = made(backbone)
    one.on_train_start()
    loss = one.training_step(one.on_before_batch_transfer(batches, 0), 0)
    loss.backward()
    assert one.generator.factors.grad is not None
    return loss.detach(), one.generator.factors.grad


@pytest.mark.parametrize("batches", [(rows(0), rows(1)), (rows(0), None), (None, rows(3, 1))])
def test_the_rows_of_the_batch_give_loss_and_gradient_of_whole_tables(
    batches: tuple[Batch | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for small in (0, 1000):
        monkeypatch.setattr(renumbering, "SMALL", small)
        found[small] = step(EmbeddingMLP(SCHEMA, 0, initialisation="glorot"), batches)
    torch.testing.assert_close(found[0], found[1000], rtol=1e-5, atol=1e-8)


def test_the_loss_is_the_weighted_sum_over_the_steps() -> None:
    backbone = EmbeddingMLP(SCHEMA, 0, initialisation="glorot")
    loss, _ = step(backbone, (rows(0), rows(1)))
    factors = made(backbone).generator.factors
    expected = torch.zeros(())
    for share, batch, some in zip((0.25, 0.75), (rows(0), rows(1)), factors, strict=True):
        other = EmbeddingMLP(SCHEMA, 0, initialisation="glorot")
        with torch.no_grad():
            for parameter, factor in zip(other.parameters(), some, strict=True):
                parameter.mul_(factor)
        p = other(batch).logit.sigmoid()
        expected -= share * torch.where(batch.label > 0, p.log(), (1 - p).log()).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_it_holds_the_generator_and_nothing_else() -> None:
    backbone = STAR(SCHEMA, 0)
    backbone.train()
    before = {name: w.clone() for name, w in backbone.state_dict().items()}
    one = made(backbone)
    assert list(one.state_dict()) == ["generator.factors"]
    stream = PeriodStream(SmallSource(), 16)
    fit = Fit(partial(L.Trainer, accelerator="cpu"), stream, [])
    source = SmallSource()
    fit(one, source.read(1), source.read(2), epochs=2, aligned=True)
    assert len(one.losses) == 8
    assert all(torch.equal(w, before[name]) for name, w in backbone.state_dict().items())
    assert backbone.training
    assert all(p.requires_grad and p.grad is None for p in backbone.parameters())
    assert not torch.equal(one.generator.factors, made(backbone).generator.factors)


def test_two_fits_with_the_state_carried_are_one_of_two_epochs() -> None:
    batches = (rows(0), rows(1))
    whole, parts = (made(SmallBackbone(), partial(torch.optim.Adam, lr=0.01)) for _ in range(2))
    for one, splits in ((whole, [4]), (parts, [1, 3])):
        one.on_train_start()
        for count in splits:
            optimizer = one.configure_optimizers()
            for _ in range(count):
                optimizer.zero_grad()
                one.training_step(one.on_before_batch_transfer(batches, 0), 0).backward()
                optimizer.step()
            one.state = {
                number: {name: torch.as_tensor(x).clone() for name, x in entry.items()}
                for number, entry in optimizer.state_dict()["state"].items()
            }
    assert torch.equal(whole.generator.factors, parts.generator.factors)


def test_a_loss_that_is_not_finite_is_a_mistake_of_the_updater() -> None:
    one = made(SmallBackbone())
    one.losses = [torch.tensor(0.7), torch.tensor(float("nan"))]
    with pytest.raises(
        Mistake, match=r"asmg: .* period 3 \(day 3\), from step 2 of 2 on: a smaller"
    ):
        one.check("asmg", SmallSource().read(3))


def aligned(*sizes: int, size: int = 4, buffer: int = 0) -> list[tuple[int | None, ...]]:
    periods = []
    for t, count in enumerate(sizes):
        period = SmallSource(rows=max(count, 1)).read(t).take(slice(0, count))
        if buffer and count:
            content = period.rows
            parts = list(torch.arange(count).split(3))
            stored = Stored(
                [len(x) for x in parts], lambda i, c=content, x=parts: c.take(x[i]), buffer
            )
            period = Period(t, str(t), period.role, stored)
        periods.append(period)
    loader = AlignedLoader(periods, size, seed=1)
    found = list(loader)
    assert len(loader) == len(found)
    for i, period in enumerate(periods):
        price = [batches[i].numbers for batches in found if batches[i] is not None]
        ours = torch.cat([*price, torch.zeros(0, 1)]).sort(0).values
        assert torch.equal(ours, period.rows.numbers.sort(0).values)
    return [tuple(None if b is None else len(b.label) for b in batches) for batches in found]


@pytest.mark.parametrize("buffer", [0, 5])
def test_periods_are_aligned_into_as_many_batches_as_the_last_one_has(buffer: int) -> None:
    assert aligned(20, 9, 10, buffer=buffer) == [(7, 3, 4), (7, 3, 4), (6, 3, 2)]
    assert aligned(9, 24, buffer=buffer) == [(2, 4)] * 4 + [(1, 4), (None, 4)]
    assert aligned(0, 5, buffer=buffer) == [(None, 3), (None, 2)]
    assert aligned(7, buffer=buffer) == [(4,), (3,)]


def test_aligned_batches_are_translated_and_no_value_is_made_unknown() -> None:
    stream = PeriodStream(SmallSource(), 16, unknown_rate=0.5)
    stream.roster.ids |= {"user": torch.arange(30), "item": torch.arange(12)}
    periods = [SmallSource().read(t) for t in (1, 2)]
    for i in range(2):
        fields = torch.cat([batches[i].fields for batches in stream.aligned(periods, 0)])
        expected = periods[i].rows.fields.clone()
        expected[expected[:, 1] >= 12, 1] = 0
        assert sorted(fields.tolist()) == sorted(expected.tolist())


def test_adam_in_one_pass_over_memory_is_the_same_adam() -> None:
    makers = {
        "fused": partial(torch.optim.Adam, lr=0.01, foreach=True),
        "own": lambda parameters: Plain(parameters, lr=0.01),
    }
    found = {}
    for name, make in makers.items():
        one = made(SmallBackbone(), make)
        optimizer = one.configure_optimizers()
        assert bool(optimizer.param_groups[0]["fused"]) == (name == "fused")
        one.on_train_start()
        for t in range(3):
            optimizer.zero_grad()
            asked = one.on_before_batch_transfer((rows(t), rows(t + 1)), 0)
            one.training_step(asked, 0).backward()
            optimizer.step()
        found[name] = one.generator.factors.detach()
    torch.testing.assert_close(found["fused"], found["own"], rtol=0, atol=1e-6)


class Plain(torch.optim.Adam):
    """Adam by another name, which is left as it is."""
