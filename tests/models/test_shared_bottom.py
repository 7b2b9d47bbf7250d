from __future__ import annotations

import pytest

from incrs.models.shared_bottom import SharedBottom
from tests.models.toy import SCHEMA, agrees, doubled, numpy_weights, relu, roughen, row_input, rows


@pytest.mark.parametrize("scenario", [None, [2, 0] * 10, [1] * 20])
@pytest.mark.parametrize("training", [True, False])
def test_agrees_with_the_formula(scenario, training):
    model = SharedBottom(SCHEMA, 0, 4, bottom=(7, 5), tower=(6, 3))
    roughen(model).train(training)
    batch = doubled(rows(SCHEMA, 20, scenario=scenario))
    w = numpy_weights(model)
    logits, bottoms, hiddens = [], [], []
    for i in range(20):
        x, s = row_input(w, SCHEMA, batch, i), batch.scenario[i]
        for layer in (0, 2):
            x = relu(w[f"shared.{layer}.weight"] @ x + w[f"shared.{layer}.bias"])
        bottoms.append(x)
        for layer in (0, 1):
            name = f"specific.hidden.{layer}"
            x = relu(w[f"{name}.weight"][s] @ x + w[f"{name}.bias"][s])
        hiddens.append(x)
        logits.append((w["specific.logit.weight"][s] @ x + w["specific.logit.bias"][s])[0])
    agrees(model(batch, representations=True), logits, bottoms, hiddens)
