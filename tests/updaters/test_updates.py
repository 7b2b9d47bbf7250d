"""Each updater does what its paper says, seen from the weights and rows that come out of a run."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch

from incrs.data.stream import PeriodStream
from incrs.errors import Mistake
from incrs.models.base import Output
from incrs.module import ScenarioModule, clone
from incrs.period import Batch, Period
from incrs.runner import Fit, seed_of, update
from incrs.updaters.base import Updater, check
from incrs.updaters.batch import BatchWindow
from incrs.updaters.finetune import Finetune
from incrs.updaters.frozen import Frozen
from incrs.updaters.incctr import IncCTR
from incrs.updaters.incmsr import IncMSR
from tests.conftest import SmallBackbone, SmallSource

Weights = dict[str, torch.Tensor]


class Spy(Updater):
    """Sees what the updaters before it chose to train on."""

    def __init__(self) -> None:
        self.seen: list[Period] = []

    def training_weights(
        self, module: ScenarioModule, weights: Weights, batch: Batch
    ) -> tuple[Weights, Batch]:
        return weights, batch

    def training_period(
        self, module: ScenarioModule, history: Sequence[Period], period: Period
    ) -> Period:
        self.seen.append(period)
        return period


def module_with(*updaters: Updater, lr: float = 0.01, carry: bool = True) -> ScenarioModule:
    named = {str(i): updater for i, updater in enumerate(updaters)}
    return ScenarioModule(SmallBackbone(), named, partial(torch.optim.Adam, lr=lr), 3, carry)


def weights_after_each(
    module: ScenarioModule, epochs: int = 1, warmup_epochs: int = 2
) -> list[Weights]:
    """Return the weights after each period's update."""
    stream = PeriodStream(SmallSource(), 16)
    fit = Fit(partial(L.Trainer, accelerator="cpu"), stream, [])
    found = []
    for history, _ in stream.pairs():
        fit.seed = seed_of(0, len(history) - 1)
        update(stream, module, history, fit, warmup_epochs, epochs, None)
        module.remember()
        found.append(clone(module.backbone.state_dict()))
    return found


def same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def trained_by_hand(
    start: Weights,
    periods: list[Period],
    seed: int,
    epochs: int,
    optimizer: torch.optim.Adam | None,
) -> tuple[Weights, torch.optim.Adam]:
    """Train with a plain loop, on the rows in the order of the seed."""
    model = SmallBackbone()
    model.load_state_dict(start)
    fresh = torch.optim.Adam(model.parameters(), lr=0.01)
    if optimizer is not None:
        fresh.load_state_dict(optimizer.state_dict())
    rows = Period.concat(periods).rows
    random = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for where in torch.randperm(len(rows.label), generator=random).split(16):
            batch = rows.take(where)
            score = torch.sigmoid(model(batch).logit)
            loss = -(batch.label * score.log() + (1 - batch.label) * (1 - score).log()).mean()
            fresh.zero_grad()
            loss.backward()
            fresh.step()
    return clone(model.state_dict()), fresh


@pytest.mark.parametrize("carry", [True, False])
def test_finetune_is_a_plain_loop_over_each_new_period(carry: bool) -> None:
    source, found = SmallSource(), weights_after_each(module_with(Finetune(), carry=carry))
    weights, optimizer = clone(SmallBackbone().state_dict()), None
    for step, t in enumerate(range(1, 6)):
        periods = [source.read(0), source.read(1)] if t == 1 else [source.read(t)]
        weights, adam = trained_by_hand(
            weights, periods, seed_of(0, t), 2 if t == 1 else 1, optimizer
        )
        optimizer = adam if carry else None
        for name in weights:
            assert torch.allclose(weights[name], found[step][name], atol=1e-6)


def test_frozen_never_moves_after_the_warm_up() -> None:
    found = weights_after_each(module_with(Frozen()))
    assert all(same(found[0], later) for later in found[1:])
    assert same(found[0], weights_after_each(module_with(Finetune()))[0])


@pytest.mark.parametrize(
    ("window", "expected"), [(1, [[2], [3]]), (3, [[0, 1, 2], [1, 2, 3]]), ("all", [])]
)
def test_batch_trains_on_its_window(window: int | str, expected: list) -> None:
    spy = Spy()
    weights_after_each(module_with(BatchWindow(window), spy))
    source = SmallSource()
    if window == "all":
        expected = [[0, 1, 2], [0, 1, 2, 3]]
    for seen, which in zip(spy.seen[1:], expected, strict=False):
        labels = torch.cat([source.read(t).rows.label for t in which])
        assert torch.equal(seen.rows.label, labels)


def test_batch_from_scratch_equals_a_new_model_trained_on_the_window() -> None:
    found = weights_after_each(module_with(BatchWindow(2)))
    source, start = SmallSource(), clone(SmallBackbone().state_dict())
    for step, t in enumerate(range(1, 6)):
        periods = [source.read(t - 1), source.read(t)]
        weights, _ = trained_by_hand(start, periods, seed_of(0, t), 2, None)
        for name in weights:
            assert torch.allclose(weights[name], found[step][name], atol=1e-6)


def test_warm_batch_goes_on_from_the_last_weights() -> None:
    found = weights_after_each(module_with(BatchWindow(2, warm=True), carry=False))
    source = SmallSource()
    weights, _ = trained_by_hand(found[0], [source.read(1), source.read(2)], seed_of(0, 2), 1, None)
    for name in weights:
        assert torch.allclose(weights[name], found[1][name], atol=1e-6)


def cross_entropy(logit: np.ndarray, target: np.ndarray) -> float:
    p = 1 / (1 + np.exp(-logit))
    return float(np.mean(-target * np.log(p) - (1 - target) * np.log(1 - p)))


def module_at_work(updater: Updater) -> tuple[ScenarioModule, Batch, Output, Output]:
    """Return a module whose weights differ from its previous model's, in float64, and a batch."""
    module = module_with(updater).double()
    module.remember()
    with torch.no_grad():
        for parameter in module.backbone.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.manual_seed(1)))
    rows = SmallSource().read(2).rows
    batch = rows._replace(numbers=rows.numbers.double(), label=rows.label.double())
    assert module.previous is not None
    return module, batch, module.backbone(batch, True), module.previous(batch, True)


@pytest.mark.parametrize("form", ["convex", "additive"])
def test_incctr_agrees_with_its_formula(form: str) -> None:
    module, batch, output, before = module_at_work(IncCTR(0.3, form))
    logit, teacher = output.logit.detach().numpy(), before.logit.numpy()
    own = cross_entropy(logit, batch.label.numpy())
    distilled = cross_entropy(logit, 1 / (1 + np.exp(-teacher)))
    expected = (0.7 if form == "convex" else 1.0) * own + 0.3 * distilled
    assert module.training_step(batch, 0).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("sign", ["text", "printed"])
def test_incmsr_adds_its_weighted_loss_with_the_sign_asked_for(sign: str) -> None:
    from tests.updaters.test_incmsr import reference

    module, batch, output, before = module_at_work(IncMSR(0.2, sign))
    now = tuple(z.detach().numpy() for z in (output.shared, output.specific))
    old = tuple(z.numpy() for z in (before.shared, before.specific))
    added = 0.2 * sum(reference(now, old, batch.scenario.numpy(), "centroid", None, False))
    own = cross_entropy(output.logit.detach().numpy(), batch.label.numpy())
    expected = own + (added if sign == "text" else -added)
    assert module.training_step(batch, 0).item() == pytest.approx(expected, abs=1e-6)


def test_without_s_t_and_ts_sum_to_the_whole() -> None:
    def penalty(*kept: bool) -> float:
        module, batch, output, _ = module_at_work(
            IncMSR(0.2, "text", "centroid", None, False, *kept)
        )
        found = module.updaters["0"].penalty(module, batch, output)
        return 0.0 if found is None else found.item()

    alone = [penalty(*(i == j for j in range(3))) for i in range(3)]
    assert sum(alone) == pytest.approx(penalty(True, True, True), abs=1e-12)
    for i in range(3):
        without = penalty(*(i != j for j in range(3)))
        assert without == pytest.approx(sum(alone) - alone[i], abs=1e-12)
    assert penalty(False, False, False) == 0


@pytest.mark.parametrize("updater", [IncMSR(0.0), IncCTR(0.0)])
def test_weight_zero_equals_finetune_to_the_last_digit(updater: Updater) -> None:
    ours, plain = (
        weights_after_each(module_with(updater)),
        weights_after_each(module_with(Finetune())),
    )
    assert all(same(one, other) for one, other in zip(ours, plain, strict=True))


def test_penalties_of_two_updaters_add_up() -> None:
    module, batch, output, _ = module_at_work(IncMSR(0.2))
    msr = module.updaters["0"].penalty(module, batch, output)
    ctr = IncCTR(0.1).penalty(module, batch, output)
    both = ScenarioModule(
        module.backbone, {"a": IncMSR(0.2), "b": IncCTR(0.1)}, torch.optim.Adam, 3
    )
    both._previous = module._previous
    alone = module.backbone.loss(batch, output)
    assert both.training_step(batch, 0).item() == pytest.approx(
        (alone + msr + ctr).item(), abs=1e-12
    )


def test_the_previous_model_is_frozen_and_part_of_no_state() -> None:
    module = module_with(IncCTR(0.1))
    found = weights_after_each(module)
    assert module.previous is not None
    assert same(found[-1], clone(module.previous.state_dict()))
    assert not any(p.requires_grad for p in module.previous.parameters())
    assert not any("previous" in name for name in module.state_dict())
    assert module_with(Finetune()).previous is None


def test_the_previous_model_answers_once_a_step() -> None:
    module, batch, _, _ = module_at_work(IncMSR(0.1))
    assert module.previous_output(batch) is module.previous_output(batch)
    assert module.previous_output(copy.copy(batch)) is not module.previous_output(batch)


class Serving(Updater):
    """Generates serving weights."""

    def serving_weights(self, module: ScenarioModule, weights: Weights) -> Weights:
        return weights


@pytest.mark.parametrize(
    ("updaters", "sentence"),
    [
        (
            {"frozen": Frozen(), "incmsr": IncMSR()},
            "frozen never trains after the warm-up, so incmsr",
        ),
        ({"asmg": Serving(), "sml": Serving()}, "asmg and sml both generate the serving weights"),
        ({"batch": BatchWindow(), "spmf": BatchWindow()}, "batch and spmf both choose"),
    ],
)
def test_updaters_that_make_no_sense_together_are_refused(
    updaters: dict[str, Updater], sentence: str
) -> None:
    with pytest.raises(Mistake, match=sentence):
        check(updaters)


def test_the_rest_composes_in_any_order() -> None:
    some = {"finetune": Finetune(), "incmsr": IncMSR(), "incctr": IncCTR(), "batch": BatchWindow()}
    for order in itertools.permutations(some):
        check({name: some[name] for name in order})
