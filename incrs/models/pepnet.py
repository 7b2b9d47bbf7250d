"""PEPNet: gates by scenario on the embeddings, by user and item on the layers (Chang et al., KDD 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrs.data.base import Schema
from incrs.models.base import Backbone, Output
from incrs.models.layers import Embeddings, check_widths, dense, randomness
from incrs.period import Batch


class Gate(nn.Sequential):
    """The paper's Gate NU: 2 sigmoid(W' relu(W x + b) + b'), (B, inputs) -> (B, outputs) in (0, 2)."""

    def __init__(self, inputs: int, width: int, outputs: int, random: torch.Generator) -> None:
        layers = dense(inputs, width, random), nn.ReLU(), dense(width, outputs, random)
        super().__init__(*layers, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return a factor for each output; 1 where the network says 0."""
        return 2 * super().forward(x)


class PEPNet(Backbone):
    """EPNet: O = gate([scenario, /E]) * E.  PPNet: h_1 = O, h_{l+1} = ReLU(W_l (gate_l([prior, /O]) * h_l)).

    E is the input (B, D) as `Embeddings` makes it, without the scenario's; `/` stops the gradient, so a
    gate's reading of a vector does not change it. The last layer, without ReLU, is the logit; every
    layer's input has a gate of its own. The prior is the embeddings of the user and the item, from the
    tables that E is looked up in; a log that names neither has an empty prior.
    Readings: one task, the click, so one tower for all scenarios, which EPNet tells apart; the scenario's
    id is the only domain feature. The paper's prior, which is not stopped there either, has the author too.
    gate: width of the gates' hidden layers, free in the paper.

    shared: the last hidden layer (B, hidden[-1]), as every row goes through all of it.
    specific: (B, 0), as no scenario has anything of its own but its embedding.
    """

    shared: nn.ModuleDict

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 10,
        hidden: Sequence[int] = (128, 64, 32),
        gate: int = 64,
    ) -> None:
        super().__init__()
        check_widths("hidden", hidden)
        check_widths("gate", [gate])
        random = randomness(seed)
        embedding = Embeddings(schema, embedding_size, seed, scenario_field=True)
        # The scenario's embedding is behind E.
        self.size, self.width = embedding_size, embedding.width - embedding_size
        named = [name for name in (schema.user, schema.item) if name is not None]
        self.priors = [schema.column(name) for name in named]
        prior = embedding_size * len(named)
        widths = [self.width, *hidden, 1]
        gates = [Gate(prior + self.width, gate, width, random) for width in widths[:-1]]
        layers = [dense(width, following, random) for width, following in pairwise(widths)]
        self.embedding = embedding
        self.shared = nn.ModuleDict(
            {
                "domain": Gate(embedding.width, gate, self.width, random),
                "gates": nn.ModuleList(gates),
                "layers": nn.ModuleList(layers),
            }
        )
        self.specific = nn.Identity()

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        x, size = self.embedding(batch), self.size
        inputs, scenario = x[:, : self.width], x[:, self.width :]
        inputs = self.shared["domain"](torch.cat([scenario, inputs.detach()], 1)) * inputs
        prior = [x[:, size * column : size * (column + 1)] for column in self.priors]
        known = torch.cat([*prior, inputs.detach()], 1)
        hidden = inputs
        gates, layers = self.shared["gates"].children(), [*self.shared["layers"].children()]
        for gate, layer in zip(gates, layers, strict=True):
            last = hidden
            hidden = layer(gate(known) * last)
            if layer is not layers[-1]:
                hidden = F.relu(hidden)
        logit = hidden.squeeze(1)
        if not representations:
            return Output(logit)
        return Output(logit, last, last[:, :0])
