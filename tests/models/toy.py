"""A small log's schema and rows, and what a row's input is by the definition, one field at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from incrs.data.base import ListField, Schema
from incrs.errors import Mistake
from incrs.models.base import Backbone, Output
from incrs.period import Batch

SCHEMA = Schema(
    vocabularies={"user": 30, "item": 20, "kind.of": 4, "items": 5, "tag": 8, "unused": 9},
    fields={"user": "user", "item": "item", "last": "item", "kind": "kind.of", "box": "items"},
    lists={"history": ListField("item", 6), "tags": ListField("tag", 3)},
    numbers=["age", "length"],
    scenarios=["home", "search", "live"],
    user="user",
    item="item",
)
BARE = Schema(
    {"user": 30, "item": 20}, {"user": "user", "item": "item"}, {}, [], ["only"], "user", "item"
)


def fitting(factory: Callable[..., Backbone], schema: Schema) -> Schema:
    """Return the schema, or where the backbone asks for histories, the schema with short ones."""
    try:
        factory(schema=schema, seed=0)
    except Mistake as mistake:
        if "data.history=20" in str(mistake):
            return replace(schema, lists={"history": ListField("item", 1)})
        raise
    return schema


def rows(schema: Schema, count: int, seed: int = 0, scenario: list[int] | None = None) -> Batch:
    """Draw rows; some ids are 0, some lists empty. scenario: each row's, else drawn."""
    draw = np.random.default_rng(seed)
    ids = [draw.integers(0, schema.vocabularies[v], count) for v in schema.fields.values()]
    lists = {}
    for name, field in schema.lists.items():
        values = draw.integers(0, schema.vocabularies[field.vocabulary], (count, field.length))
        values[draw.random(count) < 0.3] = 0
        lists[name] = torch.from_numpy(values.astype(np.int32))
    drawn = draw.integers(0, len(schema.scenarios), count) if scenario is None else scenario
    return Batch(
        fields=torch.from_numpy(np.stack(ids, 1).astype(np.int32)),
        lists=lists,
        numbers=torch.from_numpy(draw.normal(size=(count, len(schema.numbers))).astype(np.float32)),
        scenario=torch.as_tensor(drawn, dtype=torch.int64),
        label=torch.from_numpy((draw.random(count) < 0.4).astype(np.float32)),
    )


def doubled(batch: Batch) -> Batch:
    """Return the rows with float64 numbers."""
    return batch._replace(numbers=batch.numbers.double(), label=batch.label.double())


def roughen(model: nn.Module, seed: int = 0) -> nn.Module:
    """Make the model float64 with weights of ordinary size everywhere, so that no term is hidden."""
    random = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if weight.is_floating_point():
                weight.normal_(0, 0.5, generator=random)
                if name.endswith("variance"):
                    weight.square_().add_(0.1)
    return model


def numpy_weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Return a copy of the model's weights by name."""
    return {name: weight.numpy().copy() for name, weight in model.state_dict().items()}


def row_input(w: dict[str, np.ndarray], schema: Schema, batch: Batch, i: int) -> np.ndarray:
    """Return the input of row i without the scenario's embedding."""

    def table(vocabulary: str) -> np.ndarray:
        safe = {"kind.of": "kind_of", "items": "items_"}.get(vocabulary, vocabulary)
        return w[f"embedding.tables.{safe}"]

    parts = [table(v)[batch.fields[i, c]] for c, v in enumerate(schema.fields.values())]
    for name, field in schema.lists.items():
        held = [table(field.vocabulary)[k] for k in batch.lists[name][i].tolist() if k != 0]
        parts.append(sum(held) / (len(held) + 1e-8) if held else 0 * parts[0])
    return np.concatenate([*parts, batch.numbers[i].numpy().astype(np.float64)])


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def agrees(output: Output, logit: list, shared: list, specific: list) -> None:
    """Compare an output with a reference, each a list over the rows, to 1e-9."""
    assert output.shared is not None
    assert output.specific is not None
    for ours, theirs in zip(output, (logit, shared, specific), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), np.array(theirs), rtol=1e-9, atol=1e-9)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def normed(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return the layer norm of a vector."""
    return scale * (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-8) + shift


def past(w: dict[str, np.ndarray], batch: Batch, i: int) -> list[np.ndarray]:
    """Return the vectors of the items in row i's history, the oldest first."""
    ids = [k for k in batch.lists["history"][i].tolist() if k != 0]
    return [w["embedding.tables.item"][k] for k in reversed(ids)]


def beside_history(w: dict[str, np.ndarray], schema: Schema, batch: Batch, i: int) -> np.ndarray:
    """Return the input of row i with the scenario's embedding and without the history's lists."""
    lists = {name: f for name, f in schema.lists.items() if not name.startswith("history")}
    scenario = w["embedding.scenario"][batch.scenario[i]]
    return np.concatenate([row_input(w, replace(schema, lists=lists), batch, i), scenario])


def read(
    w: dict[str, np.ndarray], name: str, schema: Schema, batch: Batch, i: int, u: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return <u, e> + tower([u, x]) of row i, and u * e beside the tower's hidden layer, of `Reader`."""
    product = u * w["embedding.tables.item"][batch.fields[i, 1]]
    if f"{name}.tower.1.weight" not in w:
        return product.sum(), product
    x = np.concatenate([u, beside_history(w, schema, batch, i)])
    for layer in (0, 2):
        x = relu(w[f"{name}.tower.0.{layer}.weight"] @ x + w[f"{name}.tower.0.{layer}.bias"])
    last = (w[f"{name}.tower.1.weight"] @ x + w[f"{name}.tower.1.bias"])[0]
    return product.sum() + last, np.concatenate([product, x])
