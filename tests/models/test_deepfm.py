from __future__ import annotations

import numpy as np
import pytest

from incrs.models.deepfm import DeepFM
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


@pytest.mark.parametrize("schema", [SCHEMA, BARE], ids=["full", "bare"])
@pytest.mark.parametrize("linear", [True, False])
def test_agrees_with_the_formula_pair_by_pair(schema, linear):
    size, count = 4, len(schema.fields) + len(schema.lists)
    model = roughen(DeepFM(schema, 0, size, hidden=(6, 3), linear=linear))
    batch = doubled(rows(schema, 20))
    w = numpy_weights(model)
    logits, joints = [], []
    for i in range(20):
        x = row_input(w, schema, batch, i)
        looked_up = [*x[: (size + linear) * count].reshape(count, -1)]
        looked_up.append(w["embedding.scenario"][batch.scenario[i]])
        numbers = batch.numbers[i].numpy()
        features = [(vector, 1.0) for vector in looked_up]  # (its row of the table, its value)
        features += [(w["shared.numbers.0"][j], value) for j, value in enumerate(numbers)]

        wide = sum(row[size] * value for row, value in features) if linear else 0.0
        products = np.zeros(size)
        for a, (one, x_one) in enumerate(features):
            for two, x_two in features[a + 1 :]:
                products += one[:size] * two[:size] * x_one * x_two
        deep = np.concatenate([*(row[:size] for row in looked_up), numbers])
        for layer in (0, 2):
            deep = relu(w[f"shared.deep.{layer}.weight"] @ deep + w[f"shared.deep.{layer}.bias"])
        last = (w["shared.logit.weight"] @ deep + w["shared.logit.bias"])[0]
        joints.append(np.concatenate([products, deep]))
        logits.append(wide + products.sum() + last)
    agrees(model(batch, representations=True), logits, joints, np.zeros((20, 0)))
