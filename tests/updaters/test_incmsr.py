"""IncMSR against a reference written row by row from equations 2 to 11."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from incrs import together
from incrs.errors import Mistake
from incrs.updaters.incmsr import IncMSR, metric_terms


def reference(
    now: tuple[np.ndarray, np.ndarray],
    before: tuple[np.ndarray, np.ndarray],
    scenario: np.ndarray,
    squeeze: str,
    margin: float | None,
    normalize: bool,
) -> tuple[float, float, float]:
    if normalize:
        now = tuple(np.array([row / np.linalg.norm(row) for row in z]) for z in now)
        before = tuple(np.array([row / np.linalg.norm(row) for row in z]) for z in before)

    def f(z: np.ndarray) -> np.ndarray:
        centroid = sum(z) / len(z)
        return centroid if squeeze == "centroid" else np.full_like(centroid, np.mean(centroid))

    def mean_distance(z: np.ndarray, centre: np.ndarray, push: bool) -> float:
        total = 0.0
        for row in z:
            distance = np.sqrt((row - centre) @ (row - centre))
            if push:
                distance = -distance if margin is None else max(0.0, margin - distance)
            total += distance
        return total / len(z)

    present = sorted(set(scenario.tolist()))
    (a, s), (a_before, s_before) = now, before
    time = np.mean(
        [mean_distance(a_before[scenario == i], f(a[scenario == i]), False) for i in present]
    )
    across, cross = [], []
    for i, j in itertools.permutations(present, 2):
        mine, other = scenario == i, scenario == j
        shared = mean_distance(a[mine], f(a[other]), False)
        specific = mean_distance(s[mine], f(s[other]), True) if s.shape[1] else 0.0
        across.append(shared + specific)
        cross.append(mean_distance(s_before[mine], f(s[other]), True) if s.shape[1] else 0.0)
    return np.mean(across or [0.0]), time, np.mean(cross or [0.0])


def drawn(scenario: list[int], width: int = 4) -> tuple:
    random = np.random.default_rng(len(scenario) + width)
    n = len(scenario)
    now = (random.normal(size=(n, 3)), random.normal(size=(n, width)))
    before = (random.normal(size=(n, 3)), random.normal(size=(n, width)))
    return now, before, np.array(scenario)


@pytest.mark.parametrize("squeeze", ["centroid", "scalar"])
@pytest.mark.parametrize("margin", [None, 2.5])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scenario", [[0, 0, 1, 3, 3, 3, 1], [2, 2, 2], [0, 1]])
def test_terms_agree_with_the_formula(
    squeeze: str, margin: float | None, normalize: bool, scenario: list[int]
) -> None:
    now, before, which = drawn(scenario)
    expected = reference(now, before, which, squeeze, margin, normalize)
    found = metric_terms(
        tuple(map(torch.tensor, now)),
        tuple(map(torch.tensor, before)),
        torch.tensor(which),
        5,
        squeeze,
        margin,
        normalize,
    )
    assert [term.item() for term in found] == pytest.approx(expected, abs=1e-6)


def test_a_backbone_without_specific_part_is_only_pulled_together() -> None:
    now, before, which = drawn([0, 1, 1, 2], width=0)
    expected = reference(now, before, which, "centroid", None, False)
    found = metric_terms(
        tuple(map(torch.tensor, now)), tuple(map(torch.tensor, before)), torch.tensor(which), 3
    )
    assert [term.item() for term in found] == pytest.approx(expected, abs=1e-6)
    assert found.time_scenario == 0


def test_gradients_flow_through_rows_and_centroids_and_are_finite_at_zero_distance() -> None:
    z = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    loss = sum(metric_terms((z, z), (z.detach(), z.detach()), torch.tensor([0, 0, 1, 1]), 2))
    loss.backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()

    now, before, which = drawn([0, 0, 1, 2, 2])
    inputs = [torch.tensor(z, requires_grad=True) for z in now]

    def total(shared: torch.Tensor, specific: torch.Tensor) -> torch.Tensor:
        old = tuple(map(torch.tensor, before))
        return torch.stack(metric_terms((shared, specific), old, torch.tensor(which), 3)).sum()

    assert torch.autograd.gradcheck(total, inputs)


@pytest.mark.parametrize(
    "settings", [{"weight": -1}, {"sign": "literal"}, {"squeeze": "max"}, {"margin": 0}]
)
def test_a_setting_out_of_range_is_refused_in_a_sentence(settings: dict) -> None:
    with pytest.raises(Mistake, match=f"updater.incmsr.{next(iter(settings))}="):
        IncMSR(**settings)


def test_specific_representations_that_run_away_are_warned_of_also_after_a_resume(
    caplog: pytest.LogCaptureFixture,
) -> None:
    updater = IncMSR()
    for now in (2.0, 11.0):
        updater._last = (torch.tensor([[now]]), torch.tensor([[1.0 if now == 2.0 else 7.0]]))
        again = IncMSR()
        again.load_state_dict(updater.state_dict())
        again._last, updater = updater._last, again
        updater.on_train_end(None, None)  # type: ignore[arg-type]
        assert ("11 times as long as after the warm-up" in caplog.text) == (now == 11.0)


def test_of_several_processes_only_the_first_warns(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in (False, True):
        monkeypatch.setattr(together, "first", lambda first=first: first)
        updater = IncMSR()
        updater._last = (torch.full((2, 3), 20.0), torch.ones(2, 3))
        updater.on_train_end(None, None)  # type: ignore[arg-type]
        assert updater.state_dict() == {"norm_at_start": pytest.approx(3**0.5)}
        assert ("20 times as long" in caplog.text) == first
