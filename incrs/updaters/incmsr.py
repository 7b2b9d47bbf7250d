"""IncMSR: a metric-learning penalty over scenario, time and time-scenario (Zhang et al., WSDM 2024)."""

from __future__ import annotations

import logging
from typing import ClassVar, Literal, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from incrs import together
from incrs.errors import Mistake
from incrs.models.base import Output
from incrs.module import ScenarioModule
from incrs.period import Batch
from incrs.updaters.base import Updater

log = logging.getLogger(__name__)


class Terms(NamedTuple):
    """The three parts of the loss, scalars to be minimised; their sum is L_ML."""

    scenario: Tensor
    time: Tensor
    time_scenario: Tensor


def distances(z: Tensor, centres: Tensor) -> Tensor:
    """Return the Euclidean distance of every row to every centre (Eq. 4-7): (B, S).

    z: (B, H).  centres: (S, H), or (S, 1) for a number that stands for all H features. Each gap is
    squared itself, so small distances keep their digits; the gradient at distance 0 is 0.
    """
    return torch.cdist(
        z, centres.expand(-1, z.shape[1]), compute_mode="donot_use_mm_for_euclid_dist"
    )


def metric_terms(
    now: tuple[Tensor, Tensor],
    before: tuple[Tensor, Tensor],
    scenario: Tensor,
    scenarios: int,
    squeeze: Literal["centroid", "scalar"] = "centroid",
    margin: float | None = None,
    normalize: bool = False,
) -> Terms:
    """Return the terms of Eq. 10 on one batch.

    now, before: (shared (B, H), specific (B, K)) of M_t and of M_{t-1} on the same rows; K may be 0,
    then nothing is pushed apart.  scenario: (B,) int64 in [0, scenarios).
    A distance between scenarios i and j is the mean over i's rows of the distance to f(j), the
    summary of j's rows in M_t; terms are means over the ordered pairs of scenarios in the batch, the
    time term over the scenarios in it. squeeze, margin, normalize: see IncMSR.
    Where several processes train together the batch is that of all of them: scenarios, counts and
    summaries are its own, and the terms are this process's share, its own rows' part of those means.
    """
    member = F.one_hot(scenario, scenarios).to(now[0].dtype)  # (B, S)
    (count,) = together.summed(member.sum(0))  # (S,)
    present = (count > 0).to(member.dtype)
    share = member / count.clamp(min=1)  # a product with column i averages over i's rows
    pairs = present.unsqueeze(1) * present.unsqueeze(0) * (1 - torch.eye(scenarios).to(member))
    pairs = pairs / pairs.sum().clamp(min=1)  # weights of the ordered pairs i != j, (S, S)

    if normalize:
        now = (F.normalize(now[0], dim=1), F.normalize(now[1], dim=1))
        before = (F.normalize(before[0], dim=1), F.normalize(before[1], dim=1))

    centroids = together.summed(share.T @ now[0], share.T @ now[1])  # (S, H), (S, K)

    def summary(centroid: Tensor) -> Tensor:
        return centroid if squeeze == "centroid" else centroid.mean(1, keepdim=True)

    def apart(distance: Tensor) -> Tensor:
        return -distance if margin is None else F.relu(margin - distance)

    shared = summary(centroids[0])
    scenario_term = (pairs * (share.T @ distances(now[0], shared))).sum()
    same = share.T @ distances(before[0], shared)  # (S, S); the diagonal pairs i with itself
    time_term = (present * same.diagonal()).sum() / present.sum().clamp(min=1)
    time_scenario_term = torch.zeros_like(time_term)
    if now[1].shape[1]:
        specific = summary(centroids[1])
        scenario_term = (
            scenario_term + (pairs * (share.T @ apart(distances(now[1], specific)))).sum()
        )
        time_scenario_term = (pairs * (share.T @ apart(distances(before[1], specific)))).sum()
    return Terms(scenario_term, time_term, time_scenario_term)


class IncMSR(Updater):
    """Pulls shared representations together over scenarios and time, pushes specific ones apart.

    The loss gains weight * L_ML with L_ML = mean over pairs of D(shared_{t-1,i}, shared_{t,i}) +
    D(shared_{t,i}, shared_{t,j}) - D(specific_{t-1,i}, specific_{t,j}) - D(specific_{t,i},
    specific_{t,j}): what sections 4.3 to 4.6 of the paper say in words. The previous model is a
    frozen copy in evaluation mode, fed the same batch. Counts and summaries are the batch's.

    weight: lambda, at least 0; the paper tunes .1, .01, .001.
    sign: `text` as above; `printed` minimises the negative, as Eq. 8 and 10 are printed (their
    formula has the signs of a similarity, not of a distance).
    squeeze: f of Eq. 3: `centroid`, the mean vector of the scenario's rows in the batch; `scalar`,
    one number, the mean of that vector's features.
    margin: None lets specific distances grow without bound, as written. Then an optimizer that scales
    steps, as Adam does, moves them at its own pace in every direction that the clicks leave free,
    however small the weight, and over many steps the model diverges; a warning says when they have
    grown tenfold since the warm-up. A number m replaces -D by max(0, m - D) row by row, which ends it.
    normalize: True scales every representation to length 1 first, which bounds D by 2.
    scenario, time, time_scenario: False leaves that dimension out (the paper's w/o S, T, TS).
    """

    wants_representations: ClassVar[bool] = True
    wants_previous: ClassVar[bool] = True
    rests_in_warmup: ClassVar[bool] = True

    def __init__(
        self,
        weight: float = 0.001,
        sign: Literal["text", "printed"] = "text",
        squeeze: Literal["centroid", "scalar"] = "centroid",
        margin: float | None = None,
        normalize: bool = False,
        scenario: bool = True,
        time: bool = True,
        time_scenario: bool = True,
    ):
        if weight < 0:
            raise Mistake(f"updater.incmsr.weight={weight}: give a number from 0")
        if sign not in ("text", "printed"):
            raise Mistake(f"updater.incmsr.sign={sign}: give text or printed")
        if squeeze not in ("centroid", "scalar"):
            raise Mistake(f"updater.incmsr.squeeze={squeeze}: give centroid or scalar")
        if margin is not None and margin <= 0:
            raise Mistake(
                f"updater.incmsr.margin={margin}: give a number above 0, or null for none"
            )
        self.weight, self.sign, self.squeeze = weight, sign, squeeze
        self.margin, self.normalize = margin, normalize
        self.kept = (scenario, time, time_scenario)
        self._last: tuple[Tensor, Tensor] | None = (
            None  # specific, now and before, of the last step
        )
        self._norm_at_start: float | None = None

    def penalty(self, module: ScenarioModule, batch: Batch, output: Output) -> Tensor | None:
        """Return weight * L_ML, this process's share of it; None in the warm-up or at weight 0."""
        before = module.previous_output(batch)
        if before is None or self.weight == 0:
            return None
        assert output.shared is not None and output.specific is not None
        assert before.shared is not None and before.specific is not None
        terms = metric_terms(
            (output.shared, output.specific),
            (before.shared, before.specific),
            batch.scenario,
            module.scenarios,
            self.squeeze,
            self.margin,
            self.normalize,
        )
        self._last = (output.specific.detach(), before.specific)
        kept = [term for term, keep in zip(terms, self.kept, strict=True) if keep]
        if not kept:
            return None
        return (self.weight if self.sign == "text" else -self.weight) * torch.stack(kept).sum()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so when the specific representations have grown out of proportion (see `margin`)."""
        if self._last is None or not self._last[0].shape[1]:
            return
        lengths = torch.stack([specific.norm(dim=1).sum() for specific in self._last])
        lengths, rows = together.summed(lengths, lengths.new_tensor([len(self._last[0])]))
        now, before = (lengths / rows).tolist()
        self._last = None
        if self._norm_at_start is None:
            self._norm_at_start = before
        if now > 10 * self._norm_at_start and together.first():
            log.warning(
                "incmsr: the specific representations are %.0f times as long as after the warm-up, "
                "the model is diverging; updater.incmsr.margin=1 bounds them",
                now / self._norm_at_start,
            )

    def state_dict(self) -> dict[str, float | None]:
        """Return what the warning compares to."""
        return {"norm_at_start": self._norm_at_start}

    def load_state_dict(self, state_dict: dict[str, float | None]) -> None:
        """Take back what `state_dict` returned."""
        self._norm_at_start = state_dict["norm_at_start"]
