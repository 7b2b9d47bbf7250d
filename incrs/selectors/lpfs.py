"""LPFS: gates of columns by a smoothed l0 that polarises (Guo et al., 2022)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from incrs import together
from incrs.period import Batch
from incrs.selectors.base import Selector, Values, above, everywhere, not_below, one_of


def polarised(x: Tensor, epsilon: float) -> Tensor:
    """Return x^2 / (x^2 + epsilon): 0 at 0, near 1 elsewhere once epsilon is small."""
    return x.square() / (x.square() + epsilon)


def polarised_plus(x: Tensor, epsilon: float, alpha: float, tau: float) -> Tensor:
    """Return LPFS++'s gate, which has a slope at 0 and so can open again."""
    return x.sign() * polarised(x, epsilon) + alpha * epsilon ** (1 / tau) * torch.atan(x)


class LPFS(Selector):
    """A gate for every column, the same in all scenarios; it starts at x = 1.

    form: `lpfs` or `lpfs_plus`, with its alpha and tau.
    epsilon falls from `epsilon` to `final_epsilon` by equal factors, once a step. The authors' factor
    is one for every log (.9978 every hundred steps), which would leave short searches where they start.
    sparsity: lambda, of the sum of the gates over the columns.
    A column is kept where the smoothed l0 of x ends above a half, x being above 0.
    """

    whole_columns = True

    def __init__(
        self,
        epochs: int = 5,
        rewind_epoch: int = 0,
        every: int | None = None,
        learning_rate: float = 0.01,
        form: Literal["lpfs", "lpfs_plus"] = "lpfs_plus",
        epsilon: float = 0.1,
        final_epsilon: float = 1e-3,
        alpha: float = 10.0,
        tau: float = 2.0,
        sparsity: float = 1e-3,
    ):
        super().__init__("lpfs", epochs, rewind_epoch, every, learning_rate)
        one_of("form", form, ("lpfs", "lpfs_plus"))
        for option, value in {
            "epsilon": epsilon,
            "final_epsilon": final_epsilon,
            "tau": tau,
        }.items():
            above(option, value)
        not_below("alpha", alpha)
        not_below("sparsity", sparsity)
        self.form, self.alpha, self.tau, self.sparsity = form, alpha, tau, sparsity
        self.first, self.last, self.epsilon = epsilon, final_epsilon, epsilon

    def begin(self, values: Values) -> None:
        """Start every gate open."""
        self.scenarios = values.scenarios
        self.register_buffer("column", values.column, persistent=False)
        self.x = nn.Parameter(torch.ones(len(values.sizes)))

    def schedule(self, epoch: int, step: int, steps: int) -> None:
        """Lower epsilon, every step."""
        self.epsilon = self.first * (self.last / self.first) ** (step / max(1, steps - 1))

    def gates(self) -> Tensor:
        """Return the gates of the columns."""
        if self.form == "lpfs":
            return polarised(self.x, self.epsilon)
        return polarised_plus(self.x, self.epsilon, self.alpha, self.tau)

    def forward(self, places: Tensor, scenario: Tensor) -> Tensor:
        """Return the gates of the values' columns."""
        column = self.get_buffer("column").gather(0, places.reshape(-1))
        return self.gates().gather(0, column).view(places.shape)

    def penalty(self, batch: Batch) -> Tensor:
        """Return lambda times the sum of the gates, in absolute value."""
        return self.sparsity / together.processes() * self.gates().abs().sum()

    def fixed(self) -> Tensor:
        """Return the values of the columns that are kept."""
        x = self.x.detach()
        kept = (polarised(x, self.last) > 0.5) & (x > 0)
        return everywhere(kept[self.get_buffer("column").to(x.device)], self.scenarios)
