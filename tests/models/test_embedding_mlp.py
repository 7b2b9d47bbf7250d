from __future__ import annotations

import numpy as np
import pytest
import torch

from incrs.data.base import ListField, Schema
from incrs.errors import Mistake
from incrs.models.embedding_mlp import EmbeddingMLP
from tests.models.toy import (
    BARE,
    SCHEMA,
    agrees,
    doubled,
    numpy_weights,
    relu,
    roughen,
    row_input,
    rows,
)


@pytest.mark.parametrize("scenario_field", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_agrees_with_the_formula(scenario_field, training):
    model = EmbeddingMLP(SCHEMA, 0, 4, hidden=(6, 3), scenario_field=scenario_field)
    roughen(model).train(training)
    batch = doubled(rows(SCHEMA, 20))
    w = numpy_weights(model)
    logits, hiddens = [], []
    for i in range(20):
        x = row_input(w, SCHEMA, batch, i)
        if scenario_field:
            x = np.concatenate([x, w["embedding.scenario"][batch.scenario[i]]])
        for layer in (0, 2):
            x = relu(w[f"shared.hidden.{layer}.weight"] @ x + w[f"shared.hidden.{layer}.bias"])
        hiddens.append(x)
        logits.append((w["shared.logit.weight"] @ x + w["shared.logit.bias"])[0])
    agrees(model(batch, representations=True), logits, hiddens, np.zeros((20, 0)))


def test_glorot_draws_everything_within_its_limit_biases_too():
    model = EmbeddingMLP(SCHEMA, 0, 8, hidden=(40, 20), initialisation="glorot")
    for name, weight in model.named_parameters():
        limit = (6 / sum(weight.shape)) ** 0.5 if weight.ndim == 2 else (3 / len(weight)) ** 0.5
        assert weight.abs().max() <= limit, name
        if weight.numel() >= 20:
            assert weight.abs().max() > 0.75 * limit, name
            assert weight.abs().mean() > 0.3 * limit, name


def test_small_starts_with_biases_of_zero():
    model = EmbeddingMLP(SCHEMA, 0)
    assert torch.equal(model.shared["logit"].bias, torch.zeros(1))


SHOP = Schema(
    vocabularies={"user": 30, "item": 20, "genre": 7, "brand": 5, "hour": 4},
    fields={"hour": "hour", "item": "item", "user": "user", "brand": "brand"},
    lists={
        "genre": ListField("genre", 3),
        "history": ListField("item", 4),
        "history.genre": ListField("genre", 12),
        "history.brand": ListField("brand", 4),
    },
    numbers=["age"],
    scenarios=["home", "search"],
    user="user",
    item="item",
)


def mean(rows: list[np.ndarray]) -> np.ndarray:
    return sum(rows) / (len(rows) + 1e-8) if rows else np.zeros(3)


@pytest.mark.parametrize("training", [True, False])
def test_nested_agrees_with_the_papers_formula(training):
    model = EmbeddingMLP(SHOP, 0, 3, hidden=(6,), scenario_field=False, nested=True)
    roughen(model).train(training)
    batch = doubled(rows(SHOP, 60))
    batch.lists["history"][batch.lists["history"] % 3 == 0] = 0  # with gaps: unknown items
    w = numpy_weights(model)
    table = {name: w[f"embedding.tables.{name}"] for name in SHOP.vocabularies}
    logits, hiddens, gaps = [], [], 0
    for i in range(60):
        hour, item, user, brand = batch.fields[i].tolist()
        genres = [table["genre"][g] for g in batch.lists["genre"][i].tolist() if g]
        history = batch.lists["history"][i].tolist()
        theirs = batch.lists["history.genre"][i].view(4, 3).tolist()
        past = []
        for k, one in enumerate(history):
            if one:
                of_one = mean([table["genre"][g] for g in theirs[k] if g])
                at = int(batch.lists["history.brand"][i, k])
                its = mean([table["brand"][at]] if at else [])
                past.append(np.concatenate([table["item"][one], of_one, its]))
            gaps += not one and any(theirs[k])
        pooled = sum(past) / (len(past) + 1e-8) if past else np.zeros(9)
        x = [table["user"][user], pooled, table["item"][item], mean(genres), table["brand"][brand]]
        x = np.concatenate([*x, table["hour"][hour], batch.numbers[i].numpy()])
        x = relu(w["shared.hidden.0.weight"] @ x + w["shared.hidden.0.bias"])
        hiddens.append(x)
        logits.append((w["shared.logit.weight"] @ x + w["shared.logit.bias"])[0])
    assert gaps > 5
    agrees(model(batch, representations=True), logits, hiddens, np.zeros((60, 0)))


def test_nested_without_categories_is_the_flat_input_in_another_order():
    flat = EmbeddingMLP(SCHEMA, 0, 3, scenario_field=True)
    nested = EmbeddingMLP(SCHEMA, 0, 3, scenario_field=True, nested=True)
    batch = rows(SCHEMA, 20)
    one, two = flat.embedding(batch), nested.embedding(batch)
    assert one.shape == two.shape == (20, flat.embedding.width)
    user, item, history = (slice(3 * k, 3 * k + 3) for k in (0, 1, 5))
    assert torch.equal(two[:, :9], torch.cat([one[:, user], one[:, history], one[:, item]], 1))
    assert torch.equal(one.sort(1).values, two.sort(1).values)


def test_the_papers_widths():
    table = ListField("genre", 12)
    lists = {
        "genre": ListField("genre", 3),
        "history": ListField("item", 4),
        "history.genre": table,
    }
    schema = Schema(
        {"user": 9, "item": 9, "genre": 5}, {"user": "user", "item": "item"}, lists, [], ["all"],
        "user", "item",
    )  # fmt: skip
    model = EmbeddingMLP(schema, 0, 8, (20, 10), False, "glorot", nested=True)
    assert [tuple(w.shape) for n, w in model.shared.named_parameters() if "weight" in n] == [
        (20, 40), (10, 20), (1, 10),
    ]  # fmt: skip


def test_nested_needs_a_history():
    with pytest.raises(Mistake, match=r"^model\.nested=true .*data\.history"):
        EmbeddingMLP(BARE, 0, nested=True)
