from __future__ import annotations

import numpy as np
import pytest
import torch

from incrs.models.ple import PLE
from tests.models.toy import SCHEMA, agrees, doubled, numpy_weights, relu, roughen, row_input, rows

WIDTH, SCENARIOS = 5, 3


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def linear(w: dict, name: str, x: np.ndarray, scenario: int | None = None) -> np.ndarray:
    weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    if scenario is not None:
        weight, bias = weight[scenario], bias[scenario]
    return weight @ x + bias


def reference(w: dict, x: np.ndarray, s: int, levels: int) -> tuple:
    """One row: every scenario's and the shared stream of every level, one expert at a time."""
    streams = dict.fromkeys([*range(SCENARIOS), "shared"], x)
    for level in range(levels - 1):
        name = f"shared.levels.{level}"
        gates = "specific.gates.0" if level == levels - 2 else f"shared.gates.{level}"
        own = {
            k: relu(linear(w, f"{name}.own", streams[k], k)).reshape(-1, WIDTH)
            for k in range(SCENARIOS)
        }
        common = relu(linear(w, f"{name}.common", streams["shared"])).reshape(-1, WIDTH)
        following = {}
        for k in range(SCENARIOS):
            gate = softmax(linear(w, gates, streams[k], k))
            following[k] = gate @ np.concatenate([own[k], common])
        gate = softmax(linear(w, f"{name}.gate", streams["shared"]))
        following["shared"] = gate @ np.concatenate([*own.values(), common])
        streams = following
    own = relu(linear(w, "specific.experts", streams[s], s)).reshape(-1, WIDTH)
    common = relu(linear(w, "shared.experts", streams["shared"])).reshape(-1, WIDTH)
    gate = softmax(linear(w, "specific.gate", streams[s], s))
    mixture = sum(g * e for g, e in zip(gate, [*own, *common], strict=True))
    hidden = relu(linear(w, "specific.tower.hidden.0", mixture, s))
    return linear(w, "specific.tower.logit", hidden, s)[0], common.mean(0), mixture


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize(("own", "common"), [(1, 2), (2, 1), (3, 2)])
@pytest.mark.parametrize("scenario", [None, [2, 0] * 6])
def test_agrees_with_the_formula(levels, own, common, scenario):
    model = PLE(SCHEMA, 0, 3, levels, WIDTH, own, common, tower=(4,))
    roughen(model).train(scenario is None)
    batch = doubled(rows(SCHEMA, 12, scenario=scenario))
    w = numpy_weights(model)
    expected = [
        reference(w, row_input(w, SCHEMA, batch, i), int(batch.scenario[i]), levels)
        for i in range(12)
    ]
    agrees(model(batch, representations=True), *zip(*expected, strict=True))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_nothing_that_one_scenario_alone_uses_is_in_the_shared_representation(levels):
    model = roughen(PLE(SCHEMA, 0, levels=levels)).eval()
    batch = doubled(rows(SCHEMA, 12))
    with torch.no_grad():
        before = model(batch, representations=True).shared
        for weight in model.specific.parameters():
            weight.add_(1)
        assert torch.equal(before, model(batch, representations=True).shared)
