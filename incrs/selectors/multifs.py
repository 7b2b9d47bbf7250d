"""MultiFS: gates that scenarios share, and gates of their own for the rest (Liu et al., WSDM 2024)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrs import together
from incrs.models.base import Output
from incrs.period import Batch
from incrs.selectors.base import Selector, Values, above, flat, not_below, one_of

FORMS = ("program", "poster")


def temperature(epoch: int, epochs: int, final: float, form: str) -> float:
    """Return tau of epoch 0, 1, ...: `program` ends at `final`; `poster` is final ** (t / T)."""
    if form == "poster":
        return final ** (epoch / epochs)
    return final ** (epoch / max(1, epochs - 1))


def soft(continuous: Tensor, tau: float, scale: float) -> Tensor:
    """Return the gates of Eq. 6; scale: 1 / sigmoid of where they start, times the mask's size."""
    return scale * torch.sigmoid(tau * continuous)


class Sign(torch.autograd.Function):
    """The sign going forward; going back, the gradient itself, cut to [-1, 1].

    Among W processes a loss is W times its share, and so is its gradient, which is cut to [-W, W].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return -1, 0 or 1."""
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        """Return the gradient of x."""
        bound = together.processes()
        return gradient[0].clamp(-bound, bound)


def opened(shared: Tensor, threshold: Tensor) -> Tensor:
    """Return q, 1 where the shared gate is above the threshold, else 0."""
    q: Tensor = Sign.apply(torch.relu(shared - threshold))
    return q


def decomposed(shared: Tensor, own: Tensor, q: Tensor) -> Tensor:
    """Return G of Eq. 5: the shared gate where q is 1, the scenario's own elsewhere."""
    return shared * q + own * (1 - q)


def sparsity(gates: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of gates (n, S + 1), each column weighed by weights (S + 1,)."""
    return gates.sum(0) @ weights


def overlap(gates: Tensor, share: Tensor | None) -> Tensor:
    """Return the sum over pairs of columns of gates (n, S) of their product's sum.

    share: (S,) of the rows that are a scenario's; a pair is weighed by both of its own. None: by 1.
    """
    found = gates.new_zeros(())
    for p, r in combinations(range(gates.shape[1]), 2):
        weight = 1 if share is None else share[p] + share[r]
        found = found + weight * (gates[:, p] * gates[:, r]).sum()
    return found


def final(continuous: Tensor) -> Tensor:
    """Return Eq. 7 and 5 of gates (n, S + 1): what each scenario keeps, and what the shared gate does."""
    kept = continuous > 0
    return torch.cat([kept[:, :-1] | kept[:, -1:], kept[:, -1:]], 1)


class MultiFS(Selector):
    """A shared gate for every value and, where that one closes, one of the scenario's own.

    Every gate is a number that starts at `initial`; S = mask_scaling / sigmoid(initial) makes all of
    them `mask_scaling` at first. The temperature rises to `final_temperature`, which makes them hard.
    The threshold, of which q asks, starts at threshold * mask_scaling and learns at a hundredth of
    the rate. Retraining keeps a value where its shared gate or the scenario's own is above 0.

    shared_weight: lambda_1, of the loss of rows that go through the shared gates, also in retraining
    and later. shared_sparsity, sparsity: lambda_2 of the shared gates and of the scenarios' own.
    orthogonality: lambda_3. The last three are of sums over all values, so that each value feels the
    number given: compare it with 1 / rows of a batch.

    The poster and its authors' program differ; in each of these `program` or `poster`:
    schedule_form: tau reaches its end with the last epoch, or one after it.
    penalty_form: of the sigmoids alone, each scenario's by its share of the batch's rows, and pairs by
    both shares where there are three scenarios or more; or of the gates with S, unweighted.
    shared_form: every row once for each scenario, as if it were that scenario's, S times the cost (the
    program's towers); or each row in its own, the mean of the scenarios' means.
    final_form: what is kept counts S times, or once.

    The program has a tower for each scenario; here the backbone says what scenarios have of their own.
    With one that has nothing, the shared path goes through the same network.
    """

    shares: ClassVar[bool] = True

    def __init__(
        self,
        epochs: int = 5,
        rewind_epoch: int = 0,
        every: int | None = None,
        learning_rate: float = 0.01,
        initial: float = 0.5,
        mask_scaling: float = 1.0,
        threshold: float = 0.95,
        final_temperature: float = 100.0,
        shared_weight: float = 0.1,
        shared_sparsity: float = 1e-4,
        sparsity: float = 1e-4,
        orthogonality: float = 1e-6,
        schedule_form: Literal["program", "poster"] = "program",
        penalty_form: Literal["program", "poster"] = "program",
        shared_form: Literal["program", "poster"] = "poster",
        final_form: Literal["program", "poster"] = "program",
    ):
        super().__init__("multifs", epochs, rewind_epoch, every, learning_rate)
        above("mask_scaling", mask_scaling)
        above("final_temperature", final_temperature)
        weights = {
            "threshold": threshold,
            "shared_weight": shared_weight,
            "shared_sparsity": shared_sparsity,
            "sparsity": sparsity,
            "orthogonality": orthogonality,
        }
        for option, value in weights.items():
            not_below(option, value)
        forms = {
            "schedule_form": schedule_form,
            "penalty_form": penalty_form,
            "shared_form": shared_form,
            "final_form": final_form,
        }
        for option, form in forms.items():
            one_of(option, form, FORMS)
        self.initial, self.at_first = initial, threshold * mask_scaling
        self.strength = mask_scaling / float(torch.tensor(initial).sigmoid())
        self.scale = self.strength if final_form == "program" else 1.0
        self.final_temperature, self.tau = final_temperature, 1.0
        self.shared_weight, self.orthogonality = shared_weight, orthogonality
        self.sparsity = (shared_sparsity, sparsity)
        self.schedule_form, self.penalty_form = schedule_form, penalty_form
        self.shared_form, self.scenarios = shared_form, 0

    def begin(self, values: Values) -> None:
        """Start every gate open."""
        self.scenarios = values.scenarios
        gates = torch.full((sum(values.sizes), values.scenarios + 1), self.initial)
        self.gates = nn.Parameter(gates)
        self.threshold = nn.Parameter(torch.tensor(self.at_first))

    def schedule(self, epoch: int, step: int, steps: int) -> None:
        """Raise the temperature, once an epoch."""
        self.tau = temperature(epoch, self.epochs, self.final_temperature, self.schedule_form)

    def forward(self, places: Tensor, scenario: Tensor) -> Tensor:
        """Return G of each row's scenario, or the shared gate."""
        shared = soft(flat(self.gates, places, self.scenarios), self.tau, self.strength)
        own = soft(flat(self.gates, places, scenario), self.tau, self.strength)
        mixed = decomposed(shared, own, opened(shared, self.threshold))
        return torch.where((scenario == self.scenarios)[:, None], shared, mixed)

    def penalty(self, batch: Batch) -> Tensor:
        """Return lambda_2 L_sp + lambda_3 L_or."""
        counts = torch.bincount(batch.scenario, minlength=self.scenarios)
        counts = counts.to(self.gates.dtype)
        (counts,) = together.summed(counts)
        share = counts / counts.sum()
        program = self.penalty_form == "program"
        gates = soft(self.gates, self.tau, 1.0 if program else self.strength)
        weights = torch.cat([share if program else torch.ones_like(share), share.new_ones(1)])
        weights = weights * share.new_tensor([self.sparsity[1]] * len(share) + [self.sparsity[0]])
        pairs = overlap(gates[:, :-1], share if program and self.scenarios > 2 else None)
        whole = sparsity(gates, weights) + self.orthogonality * pairs
        return whole / together.processes()

    def shared_loss(
        self, batch: Batch, score: Callable[[Batch], Output], scenarios: int
    ) -> Tensor | None:
        """Return lambda_1 L_sh."""
        if not self.shared_weight:
            return None
        cross_entropy = F.binary_cross_entropy_with_logits
        if self.shared_form == "program":
            losses = []
            for s in range(scenarios):
                there = batch._replace(scenario=torch.full_like(batch.scenario, s))
                losses.append(together.mean(cross_entropy, score(there).logit, batch.label))
            return self.shared_weight * torch.stack(losses).mean()
        each = cross_entropy(score(batch).logit, batch.label, reduction="none")
        counts = torch.bincount(batch.scenario, minlength=scenarios).to(each.dtype)
        (counts,) = together.summed(counts)
        return self.shared_weight * (each / counts[batch.scenario]).sum() / scenarios

    def fixed(self) -> Tensor:
        """Return which values are kept."""
        return final(self.gates.detach())

    def slow(self) -> list[nn.Parameter]:
        """Return the threshold."""
        return [self.threshold]
