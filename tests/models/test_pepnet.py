from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from incrs.models.pepnet import PEPNet
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

NAMELESS = replace(SCHEMA, user=None, item=None)


def gate(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    inner = relu(w[f"{name}.0.weight"] @ x + w[f"{name}.0.bias"])
    return 2 / (1 + np.exp(-(w[f"{name}.2.weight"] @ inner + w[f"{name}.2.bias"])))


@pytest.mark.parametrize("schema", [SCHEMA, BARE, NAMELESS], ids=["full", "bare", "nameless"])
def test_agrees_with_the_formula_gate_by_gate(schema):
    model = roughen(PEPNet(schema, 0, 4, hidden=(6, 3), gate=5))
    batch = doubled(rows(schema, 20))
    w = numpy_weights(model)
    logits, lasts = [], []
    for i in range(20):
        e = row_input(w, schema, batch, i)
        scenario = w["embedding.scenario"][batch.scenario[i]]
        h = out = gate(w, "shared.domain", np.concatenate([scenario, e])) * e
        prior = [
            w[f"embedding.tables.{name}"][batch.fields[i, column]]
            for name, column in (("user", 0), ("item", 1))
            if getattr(schema, name)
        ]
        for layer in range(3):
            last = h
            factor = gate(w, f"shared.gates.{layer}", np.concatenate([*prior, out]))
            name = f"shared.layers.{layer}"
            h = w[f"{name}.weight"] @ (factor * last) + w[f"{name}.bias"]
            h = relu(h) if layer < 2 else h
        logits.append(h[0])
        lasts.append(last)
    agrees(model(batch, representations=True), logits, lasts, np.zeros((20, 0)))


def test_gates_read_embeddings_without_changing_them():
    model = roughen(PEPNet(NAMELESS, 0, 4, hidden=(6, 3), gate=5))
    batch = doubled(rows(NAMELESS, 8))
    table = model.embedding.tables["user"]

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(model(batch).logit.sum(), table)[0]

    # By hand: the same network with the gates' values held fixed.
    with torch.no_grad():
        x = model.embedding(batch)
        e, scenario = x[:, : model.width], x[:, model.width :]
        domain = model.shared["domain"](torch.cat([scenario, e], 1))
        factors = [g(domain * e) for g in model.shared["gates"].children()]
    h = domain * model.embedding(batch)[:, : model.width]
    for layer, (factor, dense) in enumerate(
        zip(factors, model.shared["layers"].children(), strict=True)
    ):
        h = dense(factor * h).relu() if layer < 2 else dense(factor * h)
    by_hand = torch.autograd.grad(h.sum(), table)[0]
    torch.testing.assert_close(gradient(), by_hand, rtol=1e-9, atol=1e-12)
