"""findings.csv and its pictures, and what learning from the next period costs in run.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from incrs import findings
from incrs.data.stream import PeriodStream
from incrs.findings import Finding
from incrs.folder import RunFolder
from incrs.module import ScenarioModule
from incrs.period import Period
from incrs.results import Run
from incrs.runner import run
from incrs.summary import update_seconds
from incrs.updaters.base import Fit, Updater, Weights
from tests.conftest import SmallBackbone, SmallSource


class Finder(Updater):
    """Finds out, in the third period and later, how large the weights are and what it has counted."""

    learning_rate = 1.0

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self.count = 0

    def serving_weights(self, module: ScenarioModule, weights: Weights) -> Weights:
        return {name: torch.zeros_like(value) for name, value in weights.items()}

    def learn_next(
        self, module: ScenarioModule, history: Sequence[Period], following: Period, fit: Fit
    ) -> None:
        self.count += 1
        size = module.backbone.get_parameter("shared.weight").detach().abs().sum().item()
        self.found = {"shared.size": size, "shared.count": self.count} if len(history) > 2 else {}

    def findings(self) -> Mapping[str, float]:
        return self.found

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.count = state_dict["count"]


def run_in(folder: Path, updater: Updater, periods: int = 6, stop: int | None = None) -> None:
    class Cut(SmallSource):
        def read(self, t: int) -> Period:
            if t == stop:
                raise KeyboardInterrupt
            return super().read(t)

    optimizer = partial(torch.optim.Adam, lr=0.01)
    module = ScenarioModule(SmallBackbone(), {"finder": updater}, optimizer, 3)
    stream = PeriodStream(Cut(periods=periods), 32)
    record = RunFolder(folder).record
    RunFolder(folder).write_record(record or {"timings": []})
    about = Run("0", "small", "small", "finder", 0)
    run(stream, module, partial(L.Trainer, accelerator="cpu"), RunFolder(folder), about)


def test_a_run_keeps_what_its_updater_found_out_and_a_resumed_one_too(tmp_path: Path) -> None:
    run_in(tmp_path / "whole", Finder())
    rows = findings.read(tmp_path / "whole")
    assert [(r.period, r.updater, r.name) for r in rows] == [
        (t, "finder", name) for t in (3, 4, 5) for name in ("shared.size", "shared.count")
    ]
    assert [row.value for row in rows[1::2]] == [2, 3, 4]
    for stop in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path / "cut", Finder(), stop=stop)
    run_in(tmp_path / "cut", Finder())
    for periods in (4, 6):
        run_in(tmp_path / "daily", Finder(), periods=periods)
    for name in ("cut", "daily"):
        ours, theirs = (tmp_path / which / "findings.csv" for which in (name, "whole"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_an_updater_that_finds_nothing_leaves_no_file(tmp_path: Path) -> None:
    run_in(tmp_path, Updater())
    findings.draw(tmp_path)
    assert not list(tmp_path.glob("findings*"))
    assert [t["learn_next_seconds"] for t in RunFolder(tmp_path).record["timings"]] == [0.0] * 5


def test_learning_from_the_next_period_is_timed_and_a_record_without_it_is_read(
    tmp_path: Path,
) -> None:
    run_in(tmp_path, Finder(), periods=4)
    first = RunFolder(tmp_path).record["timings"]
    assert all(one["learn_next_seconds"] > 0 for one in first[:-1])
    assert first[-1]["learn_next_seconds"] == 0
    run_in(tmp_path, Finder(), periods=6)
    later = RunFolder(tmp_path).record["timings"]
    assert later[: len(first) - 1] == first[:-1]
    held = later[len(first) - 1]  # learnt in the first run, scored and learnt from in the second
    assert held["fit_seconds"] == first[-1]["fit_seconds"]
    assert held["learn_next_seconds"] > 0
    assert update_seconds(held) == held["fit_seconds"] + held["learn_next_seconds"]
    old = {key: value for key, value in held.items() if key != "learn_next_seconds"}
    RunFolder(tmp_path).write_record({"timings": [old]})
    timing = RunFolder(tmp_path).timing(old["period"])
    assert timing is not None
    assert timing.learn_next_seconds == 0
    assert update_seconds(old) == held["fit_seconds"]


def test_a_collapsed_generated_model_names_its_own_learning_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run_in(tmp_path, Finder(), periods=3)
    assert "a smaller optimizer.lr (or updater.finder.learning_rate) may prevent it" in caplog.text


def test_a_picture_has_a_panel_for_each_group_and_not_too_many(tmp_path: Path) -> None:
    rows = [
        Finding(t, updater, f"group {g}.of it.{what}", -1.0 * t * g)
        for updater, groups in (("one", 2), ("two", 40))
        for t in range(3)
        for g in range(groups)
        for what in ("model-0", "model-1")
    ]
    findings.write(tmp_path, rows)
    assert findings.read(tmp_path) == rows
    assert findings.read(tmp_path, 1) == [row for row in rows if row.period < 2]
    findings.draw(tmp_path)
    sizes = {}
    for path in tmp_path.glob("findings_*.png"):
        header = path.read_bytes()[16:24]
        sizes[path.stem] = int.from_bytes(header[4:])
    assert sizes["findings_one"] < sizes["findings_two"] < 6 * sizes["findings_one"]
    assert len(sizes) == 2
