"""NextItNet: dilated causal convolutions over the history (Yuan et al., WSDM 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from incrs.data.base import Schema
from incrs.models.base import Backbone, Items, Output
from incrs.models.layers import check_widths, randomness
from incrs.models.sequences import Dilated, PastEmbeddings, Reader
from incrs.period import Batch


class NextItNet(Backbone):
    """The history's items -> a residual block for each of `dilations` -> u; then `Reader`.

    A block has two convolutions, dilated by d and by 2 d, see `Dilated`; so 1, 4 stands for layers
    dilated by 1, 2, 4, 8, which see 1 + 15 (kernel - 1) items. The paper's other block, which is
    narrower inside, is left out. Reading: an item has one vector, in the history and as a candidate,
    in place of the paper's output layer.

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
        kernel: int = 3,
        dilations: Sequence[int] = (1, 4),
        tower: Sequence[int] | None = (64, 32),
        scenario_field: bool = True,
    ) -> None:
        super().__init__()
        check_widths("kernel", [kernel])
        check_widths("dilations", dilations)
        random = randomness(seed)
        only = None if tower is not None else [schema.item]
        embedding = PastEmbeddings(schema, embedding_size, seed, "nextitnet", scenario_field, only)
        encoder = Dilated(embedding_size, embedding.length, kernel, dilations, random)
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
