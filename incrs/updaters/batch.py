"""Batch retraining on a window of periods, warm or from scratch.

IncMSR's batch mode (Zhang et al., WSDM 2024), ASMG's BU-w (Peng et al., RecSys 2021), and full
retraining.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from incrs.errors import Mistake
from incrs.module import ScenarioModule
from incrs.period import Period, Role
from incrs.updaters.base import Updater, Weights


class BatchWindow(Updater):
    """Trains on the last `window` periods, D_{t-window+1} .. D_t, which may reach into the warm-up.

    window: number of periods, at least 1, or `all` for every period so far (full retraining).
    warm: False starts each period from the initial weights and trains `warmup_epochs` epochs with a
    new optimizer, IncMSR's batch mode; True goes on from the weights of t-1 for `epochs` epochs,
    ASMG's BU.
    """

    def __init__(self, window: int | Literal["all"] = 7, warm: bool = False):
        if window != "all" and (not isinstance(window, int) or window < 1):
            raise Mistake(f"updater.batch.window={window}: give a number of periods from 1, or all")
        self.window, self.warm = window, warm

    def starting_weights(self, module: ScenarioModule, weights: Weights) -> Weights:
        """Return the initial weights, or those of t-1 where `warm`."""
        return weights if self.warm else module.initial_weights

    def training_period(
        self, module: ScenarioModule, history: Sequence[Period], period: Period
    ) -> Period:
        """Return the window's rows; the warm-up is the pretrain periods as for every updater."""
        if period.role is Role.PRETRAIN:
            return period
        first = 0 if self.window == "all" else max(0, len(history) - int(self.window))
        return Period.concat([history[i] for i in range(first, len(history))])
