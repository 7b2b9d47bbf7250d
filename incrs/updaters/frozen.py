"""The warm-up model that only ages: Batch-0 of IncMSR's tables (Zhang et al., WSDM 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from incrs.module import ScenarioModule
from incrs.period import Period, Role
from incrs.updaters.base import Updater


class Frozen(Updater):
    """After the warm-up no rows count as D_t, so the weights never move again."""

    stands_alone: ClassVar[bool] = True

    def training_period(
        self, module: ScenarioModule, history: Sequence[Period], period: Period
    ) -> Period:
        """Return the warm-up as it is and no rows of any later period."""
        return period if period.role is Role.PRETRAIN else period.take(slice(0, 0))
