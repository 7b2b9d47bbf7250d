"""The protocol: score first, learn after; resume at period borders; collapse is noticed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from incrs import folder, metrics
from incrs.dashboard import LossCsv, Timing, Watcher
from incrs.data.stream import PeriodStream
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.module import ScenarioModule
from incrs.period import Period
from incrs.results import POOLED, Row, Run
from incrs.roster import Roster
from incrs.runner import Fit, run, seed_of
from incrs.updaters.base import Fit as FitType
from incrs.updaters.base import Updater, Weights
from incrs.updaters.finetune import Finetune
from tests.conftest import SCHEMA, SmallBackbone, SmallSource

ABOUT = Run("0", "small", "small", "test", 7)
CPU = partial(L.Trainer, accelerator="cpu")


def go(
    where: Path,
    updater: Updater | None = None,
    watchers: Sequence[Watcher] = (),
    lr: float = 0.01,
    periods: int = 6,
    roster: Roster | None = None,
) -> list[Row]:
    module = ScenarioModule(
        SmallBackbone(), {"one": updater or Finetune()}, partial(torch.optim.Adam, lr=lr), 3
    )
    stream = PeriodStream(SmallSource(periods=periods), 16, roster, unknown_rate=0.01)
    return run(stream, module, CPU, RunFolder(where), ABOUT, watchers)


def test_every_period_after_the_warm_up_is_scored_once_in_order(tmp_path: Path) -> None:
    rows = go(tmp_path)
    assert [r.period for r in rows if (r.metric, r.scenario) == ("auc", POOLED)] == [2, 3, 4, 5]
    assert [r.role for r in rows if (r.metric, r.scenario) == ("auc", POOLED)] == ["tune"] + [
        "test"
    ] * 3


def test_a_score_is_that_of_the_serving_weights_written_for_the_period(tmp_path: Path) -> None:
    rows = go(tmp_path, roster=Roster(SCHEMA, "fixed"))
    for t in range(2, 6):
        model = SmallBackbone()
        model.load_state_dict(load_file(tmp_path / f"serving/period={t:04d}.safetensors"))
        period = SmallSource().read(t)
        logit = model(period.rows).logit.detach().numpy()
        expected = metrics.auc(logit, period.rows.label.numpy()).value
        found = next(r for r in rows if (r.period, r.metric, r.scenario) == (t, "auc", POOLED))
        assert found.value == pytest.approx(expected, abs=1e-9)
    assert (tmp_path / "serving/period=0006.safetensors").exists()


class Recorder(Updater):
    """Writes down what it is asked, and serves other weights than those trained."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def serving_weights(self, module: ScenarioModule, weights: Weights) -> Weights:
        self.asked.append(("serve", 0))
        return {name: torch.zeros_like(value) for name, value in weights.items()}

    def learn_next(
        self, module: ScenarioModule, history: Sequence[Period], following: Period, fit: FitType
    ) -> None:
        self.asked.append(("learn", following.index))
        with pytest.raises(IndexError):
            history[following.index]


def test_learning_from_the_next_period_comes_after_its_score(tmp_path: Path) -> None:
    recorder = Recorder()
    go(tmp_path, recorder)
    assert recorder.asked == [
        pair for t in range(2, 6) for pair in (("serve", 0), ("learn", t))
    ] + [("serve", 0)]


def test_a_collapsed_model_is_warned_of_marked_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = go(tmp_path, Recorder())
    marks = [r.value for r in rows if r.metric == "collapsed"]
    assert marks == [1.0] * 4
    assert "collapsed: its scores of period 2 (day 2)" in caplog.text


def test_a_loss_that_is_no_number_names_period_step_and_updaters(tmp_path: Path) -> None:
    with pytest.raises(
        Mistake, match=r"period 1 \(day 1\), from step 2 of 16 on, with updater one"
    ):
        go(tmp_path, lr=float("inf"))


def test_a_day_that_came_later_is_scored_and_learnt_to_the_same_bytes(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole", Recorder())
    for periods in (2, 3, 3, 5, 6):
        rows = go(tmp_path / "daily", Recorder(), periods=periods)
    assert rows == whole
    for name in ("results.csv", *(f"serving/period={t:04d}.safetensors" for t in range(2, 7))):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "daily" / name).read_bytes()
    timings = json.loads((tmp_path / "daily" / "run.json").read_text())["timings"]
    assert [t["scored"] for t in timings] == ["day 2", "day 3", "day 4", "day 5", ""]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        go(tmp_path / name)
    for file in ("results.csv", "serving/period=0006.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_seeds_of_periods_are_not_shared_between_runs() -> None:
    assert len({seed_of(seed, t) for seed in range(20) for t in range(50)}) == 1000


def test_a_finished_run_that_is_run_again_changes_nothing(tmp_path: Path) -> None:
    rows, before = go(tmp_path), (tmp_path / "results.csv").read_bytes()
    assert go(tmp_path) == rows
    assert (tmp_path / "results.csv").read_bytes() == before


def test_only_the_last_checkpoint_is_kept_and_nothing_half_written(tmp_path: Path) -> None:
    go(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoint").iterdir()] == ["period=0005"]
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".partial")]


class Stopping(Watcher):
    """Stops the run as training on a period begins."""

    def __init__(self, period: int):
        self.period = period

    def period_begins(self, period: int, name: str, steps: int) -> None:
        if period == self.period:
            raise KeyboardInterrupt


def test_a_run_goes_on_from_a_checkpoint_that_is_periods_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir(), part.mkdir()
    rows = go(whole, watchers=[LossCsv(str(whole), every=3)])
    monkeypatch.setattr(folder, "PAUSE", 1e9)
    with pytest.raises(KeyboardInterrupt):
        go(part, watchers=[LossCsv(str(part), every=3), Stopping(5)])
    assert [p.name for p in (part / "checkpoint").iterdir()] == ["period=0001-scored"]
    assert (part / "serving" / "period=0005.safetensors").exists()
    assert go(part, watchers=[LossCsv(str(part), every=3)]) == rows
    assert [p.name for p in (part / "checkpoint").iterdir()] == ["period=0005"]
    for file in whole.rglob("*"):
        if file.is_file() and file.name != "run.json":
            assert file.read_bytes() == (part / file.relative_to(whole)).read_bytes(), file.name
    timings = json.loads((part / "run.json").read_text())["timings"]
    assert [t["period"] for t in timings] == [1, 2, 3, 4, 5]


def test_timings_are_in_the_record_and_in_no_result(tmp_path: Path) -> None:
    go(tmp_path)
    timings = json.loads((tmp_path / "run.json").read_text())["timings"]
    assert [t["period"] for t in timings] == [1, 2, 3, 4, 5]
    assert [t["rows_trained"] for t in timings] == [240, 60, 60, 60, 60]
    assert all(t["rows_per_second"] > 0 for t in timings)


def test_a_fit_that_did_not_train_is_an_error(small_source: SmallSource) -> None:
    fit = Fit(partial(CPU, max_steps=1), PeriodStream(small_source, 16), [])
    module = ScenarioModule(SmallBackbone(), {}, torch.optim.Adam, 3)
    with pytest.raises(RuntimeError, match="trained 1 of 4 steps"):
        fit(module, small_source.read(0))


def test_the_learning_rate_after_the_warm_up_can_be_another(tmp_path: Path) -> None:
    module = ScenarioModule(SmallBackbone(), {"one": Finetune()}, torch.optim.Adam, 3)
    stream = PeriodStream(SmallSource(), 16)
    run(stream, module, CPU, RunFolder(tmp_path), ABOUT, incremental_lr=0.0)
    first, last = (load_file(tmp_path / f"serving/period={t:04d}.safetensors") for t in (2, 6))
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert not all(torch.equal(first[n], v) for n, v in module.initial_weights.items())


class Told(Watcher):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.steps, self.timings, self.losses = 0, list[Timing](), list[float]()

    def step_done(self) -> None:
        self.steps += 1

    def period_learnt(self, losses: Sequence[float], timing: Timing) -> None:
        self.timings.append(timing)
        self.losses += losses

    def period_scored(self, rows: Sequence[Row], timing: Timing) -> None:
        self.timings[-1] = timing


def test_watchers_are_told_of_steps_losses_and_periods(tmp_path: Path) -> None:
    told, losses = Told(), LossCsv(str(tmp_path), every=3)
    go(tmp_path, watchers=[told, losses])
    assert told.steps == 2 * 8 + 4 * 4 == len(told.losses)
    assert np.isfinite(told.losses).all()
    assert [(t.name, t.scored) for t in told.timings][::4] == [("day 1", "day 2"), ("day 5", "")]
    lines = (tmp_path / "losses.csv").read_text().splitlines()
    assert lines[0] == "period,step,loss"
    assert lines[1:3] == [f"1,0,{told.losses[0]}", f"1,3,{told.losses[3]}"]
