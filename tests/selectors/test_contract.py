"""What every selector in conf/selector must keep: no leak, resume, gates that nobody else moves."""

from __future__ import annotations

import copy
import inspect
import itertools
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from safetensors.torch import load_file

from incrs import findings
from incrs.data.stream import PeriodStream
from incrs.environment import CONF
from incrs.models.gates import gates_of
from incrs.period import Period
from incrs.roster import Roster
from incrs.runner import Fit
from incrs.selection import Selection, read, values_of
from incrs.selectors.search import Search, gated
from incrs.updaters import renumbering
from tests.conftest import SCHEMA, SmallSource
from tests.selectors.toy import (
    GATED,
    SELECTORS,
    SOONER,
    backbone_of,
    module_of,
    run_all,
    selector,
)

every_selector = pytest.mark.parametrize("name", SELECTORS)
SLOW = [
    name if name == "multifs" else pytest.param(name, marks=pytest.mark.slow) for name in SELECTORS
]
multifs_soon_others_later = pytest.mark.parametrize("name", SLOW)
UPDATERS = sorted(path.stem for path in (CONF / "updater").glob("*.yaml"))
OTHERS = itertools.cycle(name for name in SELECTORS if name != "multifs")
COMPOSED = [("multifs", updater, "shared_bottom") for updater in UPDATERS]
COMPOSED += [(name, "asmg", "shared_bottom") for name in ("lpfs", "optfs")]
COMPOSED += [("lpfs", "sml", "shared_bottom"), ("autofield", "incmsr", "shared_bottom")]
COMPOSED += [(next(OTHERS), "finetune", model) for model in GATED if model != "shared_bottom"]
"""Every updater through multifs; every backbone through one of the selectors, each in its turn."""

COMPOSED = [
    x if x == ("multifs", "finetune", "shared_bottom") else pytest.param(*x, marks=pytest.mark.slow)
    for x in COMPOSED
]
SERVED = "serving/period={:04d}.safetensors"


def searched(name: str, **settings):
    return selector(name, **SOONER[name] | settings)


def gates_in(folder: Path, period: int) -> dict[str, torch.Tensor]:
    weights = load_file(folder / SERVED.format(period))
    return {name: x for name, x in weights.items() if name.startswith("embedding.gates.")}


@every_selector
def test_yaml_shows_every_option_with_the_class_own_default(name: str) -> None:
    config = OmegaConf.to_container(OmegaConf.load(CONF / "selector" / f"{name}.yaml"))
    options = inspect.signature(get_class(config.pop("_target_"))).parameters
    assert config == {key: option.default for key, option in options.items()}


@every_selector
@pytest.mark.parametrize("model", ["embedding_mlp", "star"])
def test_gradients_reach_every_parameter_of_the_search(name: str, model: str) -> None:
    module = module_of(backbone_of(model), searched(name))
    module.follow({v: torch.arange(size) for v, size in SCHEMA.vocabularies.items()})
    backbone, choice = copy.deepcopy(module.backbone), searched(name)
    values = values_of(backbone)
    choice.begin(values._replace(tables=gated(backbone)[0]))
    search = Search(backbone, choice, values, module.make_optimizer)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for gate in choice.parameters():  # they are alike at first, and q then changes nothing
            gate += 0.05 * torch.randn(gate.shape, generator=random)
    rows = SmallSource().read(0).rows
    for scenario in (rows.scenario, torch.ones_like(rows.scenario)):  # the others' are absent
        search.zero_grad()
        batch = rows._replace(scenario=scenario)
        search.training_step((batch, batch) if choice.held_out else batch, 0).backward()
        for key, parameter in search.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        for key, gate in choice.named_parameters():
            assert gate.grad is not None and gate.grad.any(), key
    assert bool(list(choice.parameters())) == (name != "cfs")


@multifs_soon_others_later
def test_noise_in_later_periods_changes_nothing_before_it(name: str, tmp_path: Path) -> None:
    plain, _ = run_all(searched(name, every=2), SmallSource(), tmp_path / "plain")
    noisy, _ = run_all(searched(name, every=2), SmallSource(noise_from=5), tmp_path / "noisy")
    assert [row for row in noisy if row.period < 5] == [row for row in plain if row.period < 5]
    assert [row for row in noisy if row.period == 5] != [row for row in plain if row.period == 5]
    before = [[row for row in read(tmp_path / x) if row.period < 5] for x in ("plain", "noisy")]
    assert before[0] == before[1]
    for served in range(2, 6):
        ours, theirs = (tmp_path / which / SERVED.format(served) for which in ("plain", "noisy"))
        assert ours.read_bytes() == theirs.read_bytes()
    assert {row.period for row in read(tmp_path / "plain")} == {1, 3, 5}
    notes = findings.read(tmp_path / "plain")
    assert {note.period for note in notes} == {3, 5}
    assert {note.updater for note in notes} == {name}


@multifs_soon_others_later
def test_a_run_cut_anywhere_goes_on_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    class Cut(SmallSource):
        def __init__(self, at: int):
            super().__init__()
            self.at = at

        def read(self, t: int) -> Period:
            if t == self.at:
                raise KeyboardInterrupt
            return super().read(t)

    run_all(searched(name, every=2), SmallSource(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_all(searched(name, every=2), Cut(4), tmp_path / "cut")
    run_all(searched(name, every=2), SmallSource(), tmp_path / "cut")
    for file in ("results.csv", "selection.csv", "findings.csv", SERVED.format(6)):
        ours, theirs = tmp_path / "cut" / file, tmp_path / "whole" / file
        assert ours.read_bytes() == theirs.read_bytes(), file


class Stopped(Exception):
    """A run was stopped."""


def stop_at(monkeypatch: pytest.MonkeyPatch, period: int, step: int | None) -> None:
    """Stop the search in a period at a step; None: once it has put its gates into the backbone."""
    search = Selection.search

    def searching(self, module, rows, warming_up, fit) -> None:
        left = itertools.count() if rows.index == period and step is not None else None
        train = Search.training_step

        def training_step(self, batch, batch_idx):
            if left is not None and next(left) == step:
                raise Stopped
            return train(self, batch, batch_idx)

        with monkeypatch.context() as patched:
            patched.setattr(Search, "training_step", training_step)
            search(self, module, rows, warming_up, fit)
        if rows.index == period and step is None:
            raise Stopped

    monkeypatch.setattr(Selection, "search", searching)


@multifs_soon_others_later
def test_a_run_stopped_in_a_search_or_just_after_goes_on_to_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(searched(name, every=2), SmallSource(), tmp_path / "whole")
    for period, step in [(1, 2), (1, None), (3, 2), (3, None), (5, 2)]:
        with monkeypatch.context() as patched:
            stop_at(patched, period, step)
            with pytest.raises(Stopped):
                run_all(searched(name, every=2), SmallSource(), tmp_path / "cut")
    assert {row.period for row in read(tmp_path / "cut")} == {1, 3}
    run_all(searched(name, every=2), SmallSource(), tmp_path / "cut")
    for file in ("results.csv", "selection.csv", "findings.csv", SERVED.format(6)):
        ours, theirs = tmp_path / "cut" / file, tmp_path / "whole" / file
        assert ours.read_bytes() == theirs.read_bytes(), file


@pytest.mark.parametrize(("name", "updater", "model"), COMPOSED)
def test_no_updater_moves_the_gates(
    name: str, updater: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = run_all(searched(name), SmallSource(), tmp_path / "a", (updater,), model)
    assert {row.period for row in rows} == {2, 3, 4, 5}
    first = gates_in(tmp_path / "a", 2)
    kept = torch.cat([x for key, x in first.items() if ".kept" in key])
    assert name == "optembed" or 0 < kept.float().mean() < 1
    for period in range(3, 7):
        for key, gates in gates_in(tmp_path / "a", period).items():
            assert torch.equal(gates[: len(first[key])] if gates.ndim else gates, first[key])
    if updater in ("asmg", "sml"):  # rows of the batch alone, or whole tables: the same numbers
        monkeypatch.setattr(renumbering, "SMALL", 4)
        again, _ = run_all(searched(name), SmallSource(), tmp_path / "b", (updater,), model)
        for one, two in zip(rows, again, strict=True):
            assert one[:-3] == two[:-3] or one.metric in ("auc", "logloss")
            if one.value is not None and one.metric in ("auc", "logloss"):
                assert one.value == pytest.approx(two.value, abs=2e-3)


def test_training_starts_again_from_the_weights_of_the_epoch_asked_for() -> None:
    found = {}
    for epoch in (0, 1):
        choice = searched("multifs", rewind_epoch=epoch)
        module = module_of(backbone_of(), choice)
        module.follow({v: torch.arange(size) for v, size in SCHEMA.vocabularies.items()})
        before = {k: w.clone() for k, w in module.backbone.named_parameters()}
        stream = PeriodStream(SmallSource(), 32, Roster(SCHEMA, "fixed"))
        fit = Fit(partial(L.Trainer, accelerator="cpu"), stream, ())
        selection = Selection(choice, SCHEMA.scenarios)
        selection.search(module, SmallSource().read(0), True, fit)
        after = dict(module.backbone.named_parameters())
        found[epoch] = all(torch.equal(before[key], after[key]) for key in before)
        assert not gates_of(module.backbone).kept(0).all()
    assert found == {0: True, 1: False}


def test_values_that_no_searched_row_held_stay_open() -> None:
    choice = searched("optfs", sparsity=1.0, learning_rate=1.0)
    module = module_of(backbone_of(), choice)
    module.follow({v: torch.arange(size) for v, size in SCHEMA.vocabularies.items()})
    rows = SmallSource().read(0).rows
    rows.fields[:, 0] = rows.fields[:, 0].clamp(max=10)
    met = set(rows.fields[:, 0].tolist())
    period = Period(0, "day 0", SmallSource().roles[0], rows)
    stream = PeriodStream(SmallSource(), 32, Roster(SCHEMA, "fixed"))
    fit = Fit(partial(L.Trainer, accelerator="cpu"), stream, ())
    Selection(choice, SCHEMA.scenarios).search(module, period, True, fit)
    kept = gates_of(module.backbone).kept(0)[:, 0].tolist()
    assert kept == [int(user not in met) for user in range(21)]
    assert 0 < sum(kept) < 21
