from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from incrs.models.star import STAR, normalise
from tests.models.toy import SCHEMA, agrees, doubled, numpy_weights, relu, roughen, row_input, rows

EPS, MOMENTUM = 1e-3, 0.3
SCENARIOS = {
    "all three": [0, 1, 2, 1, 1, 0, 2, 2, 0, 1, 1, 1],
    "one absent": [0, 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0],
    "one has a single row": [0, 1, 2, 1, 1, 1, 2, 2, 1, 1, 1, 1],
}


def star() -> STAR:
    model = STAR(SCHEMA, 0, 3, hidden=(6, 4), auxiliary=(5,), momentum=MOMENTUM, eps=EPS)
    return roughen(model)


def moments(w: dict, inputs: np.ndarray, scenario: np.ndarray, p: int, training: bool) -> tuple:
    own = inputs[scenario == p]
    if training and len(own) >= 2:
        return own.mean(0), own.var(0)
    return w["specific.norm.mean"][p], w["specific.norm.variance"][p]


def reference(w: dict, inputs: np.ndarray, scenario: np.ndarray, i: int, training: bool) -> tuple:
    """One row, with the combined weights formed for it alone."""
    p = int(scenario[i])
    mean, variance = moments(w, inputs, scenario, p, training)
    x = (inputs[i] - mean) / np.sqrt(variance + EPS)
    x = w["shared.gamma"] * w["specific.norm.gamma"][p] * x
    x = x + w["shared.beta"] + w["specific.norm.beta"][p]
    own = alone = x
    for layer in range(2):
        weight, bias = w[f"shared.weights.{layer}"], w[f"shared.biases.{layer}"]
        own_weight, own_bias = (
            w[f"specific.weights.{layer}"][p],
            w[f"specific.biases.{layer}"][p],
        )
        own = relu((weight * own_weight) @ own + bias + own_bias)
        alone = relu(weight @ alone + bias)
    weight = w["shared.weights.2"] * w["specific.weights.2"][p]
    main = weight @ own + w["shared.biases.2"] + w["specific.biases.2"][p]
    extra = np.concatenate([inputs[i], w["embedding.scenario"][p]])
    extra = relu(w["shared.auxiliary.0.0.weight"] @ extra + w["shared.auxiliary.0.0.bias"])
    extra = w["shared.auxiliary.1.weight"] @ extra + w["shared.auxiliary.1.bias"]
    return (main + extra)[0], alone, own


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
@pytest.mark.parametrize("training", [True, False])
def test_agrees_with_the_formula(scenario, training):
    model = star().train(training)
    batch = doubled(rows(SCHEMA, 12, scenario=scenario))
    w = numpy_weights(model)
    inputs = np.stack([row_input(w, SCHEMA, batch, i) for i in range(12)])
    expected = [reference(w, inputs, np.array(scenario), i, training) for i in range(12)]
    agrees(model(batch, representations=True), *zip(*expected, strict=True))


def test_running_moments_are_a_plain_mean_at_first_and_then_move_by_the_momentum():
    model = star().train()
    with torch.no_grad():
        model.specific.norm.mean.zero_()
        model.specific.norm.variance.fill_(1)
    mean, variance, seen = np.zeros((3, model.width)), np.ones((3, model.width)), [0, 0, 0]
    patterns = [*SCENARIOS.values()] * 3
    for step, scenario in enumerate(patterns):
        batch = doubled(rows(SCHEMA, 12, seed=step, scenario=scenario))
        w = numpy_weights(model)
        inputs = np.stack([row_input(w, SCHEMA, batch, i) for i in range(12)])
        model(batch)
        for p in range(3):
            own = inputs[np.array(scenario) == p]
            if len(own) >= 2:
                seen[p] += 1
                weight = max(1 / seen[p], MOMENTUM)
                mean[p] += weight * (own.mean(0) - mean[p])
                variance[p] += weight * (own.var(0, ddof=1) - variance[p])
    norm = model.specific.norm
    assert norm.batches.tolist() == seen == [6, 6, 9]
    np.testing.assert_allclose(norm.mean.numpy(), mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(norm.variance.numpy(), variance, rtol=1e-9, atol=1e-12)


def test_evaluation_changes_no_statistics():
    model = star().eval()
    before = copy.deepcopy(model.state_dict())
    model(doubled(rows(SCHEMA, 12)))
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_starts_as_the_centre_network_for_every_scenario():
    model = STAR(SCHEMA, 0).eval()
    batch = rows(SCHEMA, 12)
    output = model(batch, representations=True)
    assert torch.allclose(output.shared, output.specific, atol=1e-6)
    assert output.shared.abs().sum() > 0


def test_the_shared_representation_does_not_go_through_a_scenarios_weights():
    model = star().eval()
    batch = doubled(rows(SCHEMA, 12))
    with torch.no_grad():
        before = model(batch, representations=True)
        for weight in [*model.specific.weights, *model.specific.biases]:
            weight.add_(1)
        after = model(batch, representations=True)
    assert torch.equal(before.shared, after.shared)
    assert not torch.equal(before.specific, after.specific)


def test_a_field_that_is_constant_for_a_day_is_not_blown_up_on_the_next():
    model = STAR(SCHEMA, 0)
    batch = rows(SCHEMA, 60)
    column = 0
    batch.fields[:, column] = 1
    for _ in range(100):
        model(batch)
    model.eval()
    today = model(batch).logit
    batch.fields[:, column] = 2
    assert (model(batch).logit - today).abs().max() < 0.05


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_the_moments_of_several_processes_are_those_of_one(scenario):
    ours, theirs = (copy.deepcopy(star().specific.norm).train() for _ in range(2))
    random = torch.Generator().manual_seed(0)
    which = torch.tensor(scenario)
    for _ in range(5):
        rows_ = torch.randn(12, ours.mean.shape[1], generator=random).double() + 100
        parts = [rows_[which == p].requires_grad_() for p in range(3)]
        one = torch.ones(ours.mean.shape[1]).double()
        mean, variance = ours.by_batches(parts)
        out = [
            normalise(part, m, v + EPS, gamma, beta)
            for part, m, v, gamma, beta in zip(
                parts, mean, variance, ours.gamma, ours.beta, strict=True
            )
        ]
        expected = theirs(parts, one, 0 * one)
        pull = torch.randn(12, len(one), generator=random).double()
        gradients = [
            torch.autograd.grad((torch.cat(found) * pull).sum(), parts) for found in (out, expected)
        ]
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-9, atol=1e-9)
