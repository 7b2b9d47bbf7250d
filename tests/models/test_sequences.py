"""What every backbone that reads a history promises, and the furniture that they share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from incrs.catalogue import Catalogue
from incrs.data.base import ListField, Schema
from incrs.errors import Mistake
from incrs.models.base import SequenceBackbone
from incrs.models.sequences import attend, closed, not_later, products
from incrs.period import Period, Role
from incrs.selectors.search import open_gates
from tests.models.toy import BARE, SCHEMA, doubled, roughen, rows

CONF = Path(__file__).parents[2] / "conf" / "model"
ENCODERS = ["caser", "gru4rec", "nextitnet", "sasrec"]
READERS = [*ENCODERS, "din"]
LONGER = replace(SCHEMA, lists={**SCHEMA.lists, "history": ListField("item", 9)})


def build(name: str, schema: Schema = SCHEMA, **options):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    factory = hydra.utils.instantiate(config, _partial_=True, _convert_="all")
    return factory(schema=schema, seed=0, **options)


def with_history(batch, history: torch.Tensor):
    return batch._replace(lists={**batch.lists, "history": history.int()})


@pytest.mark.parametrize("name", READERS)
def test_a_log_without_histories_is_refused_with_the_setting_that_adds_them(name):
    for schema in (BARE, replace(SCHEMA, item=None)):
        with pytest.raises(Mistake, match=rf"model={name} reads .* set data\.history=20"):
            build(name, schema)


@pytest.mark.parametrize("name", READERS)
def test_padding_and_what_is_unknown_say_nothing(name):
    model = roughen(build(name)).eval()
    batch = doubled(rows(SCHEMA, 40))
    batch.fields[:, 1:3].clamp_(min=1)  # the row's own item and its last
    with torch.no_grad():
        before = model(batch).logit
        model.embedding.tables["item"][0] += 100
        torch.testing.assert_close(model(batch).logit, before, rtol=1e-12, atol=1e-12)
        # A gap is not told from padding at the end.
        together_again = with_history(batch, closed(batch.lists["history"]))
        torch.testing.assert_close(model(together_again).logit, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", READERS)
def test_more_room_for_a_history_changes_nothing(name):
    model, wide = roughen(build(name)).eval(), build(name, LONGER).double().eval()
    state = model.state_dict()
    positions = [key for key in state if key.endswith("positions")]
    for key in positions:
        state[key] = torch.cat([state[key], torch.randn(3, 64).double()])
    wide.load_state_dict(state)
    batch = doubled(rows(SCHEMA, 40))
    more = with_history(batch, torch.nn.functional.pad(batch.lists["history"], (0, 3)))
    torch.testing.assert_close(wide(more).logit, model(batch).logit, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", READERS)
def test_rows_without_any_history_are_scored_and_learnt_from(name):
    model = build(name)
    batch = rows(SCHEMA, 8)
    empty = with_history(batch, torch.zeros_like(batch.lists["history"]))
    output = model(empty, representations=True)
    model.loss(empty, output).backward()
    assert all(x.isfinite().all() for x in output)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", READERS)
def test_the_order_of_a_history_is_told_by_all_but_din(name):
    model = roughen(build(name)).eval()
    batch = doubled(rows(SCHEMA, 20))
    history = torch.arange(1, 7).repeat(20, 1)
    ours, flipped = (model(with_history(batch, h)).logit for h in (history, history.flip(1)))
    assert torch.allclose(ours, flipped) == (name == "din")


@pytest.mark.parametrize("name", ENCODERS)
def test_users_vectors_read_the_history_alone(name):
    model = roughen(build(name)).eval()
    assert isinstance(model, SequenceBackbone)
    batch, other = doubled(rows(SCHEMA, 12)), doubled(rows(SCHEMA, 12, seed=1))
    fields = other.fields.clone()
    fields[:, 0] = batch.fields[:, 0]  # the user, whom Caser knows
    changed = other._replace(fields=fields, lists=other.lists | {"history": batch.lists["history"]})
    assert torch.equal(model.encode(batch), model.encode(changed))
    assert not torch.equal(model.encode(batch), model.encode(other))


@pytest.mark.parametrize("name", ENCODERS)
def test_without_a_tower_scores_are_users_times_items_and_nothing_else_has_tables(name):
    model = roughen(build(name, tower=None)).eval()
    batch = doubled(rows(SCHEMA, 12))
    users, items = model.encode(batch), model.catalogue(torch.arange(20))
    logit = (users * items[batch.fields[:, 1].long()]).sum(1)
    torch.testing.assert_close(model(batch).logit, logit)
    assert set(model.embedding.tables) == {"item", "user"} - (
        {"user"} if name != "caser" else set()
    )
    model.loss(batch, model(batch)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    catalogue = Catalogue(SCHEMA)
    catalogue.see(Period(0, "", Role.TEST, rows(SCHEMA, 60)))
    at = torch.randint(1, 10, (12, 4), generator=torch.Generator().manual_seed(0))
    found = catalogue.items(at, lambda rows: rows)
    whole = (users @ model.catalogue(found.fields[:, 0]).T).gather(1, at)
    torch.testing.assert_close(model.score(batch, found), whole)


@pytest.mark.parametrize("whole", [True, False])
def test_products_are_the_same_however_they_are_cut(whole, monkeypatch):
    random = torch.Generator().manual_seed(0)
    users, table = torch.randn(7, 3, generator=random), torch.randn(50, 3, generator=random)
    ids = torch.randperm(50, generator=random)[:40]
    at = torch.randint(40, (7, 5), generator=random)
    expected = torch.stack([table[ids[at[i]]] @ users[i] for i in range(7)])
    monkeypatch.setattr("incrs.models.sequences.CATALOGUE", 32 if whole else 0)
    for block in (1 << 23, 40):
        monkeypatch.setattr("incrs.models.sequences.BLOCK", block)
        found = products(users, lambda some: table[some], ids, at)
        torch.testing.assert_close(found, expected)


def test_a_history_is_closed_up_in_its_order():
    history = torch.tensor([[0, 3, 0, 5, 3], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]], dtype=torch.int32)
    expected = [[3, 5, 3, 0, 0], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]]
    assert closed(history).tolist() == expected
    assert closed(history).dtype == torch.int32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_neither_attends_nor_is_attended_to(dtype):
    held = torch.tensor([[True, True, False], [False, False, False]])
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    mixed = attend(x, x, x, not_later(held), 2)
    assert not mixed[0, 2].any() and not mixed[1].any()
    torch.testing.assert_close(mixed[0, 1], x[0, 1])  # the oldest sees itself alone
    mixed.square().sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[0, :2].any() and not x.grad[0, 2].any() and not x.grad[1].any()


@pytest.mark.parametrize("name", ENCODERS)
def test_a_selector_is_refused_where_users_vectors_would_escape_its_gates(name):
    for options in ({}, {"tower": None}):
        with pytest.raises(Mistake, match=f"model={name} does not read every id through"):
            open_gates(build(name, **options), SCHEMA, name)
