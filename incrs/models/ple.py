"""PLE: progressive layered extraction, levels of gated experts (Tang et al., RecSys 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrs.data.base import Schema
from incrs.models.base import Backbone, Output
from incrs.models.layers import (
    ByScenario,
    Embeddings,
    ScenarioLinear,
    Towers,
    check_widths,
    dense,
    randomness,
)
from incrs.period import Batch


def place(gates: Tensor, own: int) -> Tensor:
    """Spread scenarios' gates (B, S, own + common) over all experts: (B, S, S * own + common).

    Scenario s sees its own experts, at s * own .., and the common ones at the end; 0 elsewhere.
    """
    eye = torch.eye(gates.shape[1], dtype=gates.dtype, device=gates.device)
    mine = eye.unsqueeze(2) * gates[:, :, :own].unsqueeze(2)  # (B, S, S, own)
    return torch.cat([mine.flatten(2), gates[:, :, own:]], 2)


def each(streams: Tensor, layer: ScenarioLinear) -> Tensor:
    """Apply every scenario's layer to its stream, (B, S, in) or (B, 1, in) for all: (B, S, out)."""
    if streams.shape[1] == 1:
        out = F.linear(streams.squeeze(1), layer.weight.flatten(0, 1), layer.bias.flatten())
        return out.unflatten(1, layer.bias.shape)
    return torch.einsum("bsi,soi->bso", streams, layer.weight) + layer.bias


class Level(nn.Module):
    """A level below the last: streams (B, S + 1, in), the shared one at the end, to (B, S + 1, width).

    The first level's streams are all the input: (B, 1, in). The scenarios' gates come as an argument.
    """

    def __init__(
        self,
        scenarios: int,
        inputs: int,
        width: int,
        own: int,
        common: int,
        random: torch.Generator,
    ) -> None:
        super().__init__()
        self.width, self.experts = width, own
        self.own = ScenarioLinear(scenarios, inputs, own * width, random)
        self.common = dense(inputs, common * width, random)
        self.gate = dense(inputs, scenarios * own + common, random)

    def forward(self, streams: Tensor, gates: ScenarioLinear) -> Tensor:
        """Return the next level's streams."""
        shared = streams[:, -1]
        theirs = streams[:, : max(1, streams.shape[1] - 1)]
        outputs = torch.cat([each(theirs, self.own).flatten(1), self.common(shared)], 1)
        experts = F.relu(outputs).unflatten(1, (-1, self.width))  # (B, E, width)
        some = place(each(theirs, gates).softmax(2), self.experts)  # (B, S, E)
        every = self.gate(shared).softmax(1).unsqueeze(1)  # (B, 1, E)
        return torch.bmm(torch.cat([some, every], 1), experts)


class PLE(Backbone):
    """Embeddings (B, D) -> `levels` of experts and gates -> the row's own tower: ReLU layers, logit.

    An expert is one ReLU layer of `width`. At each level every scenario has a stream, and there is a
    shared stream; all start as the input. A scenario's experts read its stream, the common experts the
    shared one. A scenario's next stream is a softmax-gated sum of its own and the common experts, the
    shared one of all experts; gates read the stream of the level before. The last level has no shared
    gate, and a row needs only its own scenario's experts and gate there.

    A scenario's experts below the last level reach all rows through the shared gate: they are under
    `shared`, as is every parameter that rows of several scenarios go through.

    shared: the plain mean of the last level's common experts (B, width): no parameter that one
    scenario alone uses is in it, as there would be in a gated mean.
    specific: the gated mixture (B, width) of the row's own scenario, which enters its tower.
    """

    shared: nn.ModuleDict
    specific: nn.ModuleDict

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 10,
        levels: int = 2,
        width: int = 64,
        own_experts: int = 1,
        common_experts: int = 2,
        tower: Sequence[int] = (64, 32),
    ) -> None:
        super().__init__()
        sizes = {"levels": levels, "width": width}
        sizes |= {"own_experts": own_experts, "common_experts": common_experts}
        for option, size in sizes.items():
            check_widths(option, [size])
        random = randomness(seed)
        embedding = Embeddings(schema, embedding_size, seed)
        scenarios, experts = len(schema.scenarios), own_experts + common_experts
        lower, gates, inputs = [], [], embedding.width
        for _ in range(levels - 1):
            lower.append(Level(scenarios, inputs, width, own_experts, common_experts, random))
            gates.append(ScenarioLinear(scenarios, inputs, experts, random))
            inputs = width
        self.scenarios, self.width = scenarios, width
        self.embedding = embedding
        self.shared = nn.ModuleDict(
            {
                "levels": nn.ModuleList(lower),
                "gates": nn.ModuleList(gates[:-1]),
                "experts": dense(inputs, common_experts * width, random),
            }
        )
        self.specific = nn.ModuleDict(
            {
                # The gates whose streams the last level alone reads.
                "gates": nn.ModuleList(gates[-1:]),
                "experts": ScenarioLinear(scenarios, inputs, own_experts * width, random),
                "gate": ScenarioLinear(scenarios, inputs, experts, random),
                "tower": Towers(scenarios, width, tower, random),
            }
        )

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        groups = ByScenario(batch.scenario, self.scenarios)
        streams = self.embedding(batch.take(groups.order)).unsqueeze(1)  # (B, 1, D), sorted
        gates = [*self.shared["gates"].children(), *self.specific["gates"].children()]
        for level, gate in zip(self.shared["levels"].children(), gates, strict=True):
            streams = level(streams, gate)  # (B, S + 1, width)
        # The rows of a scenario lie together, so their own stream is a slice.
        stream = range(self.scenarios) if streams.shape[1] > 1 else [0] * self.scenarios
        own = [part[:, s] for part, s in zip(groups.split(streams), stream, strict=True)]

        common = F.relu(self.shared["experts"](streams[:, -1])).unflatten(1, (-1, self.width))
        theirs = F.relu(torch.cat(self.specific["experts"](own))).unflatten(1, (-1, self.width))
        weights = torch.cat(self.specific["gate"](own)).softmax(1)  # (B, own + common)
        mixture = torch.bmm(weights.unsqueeze(1), torch.cat([theirs, common], 1)).squeeze(1)
        logit, _ = self.specific["tower"](groups.split(mixture))
        if not representations:
            return Output(groups.restore(logit))
        return Output(
            groups.restore(logit), groups.restore(common.mean(1)), groups.restore(mixture)
        )
