"""OptFS: a gate for every value, made hard by a rising temperature (Lyu et al., WWW 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from incrs import together
from incrs.period import Batch
from incrs.selectors.base import Selector, Values, above, everywhere, not_below


def gate(continuous: Tensor, tau: float, initial: float) -> Tensor:
    """Return sigmoid(tau * g) / sigmoid(g at first): 1 at first, hard at a high temperature."""
    return torch.sigmoid(tau * continuous) / float(torch.tensor(initial).sigmoid())


class OptFS(Selector):
    """One gate for every value, the same in all scenarios.

    A gate is a number that starts at `initial`; the temperature rises from 1 to `final_temperature`
    by equal factors, once an epoch. A value is kept where its number ends above 0, and then counts
    1 / sigmoid(initial) times, as in the authors' program, whose search leaves such gates there.
    sparsity: lambda, of the sum of the sigmoids over all values: compare it with 1 / rows of a batch.
    """

    def __init__(
        self,
        epochs: int = 5,
        rewind_epoch: int = 1,
        every: int | None = None,
        learning_rate: float = 0.01,
        initial: float = 0.5,
        final_temperature: float = 200.0,
        sparsity: float = 3e-5,
    ):
        super().__init__("optfs", epochs, rewind_epoch, every, learning_rate)
        above("final_temperature", final_temperature)
        not_below("sparsity", sparsity)
        self.initial, self.final_temperature, self.sparsity = initial, final_temperature, sparsity
        self.scale, self.tau, self.scenarios = 1 / float(torch.tensor(initial).sigmoid()), 1.0, 0

    def begin(self, values: Values) -> None:
        """Start every gate open."""
        self.scenarios = values.scenarios
        self.gates = nn.Parameter(torch.full((sum(values.sizes),), self.initial))

    def schedule(self, epoch: int, step: int, steps: int) -> None:
        """Raise the temperature, once an epoch."""
        self.tau = self.final_temperature ** (epoch / max(1, self.epochs - 1))

    def forward(self, places: Tensor, scenario: Tensor) -> Tensor:
        """Return the gates of the values."""
        held = self.gates.gather(0, places.reshape(-1)).view(places.shape)
        return gate(held, self.tau, self.initial)

    def penalty(self, batch: Batch) -> Tensor:
        """Return lambda ||g||_1."""
        return self.sparsity / together.processes() * torch.sigmoid(self.tau * self.gates).sum()

    def fixed(self) -> Tensor:
        """Return which values are kept."""
        return everywhere(self.gates.detach() > 0, self.scenarios)
