"""GRU4Rec: a gated recurrent network over the history (Hidasi et al., ICLR 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from incrs.data.base import Schema
from incrs.models.base import Backbone, Items, Output
from incrs.models.layers import check_widths, dense, randomness
from incrs.models.sequences import PastEmbeddings, Reader
from incrs.period import Batch


class GRU(nn.Module):
    """A layer: h' = (1 - z) h + z tanh(W x + U (r h) + b); z and r = sigmoid(W x + U h + b).

    W, U, b are other ones in each of the three. The reset gate acts on the state before the matrix, as
    in the paper. U is orthogonal at the start.
    """

    def __init__(self, size: int, random: torch.Generator) -> None:
        super().__init__()
        self.size = size
        self.input = dense(size, 3 * size, random)  # of r, z and the new state
        own = [nn.init.orthogonal_(torch.empty(size, size), generator=random) for _ in range(3)]
        self.state = nn.Parameter(torch.cat(own, 1))  # (D, 3 D), transposed

    def forward(self, rows: Tensor, held: Tensor) -> list[Tensor]:
        """Return the states (B, D), oldest first, after rows (B, L, D), newest first, held (B, L)."""
        parts = [2 * self.size, self.size]
        of_gates, of_new = self.state.split(parts, 1)
        inputs, here = self.input(rows).unbind(1), held.to(rows.dtype).unsqueeze(2).unbind(1)
        h, states = torch.zeros_like(rows[:, 0]), []
        for x, counts in zip(reversed(inputs), reversed(here), strict=True):
            gates, new = x.split(parts, 1)
            r, z = torch.addmm(gates, h, of_gates).sigmoid().chunk(2, 1)
            new = torch.addmm(new, r * h, of_new).tanh()
            h = torch.lerp(h, new, z * counts)  # padding changes no state
            states.append(h)
        return states


class Encoder(nn.Module):
    """Histories to users' vectors: the last state of the last of several layers."""

    def __init__(self, size: int, layers: int, random: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GRU(size, random) for _ in range(layers))

    def forward(self, rows: Tensor, held: Tensor) -> Tensor:
        """Return (B, D) for the items (B, L, D) of which (B, L) are held; zeros where none is."""
        for number, layer in enumerate(self.layers, 1):
            states = layer(rows, held)
            if number < len(self.layers):
                rows = torch.stack(states[::-1], 1)
        return states[-1]


class GRU4Rec(Backbone):
    """The history's items -> `layers` of gated recurrent units -> the last state, u; then `Reader`.

    Readings: as many units as an item's vector has numbers, and an item has one vector, in the history
    and as a candidate, so that <u, e> needs no output layer; histories in place of sessions.

    shared: what the logit is made of, (B, embedding_size + tower[-1]), see `Reader`.
    specific: (B, 0), as no scenario has anything of its own.
    """

    embedding: PastEmbeddings
    shared: Reader

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 64,
        layers: int = 1,
        tower: Sequence[int] | None = (64, 32),
        scenario_field: bool = True,
    ) -> None:
        super().__init__()
        check_widths("layers", [layers])
        random = randomness(seed)
        only = None if tower is not None else [schema.item]
        embedding = PastEmbeddings(schema, embedding_size, seed, "gru4rec", scenario_field, only)
        self.embedding = embedding
        self.shared = Reader(Encoder(embedding_size, layers, random), embedding, tower, random)
        self.specific = nn.Identity()

    def encode(self, batch: Batch) -> Tensor:
        """Return the users' vectors (B, embedding_size), from their histories alone."""
        return self.shared.encoder(*self.embedding.past(batch))

    def catalogue(self, items: Tensor) -> Tensor:
        """Return the vectors of items (I,): (I, embedding_size)."""
        return self.embedding.items(items)

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        return self.shared(self.encode(batch), batch, self.embedding, representations)

    def score(self, batch: Batch, items: Items) -> Tensor:
        """Return (B, C), the logit of every row with each candidate in its item's place."""
        return self.shared.score(self.encode(batch), batch, self.embedding, items)
