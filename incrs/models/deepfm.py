"""DeepFM: a factorisation machine beside a deep network, on the same embeddings (Guo et al., IJCAI 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from incrs.data.base import Schema
from incrs.models.base import Backbone, Output
from incrs.models.layers import MLP, Embeddings, check_widths, dense, randomness
from incrs.period import Batch


def interactions(vectors: Tensor) -> Tensor:
    """Return the sum over all pairs of different vectors (B, V, E) of their product by element: (B, E).

    Its own sum is the second-order term of a factorisation machine.
    """
    return (vectors.sum(1).square() - vectors.square().sum(1)) / 2


class DeepFM(Backbone):
    """<w, x> (if `linear`) + sum of <v_i, v_j> over all pairs + ReLU layers `hidden` and their logit.

    v_i is the embedding of a field's id, of a list (the mean of its ids'), of the scenario, or a number
    times a vector of its own. The deep network reads the embeddings and the numbers as they are.
    linear: True has a weight for each id and each number; it lies behind the vector, so a table's row
    has one number more. MultiFS's DeepFM has none (and embedding_size 16, hidden 1024, 512, 256).

    shared: the products, summed over pairs, and the last hidden layer (B, embedding_size + hidden[-1]).
    specific: (B, 0), as no scenario has anything of its own.
    """

    shared: nn.ModuleDict

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 10,
        hidden: Sequence[int] = (400, 400, 400),
        linear: bool = True,
        scenario_field: bool = True,
    ) -> None:
        super().__init__()
        check_widths("embedding_size", [embedding_size])
        random = randomness(seed)
        self.size, row = embedding_size, embedding_size + linear
        embedding = Embeddings(schema, row, seed, scenario_field)
        numbers = len(schema.numbers)
        self.before = row * (len(schema.fields) + len(schema.lists))  # of the numbers
        embedded = (embedding.width - numbers) // row
        inputs = embedded * embedding_size + numbers
        self.embedding = embedding
        self.shared = nn.ModuleDict(
            {
                "deep": MLP(inputs, hidden, random),
                "logit": dense([inputs, *hidden][-1], 1, random),
            }
        )
        if numbers:
            self.shared["numbers"] = nn.ParameterList([dense(row, numbers, random).weight])
        self.specific = nn.Identity()

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        x, row = self.embedding(batch), self.embedding.size
        after = self.before + batch.numbers.shape[1]
        rows = torch.cat([x[:, : self.before], x[:, after:]], 1).unflatten(1, (-1, row))
        deep = torch.cat([rows[:, :, : self.size].flatten(1), batch.numbers], 1)
        hidden = self.shared["deep"](deep)  # (B, H)
        if "numbers" in self.shared:
            (vectors,) = self.shared["numbers"].parameters()  # (N, row)
            rows = torch.cat([rows, batch.numbers.unsqueeze(2) * vectors], 1)
        products = interactions(rows[:, :, : self.size])  # (B, E)
        # What lies behind the vectors, if anything, are the weights of the linear term.
        alone = rows[:, :, self.size :].sum((1, 2)) + products.sum(1)
        logit = alone + self.shared["logit"](hidden).squeeze(1)
        if not representations:
            return Output(logit)
        joined = torch.cat([products, hidden], 1)
        return Output(logit, joined, joined[:, :0])
