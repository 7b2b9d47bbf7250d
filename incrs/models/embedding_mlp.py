"""Embedding & MLP: embeddings through dense layers, the base model of ASMG (Peng et al., RecSys 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from incrs.data.base import Schema
from incrs.models.base import Backbone, Output
from incrs.models.layers import MLP, Embeddings, dense, randomness
from incrs.period import Batch


class EmbeddingMLP(Backbone):
    """Embeddings (B, width) -> ReLU layers `hidden` -> logit; no dropout, batch norm or L2.

    The paper's layers are a half and a quarter as wide as the input (24 -> 12 -> 6 -> 1). Its model
    has no scenario field: its log has one scenario. Here `scenario_field` adds one, since a log of
    several scenarios is otherwise scored without saying where the row was shown.
    initialisation: `small` (tables N(0, .01^2), dense Xavier, biases 0) or `glorot` (the paper's
    program: Glorot uniform for everything, a bias of length n from U(-sqrt(3/n), sqrt(3/n))).

    shared: the last hidden layer (B, hidden[-1]), as every row goes through all of it.
    specific: (B, 0), as no scenario has anything of its own.
    """

    shared: nn.ModuleDict

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 10,
        hidden: Sequence[int] = (64, 32),
        scenario_field: bool = True,
        initialisation: str = "small",
    ) -> None:
        super().__init__()
        random = randomness(seed)
        embedding = Embeddings(schema, embedding_size, seed, scenario_field, initialisation)
        width = [embedding.width, *hidden][-1]
        layers = MLP(embedding.width, hidden, random)
        self.embedding = embedding
        self.shared = nn.ModuleDict({"hidden": layers, "logit": dense(width, 1, random)})
        self.specific = nn.Identity()
        if initialisation == "glorot":
            for name, bias in self.shared.named_parameters():
                if name.endswith("bias"):
                    limit = (3 / len(bias)) ** 0.5
                    nn.init.uniform_(bias, -limit, limit, generator=random)

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        hidden = self.shared["hidden"](self.embedding(batch))  # (B, H)
        logit = self.shared["logit"](hidden).squeeze(1)
        if not representations:
            return Output(logit)
        return Output(logit, hidden, hidden[:, :0])
