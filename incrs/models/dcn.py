"""DCN: a cross network beside a deep one (Wang et al., ADKDD 2017), IncMSR's single-scenario baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from incrs.data.base import Schema
from incrs.models.base import Backbone, Output
from incrs.models.layers import MLP, Embeddings, check_widths, dense, randomness
from incrs.period import Batch


def cross(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply L cross layers x_{l+1} = x_0 (x_l . w_l) + b_l + x_l to x (B, D); weight, bias (L, D).

    By induction x_l = a_l x_0 + c_l with a number a_l per row and a vector c_l for all rows, so all
    products of size (B, D) are done in one: s_l = x_l . w_l = a_l (x_0 . w_l) + c_l . w_l,
    a_{l+1} = a_l + s_l, c_{l+1} = c_l + b_l.
    """
    products = x @ weight.t()  # (B, L)
    scale, shift = x.new_ones(len(x)), x.new_zeros(x.shape[1])
    for layer in range(len(weight)):
        scale = scale + scale * products[:, layer] + shift @ weight[layer]
        shift = shift + bias[layer]
    return torch.addcmul(shift, x, scale.unsqueeze(1))


class Cross(nn.Module):
    """The parameters of L cross layers: weight (L, D) Xavier uniform, bias (L, D) zero; see `cross`."""

    def __init__(self, layers: int, width: int, random: torch.Generator) -> None:
        super().__init__()
        rows = [dense(width, 1, random).weight.detach() for _ in range(layers)]
        self.weight = nn.Parameter(torch.cat(rows))
        self.bias = nn.Parameter(torch.zeros(layers, width))

    def forward(self, x: Tensor) -> Tensor:
        """Cross x (B, D)."""
        return cross(x, self.weight, self.bias)


class DCN(Backbone):
    """Embeddings (B, D) -> `cross` layers beside ReLU layers `hidden` -> both, joined -> logit.

    shared: the joined outputs (B, D + hidden[-1]), all that the logit sees.
    specific: (B, 0), as no scenario has anything of its own.
    """

    shared: nn.ModuleDict

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 10,
        cross_layers: int = 3,
        hidden: Sequence[int] = (128, 64),
        scenario_field: bool = True,
    ) -> None:
        super().__init__()
        check_widths("cross_layers", [cross_layers])
        random = randomness(seed)
        embedding = Embeddings(schema, embedding_size, seed, scenario_field)
        inputs, outputs = embedding.width, [embedding.width, *hidden][-1]
        self.embedding = embedding
        self.shared = nn.ModuleDict(
            {
                "cross": Cross(cross_layers, inputs, random),
                "deep": MLP(inputs, hidden, random),
                "logit": dense(inputs + outputs, 1, random),
            }
        )
        self.specific = nn.Identity()

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        x = self.embedding(batch)  # (B, D)
        joined = torch.cat([self.shared["cross"](x), self.shared["deep"](x)], 1)
        logit = self.shared["logit"](joined).squeeze(1)
        if not representations:
            return Output(logit)
        return Output(logit, joined, joined[:, :0])
