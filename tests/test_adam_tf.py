"""AdamTF against its formula, row by row, where it differs from torch's Adam and after a resume."""

from __future__ import annotations

import copy

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from tests.conftest import CONF

LR, B1, B2, EPS = 0.01, 0.9, 0.999, 1e-4


def made(parameters: list[nn.Parameter], **options: float) -> torch.optim.Optimizer:
    config = OmegaConf.load(CONF / "optimizer" / "adam_tf.yaml")
    return instantiate(config, _partial_=True, _convert_="all")(parameters, **options)


def gradients(steps: int) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.normal(size=(4, 3)) * np.array([1, 1e-3, 1e-6]) for _ in range(steps)]


def reference(start: np.ndarray, steps: int) -> np.ndarray:
    w, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, g in enumerate(gradients(steps), start=1):
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        w -= LR * np.sqrt(1 - B2**t) / (1 - B1**t) * m / (np.sqrt(v) + EPS)
    return w


def test_it_is_the_formula_and_not_torchs_adam() -> None:
    start = np.random.default_rng(1).normal(size=(4, 3))
    ours, theirs = (nn.Parameter(torch.tensor(start)) for _ in range(2))
    optimizers = [
        made([ours], lr=LR, eps=EPS),
        torch.optim.Adam([theirs], lr=LR, betas=(B1, B2), eps=EPS),
    ]
    for gradient in gradients(7):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = torch.tensor(gradient)
            optimizer.step()
    expected = torch.tensor(reference(start, 7))
    torch.testing.assert_close(ours.detach(), expected, rtol=0, atol=1e-12)
    assert (theirs.detach() - expected).abs().max() > 1e-4
    assert optimizers[0].param_groups[0]["eps"] == EPS


def test_it_goes_on_from_its_state() -> None:
    start = np.random.default_rng(1).normal(size=(4, 3))
    whole = nn.Parameter(torch.tensor(start))
    optimizer = made([whole], lr=LR, eps=EPS)
    for i, gradient in enumerate(gradients(6)):
        if i == 3:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = made([whole], lr=LR, eps=EPS)
            optimizer.load_state_dict(state)
        whole.grad = torch.tensor(gradient)
        optimizer.step()
    torch.testing.assert_close(
        whole.detach(), torch.tensor(reference(start, 6)), rtol=0, atol=1e-12
    )
