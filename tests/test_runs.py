"""Runs are found, named and told apart; what is missing or not comparable is a sentence."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from incrs import results
from incrs.errors import Mistake
from incrs.results import POOLED, Row, Run
from incrs.runs import find_runs, swept

SWEEP = """hydra:
  sweep: {dir: %s, subdir: '${hydra.job.num}'}
  sweeper: {_target_: hydra.BasicSweeper, params: {seed: '0,1'}}
  overrides: {task: [%s]}
"""


def write(
    folder: Path,
    updater: str = "incmsr",
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    given: tuple[str, ...] = (),
    periods: int = 2,
    fingerprint: str = "f",
    pretrain: int = 1,
    task: dict[str, Any] | None = None,
    finished: bool = True,
) -> Path:
    """Write a run of `periods` scored periods of 3."""
    config = {"seed": seed, "data": {"path": str(folder)}, "updater": {updater: settings or {}}}
    if task is not None:
        config["task"] = task
    named = json.dumps(config["updater"], sort_keys=True)
    about = Run(named, "log", "star", updater, seed)
    folder.mkdir(parents=True)
    roles = ["pretrain"] * pretrain + ["test"] * (4 - pretrain)
    timings = [{"period": t, "scored": f"day {t + 1}", "fit_seconds": 1.0} for t in range(periods)]
    record = {
        "overrides": [f"updater={updater}", f"seed={seed}", f"data.path={folder}", *given],
        "about": about._asdict(),
        "config": config,
        "timings": timings,
        "finished": finished,
        "data": {"fingerprint": fingerprint, "roles": roles, "scenarios": ["home"]},
    }
    (folder / "run.json").write_text(json.dumps(record))
    rows = [
        Row(*about, t + 1, "test", scenario, "auc", 0.7 + t / 7, 10, 5)
        for t in range(periods)
        for scenario in (POOLED, "home")
    ]
    if periods:
        results.write(folder / results.FILE, [*rows, rows[-1]._replace(metric="gauc", value=None)])
    return folder


def labels(*folders: Path) -> list[str]:
    return sorted(find_runs(folders).table["label"].cast(pl.String).unique())


def test_the_table_holds_what_the_results_say(tmp_path: Path) -> None:
    for name in ("plain", "[incmsr,asmg] *"):  # no pattern of file names
        write(tmp_path / name, seed=len(name))
    runs = find_runs([tmp_path])
    assert set(runs.records) == {str(tmp_path / "plain"), str(tmp_path / "[incmsr,asmg] *")}
    for folder in runs.records:
        rows = runs.table.filter(folder=folder).select(Row._fields).rows()
        assert [Row(*row) for row in rows] == results.read(Path(folder) / results.FILE)
    assert runs.missing == []
    assert runs.table["log"].cast(pl.String).unique().to_list() == ["log"]


def test_folders_may_be_relative_and_results_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a")
    results.write(write(tmp_path / "b", seed=1) / results.FILE, [])
    monkeypatch.chdir(tmp_path / "a")
    runs = find_runs([Path(), Path("../b"), Path("./../a/../b")])
    assert list(runs.records) == [".", "../b"]
    assert runs.table["folder"].cast(pl.String).unique().to_list() == ["."]
    assert runs.table["label"].null_count() == 0
    assert swept(runs) == {".": {}}


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "a" / "0")
    runs = find_runs([tmp_path, tmp_path / "a", tmp_path / "a" / "0", tmp_path / "a" / ".." / "a"])
    assert (len(runs.records), len(runs.table), runs.missing) == (1, 5, [])


def test_the_same_run_in_two_folders_counts_once_and_the_longer_one(tmp_path: Path) -> None:
    short, whole = write(tmp_path / "a", periods=1), write(tmp_path / "b")
    runs = find_runs([tmp_path])
    assert list(runs.records) == [str(whole)]
    assert runs.missing == [f"{short}: the same configuration and seed as {whole}, which counts"]


def test_labels_hold_the_settings_that_differ_and_no_others(tmp_path: Path) -> None:
    one = write(tmp_path / "0", "asmg", 0, {"k": 1, "hidden_size": 4})
    assert labels(one) == ["asmg"]
    write(tmp_path / "1", "asmg", 1, {"k": 1, "hidden_size": 4}, ("updater.asmg.k=1",))
    write(tmp_path / "2", "asmg", 0, {"k": 2, "hidden_size": 8})
    write(tmp_path / "3", "finetune")
    assert labels(tmp_path) == ["asmg k=1 hidden_size=4", "asmg k=2 hidden_size=8", "finetune"]
    named = {name[-1]: settings for name, settings in swept(find_runs([tmp_path])).items()}
    assert named["2"] == {"updater.asmg.k": "2", "updater.asmg.hidden_size": "8"}
    assert (named["0"], named["3"]) == (named["1"], {})


def test_settings_of_two_updaters_together_keep_their_names(tmp_path: Path) -> None:
    for k in (1, 2):
        folder = write(tmp_path / str(k), "incmsr+asmg", 0, {"k": k})
        text = (folder / "run.json").read_text().replace('{"incmsr+asmg": {', '{"asmg": {')
        (folder / "run.json").write_text(text)
    assert labels(tmp_path) == ["incmsr+asmg asmg.k=1", "incmsr+asmg asmg.k=2"]


def test_many_settings_at_once_are_named_as_the_command_named_them(tmp_path: Path) -> None:
    for i, kind in enumerate(("small", "large")):
        settings = {f"s{j}": i + j for j in range(5)}
        write(tmp_path / kind, settings=settings, given=(f"experiment={kind}",))
    assert labels(tmp_path) == ["incmsr experiment=large", "incmsr experiment=small"]


def test_a_class_is_named_as_the_command_named_it(tmp_path: Path) -> None:
    write(tmp_path / "0", settings={"_target_": "incrs.One"})
    write(tmp_path / "1", settings={"_target_": "incrs.Other"}, given=("optimizer=other",))
    assert labels(tmp_path) == ["incmsr", "incmsr optimizer=other"]


def test_a_sweep_tells_which_runs_it_still_misses(tmp_path: Path) -> None:
    given = ["'updater=finetune,[incmsr,asmg]'", "data=log"]
    (tmp_path / "multirun.yaml").write_text(SWEEP % (tmp_path, ", ".join(given)))
    write(tmp_path / "0", "finetune")
    write(tmp_path / "1", "incmsr+asmg", periods=0, finished=False)
    write(tmp_path / "2", "finetune", 1, periods=1, finished=False)
    with (tmp_path / "2" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = find_runs([tmp_path])
    assert set(runs.records) == {str(tmp_path / "0"), str(tmp_path / "2")}
    assert runs.missing == [
        f"{tmp_path}/3: seed=1 updater=[incmsr,asmg] has not begun, or failed before it did",
        f"{tmp_path}/1: star incmsr+asmg seed=0 is not finished: 0 of 3 periods scored",
        f"{tmp_path}/2: star finetune seed=1 is running: 1 of 3 periods scored",
    ]


@pytest.mark.parametrize("text", ["", "hydra: {}", "hydra: {sweep", "- 1"])
def test_a_sweep_that_hydra_half_wrote_is_told_of_as_far_as_it_is(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "multirun.yaml").write_text(text)
    write(tmp_path / "0")
    assert find_runs([tmp_path]).missing == []


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"fingerprint": "g"}, "other rows"),
        ({"pretrain": 2}, "other roles of its periods"),
        ({"task": {"_target_": "Ranking", "candidates": 9}}, "another way of ranking"),
    ],
)
def test_runs_that_cannot_be_compared_are_of_two_logs(
    tmp_path: Path, other: dict[str, Any], why: str
) -> None:
    write(tmp_path / "a", task={"_target_": "Clicks"})
    write(tmp_path / "b", seed=1, periods=1, finished=False)  # less of the same can be
    write(tmp_path / "c", seed=2, **other)
    runs = find_runs([tmp_path])
    logs = dict(runs.table.select("folder", "log").unique().cast(pl.String).iter_rows())
    assert [logs[str(tmp_path / name)] for name in "abc"] == ["log #1", "log #1", "log #2"]
    assert runs.missing[-2:] == [
        f"log #1 is 2 runs such as {tmp_path / 'a'}",
        f"log #2 is 1 runs such as {tmp_path / 'c'}: {why} than #1, so they are not compared",
    ]


def test_nothing_found_is_a_mistake_that_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"no run with results below .*nowhere: give a run or sweep"):
        find_runs([tmp_path / "nowhere"])
    write(tmp_path / "a", periods=0, finished=False)
    with pytest.raises(Mistake, match="is not finished: 0 of 3 periods scored"):
        find_runs([tmp_path])
    (tmp_path / "a" / "run.json").write_text("{")
    with pytest.raises(Mistake, match=r"run\.json cannot be read"):
        find_runs([tmp_path])
