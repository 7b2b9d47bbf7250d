from __future__ import annotations

import numpy as np
import pytest

from incrs.models.gru4rec import GRU4Rec
from tests.models.toy import (
    SCHEMA,
    agrees,
    doubled,
    numpy_weights,
    past,
    read,
    roughen,
    rows,
    sigmoid,
)


def encoded(w: dict[str, np.ndarray], items: list[np.ndarray], layers: int) -> np.ndarray:
    x = items
    for layer in range(layers):
        name = f"shared.encoder.layers.{layer}"
        w_r, w_z, w_h = w[f"{name}.input.weight"].reshape(3, 4, 4)
        b_r, b_z, b_h = w[f"{name}.input.bias"].reshape(3, 4)
        u_r, u_z, u_h = (w[f"{name}.state"][:, 4 * k : 4 * k + 4].T for k in range(3))
        h, states = np.zeros(4), []
        for item in x:
            z = sigmoid(w_z @ item + u_z @ h + b_z)
            r = sigmoid(w_r @ item + u_r @ h + b_r)
            h = (1 - z) * h + z * np.tanh(w_h @ item + u_h @ (r * h) + b_h)
            states.append(h)
        x = states
    return x[-1] if x else np.zeros(4)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("tower", [(5, 3), None], ids=["tower", "product"])
def test_agrees_with_the_formula_step_by_step(layers, tower):
    model = roughen(GRU4Rec(SCHEMA, 0, 4, layers, tower=tower))
    batch = doubled(rows(SCHEMA, 20))
    w = numpy_weights(model)
    users = [encoded(w, past(w, batch, i), layers) for i in range(20)]
    np.testing.assert_allclose(model.encode(batch).detach(), np.array(users), rtol=1e-9, atol=1e-12)
    found = [read(w, "shared", SCHEMA, batch, i, users[i]) for i in range(20)]
    logits, shared = zip(*found, strict=True)
    agrees(model(batch, representations=True), list(logits), list(shared), np.zeros((20, 0)))
