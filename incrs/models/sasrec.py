"""SASRec: self-attention over the history (Kang and McAuley, ICDM 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrs.data.base import Schema
from incrs.errors import Mistake
from incrs.models.base import Backbone, Items, Output
from incrs.models.layers import check_widths, dense, randomness, uniforms
from incrs.models.sequences import EPS, PastEmbeddings, Reader, attend, not_later
from incrs.period import Batch


class Block(nn.Module):
    """y = x + attention(norm(x)), then y + W_2 relu(W_1 norm(y) + b_1) + b_2; see `SASRec`."""

    def __init__(self, size: int, heads: int, dropout: float, random: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(size, EPS) for _ in range(2))
        self.query, self.key, self.value = (dense(size, size, random, False) for _ in range(3))
        self.inner, self.outer = (dense(size, size, random) for _ in range(2))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Return the Q newest positions, (B, Q, D), of x (B, L, D); seen: (B, Q, L) bool."""
        first, second = self.norms
        z, count = first(x), seen.shape[1]
        query = self.query(z[:, :count].contiguous())
        mixed = attend(query, self.key(z), self.value(z), seen, self.heads)
        y = x[:, :count] + self.dropout(mixed)
        return y + self.dropout(self.outer(self.dropout(F.relu(self.inner(second(y))))))


class Encoder(nn.Module):
    """Histories to users' vectors: positions added, blocks, a last norm."""

    def __init__(
        self,
        size: int,
        length: int,
        blocks: int,
        heads: int,
        dropout: float,
        seed: int,
        random: torch.Generator,
    ) -> None:
        super().__init__()
        drawn = torch.special.ndtri(uniforms(seed, ":position", 0, length, size))
        self.positions = nn.Parameter((0.01 * drawn).float())  # (L, D), newest first
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(size, heads, dropout, random) for _ in range(blocks))
        self.norm = nn.LayerNorm(size, EPS)

    def forward(self, rows: Tensor, held: Tensor) -> Tensor:
        """Return (B, D) for the items (B, L, D) of which (B, L) are held; zeros where none is."""
        x = self.dropout(rows + self.positions) * held.unsqueeze(2)
        seen = not_later(held)
        for number, block in enumerate(self.blocks, 1):
            # Of the last block nothing but the newest position is asked for.
            x = block(x, seen if number < len(self.blocks) else seen[:, :1])
        return self.norm(x[:, 0]) * held[:, :1]


class SASRec(Backbone):
    """The history's items and positions -> `blocks` of causal attention -> u; then `Reader`.

    A block is x + f(norm(x)) twice: f is attention with `heads` parts (the paper finds one best), no bias
    and no output matrix, then two layers of the same width with ReLU between. Positions count from the
    newest item. As the authors' program, there is a last layer norm; unlike it, keys and values are
    normalised as queries are, which is the paper's formula. An item has one vector, in the history and
    as a candidate.
    dropout: on the embeddings, between a block's two layers and on what a block adds; the paper: .2, .5
    on MovieLens.

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
        blocks: int = 2,
        heads: int = 1,
        dropout: float = 0.0,
        tower: Sequence[int] | None = (64, 32),
        scenario_field: bool = True,
    ) -> None:
        super().__init__()
        check_widths("blocks", [blocks])
        check_widths("heads", [heads])
        if embedding_size % heads:
            raise Mistake(
                f"model.heads={heads}: model.embedding_size={embedding_size} must be a multiple of it"
            )
        random = randomness(seed)
        only = None if tower is not None else [schema.item]
        embedding = PastEmbeddings(schema, embedding_size, seed, "sasrec", scenario_field, only)
        length = embedding.length
        encoder = Encoder(embedding_size, length, blocks, heads, dropout, seed, random)
        self.embedding = embedding
        self.shared = Reader(encoder, embedding, tower, random)
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
