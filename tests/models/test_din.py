from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from incrs.data.base import ListField
from incrs.errors import Mistake
from incrs.models.din import DIN, Dice
from incrs.models.gates import gates_of
from incrs.selectors.search import open_gates
from tests.models.toy import (
    SCHEMA,
    beside_history,
    doubled,
    numpy_weights,
    roughen,
    rows,
    sigmoid,
)

DESCRIBED = replace(
    SCHEMA,
    lists={
        "history": ListField("item", 6),
        "history.kind": ListField("kind.of", 6),
        "history.tags": ListField("tag", 18),
        "tags": ListField("tag", 3),
    },
)


def mean(table: np.ndarray, ids: list[int]) -> np.ndarray:
    held = [table[k] for k in ids if k != 0]
    return sum(held) / (len(held) + 1e-8) if held else np.zeros(4)


def layers(w: dict[str, np.ndarray], name: str, depth: int, x: np.ndarray):
    """Return the last number and the last hidden layer, in evaluation."""
    for layer in range(depth):
        x = w[f"{name}.dense.{layer}.weight"] @ x + w[f"{name}.dense.{layer}.bias"]
        a = f"{name}.activations.{layer}"
        if f"{a}.mean" in w:
            p = sigmoid((x - w[f"{a}.mean"]) / np.sqrt(w[f"{a}.variance"] + 1e-8))
            x = p * x + (1 - p) * w[f"{a}.slope"] * x
        else:
            x = np.maximum(0, x) + w[f"{a}.slope"] * np.minimum(0, x)
    return (w[f"{name}.last.weight"] @ x + w[f"{name}.last.bias"])[0], x


@pytest.mark.parametrize("schema", [SCHEMA, DESCRIBED], ids=["items", "described"])
@pytest.mark.parametrize("activation", ["prelu", "dice"])
def test_agrees_with_the_formula_item_by_item(schema, activation):
    model = DIN(schema, 0, 4, hidden=(6, 3), attention=(5,), activation=activation)
    roughen(model).eval()
    batch = doubled(rows(schema, 20))
    w = numpy_weights(model)
    item, kind, tag = (w[f"embedding.tables.{name}"] for name in ("item", "kind_of", "tag"))
    logits, lasts = [], []
    for i in range(20):
        candidate = [item[batch.fields[i, 1]]]
        if schema is DESCRIBED:
            candidate += [kind[batch.fields[i, 3]], mean(tag, batch.lists["tags"][i].tolist())]
        v = np.concatenate(candidate)
        interest = 0 * v
        for place, k in enumerate(batch.lists["history"][i].tolist()):
            if k == 0:
                continue
            parts = [item[k]]
            if schema is DESCRIBED:
                parts.append(mean(kind, [int(batch.lists["history.kind"][i, place])]))
                of_item = batch.lists["history.tags"][i, 3 * place : 3 * place + 3]
                parts.append(mean(tag, of_item.tolist()))
            h = np.concatenate(parts)
            strength, _ = layers(w, "shared.unit", 1, np.concatenate([h, v, h - v, h * v]))
            interest = interest + strength * h
        x = np.concatenate([beside_history(w, schema, batch, i), interest])
        logit, last = layers(w, "shared.layers", 2, x)
        logits.append(logit)
        lasts.append(last)
    ours = model(batch, representations=True)
    # pool divides by one item and 1e-8
    for one, theirs in zip(ours, (logits, lasts, np.zeros((20, 0))), strict=True):
        np.testing.assert_allclose(one.detach(), np.array(theirs), rtol=1e-6, atol=1e-6)
    if schema is SCHEMA:
        assert not torch.equal(ours.logit, model(batch._replace(lists=without(batch))).logit)


def without(batch) -> dict[str, torch.Tensor]:
    return {**batch.lists, "history": torch.zeros_like(batch.lists["history"])}


def test_dice_takes_the_moments_of_what_counts_and_remembers_them():
    dice = Dice(3).double()
    dice.slope.data.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)).double() * 2 + 1
    weight = (torch.arange(50) % 5 > 0).double().unsqueeze(1)
    counted = x[weight.squeeze(1) > 0]
    mean, variance = counted.mean(0), counted.var(0, correction=0)
    p = torch.sigmoid((x - mean) / (variance + 1e-8).sqrt())
    torch.testing.assert_close(dice(x, weight), p * x + (1 - p) * dice.slope * x)
    torch.testing.assert_close(dice.mean, 0.1 * mean)
    torch.testing.assert_close(dice.variance, 0.9 + 0.1 * variance)
    dice(x[:0], weight[:0])
    torch.testing.assert_close(dice.mean, 0.1 * mean)


def test_an_unknown_activation_is_refused():
    with pytest.raises(Mistake, match=r"model\.activation=relu: choose one of prelu, dice"):
        DIN(SCHEMA, 0, activation="relu")


@pytest.mark.parametrize("schema", [SCHEMA, DESCRIBED], ids=["items", "described"])
def test_gates_lie_on_everything_that_it_reads(schema):
    model, batch = DIN(schema, 0, 4), doubled(rows(schema, 20))
    open_gates(model, schema, "din")  # refuses what reads an id beside the gates
    gates = gates_of(model)
    model.embedding.gates = None
    before = roughen(model).eval()(batch).logit
    model.embedding.gates = gates
    for at, vocabulary in enumerate(gates.columns.values()):
        open_rows = torch.ones(schema.vocabularies[vocabulary], 4).byte()
        gates.register_buffer(f"kept{at}", open_rows)
    torch.testing.assert_close(model(batch).logit, before, rtol=1e-12, atol=1e-12)
    gates.kept(list(gates.columns).index("list.history"))[:] = 0
    if schema is SCHEMA:
        empty = model(batch._replace(lists=without(batch))).logit
        torch.testing.assert_close(model(batch).logit, empty, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model(batch).logit, before)
