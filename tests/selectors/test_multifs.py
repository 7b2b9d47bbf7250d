"""MultiFS against the formulas, computed by hand with numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from incrs.errors import Mistake
from incrs.models.base import Output
from incrs.models.gates import gates_of
from incrs.selection import put, values_of
from incrs.selectors.base import Values
from incrs.selectors.multifs import MultiFS, Sign, decomposed, final, opened, soft, temperature
from incrs.selectors.search import Search, gated, open_gates
from tests.conftest import SCHEMA, SmallSource
from tests.models.toy import doubled, numpy_weights, roughen
from tests.selectors.toy import backbone_of, module_of

S, N = 3, 40


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def searching(**settings) -> MultiFS:
    """Return a selector in the midst of a search: gates of every size, float64."""
    selector = MultiFS(**settings).double()
    selector.begin(Values(("a", "b"), ("a", "b"), (30, 10), 2, S, backbone_of().embedding))
    selector.double()
    with torch.no_grad():
        random = torch.Generator().manual_seed(1)
        gates = torch.randn(N, S + 1, generator=random, dtype=torch.float64)
        selector.gates.copy_(gates)
    return selector


@pytest.mark.parametrize(("epoch", "tau"), list(enumerate([1, 10**0.5, 10, 10**1.5, 100])))
def test_masks_at_five_temperatures(epoch: int, tau: float) -> None:
    selector = searching(mask_scaling=3.0)
    selector.schedule(epoch, 0, 0)
    assert selector.tau == pytest.approx(tau)
    scale = 3 / sigmoid(0.5)
    w, threshold = selector.gates.detach().numpy(), 0.95 * 3
    places = torch.randint(N, (20, 2), generator=torch.Generator().manual_seed(2))
    scenario = torch.arange(20) % (S + 1)
    found = selector(places, scenario).detach().numpy()
    for i in range(20):
        for j, v in enumerate(places[i].tolist()):
            shared = scale * sigmoid(tau * w[v, S])
            own = scale * sigmoid(tau * w[v, int(scenario[i])])
            q = 1 if shared > threshold else 0
            expected = shared if scenario[i] == S else shared * q + own * (1 - q)
            assert found[i, j] == pytest.approx(expected, rel=1e-6)


def test_at_first_every_mask_is_the_scaling_and_every_shared_gate_open() -> None:
    for scaling in (1.0, 3.0):
        selector = MultiFS(mask_scaling=scaling)
        selector.begin(Values(("a",), ("a",), (5,), 1, S, backbone_of().embedding))
        places = torch.arange(5)[:, None]
        found = selector(places, torch.zeros(5, dtype=torch.int64))
        torch.testing.assert_close(found, torch.full((5, 1), scaling))
        found.sum().backward()
        assert not selector.gates.grad[:, :S].any()  # q is 1: only the shared gates count
        assert selector.gates.grad[:, S].all()


def test_q_is_one_where_the_program_says_so() -> None:
    w = torch.tensor([0.36, 0.369, 0.370, 0.5, -1.0])
    shared = soft(w, 1.0, 1 / sigmoid(0.5))
    assert opened(shared, torch.tensor(0.95)).tolist() == [0, 0, 1, 1, 0]


def test_the_straight_through_gradient_is_the_gradient_itself_cut_to_one() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    (Sign.apply(x) * torch.tensor([0.5, -7.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [0.5, -1.0, 1.0]
    shared = torch.tensor([0.5, 1.5], requires_grad=True)
    own = torch.tensor([0.2, 0.2], requires_grad=True)
    threshold = torch.tensor(1.0, requires_grad=True)
    decomposed(shared, own, opened(shared, threshold)).sum().backward()
    # Closed: relu kills what q says, and G is the scenario's own. Open: d G / d g_s is q + the gradient
    # that goes through q, g_s - g_k = 1.3, cut to 1.
    assert shared.grad.tolist() == [0, 2]
    assert own.grad.tolist() == [1, 0]
    assert threshold.grad.item() == -1


@pytest.mark.parametrize("tau", [1.0, 10.0])
def test_gradients_of_the_gates_by_numpy(tau: float) -> None:
    selector, scale = searching(), 1 / sigmoid(0.5)
    selector.tau = tau
    random = np.random.default_rng(0)
    places, scenario = random.integers(0, N, (30, 2)), np.arange(30) % (S + 1)
    upstream = random.normal(0, 3, (30, 2))  # many are cut
    found = selector(torch.from_numpy(places), torch.from_numpy(scenario))
    (found * torch.from_numpy(upstream)).sum().backward()
    w = selector.gates.detach().numpy()
    gate, slope = scale * sigmoid(tau * w), scale * tau * sigmoid(tau * w) * sigmoid(-tau * w)
    expected, threshold = np.zeros_like(w), 0.0
    for i in range(30):
        for v, u in zip(places[i], upstream[i], strict=True):
            k, cut = scenario[i], 0.0
            if k == S:
                expected[v, S] += u * slope[v, S]
            elif gate[v, S] > 0.95:
                cut = np.clip(u * (gate[v, S] - gate[v, k]), -1, 1)
                expected[v, S] += (u + cut) * slope[v, S]
            else:
                expected[v, k] += u * slope[v, k]
            threshold -= cut
    np.testing.assert_allclose(selector.gates.grad.numpy(), expected, rtol=1e-6, atol=1e-9)
    assert float(selector.threshold.grad) == pytest.approx(threshold, rel=1e-6)


def batch_of(count: int = 12):
    rows = SmallSource().read(0).rows.take(slice(0, count))
    return rows._replace(scenario=torch.tensor([0] * 7 + [1] * 3 + [2] * 2)[:count])


@pytest.mark.parametrize("form", ["program", "poster"])
def test_sparsity_and_orthogonality(form: str) -> None:
    settings = {"shared_sparsity": 0.3, "sparsity": 0.2, "orthogonality": 0.7}
    selector = searching(penalty_form=form, **settings)
    selector.schedule(2, 0, 0)
    share = np.array([7, 3, 2]) / 12
    scale = 1 / sigmoid(0.5) if form == "poster" else 1
    sig = scale * sigmoid(10 * selector.gates.detach().numpy())
    expected = 0.3 * sig[:, S].sum()
    for k in range(S):
        expected += 0.2 * (share[k] if form == "program" else 1) * sig[:, k].sum()
    for p in range(S):
        for r in range(p + 1, S):
            weight = share[p] + share[r] if form == "program" else 1
            expected += 0.7 * weight * (sig[:, p] * sig[:, r]).sum()
    assert float(selector.penalty(batch_of()).detach()) == pytest.approx(expected, rel=1e-6)


def test_with_two_scenarios_the_program_does_not_weigh_pairs() -> None:
    selector = MultiFS(sparsity=0, shared_sparsity=0, orthogonality=1.0)
    selector.begin(Values(("a",), ("a",), (2,), 1, 2, backbone_of().embedding))
    batch = batch_of(10)
    assert float(selector.penalty(batch).detach()) == pytest.approx(2 * sigmoid(0.5) ** 2)


@pytest.mark.parametrize("form", ["program", "poster"])
def test_shared_loss(form: str) -> None:
    selector, batch = MultiFS(shared_weight=0.4, shared_form=form), batch_of()
    logits = torch.randn(12, S, generator=torch.Generator().manual_seed(3))

    def score(rows) -> Output:
        return Output(logits.gather(1, rows.scenario[:, None]).squeeze(1))

    z, y = logits.numpy().astype(float), batch.label.numpy()
    each = -(y[:, None] * np.log(sigmoid(z)) + (1 - y[:, None]) * np.log(1 - sigmoid(z)))
    where = batch.scenario.numpy()
    if form == "program":  # each tower on all rows
        expected = each.mean(0).mean()
    else:  # the mean of the scenarios' means
        expected = np.mean([each[where == k, k].mean() for k in range(S)])
    found = selector.shared_loss(batch, score, S)
    assert float(found) == pytest.approx(0.4 * expected, rel=1e-5)
    assert MultiFS(shared_weight=0.0).shared_loss(batch, score, S) is None


def test_the_loss_of_a_step_is_all_four_together() -> None:
    backbone, batch = backbone_of(), batch_of()
    open_gates(backbone, SCHEMA, "small")
    gates = gates_of(backbone)
    for name, v in gates.buffers_by_row().items():
        gates.register_buffer(name, torch.ones(SCHEMA.vocabularies[v], S + 1).byte())
    selector, values = MultiFS(), values_of(backbone)
    selector.begin(values._replace(tables=gated(backbone)[0]))
    search = Search(backbone, selector, values, torch.optim.Adam)
    with torch.no_grad():
        selector.gates.normal_(generator=torch.Generator().manual_seed(0))
    found = search.training_step(batch, 0)
    own = F.binary_cross_entropy_with_logits(backbone(batch).logit, batch.label)
    search.soft.sharing = True
    shared = selector.shared_loss(batch, backbone, S)
    expected = own + shared + selector.penalty(batch)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(shared, selector.shared_weight * own)


def logits_by_numpy(weights: dict, masks: np.ndarray, batch, scenario: np.ndarray) -> np.ndarray:
    """Return what an EmbeddingMLP says of rows whose values count masks (n, S + 1) times.

    scenario: (B, 2) the column of the masks that a row goes by, and whose embedding it has.
    """
    x, at = [], 0
    for j, vocabulary in enumerate(SCHEMA.fields.values()):
        ids = batch.fields[:, j].numpy()
        gate = masks[at + ids, scenario[:, 0]]
        x.append(weights[f"embedding.tables.{vocabulary}"][ids] * gate[:, None])
        at += SCHEMA.vocabularies[vocabulary]
    for name, field in SCHEMA.lists.items():
        ids = batch.lists[name].numpy()
        gate = masks[at + ids, scenario[:, :1]] * (ids > 0)
        rows = weights[f"embedding.tables.{field.vocabulary}"][ids] * gate[:, :, None]
        x.append(rows.sum(1) / ((ids > 0).sum(1, keepdims=True) + 1e-8))
        at += SCHEMA.vocabularies[field.vocabulary]
    x += [batch.numbers.numpy(), weights["embedding.scenario"][scenario[:, 1]]]
    hidden = np.concatenate(x, 1)
    for layer in (0, 2):
        name = f"shared.hidden.{layer}"
        hidden = np.maximum(hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"], 0)
    return hidden @ weights["shared.logit.weight"][0] + weights["shared.logit.bias"]


def cross_entropy(logit: np.ndarray, label: np.ndarray) -> np.ndarray:
    p = sigmoid(logit)
    return -(label * np.log(p) + (1 - label) * np.log(1 - p))


@pytest.mark.parametrize("form", ["program", "poster"])
def test_a_step_of_the_search_by_numpy(form: str) -> None:
    settings = {"shared_sparsity": 0.03, "sparsity": 0.02, "orthogonality": 0.07}
    choice = MultiFS(shared_form=form, penalty_form=form, shared_weight=0.4, **settings)
    module = module_of(backbone_of(hidden=[7, 5]), choice)
    module.follow({v: torch.arange(size) for v, size in SCHEMA.vocabularies.items()})
    backbone = roughen(module.backbone)
    weights, values = numpy_weights(backbone), values_of(backbone)
    choice.begin(values._replace(tables=gated(backbone)[0]))
    search = Search(backbone, choice, values, torch.optim.Adam).double()
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        choice.gates.normal_(0.1, 0.5, generator=random)
    choice.schedule(1, 0, 0)
    batch = doubled(batch_of())
    found = float(search.training_step(batch, 0).detach())

    tau, scale = 100**0.25, 1 / sigmoid(0.5)
    sig = sigmoid(tau * choice.gates.detach().numpy())
    gate, where, y = scale * sig, batch.scenario.numpy(), batch.label.numpy()
    q = (gate[:, S:] > 0.95).astype(float)
    assert 0 < q.mean() < 1
    mixed = gate[:, S:] * q + gate[:, :S] * (1 - q)
    own = logits_by_numpy(weights, mixed, batch, np.stack([where, where], 1))
    expected = cross_entropy(own, y).mean()
    share = np.bincount(where) / len(where)
    through_shared = [
        cross_entropy(logits_by_numpy(weights, gate, batch, np.array([[S, k]] * len(where))), y)
        for k in range(S)
    ]
    if form == "program":
        expected += 0.4 * np.mean(through_shared)
        gate, of_pair = sig, share[:, None] + share
    else:
        expected += 0.4 * np.mean([through_shared[k][where == k].mean() for k in range(S)])
        share, of_pair = np.ones(S), np.ones((S, S))
    expected += 0.03 * gate[:, S].sum() + 0.02 * (gate[:, :S] @ share).sum()
    for p, r in ((0, 1), (0, 2), (1, 2)):
        expected += 0.07 * of_pair[p, r] * (gate[:, p] * gate[:, r]).sum()
    assert found == pytest.approx(expected, rel=1e-6)

    # What training goes on with: S where the shared gate or the scenario's own is above 0.
    values_met = values.places(batch).unique()
    continuous = np.where(
        np.isin(np.arange(len(sig)), values_met)[:, None], choice.gates.detach().numpy(), 1.0
    )
    hard = scale * ((continuous[:, :S] > 0) | (continuous[:, S:] > 0))
    plain = backbone_of(hidden=[7, 5])
    module = module_of(plain, choice)
    module.follow({v: torch.arange(size) for v, size in SCHEMA.vocabularies.items()})
    put(gates_of(roughen(plain)), search.kept().split(list(values.sizes)), choice)
    expected = logits_by_numpy(weights, hard, batch, np.stack([where, where], 1))
    np.testing.assert_allclose(plain(batch).logit.detach().numpy(), expected, rtol=1e-5)
    assert 0 < (hard > 0).mean() < 1


def test_temperatures_of_both_forms() -> None:
    assert temperature(4, 5, 100, "program") == 100
    assert temperature(4, 5, 100, "poster") == pytest.approx(100**0.8)
    assert temperature(0, 1, 100, "program") == 1


def test_the_mask_of_retraining() -> None:
    w = torch.tensor([[0.1, -0.1, -3.0, -0.2], [-1.0, -1.0, -1.0, 0.3], [-1.0, 0.0, 2.0, 0.0]])
    expected = [[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]]
    assert final(w).int().tolist() == expected
    assert MultiFS().scale == pytest.approx(1 / sigmoid(0.5))
    assert MultiFS(mask_scaling=3.0).scale == pytest.approx(4.8194, abs=1e-3)
    assert MultiFS(final_form="poster").scale == 1
    assert math.isclose(MultiFS(initial=0.0).scale, 2)


def test_the_threshold_learns_a_hundredth_as_fast() -> None:
    backbone = backbone_of()
    open_gates(backbone, SCHEMA, "small")
    selector, values = MultiFS(learning_rate=0.5), values_of(backbone)
    selector.begin(values._replace(tables=gated(backbone)[0]))
    groups = Search(backbone, selector, values, torch.optim.Adam).configure_optimizers()
    assert [group["lr"] for group in groups.param_groups] == [0.001, 0.5, 0.005]
    assert [group["params"] for group in groups.param_groups][1:] == [
        [selector.gates],
        [selector.threshold],
    ]


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"rewind_epoch": 5},
        {"every": 0},
        {"learning_rate": 0},
        {"sparsity": -1},
        {"shared_form": "paper"},
        {"mask_scaling": 0},
    ],
)
def test_a_wrong_setting_is_told(setting: dict) -> None:
    with pytest.raises(Mistake, match=f"selector.{next(iter(setting))}="):
        MultiFS(**setting)
