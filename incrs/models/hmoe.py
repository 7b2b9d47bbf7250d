"""HMoE: all scenarios' towers judge a row, and its own scenario weighs them (Li et al., CIKM 2020)."""

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


def weighed(logits: Tensor, weights: Tensor, own: Tensor, stop: bool) -> Tensor:
    """Return sum_j w_j y_j of logits y and weights w, both (B, S): (B,).

    own: (B, S) bool, the row's own scenario.  stop: True lets no gradient into the other scenarios'
    logits: a tower learns from its own scenario's rows alone, the weights from all of a row's logits.
    """
    if stop:
        logits = torch.where(own, logits, logits.detach())
    return (weights * logits).sum(1)


class HMoE(Backbone):
    """Experts and gates as MMoE -> the logits y_j of all towers -> sum_j w_sj(x) y_j, s the row's scenario.

    The hybrid of implicit experts (in the feature space: `experts` ReLU layers of `width`, mixed by a
    softmax gate for each tower) and explicit ones (in the label space: the towers' outputs, mixed by
    softmax(V_s x + c_s)). Readings: what is mixed are logits, not probabilities, and all gates read the
    embeddings x (B, D).
    stop_gradient: True is the paper's task-constrained back-propagation, see `weighed`.

    Towers and expert gates are under `shared`, as every scenario's rows go through all of them; a
    scenario's weights V_s, c_s alone are its own.

    shared: the plain mean of the experts (B, width).
    specific: the last hidden layer (B, tower[-1]) of the tower of the row's own scenario.
    """

    shared: nn.ModuleDict
    specific: ScenarioLinear

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 10,
        experts: int = 8,
        width: int = 64,
        tower: Sequence[int] = (64, 32),
        stop_gradient: bool = True,
    ) -> None:
        super().__init__()
        check_widths("experts", [experts])
        check_widths("width", [width])
        random = randomness(seed)
        embedding = Embeddings(schema, embedding_size, seed)
        self.scenarios, self.width, self.stop = len(schema.scenarios), width, stop_gradient
        self.embedding = embedding
        self.shared = nn.ModuleDict(
            {
                "experts": dense(embedding.width, experts * width, random),
                "gates": dense(embedding.width, self.scenarios * experts, random),
                "towers": Towers(self.scenarios, width, tower, random),
            }
        )
        self.specific = ScenarioLinear(self.scenarios, embedding.width, self.scenarios, random)

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        groups = ByScenario(batch.scenario, self.scenarios)
        x = self.embedding(batch.take(groups.order))  # (B, D), sorted
        experts = F.relu(self.shared["experts"](x)).unflatten(1, (-1, self.width))
        gates = self.shared["gates"](x).unflatten(1, (self.scenarios, -1)).softmax(2)
        mixtures = torch.bmm(gates, experts)  # (B, S, width)
        logits, hidden = self.shared["towers"](mixtures.unbind(1))  # (S * B,), (S * B, H)
        weights = torch.cat(self.specific(groups.split(x))).softmax(1)  # (B, S)
        scenario = batch.scenario.index_select(0, groups.order)
        own = F.one_hot(scenario, self.scenarios).bool()
        logit = weighed(logits.view(self.scenarios, -1).t(), weights, own, self.stop)
        if not representations:
            return Output(groups.restore(logit))
        mine = hidden.unflatten(0, (self.scenarios, -1)).transpose(0, 1)[own]
        return Output(groups.restore(logit), groups.restore(experts.mean(1)), groups.restore(mine))
