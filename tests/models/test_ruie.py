"""RUIE against its formulas in numpy, and its two heads against double Q-learning in a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from incrs.data.base import ListField
from incrs.errors import Mistake
from incrs.models.nextitnet import NextItNet
from incrs.models.ruie import (
    EPS,
    RUIE,
    double_q_loss,
    gate,
    reward,
    shifted,
    steps,
    target_value,
    triplet,
)
from incrs.period import Batch
from tests.models.toy import SCHEMA, doubled, numpy_weights, relu, roughen, rows

EVENTS = {"history.scenario": ListField("history.scenario", 6)}
LOG = replace(
    SCHEMA,
    vocabularies={**SCHEMA.vocabularies, "history.scenario": 4},
    lists={**SCHEMA.lists, **EVENTS},
    behaviours=("click", "follow", "like", "share"),
)
SIZE = 8


def batch_of(count: int = 12, seed: int = 0) -> tuple[Batch, torch.Tensor]:
    """Return rows with their outcome, and items drawn for them, some of them none."""
    batch, draw = doubled(rows(LOG, count, seed)), np.random.default_rng(seed)
    outcome = torch.from_numpy(draw.integers(0, 2, (count, 5))).to(torch.int8)
    return batch._replace(outcome=outcome), torch.from_numpy(draw.integers(0, 20, (count, 10)))


def model(**options) -> RUIE:
    return roughen(RUIE(LOG, 0, SIZE, **options)).eval()


def test_two_heads_learn_what_a_table_of_double_q_learning_does():
    """A chain of three states, two actions: by hand, and by gradient steps of half the squared error."""
    chain = [(0, 0, 1.0, 1), (1, 1, 3.0, 2), (0, 1, 0.0, 2), (2, 0, 2.0, None), (1, 0, 0.5, 0)]
    draw, rate, discount = np.random.default_rng(0), 0.25, 0.5
    table = draw.normal(size=(2, 3, 2))
    heads = torch.tensor(table.copy(), requires_grad=True)
    for _ in range(60):
        state, action, gain, following = chain[draw.integers(len(chain))]
        own = draw.integers(2)
        value = gain
        if following is not None:
            best = int(np.argmax(table[own, following]))
            value += discount * table[1 - own, following, best]
        table[own, state, action] += rate * (value - table[own, state, action])

        here = torch.tensor([state])
        ahead = torch.tensor([following or 0])
        loss = double_q_loss(
            (heads[0][here], heads[1][here]),
            (heads[0][ahead], heads[1][ahead]),
            torch.tensor([action]),
            torch.tensor([gain]),
            torch.tensor([float(following is None)]),
            discount,
            torch.tensor(1.0 - own),
        )
        (gradient,) = torch.autograd.grad(loss.sum(), heads)
        heads.data -= rate / 2 * gradient
        np.testing.assert_allclose(heads.detach().numpy(), table, atol=1e-7)


def test_after_the_last_step_nothing_is_expected():
    own, other = torch.tensor([[1.0, 2.0]] * 2), torch.tensor([[5.0, 7.0]] * 2)
    value = target_value(own, other, torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]), 0.5)
    assert value.tolist() == [4.5, 1.0]


def test_the_reward_is_the_sum_or_the_largest_of_what_happened():
    outcome, values = (
        torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0]]).byte(),
        torch.tensor([1.0, 3.0, 3.0, 2.0]),
    )
    assert reward(outcome, values).tolist() == [6, 0]
    assert reward(outcome, values, "max").tolist() == [3, 0]


def test_the_gate_grows_with_the_probability_up_to_its_bound():
    p = torch.tensor([0.0, 0.5, 0.875, 0.99, 1.0], dtype=torch.float64)
    torch.testing.assert_close(gate(p, 10.0), (1 / (1 - p + EPS)).clamp(max=10))
    assert float(gate(p, None)[-1]) == pytest.approx(1 / EPS)
    assert (gate(p, 10.0) > 1 - 1e-5).all()


def test_the_triplet_loss_is_the_mean_hinge_over_the_items_there():
    draw = np.random.default_rng(0)
    found, wanted, others = (draw.normal(size=s) for s in ((5, 3), (5, 3), (5, 4, 3)))
    there = draw.random((5, 4)) < 0.6
    there[2] = False
    expected = []
    for a, p, some, held in zip(found, wanted, others, there, strict=True):
        near = np.sqrt(((a - p) ** 2).sum())
        hinges = [max(0, near - np.sqrt(((a - n) ** 2).sum()) + 0.7) for n in some[held]]
        expected.append(np.mean(hinges) if hinges else 0)
    ours = triplet(*map(torch.from_numpy, (found, wanted, others, there)), 0.7)
    np.testing.assert_allclose(ours.numpy(), expected)


def test_steps_close_gaps_of_items_and_scenarios_alike():
    history, scenario = torch.tensor([[0, 5, 0, 7]]), torch.tensor([[1, 2, 3, 1]])
    items, where = steps(history, scenario)
    assert items.tolist() == [[5, 7, 0, 0]]
    assert where is not None
    assert where[:, :2].tolist() == [[2, 1]]
    assert shifted(items, torch.tensor([9])).tolist() == [[9, 5, 7, 0]]


def state_of(w: dict, items: list[int], places: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return v and s of one history, newest first; v comes from NextItNet's own blocks."""
    plain = NextItNet(LOG, 0, SIZE, tower=None).double()
    plain.load_state_dict({name: torch.from_numpy(w[name]) for name in plain.state_dict()})
    padded = torch.tensor([items + [0] * (6 - len(items))])
    v = plain.encode(Batch(None, {"history": padded}, None, None, None)).detach().numpy()[0]
    e = w["embedding.tables.item"][items].reshape(-1, SIZE)
    where = np.concatenate([np.zeros((1, SIZE)), w["embedding.scenario"]])
    both = e + where[places].reshape(-1, SIZE)
    found = np.zeros(SIZE)
    if items:
        q, k, x = (
            y @ w[f"shared.attention.{n}.weight"].T
            for n, y in (("query", e[0]), ("key", both), ("value", both))
        )
        parts = []
        for h in range(4):
            cut = slice(h * SIZE // 4, (h + 1) * SIZE // 4)
            odds = np.exp(k[:, cut] @ q[cut] / np.sqrt(SIZE / 4))
            parts.append(odds / odds.sum() @ x[:, cut])
        found = w["shared.attention.out.weight"] @ np.concatenate(parts)
    return v, np.concatenate([v, found])


def heads_of(w: dict, state: np.ndarray) -> list[np.ndarray]:
    found = []
    for h in range(2):
        at = f"shared.heads.{h}"
        hidden = relu(w[f"{at}.inner.weight"] @ state + w[f"{at}.inner.bias"])
        found.append(w[f"{at}.outer.weight"] @ hidden + w[f"{at}.outer.bias"])
    return found


def expected_of(w: dict, v: np.ndarray) -> np.ndarray:
    for layer in range(3):
        v = w[f"shared.predictor.{layer}.weight"] @ v + w[f"shared.predictor.{layer}.bias"]
        v = relu(v) if layer < 2 else v
    return v


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


@pytest.mark.parametrize("first", [0, 1])
def test_scores_and_losses_are_those_of_the_formulas(first: int, monkeypatch: pytest.MonkeyPatch):
    net, (batch, drawn) = model(), batch_of()
    w = numpy_weights(net)
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.25 + 0.5 * (1 - first)))
    losses, output = net.losses(batch, drawn).detach(), net(batch, representations=True)
    encoded, every = net.encode(batch).detach(), net.catalogue(torch.arange(20)).detach()
    table = w["embedding.tables.item"]
    for i in range(len(losses)):
        history, places = (batch.lists[n][i].tolist() for n in ("history", "history.scenario"))
        kept = [(a, b) for a, b in zip(history, places, strict=True) if a]
        v, state = state_of(w, [a for a, _ in kept], [b for _, b in kept])
        one, other = heads_of(w, state)
        a, target, s = expected_of(w, v), int(batch.fields[i, 1]), int(batch.scenario[i])
        logit = a @ table[target] - (table[target] ** 2).sum() / 2 + (one + other)[s] / 2
        assert float(output.logit[i].detach()) == pytest.approx(logit)
        np.testing.assert_allclose(output.shared[i].detach().numpy(), np.concatenate([a, v]))
        order = np.argsort(((table - a) ** 2).sum(1))
        np.testing.assert_array_equal(np.argsort(-(encoded[i] @ every.T).numpy()), order)

        ahead = [(target, s + 1), *kept, *[(0, 0)] * 6][:6]
        ahead = [one_step for one_step in ahead if one_step[0]]
        _, then = state_of(w, [x for x, _ in ahead], [x for _, x in ahead])
        values, following = [one, other], heads_of(w, then)
        flags, last = batch.outcome[i, :4].numpy(), int(batch.outcome[i, 4])
        own = 0 if first else 1
        best = int(np.argmax(following[own]))
        value = float(flags @ np.array([1, 3, 3, 2]))
        value += 0 if last else 0.5 * following[1 - own][best]
        p = (softmax(one) + softmax(other))[s] / 2
        near = np.linalg.norm(a - table[target])
        hinges = [
            max(0, near - np.linalg.norm(a - table[n]) + 1)
            for n in drawn[i].tolist()
            if n not in (0, target)
        ]
        loss = (value - values[own][s]) ** 2
        loss += min(10, 1 / (1 - p + EPS)) * np.mean(hinges)
        assert float(losses[i]) == pytest.approx(loss)


def test_padding_neither_attends_nor_is_attended_to():
    net, (batch, drawn) = model(), batch_of(8)
    kept = batch.fields[:, 1] != 0

    def said() -> list[torch.Tensor]:
        torch.manual_seed(0)
        told = batch._replace(lists=lists)
        _, state = net.state(*net.past(told))
        return [x[kept] for x in (net.encode(told), state, net.losses(told, drawn))]

    lists = dict(batch.lists)
    before = said()
    with torch.no_grad():
        net.embedding.tables["item"][0] = 99  # the unknown's row, whose id padding has
    lists["history.scenario"] = torch.where(lists["history"] == 0, 3, lists["history.scenario"])
    for one, other in zip(before, said(), strict=True):
        torch.testing.assert_close(one, other)
    empty = batch._replace(lists={name: 0 * ids for name, ids in batch.lists.items()})
    assert (net.encode(empty) == net.encode(empty)[0]).all()
    assert not net.state(*net.past(empty))[1].any()
    assert net(empty).logit.isfinite().all()


def test_the_gate_takes_no_gradient_unless_it_is_said_to():
    batch, drawn = batch_of()
    found = {}
    for option in (False, True):
        net = model(gate_gradient=option, most_gate=None, discount=0.0)
        torch.manual_seed(0)
        head = net.shared.heads[0].outer.weight
        (found[option],) = torch.autograd.grad(net.losses(batch, drawn).mean(), head)
        plain = model(gate=False, discount=0.0)
        torch.manual_seed(0)
        weight = plain.shared.heads[0].outer.weight
        (alone,) = torch.autograd.grad(plain.losses(batch, drawn).mean(), weight)
        assert torch.allclose(found[option], alone) == (not option)


def test_what_is_left_out_has_no_parameters():
    names = {
        option: {n.split(".")[1] for n, _ in model(**{option: False}).named_parameters()}
        for option in ("attention", "gate", "q")
    }
    whole = {n.split(".")[1] for n, _ in model().named_parameters()}
    assert names["attention"] == whole - {"attention", "scenario"}
    assert names["gate"] == whole
    assert names["q"] == whole - {"attention", "scenario", "heads"}
    batch, drawn = batch_of()
    for options in (
        {"attention": False},
        {"gate": False},
        {"q": False},
        {"q_softmax": True, "last_relu": True, "mixing": "max"},
    ):
        net = model(**options)
        net.losses(batch, drawn).mean().backward()
        assert all(w.grad is not None for w in net.parameters())
    literal = model(q_softmax=True)
    state = literal.state(*literal.past(batch))[1]
    torch.testing.assert_close(literal.values(state)[0].sum(1), torch.ones(12).double())


def test_a_log_that_does_not_say_what_users_did_rewards_its_positives():
    net = roughen(RUIE(SCHEMA, 0, SIZE))
    batch, drawn = batch_of()
    last = batch._replace(outcome=batch.outcome[:, -1:])
    gain, end = net.gains(last, torch.zeros(1).double())
    assert torch.equal(gain, batch.label)
    assert torch.equal(end, batch.outcome[:, -1].double())
    assert net.losses(last, drawn).isfinite().all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rewards": [1, 2]}, "model.rewards=.1, 2. must be one for each of data.behaviours"),
        ({"mixing": "mean"}, "model.mixing=mean"),
        ({"discount": 1.0}, "model.discount=1.0"),
        ({"heads": 3}, "model.heads=3"),
        ({"negatives": 0}, "model.negatives"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict, said: str):
    with pytest.raises(Mistake, match=said):
        RUIE(LOG, 0, SIZE, **options)
