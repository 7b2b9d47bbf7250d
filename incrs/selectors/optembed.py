"""OptEmbed: values whose embedding outgrows their column's threshold (Lyu et al., CIKM 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from incrs import together
from incrs.period import Batch
from incrs.selectors.base import Selector, Values, everywhere, not_below


def slope(x: Tensor) -> Tensor:
    """Return 2 - 4|x| up to .4, .4 up to 1, and 0 beyond: what stands for the step's derivative."""
    size = x.abs()
    return torch.where(size <= 0.4, 2 - 4 * size, 0.4 * (size <= 1))


class Step(torch.autograd.Function):
    """1 above 0 and 0 elsewhere; going back, `slope`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return 0 or 1."""
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        """Return the gradient of x."""
        (x,) = ctx.saved_tensors
        return gradient[0] * slope(x)


class OptEmbed(Selector):
    """Keeps a value whose embedding's l1 norm is above its column's threshold, in all scenarios alike.

    It is the paper's first stage without sampled sizes, which it calls OptEmbed-F: of the second,
    which gives columns sizes of their own by evolution, there is nothing, as the columns of a
    backbone here have one size.
    Thresholds start at `initial` and learn with the weights; alpha: of the sum over the columns of
    exp(-threshold), which raises them. learning_rate is that of the thresholds; norms here begin
    near .08 (ten numbers of size .01), so a rate far below that moves nothing.
    """

    def __init__(
        self,
        epochs: int = 5,
        rewind_epoch: int = 0,
        every: int | None = None,
        learning_rate: float = 0.001,
        initial: float = 0.0,
        alpha: float = 1e-3,
    ):
        super().__init__("optembed", epochs, rewind_epoch, every, learning_rate)
        not_below("initial", initial)
        not_below("alpha", alpha)
        self.initial, self.alpha = initial, alpha

    def begin(self, values: Values) -> None:
        """Start every threshold at `initial`."""
        self._values = (values,)  # in a tuple: the tables are no part of this
        self.register_buffer("column", values.column, persistent=False)
        self.threshold = nn.Parameter(torch.full((len(values.sizes),), self.initial))

    def excess(self) -> Tensor:
        """Return by how much each value's norm is above its threshold, (n,)."""
        (values,) = self._values
        tables = [values.tables.tables[values.tables.names[v]] for v in values.vocabularies]
        norms = torch.cat([table.abs().sum(1) for table in tables])
        return norms - self.threshold[self.get_buffer("column")]

    def forward(self, places: Tensor, scenario: Tensor) -> Tensor:
        """Return 1 for values above the threshold, else 0."""
        excess = self.excess().gather(0, places.reshape(-1)).view(places.shape)
        open_: Tensor = Step.apply(excess)
        return open_

    def penalty(self, batch: Batch) -> Tensor:
        """Return alpha times the sum of exp(-threshold)."""
        return self.alpha / together.processes() * torch.exp(-self.threshold).sum()

    def fixed(self) -> Tensor:
        """Return which values are kept."""
        return everywhere(self.excess().detach() > 0, self._values[0].scenarios)
