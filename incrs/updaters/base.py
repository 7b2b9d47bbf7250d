"""The contract of the updaters room.

THIS ROOM answers one question: how do the weights of period t come from what came before?
YOU WRITE an `Updater` that answers at one or more of its openings (every default is the identity),
with the formula as a function of tensors beside it; one file, one yaml in `conf/updater/`, one test.
YOU GET any backbone and log, composition with the other updaters (penalties add, the rest composes
like functions), Lightning's callback hooks, and resume for what `state_dict` returns.
YOU MAY NOT see D_{t+1} anywhere but in `learn_next`, which runs after D_{t+1} has been scored, nor
write into another's attributes: values are returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import lightning as L
from torch import Tensor

from incrs.errors import Mistake
from incrs.models.base import Output
from incrs.period import Batch, Period

if TYPE_CHECKING:
    from incrs.module import Move, ScenarioModule

Weights = Mapping[str, Tensor]
"""A backbone's parameters and buffers by name, as in its `state_dict`."""

Fit = Callable[..., None]
"""`fit(module, *periods, epochs=1)` trains any LightningModule on the rows of the periods.

With `aligned=True` every step has a tuple of batches, one of each period: see `AlignedLoader`.
"""


class Updater(L.Callback):
    """How the weights of period t come from what came before: six openings, all optional."""

    wants_representations: ClassVar[bool] = False
    """True where `penalty` reads `Output.shared` or `Output.specific`."""

    wants_previous: ClassVar[bool] = False
    """True where `penalty` asks the module for the previous model's output."""

    wants_clicks: ClassVar[bool] = False
    """True where `penalty` takes `Output.logit` for that of a click's probability."""

    stands_alone: ClassVar[bool] = False
    """True where another updater beside this one could have no effect."""

    rests_in_warmup: ClassVar[bool] = False
    """True where nothing of it reaches the steps of the warm-up, which runs then share.

    To the last bit: neither the weights nor its own state come out other than without it. It says so
    of `training_weights`, `penalty` and Lightning's hooks; the other openings take no part in steps.
    """

    def starting_weights(self, module: ScenarioModule, weights: Weights) -> Weights:
        """Return the weights that training on D_t starts from; default: those of t-1."""
        return weights

    def training_period(
        self, module: ScenarioModule, history: Sequence[Period], period: Period
    ) -> Period:
        """Return the rows that count as D_t; no rows means no training. history: D_0 .. D_t."""
        return period

    def training_weights(
        self, module: ScenarioModule, weights: Weights, batch: Batch
    ) -> tuple[Weights, Batch]:
        """Return the weights through which a batch of D_t is scored in training, and the batch.

        Differentiable in `weights`. Where tables are returned with the rows of the batch alone, the
        batch comes back with its ids numbered by them: see `incrs.updaters.renumbering`.
        """
        return weights, batch

    def penalty(self, module: ScenarioModule, batch: Batch, output: Output) -> Tensor | None:
        """Return a scalar that is added to the loss of a batch of D_t, or None.

        Where several processes train as one, this process's share of it (see `incrs.together`).
        """
        return None

    def serving_weights(self, module: ScenarioModule, weights: Weights) -> Weights:
        """Return the weights that go to serve D_{t+1}; default: those just trained."""
        return weights

    def rows_move(self, module: ScenarioModule, moves: Mapping[str, Move]) -> None:
        """Move what is kept for the rows of the tables, for ids came or went before training on D_t.

        moves: name of a table's parameter -> where its rows go; see `incrs.module.Move`.
        """

    def learn_next(
        self, module: ScenarioModule, history: Sequence[Period], following: Period, fit: Fit
    ) -> None:
        """Learn from D_{t+1}, which has been scored already."""

    def findings(self) -> Mapping[str, float]:
        """Return what `learn_next` just found out, `<group>.<what>` -> a number: see `incrs.findings`."""
        return {}


def overrides(updater: Updater, opening: str) -> bool:
    """Return whether the updater answers at that opening."""
    return getattr(type(updater), opening) is not getattr(Updater, opening)


def reaches_training(updater: Updater) -> bool:
    """Return whether anything of the updater acts within the steps of a fit."""
    hooks = [name for name in vars(L.Callback) if name.startswith("on_")] + ["setup", "teardown"]
    return (
        overrides(updater, "training_weights")
        or overrides(updater, "penalty")
        or any(overrides(updater, hook) for hook in hooks)
    )


def check(updaters: Mapping[str, Updater]) -> None:
    """Refuse, with a Mistake, a list of updaters (by name) that makes no sense together."""
    for name, updater in updaters.items():
        if updater.stands_alone and len(updaters) > 1:
            others = ", ".join(other for other in updaters if other != name)
            raise Mistake(
                f"updater=[{','.join(updaters)}]: {name} never trains after the warm-up, so {others} "
                f"beside it would do nothing; give updater={name} alone or leave it out"
            )
    single = {
        "starting_weights": "choose the weights that training starts from",
        "training_period": "choose the rows to train on",
        "training_weights": "choose the weights that rows are scored through in training",
        "serving_weights": "generate the serving weights",
    }
    for opening, what in single.items():
        rivals = [name for name, updater in updaters.items() if overrides(updater, opening)]
        if len(rivals) > 1:
            raise Mistake(
                f"updater=[{','.join(updaters)}]: {' and '.join(rivals)} both {what}; keep one of them"
            )
