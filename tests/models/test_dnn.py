"""conf/model/dnn.yaml: the dense layers of the MultiFS poster, through the class of embedding_mlp."""

from __future__ import annotations

from pathlib import Path

import hydra
import numpy as np
from omegaconf import OmegaConf

from tests.models.toy import SCHEMA, agrees, doubled, numpy_weights, relu, roughen, row_input, rows

YAML = Path(__file__).parents[2] / "conf" / "model" / "dnn.yaml"


def test_agrees_with_the_formula_layer_by_layer():
    config = OmegaConf.load(YAML)
    assert list(config.hidden) == [1024, 512, 256]
    assert config.embedding_size == 16
    factory = hydra.utils.instantiate(config, _partial_=True, _convert_="all", hidden=[7, 5, 3])
    model = roughen(factory(schema=SCHEMA, seed=0))
    batch = doubled(rows(SCHEMA, 12))
    w = numpy_weights(model)
    logits, lasts = [], []
    for i in range(12):
        scenario = w["embedding.scenario"][batch.scenario[i]]
        x = np.concatenate([row_input(w, SCHEMA, batch, i), scenario])
        for layer in (0, 2, 4):
            x = relu(w[f"shared.hidden.{layer}.weight"] @ x + w[f"shared.hidden.{layer}.bias"])
        lasts.append(x)
        logits.append((w["shared.logit.weight"] @ x + w["shared.logit.bias"])[0])
    agrees(model(batch, representations=True), logits, lasts, np.zeros((12, 0)))
