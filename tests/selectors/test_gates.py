"""Gates in a backbone: open, closed, moved with the ids, pruned, and refused where they cannot gate."""

from __future__ import annotations

import copy

import pytest
import torch

from incrs import states
from incrs.errors import Mistake
from incrs.models.base import Backbone
from incrs.models.gates import gates_of, through_shared
from incrs.selection import (
    Kept,
    Selection,
    draw,
    drift,
    export,
    kept_by,
    pruned,
    put,
    read,
    translate,
    values_of,
)
from incrs.selectors.search import open_gates
from tests.conftest import SCHEMA, SmallBackbone, SmallSource
from tests.selectors.toy import GATED, PAST_GATES, backbone_of, module_of, selector

MODELS = (*GATED, "nested")
IDS = {name: torch.arange(size) for name, size in SCHEMA.vocabularies.items()}


def rows(count: int = 60):
    return SmallSource().read(0).rows.take(slice(0, count))


def gated(model: str = "embedding_mlp") -> Backbone:
    """Return a backbone of ordinary weights with open gates, a row for each id."""
    backbone = backbone_of(model)
    open_gates(backbone, SCHEMA, model)
    gates = gates_of(backbone)
    for name, vocabulary in gates.buffers_by_row().items():
        gates.register_buffer(name, torch.ones(SCHEMA.vocabularies[vocabulary], 4).byte())
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.normal_(0, 0.3, generator=random)
    return backbone.eval()


def set_kept(backbone: Backbone, choose) -> None:
    """choose: (column, shape) -> which are kept."""
    gates = gates_of(backbone)
    for at in range(len(gates.columns)):
        gates.kept(at).copy_(choose(at, gates.kept(at).shape))


@pytest.mark.parametrize("model", MODELS)
def test_open_everywhere_is_the_plain_backbone_to_the_last_digit(model: str) -> None:
    with_gates, plain = gated(model), backbone_of(model).eval()
    weights = with_gates.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    batch = rows()
    assert torch.equal(with_gates(batch).logit, plain(batch).logit)
    for one in (with_gates.train(), plain.train()):
        one.loss(batch, one(batch)).backward()
    slopes = dict(with_gates.named_parameters())
    assert all(torch.equal(slopes[name].grad, w.grad) for name, w in plain.named_parameters())
    with through_shared(gates_of(with_gates)):
        assert torch.equal(with_gates(batch).logit, plain(batch).logit)


@pytest.mark.parametrize("model", MODELS)
def test_closed_everywhere_is_the_model_of_an_empty_row(model: str) -> None:
    closed = gated(model)
    empty = copy.deepcopy(closed)
    set_kept(closed, lambda at, shape: torch.zeros(shape))
    with torch.no_grad():
        for name in empty.tables():
            empty.get_parameter(name).zero_()
    batch = rows()
    no_lists = {name: torch.zeros_like(x) for name, x in batch.lists.items()}
    found = closed(batch).logit
    torch.testing.assert_close(found, empty(batch._replace(lists=no_lists)).logit)
    other = batch._replace(fields=batch.fields.flip(0), lists=no_lists)
    assert torch.equal(found, closed(other).logit)


def test_a_gate_closes_one_value_of_one_column_in_one_scenario() -> None:
    backbone, batch = gated(), rows()
    before = backbone(batch).logit
    item = list(SCHEMA.fields).index("item")

    def all_but_one(at: int, shape) -> torch.Tensor:
        kept = torch.ones(shape)
        kept[7, 2] = at != item
        return kept

    set_kept(backbone, all_but_one)
    changed = backbone(batch).logit != before
    expected = (batch.fields[:, item] == 7) & (batch.scenario == 2)
    batch.fields[3, item], batch.scenario[3] = 7, 2
    assert torch.equal(changed, expected)
    table = backbone.embedding.table("item")
    with torch.no_grad():
        one = backbone(batch).logit[3]
        table[7] += 1  # it is in the history of others
        assert not batch.lists["history"][3].eq(7).any()
        assert torch.equal(backbone(batch).logit[3], one)


def test_a_list_is_gated_value_by_value_and_its_length_stays() -> None:
    backbone, batch = gated(), rows(1)
    batch.lists["tags"][:] = torch.tensor([3, 5, 0])
    set_kept(backbone, lambda at, shape: torch.ones(shape).index_fill_(0, torch.tensor(5), at != 2))
    x = backbone.embedding(batch)
    tag = backbone.embedding.table("tag")
    torch.testing.assert_close(x[0, 8:12], tag[3] / 2)


def test_numbers_and_the_scenario_are_not_gated() -> None:
    backbone, batch = gated(), rows()
    set_kept(backbone, lambda at, shape: torch.zeros(shape))
    x = backbone.embedding(batch)
    assert not x[:, :16].any()
    assert torch.equal(x[:, 16], batch.numbers[:, 0])
    assert x[:, 17:].any(1).all()


@pytest.mark.parametrize("model", ["past", *PAST_GATES])
def test_a_backbone_that_reads_its_tables_past_the_gates_is_refused(model: str) -> None:
    backbone = SmallBackbone() if model == "past" else backbone_of(model)
    with pytest.raises(Mistake, match="model=small does not read every id through"):
        open_gates(backbone, SCHEMA, "small")


def test_gates_move_with_the_ids_and_new_ones_come_as_fresh_says() -> None:
    module = module_of(backbone_of(), selector("multifs"))
    module.follow({name: ids[:5] for name, ids in IDS.items()})
    gates = gates_of(module.backbone)
    gates.kept(0)[3] = 0
    gates.fresh[1] = 0
    module.follow({name: torch.tensor([0, 3, 9]) for name in IDS})
    assert gates.kept(0).tolist() == [[1] * 4, [0] * 4, [1] * 4]
    assert gates.kept(1).tolist() == [[1] * 4, [1] * 4, [0] * 4]


def test_training_from_the_initial_weights_keeps_the_gates_of_now() -> None:
    module = module_of(backbone_of(), selector("multifs"))
    module.follow(IDS)
    gates_of(module.backbone).kept(1)[4] = 0
    initial = module.initial_weights
    assert set(initial) == set(module.backbone.state_dict())
    module.start_from(initial)
    assert not gates_of(module.backbone).kept(1)[4].any()


def test_pruned_tables_are_smaller_and_give_the_same_scores() -> None:
    backbone = gated()
    random = torch.Generator().manual_seed(5)
    set_kept(backbone, lambda at, shape: torch.rand(shape, generator=random) < 0.1)
    gates_of(backbone).scale.fill_(1.6)
    weights = backbone.state_dict()
    small, held = pruned(backbone, weights)
    for name, (_, vocabulary) in backbone.tables().items():
        assert len(small[name]) == len(held[vocabulary]) < len(weights[name])
    batch = rows(300)
    translated = translate(batch, values_of(backbone), held)
    found = torch.func.functional_call(backbone, small, (translated,)).logit
    torch.testing.assert_close(found, backbone(batch).logit, rtol=0, atol=0)


def test_export_writes_less_than_serving(tmp_path) -> None:
    backbone = gated()
    set_kept(backbone, lambda at, shape: torch.zeros(shape))
    (tmp_path / "serving").mkdir()
    states.save(backbone.state_dict(), tmp_path / "serving" / "period=0003.safetensors")
    before, after = export(tmp_path, backbone)
    assert before == 4 * 4 * sum(SCHEMA.vocabularies.values())
    assert after == 4 * 4 * 2 * len(
        SCHEMA.vocabularies
    )  # the unknown's and what stands for the rest
    rows_of = states.load(tmp_path / "pruned" / "period=0003.rows.safetensors")
    assert rows_of["item"].tolist() == [0, -1]


def test_what_is_kept_is_counted_without_the_unknown_and_read_back(tmp_path) -> None:
    backbone = gated()
    gates = gates_of(backbone)
    before = [gates.kept(at).clone() for at in range(4)]
    gates.kept(0)[:11, 1] = 0
    found = kept_by(gates, 4, SCHEMA.scenarios, shares=True)
    assert Kept(4, "search", "user", 20, 10) in found
    assert Kept(4, "(shared)", "user", 20, 20) in found
    moved = drift(gates, before, SCHEMA.scenarios)
    assert {name: x for name, x in moved.items() if x} == {"drift.user.search": 0.5}
    choice = Selection(selector("multifs"), SCHEMA.scenarios)
    choice.kept = found
    choice.write(tmp_path)
    assert read(tmp_path) == found
    assert read(tmp_path, 3) == []
    draw(tmp_path)
    assert (tmp_path / "selection.png").stat().st_size > 1000


def test_a_column_that_is_dropped_as_a_whole_stays_dropped_for_ids_that_come() -> None:
    backbone = gated()
    gates, sizes = gates_of(backbone), [len(gates_of(backbone).kept(at)) for at in range(4)]
    kept = [torch.full((size, 4), at == 1) for at, size in enumerate(sizes)]
    put(gates, kept, selector("lpfs"))
    assert gates.fresh.tolist() == [[0] * 4, [1] * 4, [0] * 4, [0] * 4]
    put(gates, kept, selector("optfs"))
    assert gates.fresh.all()
