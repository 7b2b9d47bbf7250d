"""The baselines' formulas, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from incrs.selectors.autofield import AutoField, best, kept_share
from incrs.selectors.base import Values
from incrs.selectors.cfs import forward_selection, merit, uncertainty
from incrs.selectors.lpfs import LPFS, polarised, polarised_plus
from incrs.selectors.optembed import OptEmbed, Step
from incrs.selectors.optfs import OptFS, gate
from tests.conftest import SmallSource
from tests.selectors.toy import backbone_of


def values(scenarios: int = 2) -> Values:
    tables = backbone_of().embedding
    return Values(("user", "item"), ("user", "item"), (21, 31), 2, scenarios, tables)


def test_optfs_gates_and_penalty() -> None:
    g = torch.tensor([-0.2, 0.0, 0.5])
    expected = [(1 / (1 + math.exp(-10 * x))) / (1 / (1 + math.exp(-0.5))) for x in g.tolist()]
    assert gate(g, 10, 0.5).tolist() == pytest.approx(expected)
    one = OptFS(sparsity=0.1, epochs=3)
    one.begin(values())
    one.schedule(2, 0, 0)
    assert one.tau == 200
    with torch.no_grad():
        one.gates[:50] = -1.0
    penalty = float(one.penalty(SmallSource().read(0).rows).detach())
    assert penalty == pytest.approx(0.1 * 2 / (1 + math.exp(-100)))
    assert one.fixed().sum(0).tolist() == [2, 2, 2]
    assert one.scale == pytest.approx(1 + math.exp(-0.5))


def test_autofield_draws_by_the_gumbel_softmax_and_keeps_the_likeliest() -> None:
    logits, noise = torch.tensor([[0.3, 1.0], [0.0, -1.0]]), torch.tensor([[0.2, 0.9], [0.5, 0.4]])
    found = kept_share(logits, noise, 0.5)
    for i in range(2):
        alpha = torch.softmax(logits[i], 0).tolist()
        up = [
            math.exp((math.log(a) - math.log(-math.log(u))) / 0.5)
            for a, u in zip(alpha, noise[i].tolist(), strict=True)
        ]
        assert float(found[i]) == pytest.approx(up[1] / sum(up), rel=1e-5)
    assert best(logits, 1).tolist() == [True, False]
    one = AutoField(keep=0.5, decay=0.001)
    one.begin(values())
    one.schedule(0, 100, 0)
    assert one.tau == pytest.approx(0.9)
    with torch.no_grad():
        one.logits[1, 1] = 1.0
    assert one.fixed()[:21].any() == torch.tensor(False)
    assert one.fixed()[21:].all()


def test_lpfs_gates() -> None:
    x = torch.tensor([-2.0, 0.0, 0.1])
    assert polarised(x, 0.1).tolist() == pytest.approx([4 / 4.1, 0, 0.01 / 0.11])
    slope = [10 * 0.1**0.5 * math.atan(v) for v in x.tolist()]
    expected = [slope[0] - 4 / 4.1, 0, slope[2] + 0.01 / 0.11]
    assert polarised_plus(x, 0.1, 10, 2).tolist() == pytest.approx(expected)
    y = torch.zeros(1, requires_grad=True)
    polarised_plus(y, 0.1, 10, 2).sum().backward()
    assert y.grad.item() == pytest.approx(10 * 0.1**0.5)
    one = LPFS(final_epsilon=0.001)
    one.begin(values())
    one.schedule(0, 9, 10)
    assert one.epsilon == pytest.approx(0.001)
    with torch.no_grad():
        one.x[0] = 0.01
    assert not one.fixed()[:21].any()
    assert one.fixed()[21:].all()


def test_optembed_keeps_what_outgrows_its_threshold() -> None:
    x = torch.tensor([-2.0, -0.7, -0.1, 0.2, 0.9, 1.1], requires_grad=True)
    found = Step.apply(x)
    found.sum().backward()
    assert found.tolist() == [0, 0, 0, 1, 1, 1]
    assert x.grad.tolist() == pytest.approx([0, 0.4, 1.6, 1.2, 0.4, 0])
    one, held = OptEmbed(alpha=0.5), values()
    one.begin(held)
    with torch.no_grad():
        one.threshold[1] = 0.04
        held.tables.table("item")[:7] = 0.02  # four numbers
        held.tables.table("item")[7:] = -0.005
    assert one.fixed()[:, 0].tolist() == [True] * (21 + 7) + [False] * 24
    penalty = one.penalty(SmallSource().read(0).rows).detach()
    assert float(penalty) == pytest.approx(0.5 * (1 + math.exp(-0.04)))


def test_cfs_measures_and_merit() -> None:
    x = np.array([0, 0, 1, 1, 2, 2])
    assert uncertainty(x, x) == pytest.approx(1)
    assert uncertainty(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])) == pytest.approx(0)
    y = np.array([0, 0, 1, 1, 1, 1])  # what x says of y is all of y's entropy
    h_x, h_y = math.log2(3), -(1 / 3 * math.log2(1 / 3) + 2 / 3 * math.log2(2 / 3))
    assert uncertainty(x, y) == pytest.approx(2 * h_y / (h_x + h_y))
    with_label = np.array([0.5, 0.4, 0.1])
    between = np.array([[0, 0.9, 0.2], [0.9, 0, 0.0], [0.2, 0.0, 0]])
    assert merit(with_label, between, [0, 1]) == pytest.approx(0.9 / math.sqrt(2 + 2 * 0.9))
    assert forward_selection(with_label, between, 5) == [0]
    assert forward_selection(with_label, 0 * between, 5) == [0, 1]
