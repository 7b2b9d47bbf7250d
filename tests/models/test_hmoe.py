from __future__ import annotations

import numpy as np
import pytest
import torch

from incrs.models.hmoe import HMoE
from tests.models.toy import (
    SCHEMA,
    agrees,
    doubled,
    numpy_weights,
    relu,
    roughen,
    row_input,
    rows,
    softmax,
)


@pytest.mark.parametrize("stop", [True, False])
def test_agrees_with_the_formula_tower_by_tower(stop):
    model = roughen(HMoE(SCHEMA, 0, 4, experts=2, width=5, tower=(4, 3), stop_gradient=stop))
    batch = doubled(rows(SCHEMA, 20))
    w = numpy_weights(model)
    logits, means, lasts = [], [], []
    for i in range(20):
        s, x = int(batch.scenario[i]), row_input(w, SCHEMA, batch, i)
        layer = w["shared.experts.weight"], w["shared.experts.bias"]
        experts = [relu(layer[0][5 * e :][:5] @ x + layer[1][5 * e :][:5]) for e in range(2)]
        judged, own = [], None
        for j in range(3):
            rows_of = slice(2 * j, 2 * j + 2)
            gate = softmax(w["shared.gates.weight"][rows_of] @ x + w["shared.gates.bias"][rows_of])
            h = gate[0] * experts[0] + gate[1] * experts[1]
            for depth in range(2):
                name = f"shared.towers.hidden.{depth}"
                h = relu(w[f"{name}.weight"][j] @ h + w[f"{name}.bias"][j])
            own = h if j == s else own
            last = w["shared.towers.logit.weight"][j] @ h + w["shared.towers.logit.bias"][j]
            judged.append(last[0])
        weights = softmax(w["specific.weight"][s] @ x + w["specific.bias"][s])
        logits.append(weights @ np.array(judged))
        means.append((experts[0] + experts[1]) / 2)
        lasts.append(own)
    agrees(model(batch, representations=True), logits, means, lasts)


@pytest.mark.parametrize("stop", [True, False])
def test_a_tower_learns_from_its_own_scenario_alone_where_gradients_are_stopped(stop):
    model = roughen(HMoE(SCHEMA, 0, 4, experts=2, width=5, tower=(3,), stop_gradient=stop))
    model(doubled(rows(SCHEMA, 30, scenario=[1] * 30))).logit.sum().backward()
    for parameter in model.shared["towers"].parameters():
        assert parameter.grad[1].any()
        assert parameter.grad[[0, 2]].any() != stop
    # The gates in front of the towers are cut off with them; the weights behind are not.
    gates = model.shared["gates"].weight.grad.view(3, 2, -1)
    assert gates[1].any() and gates[[0, 2]].any() != stop
    assert model.specific.weight.grad[1].any(1).all()
    assert not torch.any(model.specific.weight.grad[[0, 2]])
