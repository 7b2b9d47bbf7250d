"""MMoE: experts for all scenarios, mixed by a gate of each scenario's own (Ma et al., KDD 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

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


class MMoE(Backbone):
    """Embeddings x (B, D) -> experts f_e(x) -> sum_e g_se(x) f_e(x) -> the row's own tower and logit.

    The paper's tasks are the scenarios s here: a row has one label, that of its own scenario. An expert
    is one ReLU layer of `width`; the gate of scenario s is softmax(W_s x + b_s), b_s beyond the paper.

    shared: the plain mean of the experts (B, width): no parameter that one scenario alone uses is in it.
    specific: the gated mixture (B, width) of the row's own scenario, which enters its tower.
    """

    shared: nn.ModuleDict
    specific: nn.ModuleDict

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 10,
        experts: int = 8,
        width: int = 64,
        tower: Sequence[int] = (64, 32),
    ) -> None:
        super().__init__()
        check_widths("experts", [experts])
        check_widths("width", [width])
        random = randomness(seed)
        embedding = Embeddings(schema, embedding_size, seed)
        self.scenarios, self.width = len(schema.scenarios), width
        self.embedding = embedding
        self.shared = nn.ModuleDict({"experts": dense(embedding.width, experts * width, random)})
        self.specific = nn.ModuleDict(
            {
                "gate": ScenarioLinear(self.scenarios, embedding.width, experts, random),
                "tower": Towers(self.scenarios, width, tower, random),
            }
        )

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        groups = ByScenario(batch.scenario, self.scenarios)
        x = self.embedding(batch.take(groups.order))  # (B, D), sorted
        experts = F.relu(self.shared["experts"](x)).unflatten(1, (-1, self.width))
        weights = torch.cat(self.specific["gate"](groups.split(x))).softmax(1)  # (B, experts)
        mixture = torch.bmm(weights.unsqueeze(1), experts).squeeze(1)
        logit, _ = self.specific["tower"](groups.split(mixture))
        if not representations:
            return Output(groups.restore(logit))
        return Output(
            groups.restore(logit), groups.restore(experts.mean(1)), groups.restore(mixture)
        )
