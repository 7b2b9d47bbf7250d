"""DIN: a history summed as the candidate makes its items matter (Zhou et al., KDD 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrs import together
from incrs.data.base import Schema
from incrs.errors import Mistake
from incrs.models.base import Backbone, Output
from incrs.models.layers import check_widths, dense, look_up, pool, randomness
from incrs.models.sequences import HISTORY, PastEmbeddings
from incrs.period import Batch

ACTIVATIONS = ("prelu", "dice")


class PReLU(nn.Module):
    """max(0, x) + a min(0, x), with an `a` for each unit that starts at .25; x (n, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((width,), 0.25))

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Activate x; `weight` is Dice's."""
        return F.prelu(x, self.slope)


class Dice(nn.Module):
    """p x + (1 - p) a x, p = sigmoid((x - mean) / sqrt(variance + eps)); x (n, width).

    There is an `a` for each unit, 0 at the start. The moments are the batch's in training and running
    ones in evaluation, moved by `momentum`; where several processes train together the batch is that of
    all of them.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-8) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.slope = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Activate x; weight (n, 1): 0 for rows that do not count in the moments, else 1."""
        mean, variance = self.mean, self.variance
        if self.training:
            counted = x.new_ones(len(x), 1) if weight is None else weight
            total, rows = together.summed((x * counted).sum(0), counted.sum(0))
            mean = total / rows.clamp(min=1)
            (square,) = together.summed(((x - mean).square() * counted).sum(0))
            variance = square / rows.clamp(min=1)
            with torch.no_grad():
                step = self.momentum * (rows > 0).to(x.dtype)
                self.mean.lerp_(mean, step)
                self.variance.lerp_(variance, step)
        p = torch.sigmoid((x - mean) * (variance + self.eps).rsqrt())
        return x * (p + (1 - p) * self.slope)


class Layers(nn.Module):
    """Dense layers with an activation each, and a last number: (n, inputs) -> (n, 1), (n, hidden[-1])."""

    def __init__(
        self, inputs: int, hidden: Sequence[int], activation: str, random: torch.Generator
    ) -> None:
        super().__init__()
        kind = PReLU if activation == "prelu" else Dice
        self.dense = nn.ModuleList(dense(a, b, random) for a, b in pairwise([inputs, *hidden]))
        self.activations = nn.ModuleList(kind(width) for width in hidden)
        self.last = dense([inputs, *hidden][-1], 1, random)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the number and the last hidden layer; weight: see `Dice`."""
        for layer, activation in zip(self.dense, self.activations, strict=True):
            x = activation(layer(x), weight)
        return self.last(x), x


class DIN(Backbone):
    """The history's items h_j and the candidate v -> sum_j a(h_j, v) h_j, with the input -> layers, logit.

    a: the activation unit, layers `attention` over [h, v, h - v, h v] to a number, as it is: no softmax,
    so that the sum keeps how strong an interest is. An item is its embedding and those of the columns
    in data.history_of, each the mean of its ids. The input is all that a row has beside its history.
    activation: `prelu`, or `dice`, the paper's, which remembers moments as a batch norm does.

    shared: the last hidden layer (B, hidden[-1]), as every row goes through all of it.
    specific: (B, 0), as no scenario has anything of its own.
    """

    embedding: PastEmbeddings
    shared: nn.ModuleDict

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 10,
        hidden: Sequence[int] = (200, 80),
        attention: Sequence[int] = (36,),
        activation: str = "prelu",
        scenario_field: bool = True,
    ) -> None:
        super().__init__()
        check_widths("hidden", hidden)
        check_widths("attention", attention)
        if activation not in ACTIVATIONS:
            raise Mistake(f"model.activation={activation}: choose one of {', '.join(ACTIVATIONS)}")
        random = randomness(seed)
        embedding = PastEmbeddings(schema, embedding_size, seed, "din", scenario_field)
        item = embedding_size * (1 + len(embedding.of_history))
        self.embedding = embedding
        self.shared = nn.ModuleDict(
            {
                "unit": Layers(4 * item, attention, activation, random),
                "layers": Layers(embedding.width + item, hidden, activation, random),
            }
        )
        self.specific = nn.Identity()

    def past(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the history's items, (B, L, item), zeros where there is none, and which are held (B, L)."""
        embedding, ids = self.embedding, batch.lists[HISTORY]
        held, gates = ids != 0, embedding.multipliers(batch)
        table = embedding.table(embedding.lists[HISTORY])
        parts = [look_up(table, ids, embedding.sparse, padding=0)]
        if gates is not None:
            parts = [parts[0] * gates.lists[HISTORY].unsqueeze(2)]
        for name in embedding.of_history:
            of_item = batch.lists[name].unflatten(1, (ids.shape[1], -1)).flatten(0, 1)
            weights = gates and gates.lists[name].reshape(of_item.shape)
            found = pool(embedding.table(embedding.lists[name]), of_item, embedding.sparse, weights)
            parts.append(found.unflatten(0, ids.shape))
        return torch.cat(parts, 2) * held.unsqueeze(2), held

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        x = self.embedding(batch)
        names = [self.embedding.item, *self.embedding.of_history.values()]
        v = torch.cat([self.embedding.part(x, name) for name in names], 1).unsqueeze(1)
        h, held = self.past(batch)
        both = torch.cat([h, v.expand_as(h), h - v, h * v], 2)  # (B, L, 4 * item)
        count = held.view(-1, 1).to(x.dtype)
        strength = (self.shared["unit"](both.flatten(0, 1), count)[0] * count).view(held.shape)
        interest = torch.bmm(strength.unsqueeze(1), h).squeeze(1)  # (B, item)
        logit, hidden = self.shared["layers"](torch.cat([x, interest], 1))
        if not representations:
            return Output(logit.squeeze(1))
        return Output(logit.squeeze(1), hidden, hidden[:, :0])
