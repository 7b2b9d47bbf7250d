from __future__ import annotations

import numpy as np
import pytest
import torch

from incrs.models.embedding_mlp import EmbeddingMLP
from tests.models.toy import SCHEMA, agrees, doubled, numpy_weights, relu, roughen, row_input, rows


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
