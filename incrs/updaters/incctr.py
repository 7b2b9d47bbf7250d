"""IncCTR: knowledge distillation from the previous model (Wang et al., arXiv 2009.02147, 2020)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from incrs import together
from incrs.errors import Mistake
from incrs.models.base import Output
from incrs.module import ScenarioModule
from incrs.period import Batch
from incrs.updaters.base import Updater


def distillation(logit: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean cross-entropy of the scores against the teacher's probabilities; a scalar.

    Where several processes train together: this one's share of it.
    logit, teacher: (B,) logits of the model and of the previous model on the same rows.
    """
    return together.mean(F.binary_cross_entropy_with_logits, logit, teacher.sigmoid())


class IncCTR(Updater):
    """Keeps the scores on D_t near those of the model of t-1, the teacher, frozen for the period.

    weight: lambda in [0, 1]; ASMG's experiments use .1 to .5.
    form: `convex` trains (1 - lambda) * loss + lambda * distillation, as in ASMG's experiments;
    `additive` trains loss + lambda * distillation.
    """

    wants_previous: ClassVar[bool] = True
    rests_in_warmup: ClassVar[bool] = True
    wants_clicks: ClassVar[bool] = True

    def __init__(self, weight: float = 0.1, form: Literal["convex", "additive"] = "convex"):
        if not 0 <= weight <= 1:
            raise Mistake(f"updater.incctr.weight={weight}: give a number from 0 to 1")
        if form not in ("convex", "additive"):
            raise Mistake(f"updater.incctr.form={form}: give convex or additive")
        self.weight, self.form = weight, form

    def penalty(self, module: ScenarioModule, batch: Batch, output: Output) -> Tensor | None:
        """Return what turns the loss into the chosen form; None in the warm-up or at weight 0."""
        before = module.previous_output(batch)
        if before is None or self.weight == 0:
            return None
        distilled = distillation(output.logit, before.logit)
        if self.form == "convex":
            distilled = distilled - module.backbone.loss(batch, output)
        return self.weight * distilled
