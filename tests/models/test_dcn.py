from __future__ import annotations

import numpy as np
import pytest

from incrs.models.dcn import DCN
from tests.models.toy import SCHEMA, agrees, doubled, numpy_weights, relu, roughen, row_input, rows


@pytest.mark.parametrize("layers", [1, 3, 5])
@pytest.mark.parametrize("training", [True, False])
def test_agrees_with_the_formula_layer_by_layer(layers, training):
    model = DCN(SCHEMA, 0, 4, cross_layers=layers, hidden=(6, 3))
    roughen(model).train(training)
    batch = doubled(rows(SCHEMA, 20))
    w = numpy_weights(model)
    w["shared.cross.weight"] *= 0.3
    model.shared["cross"].weight.data *= 0.3
    logits, joints = [], []
    for i in range(20):
        scenario = w["embedding.scenario"][batch.scenario[i]]
        start = np.concatenate([row_input(w, SCHEMA, batch, i), scenario])
        x = start
        for layer in range(layers):
            weight, bias = w["shared.cross.weight"][layer], w["shared.cross.bias"][layer]
            x = start * (x @ weight) + bias + x
        deep = start
        for layer in (0, 2):
            deep = relu(w[f"shared.deep.{layer}.weight"] @ deep + w[f"shared.deep.{layer}.bias"])
        joints.append(np.concatenate([x, deep]))
        logits.append((w["shared.logit.weight"] @ joints[-1] + w["shared.logit.bias"])[0])
    agrees(model(batch, representations=True), logits, joints, np.zeros((20, 0)))
