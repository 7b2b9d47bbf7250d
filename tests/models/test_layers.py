from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from incrs.data.base import Schema
from incrs.errors import Mistake
from incrs.models.layers import (
    MLP,
    ByScenario,
    Embeddings,
    ScenarioLinear,
    Towers,
    look_up,
    parameter_names,
    pool,
    randomness,
    uniforms,
)
from incrs.period import Batch
from tests.models.toy import BARE, SCHEMA, doubled, numpy_weights, roughen, row_input, rows


@pytest.mark.parametrize("size", [1, 3, 10])
@pytest.mark.parametrize("start", [0, 1, 7, 64])
def test_rows_depend_on_their_own_number_alone(size, start):
    whole = uniforms(5, "user", 0, 101, size)
    assert torch.equal(uniforms(5, "user", start, 83, size), whole[start:83])
    assert uniforms(5, "user", start, start, size).shape == (0, size)


def test_rows_differ_by_seed_and_vocabulary():
    one = uniforms(5, "user", 0, 4, 3)
    assert not torch.equal(one, uniforms(6, "user", 0, 4, 3))
    assert not torch.equal(one, uniforms(5, "item", 0, 4, 3))


def test_initial_rows_appended_later_are_those_of_a_longer_table():
    embeddings = Embeddings(SCHEMA, 10, seed=1)
    whole = embeddings.initial("item", torch.arange(40_001), 40_001)
    assert torch.equal(whole[:20], embeddings.table("item"))
    later = torch.tensor([31, 40_000, 20, 16_384, 16_383])
    assert torch.equal(whole[later], embeddings.initial("item", later, 25))


def test_tables_start_as_small_normal_numbers():
    table = (
        Embeddings(SCHEMA, 10, seed=1)
        .initial("user", torch.arange(20_000), 20_000)
        .double()
        .flatten()
    )
    assert scipy.stats.kstest(table.numpy(), "norm", args=(0, 0.01)).pvalue > 0.01


def test_glorot_tables_are_uniform_within_the_limit():
    embeddings = Embeddings(SCHEMA, 10, seed=1, scenario_field=True, initialisation="glorot")
    limit = (6 / (20_000 + 10)) ** 0.5
    table = embeddings.initial("user", torch.arange(20_000), 20_000).double().flatten()
    assert scipy.stats.kstest(table.numpy(), "uniform", args=(-limit, 2 * limit)).pvalue > 0.01
    assert 0.5 < embeddings.scenario.abs().max() <= (6 / 13) ** 0.5


def test_look_up_and_its_gradient_are_those_of_an_embedding():
    table = torch.randn(50, 7, requires_grad=True)
    ids = torch.randint(0, 50, (30, 4), dtype=torch.int32)
    weight = torch.randn(30, 4, 7)
    ours, theirs = look_up(table, ids), F.embedding(ids, table)
    assert torch.equal(ours, theirs)
    ours_grad = torch.autograd.grad((ours * weight).sum(), table)[0]
    torch.testing.assert_close(
        ours_grad, torch.autograd.grad((theirs * weight).sum(), table)[0], rtol=1e-6, atol=1e-6
    )


def test_pool_averages_what_is_held_and_gives_exact_zeros_for_nothing():
    table = torch.tensor([[9.0, 9.0], [1.0, 2.0], [3.0, 6.0]])
    ids = torch.tensor([[1, 0, 2], [0, 2, 0], [0, 0, 0]], dtype=torch.int32)
    assert torch.equal(pool(table, ids), torch.tensor([[2.0, 4.0], [3.0, 6.0], [0.0, 0.0]]))


def test_padding_gets_no_gradient_and_unknown_does():
    embeddings = Embeddings(SCHEMA, 4, seed=0)
    batch = rows(SCHEMA, 5)
    batch = batch._replace(fields=torch.zeros_like(batch.fields))
    batch.lists["tags"][:] = 0
    embeddings(batch).sum().backward()
    assert embeddings.table("tag").grad.abs().sum() == 0
    assert (embeddings.table("user").grad[0] == 5).all()


def test_input_is_fields_then_lists_then_numbers_then_the_scenario():
    embeddings = torch.nn.ModuleDict({"embedding": Embeddings(SCHEMA, 3, 0, scenario_field=True)})
    roughen(embeddings)
    batch = doubled(rows(SCHEMA, 50))
    out = embeddings["embedding"](batch).detach().numpy()
    w = numpy_weights(embeddings)
    assert out.shape == (50, embeddings["embedding"].width)
    for i in range(50):
        scenario = w["embedding.scenario"][batch.scenario[i]]
        expected = np.concatenate([row_input(w, SCHEMA, batch, i), scenario])
        np.testing.assert_allclose(out[i], expected, rtol=1e-7)


def test_schema_of_lists_or_numbers_alone():
    lists = Schema({"item": 20}, {}, {"history": SCHEMA.lists["history"]}, [], ["only"])
    assert Embeddings(lists, 3, 0)(rows(SCHEMA, 4)).shape == (4, 3 + 2)
    assert Embeddings(BARE, 3, 0)(rows(BARE, 4)).shape == (4, 6)


def test_off_the_cpu_the_same_columns_are_made():
    batch = rows(SCHEMA, 4)
    lists = {name: ids.to("meta") for name, ids in batch.lists.items()}
    there = [x.to("meta") for x in (batch.fields, batch.numbers, batch.scenario, batch.label)]
    embeddings = Embeddings(SCHEMA, 3, 0, scenario_field=True).to("meta")
    assert embeddings(Batch(there[0], lists, *there[1:])).shape == (4, embeddings.width)


def test_unused_vocabularies_have_no_table():
    assert "unused" not in Embeddings(SCHEMA, 3, 0).names


def test_an_id_beyond_a_small_table_is_refused_and_not_read_from_the_next_table():
    batch = rows(SCHEMA, 4)
    batch.fields[2, SCHEMA.column("item")] = 20
    with pytest.raises(IndexError, match=r"\['item'\]"):
        Embeddings(SCHEMA, 3, 0)(batch)


def test_any_vocabulary_name_becomes_a_parameter():
    names = parameter_names(["a.b", "a_b", "items", "keys", "", "training", "type"])
    assert len(set(names.values())) == 7
    tables = torch.nn.ParameterDict({name: torch.zeros(1) for name in names.values()})
    assert len(list(tables.named_parameters())) == 7


@pytest.mark.parametrize("build", [
    lambda: Embeddings(SCHEMA, 0, 0),
    lambda: Embeddings(SCHEMA, 3, 0, initialisation="big"),
    lambda: MLP(3, [4, 0], randomness(0)),
    lambda: Towers(2, 3, [0], randomness(0)),
])  # fmt: skip
def test_nonsense_is_a_mistake(build):
    with pytest.raises(Mistake, match=r"^model\."):
        build()


def test_rows_are_sorted_by_scenario_and_put_back():
    groups = ByScenario(torch.tensor([2, 0, 2, 0, 3]), 5)
    assert groups.order.tolist() == [1, 3, 0, 2, 4]
    assert groups.sizes == [2, 0, 2, 1, 0]
    x = torch.arange(10.0).view(5, 2)
    assert torch.equal(groups.restore(torch.cat(groups.split(x[groups.order]))), x)


def test_scenario_linear_applies_the_rows_own_layer():
    layer = roughen(ScenarioLinear(4, 3, 2, randomness(0)))
    parts = [torch.randn(n, 3).double() for n in (2, 0, 1, 5)]
    for s, (part, out) in enumerate(zip(parts, layer(parts), strict=True)):
        torch.testing.assert_close(out, part @ layer.weight[s].T + layer.bias[s])


def test_towers_without_hidden_layers_are_one_linear_layer_each():
    towers = Towers(2, 3, [], randomness(0))
    parts = [torch.randn(2, 3), torch.randn(1, 3)]
    logit, hidden = towers(parts)
    assert torch.equal(hidden, torch.cat(parts))
    assert logit.shape == (3,)
