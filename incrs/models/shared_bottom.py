"""Shared bottom: one bottom, a tower per scenario (Caruana, Machine Learning 1997), IncMSR's baseline."""

from __future__ import annotations

from collections.abc import Sequence

from incrs.data.base import Schema
from incrs.models.base import Backbone, Output
from incrs.models.layers import MLP, ByScenario, Embeddings, Towers, check_widths, randomness
from incrs.period import Batch


class SharedBottom(Backbone):
    """Embeddings (B, D) -> ReLU layers `bottom` -> the row's own tower: ReLU layers `tower`, logit.

    With two hidden layers and the logit a tower has the three fully-connected layers of IncMSR.

    shared: the bottom's output (B, bottom[-1]), what enters every tower.
    specific: the last hidden layer (B, tower[-1]) of the tower of the row's own scenario.
    """

    def __init__(
        self,
        schema: Schema,
        seed: int,
        embedding_size: int = 10,
        bottom: Sequence[int] = (128, 64),
        tower: Sequence[int] = (64, 32),
    ) -> None:
        super().__init__()
        check_widths("bottom", bottom)
        random = randomness(seed)
        embedding = Embeddings(schema, embedding_size, seed)
        self.scenarios = len(schema.scenarios)
        self.embedding = embedding
        self.shared = MLP(embedding.width, bottom, random)
        self.specific = Towers(self.scenarios, [embedding.width, *bottom][-1], tower, random)

    def forward(self, batch: Batch, representations: bool = False) -> Output:
        """Score B rows."""
        groups = ByScenario(batch.scenario, self.scenarios)
        bottom = self.shared(self.embedding(batch.take(groups.order)))  # (B, H), sorted
        logit, hidden = self.specific(groups.split(bottom))
        if not representations:
            return Output(groups.restore(logit))
        return Output(groups.restore(logit), groups.restore(bottom), groups.restore(hidden))
