"""AutoField: the columns that a controller finds worth keeping (Wang et al., WWW 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrs.errors import Mistake
from incrs.selectors.base import Selector, Values, above, everywhere, not_below


def kept_share(logits: Tensor, noise: Tensor, tau: float) -> Tensor:
    """Return p of `keep` by the Gumbel softmax of logits (columns, 2): drop, keep.

    noise: (columns, 2) uniform in (0, 1).
    """
    gumbel = -torch.log(-torch.log(noise))
    return F.softmax((F.log_softmax(logits, 1) + gumbel) / tau, 1)[:, 1]


def best(logits: Tensor, count: int) -> Tensor:
    """Return which `count` columns have the greatest probability of being kept; the first, if equal."""
    order = torch.argsort(logits[:, 1] - logits[:, 0], descending=True, stable=True)
    kept = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    kept[order[:count]] = True
    return kept


class AutoField(Selector):
    """Keeps a number of columns, the same in all scenarios.

    Two numbers for each column say how likely it is to be kept or dropped; a step draws from them by
    the Gumbel softmax, whose temperature falls from 1 by `decay` a step, to .01 at least. They learn
    from the last `held_out` of the rows, which the weights do not learn from, both in every step.
    keep: share of the columns that are kept, in (0, 1]; the paper's K.
    """

    whole_columns = True

    def __init__(
        self,
        epochs: int = 5,
        rewind_epoch: int = 0,
        every: int | None = None,
        learning_rate: float = 0.01,
        keep: float = 0.5,
        decay: float = 5e-5,
        held_out: float = 0.2,
    ):
        super().__init__("autofield", epochs, rewind_epoch, every, learning_rate)
        above("keep", keep)
        above("held_out", held_out)
        not_below("decay", decay)
        for option, value in {"keep": keep, "held_out": held_out}.items():
            if value > 1 or (option == "held_out" and value == 1):
                raise Mistake(f"selector.{option}={value}: give a share, above 0 and at most 1")
        self.keep, self.decay, self.held_out, self.tau = keep, decay, held_out, 1.0

    def begin(self, values: Values) -> None:
        """Start with both equally likely."""
        self.scenarios = values.scenarios
        self.register_buffer("column", values.column, persistent=False)
        self.logits = nn.Parameter(torch.zeros(len(values.sizes), 2))

    def schedule(self, epoch: int, step: int, steps: int) -> None:
        """Lower the temperature, every step."""
        self.tau = max(0.01, 1 - self.decay * step)

    def forward(self, places: Tensor, scenario: Tensor) -> Tensor:
        """Return the draws of this step for the values' columns."""
        noise = torch.rand_like(self.logits).clamp(1e-6, 1 - 1e-6)
        drawn = kept_share(self.logits, noise, self.tau)
        column = self.get_buffer("column").gather(0, places.reshape(-1))
        return drawn.gather(0, column).view(places.shape)

    def fixed(self) -> Tensor:
        """Return the values of the columns that are kept."""
        count = max(1, round(self.keep * len(self.logits)))
        kept = best(self.logits.detach(), count)
        return everywhere(kept[self.get_buffer("column").to(kept.device)], self.scenarios)
