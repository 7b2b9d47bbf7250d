"""RUIE: the next item, and by double Q-learning a user's next scenario (Feng et al., CIKM 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.linalg import vector_norm

from incrs.data.base import Schema
from incrs.errors import Mistake
from incrs.models.base import Backbone, Items, Output
from incrs.models.layers import check_widths, dense, look_up, randomness
from incrs.models.sequences import HISTORY, Dilated, PastEmbeddings, attend, products
from incrs.period import Batch

SCENARIOS = f"{HISTORY}.scenario"
EPS = 1e-6


def reward(outcome: Tensor, values: Tensor, mixing: str = "sum") -> Tensor:
    """Return (B,), what the behaviours (B, K) that happened are worth, `values` (K,) each: sum or max."""
    worth = outcome.to(values.dtype) * values
    return worth.sum(1) if mixing == "sum" else worth.amax(1)


def target_value(own: Tensor, other: Tensor, gain: Tensor, last: Tensor, discount: float) -> Tensor:
    """Return (B,), r + discount * other(s', a*), a* = argmax own(s', .); r alone after the last step.

    own, other: (B, S), what the head that is updated and the other one say of s'.  gain: (B,), r.
    last: (B,), 1 where no step follows, else 0.
    """
    best = other.gather(1, own.argmax(1, keepdim=True)).squeeze(1)
    return gain + discount * (1 - last) * best


def double_q_loss(
    now: tuple[Tensor, Tensor],
    following: tuple[Tensor, Tensor],
    action: Tensor,
    gain: Tensor,
    last: Tensor,
    discount: float,
    first: Tensor,
) -> Tensor:
    """Return (B,), the squared error of the head that is updated; the target takes no gradient.

    now, following: what heads A and B say of s and of s', (B, S) each.  action: (B,), the scenario that
    came.  first: (), 1 updates A, 0 updates B.
    """
    losses = []
    for own, other in ((0, 1), (1, 0)):
        value = target_value(following[own], following[other], gain, last, discount).detach()
        said = now[own].gather(1, action.unsqueeze(1)).squeeze(1)
        losses.append((value - said).square())
    return first * losses[0] + (1 - first) * losses[1]


def gate(probability: Tensor, most: float | None) -> Tensor:
    """Return 1 / (1 - p + eps), at most `most`, for probabilities of any shape."""
    return (1 / (1 - probability + EPS)).clamp(max=torch.inf if most is None else most)


def triplet(found: Tensor, wanted: Tensor, others: Tensor, there: Tensor, margin: float) -> Tensor:
    """Return (B,), the mean over other items of max(0, |found - wanted| - |found - other| + margin).

    found, wanted: (B, D).  others: (B, n, D), of which (B, n) bool are there; none gives 0.
    """
    near = vector_norm(found - wanted, dim=1, keepdim=True)
    far = vector_norm(found.unsqueeze(1) - others, dim=2)
    share = there.to(far.dtype) / there.sum(1, keepdim=True).clamp(min=1)
    return (F.relu(near - far + margin) * share).sum(1)


def steps(history: Tensor, scenario: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return items and scenarios (B, L) of the history with the items' gaps closed, padding behind."""
    order = (history == 0).to(torch.uint8).argsort(dim=1, stable=True)
    return history.gather(1, order), None if scenario is None else scenario.gather(1, order)


def shifted(past: Tensor, newest: Tensor) -> Tensor:
    """Return the window (B, L) one step on: `newest` (B,) in front, the oldest gone."""
    return torch.cat([newest.unsqueeze(1).to(past.dtype), past[:, :-1]], 1)


class Attention(nn.Module):
    """Multi-head attention of the newest item to all steps, each an item plus its scenario."""

    def __init__(self, size: int, heads: int, random: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (dense(size, size, random) for _ in range(4))
        for layer in (self.query, self.key, self.value, self.out):
            layer.register_parameter("bias", None)

    def forward(self, items: Tensor, places: Tensor, held: Tensor) -> Tensor:
        """Return (B, D) for items (B, L, D) and their scenarios (B, L, D), held (B, L); none gives zeros."""
        both = items + places
        query = self.query(items[:, 0]).unsqueeze(1)  # of a slice a product may round otherwise
        mixed = attend(query, self.key(both), self.value(both), held.unsqueeze(1), self.heads)
        return self.out(mixed.squeeze(1)) * held[:, :1]


class Head(nn.Module):
    """A value of each scenario, (B, S), of a state (B, W): two layers, ReLU between."""

    def __init__(self, inputs: int, size: int, scenarios: int, random: torch.Generator) -> None:
        super().__init__()
        self.inner, self.outer = dense(inputs, size, random), dense(size, scenarios, random)

    def forward(self, state: Tensor) -> Tensor:
        """Return the values."""
        return self.outer(F.relu(self.inner(state)))


class Shared(nn.Module):
    """What all rows go through; without heads there is no attention."""

    def __init__(
        self,
        encoder: nn.Module,
        predictor: Sequence[nn.Module],
        attention: Attention | None,
        heads: Sequence[Head],
    ) -> None:
        super().__init__()
        self.encoder, self.attention = encoder, attention
        self.predictor, self.heads = nn.ModuleList(predictor), nn.ModuleList(heads)


class RUIE(Backbone):
    """NextItNet says which item comes next, two heads how much each scenario is worth to the user.

    The history's items -> dilated convolutions -> v; v -> three layers -> a, where the next item is
    expected: the nearest items come first, by Euclidean distance. State s: v and, with `attention`, what
    the newest item finds among all steps, items plus scenarios. Heads Q^A, Q^B: s -> a value of each
    scenario. As task=next_item trains it, a row's loss is

        (r + discount * Q^B(s', argmax_a Q^A(s', a)) - Q^A(s, scenario))^2 + gate * triplet,

    or with A and B changed about, by a coin for each batch. r: `rewards` of the row's behaviours, in the
    order of data.behaviours, their sum or the largest (`mixing`); a log without behaviours gives 1 for a
    label of 1. s': the history with the row itself in front; a user's last row that is trained on has
    none. triplet: over `negatives` drawn items outside of the history, see `triplet`.
    gate = 1 / (1 - p), p the mean of the heads' softmax at the row's scenario, at most `most_gate` (null:
    no bound). For task=click the logit is that of a's nearness plus the mean of both heads at the row's
    scenario. A log without data.history_events has steps of items alone.

    attention, gate, q: False leaves out the attention, the gate (then 1), the heads and with them the
    gate (the paper's w/o MHA, Gate, SUIM; its rows leave out the former ones, too).
    Where the paper cannot be meant as it is written, the literal reading is an option: q_softmax puts
    a softmax behind the heads, whose values the errors are then taken of; gate_gradient lets the loss move
    the gate, which lowers p; last_relu keeps a from having negative parts.

    shared: a and v, (B, 2 * embedding_size).  specific: (B, 0).
    """

    embedding: PastEmbeddings
    shared: Shared

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 64,
        kernel: int = 3,
        dilations: Sequence[int] = (1, 4),
        heads: int = 4,
        attention: bool = True,
        gate: bool = True,
        q: bool = True,
        rewards: Sequence[float] = (1, 3, 3, 2),
        mixing: str = "sum",
        discount: float = 0.5,
        margin: float = 1.0,
        negatives: int = 10,
        most_gate: float | None = 10.0,
        q_softmax: bool = False,
        gate_gradient: bool = False,
        last_relu: bool = False,
    ) -> None:
        super().__init__()
        counts = {"kernel": kernel, "heads": heads, "negatives": negatives}
        for option, count in counts.items():
            check_widths(option, [count])
        check_widths("dilations", dilations)
        if embedding_size % heads:
            raise Mistake(
                f"model.heads={heads}: model.embedding_size={embedding_size} must be a multiple of it"
            )
        if mixing not in ("sum", "max"):
            raise Mistake(f"model.mixing={mixing}: give sum or max")
        if not 0 <= discount < 1:
            raise Mistake(f"model.discount={discount}: give a number from 0 to below 1")
        if schema.behaviours and len(rewards) != len(schema.behaviours):
            raise Mistake(
                f"model.rewards={list(rewards)} must be one for each of data.behaviours="
                f"{list(schema.behaviours)}"
            )
        random, size, scenarios = randomness(seed), embedding_size, len(schema.scenarios)
        embedding = PastEmbeddings(schema, size, seed, "ruie", only=[schema.item])
        self.events = attention and q and SCENARIOS in schema.lists
        if self.events:  # of the scenarios of steps
            drawn = embedding.initial(":scenario", torch.arange(scenarios), scenarios)
            embedding.scenario = nn.Parameter(drawn)
        encoder = Dilated(size, embedding.length, kernel, dilations, random)
        attending = Attention(size, heads, random) if attention and q else None
        width, both = size * (1 + attention), "AB" if q else ""
        self.embedding, self.specific = embedding, nn.Identity()
        self.shared = Shared(
            encoder,
            [dense(size, size, random) for _ in range(3)],
            attending,
            [Head(width, size, scenarios, random) for _ in both],
        )
        self.gated, self.negatives = gate and q, negatives
        self.rewards = list(map(float, rewards)) if schema.behaviours else []
        self.mixing, self.discount, self.margin, self.most_gate = (
            mixing,
            discount,
            margin,
            most_gate,
        )
        self.q_softmax, self.gate_gradient, self.last_relu = q_softmax, gate_gradient, last_relu

    def past(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the history's items and, if they are read, scenarios + 1, (B, L) each, newest first."""
        return steps(batch.lists[HISTORY], batch.lists[SCENARIOS] if self.events else None)

    def state(self, ids: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return v (B, D) and s (B, W) of items and scenarios + 1, (B, L) each."""
        embedding, held = self.embedding, ids != 0
        table = embedding.table(embedding.lists[HISTORY])
        rows = look_up(table, ids, embedding.sparse, padding=0) * held.unsqueeze(2)
        v = self.shared.encoder(rows, held)
        if self.shared.attention is None:
            return v, v
        where = torch.zeros_like(rows)
        if places is not None and embedding.scenario is not None:
            where = look_up(embedding.scenario, (places - 1).clamp(min=0))
            where = where * (held & (places > 0)).unsqueeze(2)
        return v, torch.cat([v, self.shared.attention(rows, where, held)], 1)

    def values(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return what heads A and B say of states (B, W): (B, S) each."""
        one, other = (head(state) for head in self.shared.heads)
        return (one.softmax(1), other.softmax(1)) if self.q_softmax else (one, other)

    def expected(self, v: Tensor) -> Tensor:
        """Return a (B, D), where the next item is expected, of v (B, D)."""
        one, two, three = self.shared.predictor
        a = three(F.relu(two(F.relu(one(v)))))
        return F.relu(a) if self.last_relu else a

    def losses(self, batch: Batch, drawn: Tensor) -> Tensor:
        """Return the loss of each row, (B,); see the class and `OwnLoss`."""
        ids, places = self.past(batch)
        v, state = self.state(ids, places)
        a, target = self.expected(v), batch.fields[:, self.embedding.column]
        wanted, others = self.embedding.items(target), self.embedding.items(drawn)
        there = (drawn != 0) & (drawn != target.unsqueeze(1))
        loss = triplet(a, wanted, others, there, self.margin)
        if not self.shared.heads:
            return loss
        now = self.values(state)
        with torch.no_grad():
            ahead = None if places is None else shifted(places, batch.scenario + 1)
            following = self.values(self.state(*steps(shifted(ids, target), ahead))[1])
        if self.gated:
            one, other = now if self.q_softmax else (x.softmax(1) for x in now)
            p = ((one + other) / 2).gather(1, batch.scenario.unsqueeze(1)).squeeze(1)
            loss = loss * gate(p if self.gate_gradient else p.detach(), self.most_gate)
        gain, last = self.gains(batch, loss)
        first = (torch.rand(()) < 0.5).to(loss)
        return loss + double_q_loss(
            now, following, batch.scenario, gain, last, self.discount, first
        )

    def gains(self, batch: Batch, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reward of each row, and whether it is its user's last: (B,) each."""
        assert batch.outcome is not None
        outcome, last = batch.outcome[:, :-1], batch.outcome[:, -1].to(like)
        if not self.rewards or outcome.shape[1] != len(self.rewards):
            return batch.label.to(like), last
        return reward(outcome, like.new_tensor(self.rewards), self.mixing), last

    def encode(self, batch: Batch) -> Tensor:
        """Return [a, 1], (B, D + 1): with `catalogue` half of |a|^2 - |a - e|^2, the nearest item first."""
        a = self.expected(self.state(*self.past(batch))[0])
        return torch.cat([a, torch.ones_like(a[:, :1])], 1)

    def catalogue(self, items: Tensor) -> Tensor:
        """Return [e, -|e|^2 / 2] of items (I,): (I, D + 1)."""
        e = self.embedding.items(items)
        return torch.cat([e, -e.square().sum(-1, keepdim=True) / 2], -1)

    def worth(self, batch: Batch, state: Tensor) -> Tensor:
        """Return (B,), the heads' mean at the row's scenario; 0 without heads."""
        if not self.shared.heads:
            return state.new_zeros(len(state))
        one, other = self.values(state)
        return ((one + other) / 2).gather(1, batch.scenario.unsqueeze(1)).squeeze(1)

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        v, state = self.state(*self.past(batch))
        a = self.expected(v)
        e = self.embedding.items(batch.fields[:, self.embedding.column])
        logit = (a * e).sum(1) - e.square().sum(1) / 2 + self.worth(batch, state)
        if not representations:
            return Output(logit)
        return Output(logit, torch.cat([a, v], 1), v[:, :0])

    def score(self, batch: Batch, items: Items) -> Tensor:
        """Return (B, C), the logit of every row with each candidate in its item's place."""
        v, state = self.state(*self.past(batch))
        a = self.expected(v)
        user = torch.cat([a, torch.ones_like(a[:, :1])], 1)
        scores = products(user, self.catalogue, items.fields[:, 0], items.at)
        return scores + self.worth(batch, state).unsqueeze(1)
