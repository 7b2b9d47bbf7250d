"""What can go wrong from outside, as users meet it: one sentence, exit status 2, nothing half done.

The commands run as `python -m` does, but forked from a process that has done their imports.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import lightning as L
import polars as pl
import pytest
import torch

from benchmarks.kills import COMMAND, content, make_log, run_of
from incrs import results
from incrs.data.stream import PeriodStream
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.module import ScenarioModule
from incrs.period import Period
from incrs.results import POOLED, Run
from incrs.runner import run
from incrs.updaters.base import Updater, Weights
from incrs.updaters.finetune import Finetune
from tests.commands import Done, forked
from tests.conftest import SmallBackbone, SmallSource

ROOT = Path(__file__).parent.parent
DATA = COMMAND[:3]


class Generates(Updater):
    """An updater that generates the serving weights; two of them cannot stand together."""

    def serving_weights(self, module: object, weights: Weights) -> Weights:
        return {name: value.clone() for name, value in weights.items()}


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Return a folder with a declared log, where commands are given."""
    folder = tmp_path / "desk"
    make_log(folder, range(6))
    for name in ("one", "two"):
        (folder / "conf" / "updater").mkdir(exist_ok=True)
        (folder / "conf" / "updater" / f"{name}.yaml").write_text(
            f"{name}:\n  _target_: tests.test_faults.Generates\n"
        )
    return folder


def files_of(desk: Path) -> dict[str, bytes]:
    """Return what commands have written: files and empty folders, but for locks."""
    found = {}
    for path in sorted(desk.rglob("*")):
        name = str(path.relative_to(desk))
        if name.split("/")[0] in ("log", "conf") or name == "multirun":
            continue
        if path.is_file() and path.suffix != ".lock":
            found[name] = path.read_bytes()
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found


def edited(file: str, old: bytes, new: bytes, count: int = 1) -> Callable[[Path], None]:
    """Return what replaces bytes in a file of the log."""

    def edit(desk: Path) -> None:
        path = desk / "log" / file
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new, count))

    return edit


def cut(desk: Path) -> None:
    path = desk / "log" / "day05.csv"
    path.write_bytes(path.read_bytes()[:-7])


def only_a_header(desk: Path) -> None:
    (desk / "log" / "day05.csv").write_text("at,user,item,tab,click\n")


def corrupt_parquet(desk: Path) -> None:
    file = desk / "log" / "day05.csv"
    parquet = file.with_suffix(".parquet")
    pl.read_csv(file).write_parquet(parquet)
    whole = parquet.read_bytes()
    parquet.write_bytes(whole[:200] + b"\x7f" * 400 + whole[600:])
    file.unlink()


def other_version(desk: Path) -> None:
    (manifest,) = desk.glob("store/shop/*/manifest.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 999}))


def a_period_late(desk: Path) -> None:
    shutil.copy(desk / "log" / "day02.csv", desk / "log" / "day09.csv")


def nothing(desk: Path) -> None:
    """Leave the log as it is."""


FRESH: dict[str, tuple[Callable[[Path], None], str, list[str]]] = {
    "a missing folder": (nothing, "data.path=nowhere", ["data.path=", "nowhere is not a folder"]),
    "a missing column": (nothing, "data.label=clik", ["data.label", "did you mean click?"]),
    "a column missing in one file": (
        edited("day04.csv", b"click", b"clik"),
        "",
        ["'click' in day04.csv", "did you mean clik?"],
    ),
    "a time that does not parse": (
        edited("day03.csv", b"\n160", b"\nnoon"),
        "",
        ["data.time: 1 values", "day03.csv", "data.time_unit"],
    ),
    "a label outside of 0 and 1": (
        edited("day03.csv", b",1\n", b",2\n"),
        "",
        ["data.label", "0 or 1", "day03.csv", "'2'"],
    ),
    "a scenario that is not in the log": (
        nothing,
        "data.scenarios=[a,q]",
        ["data.scenarios", "'q'", "it has a, "],
    ),
    "too few days": (nothing, "data.pretrain=20", ["6 periods", "data.pretrain=20"]),
    "no day in the span": (nothing, "data.start=2031-01-01", ["no row", "data.start=2031-01-01"]),
    "a period without a row": (only_a_header, "", ["day05.csv has no row"]),
    "a truncated CSV": (cut, "", ["day05.csv", "breaks off inside its last line"]),
    "a truncated side table": (
        edited("items.csv", b"i9,b4,", b"i9,b4\n"),
        "",
        ["items.csv cannot be read: line 11"],
    ),
    "a corrupt Parquet file": (
        corrupt_parquet,
        "data.files=[day*.csv,*.parquet]",
        ["day05.parquet cannot be read"],
    ),
    "an unknown option of the log": (nothing, "data.labell=click", ["did you mean data.label?"]),
    "a store that is a file": (nothing, "data.store=log/items.csv", ["data.store=log/items.csv"]),
}
"""Spoils the log before anything is prepared: what to spoil, what to give, what is said."""


@pytest.mark.slow
@pytest.mark.parametrize("door", ["train", "prepare"])
@pytest.mark.parametrize("fault", FRESH)
def test_a_fault_of_the_log_is_one_sentence_and_no_store(desk: Path, fault: str, door: str) -> None:
    spoil, arguments, words = FRESH[fault]
    spoil(desk)
    refused(forked(desk, *DATA, *arguments.split(), door=door), words)
    assert not [name for name in files_of(desk) if name != "store/shop/"]


def refused(done: Done, words: Sequence[str]) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("incrs: ")
    assert done.stderr.endswith("\n") and done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


KEPT: dict[str, tuple[Callable[[Path], None], str, list[str]]] = {
    "a store of another version": (other_version, "", ["format 999", "delete that folder"]),
    "an old file that changed": (
        edited("day01.csv", b",1\n", b",0\n"),
        "",
        ["day01.csv changed since it was prepared"],
    ),
    "a day that came too late": (a_period_late, "", ["2020-09-16", "day09.csv", "never rewritten"]),
    "two updaters that both serve": (
        nothing,
        "updater=[one,two]",
        ["one and two both generate the serving weights"],
    ),
    "an updater that is none": (nothing, "updater=incmrs", ["did you mean incmsr?"]),
    "an unknown setting": (nothing, "sede=1", ["sede", "did you mean seed?"]),
    "an unknown flag": (nothing, "--nonsense", ["unrecognized arguments: --nonsense"]),
    "a learning rate that is none": (nothing, "optimizer.lr=fast", ["optimizer"]),
    "no run to go on with": (nothing, "resume=multirun", ["no run.json", "resume=multirun"]),
}
"""The same where a good store is there already, which must stay as it is."""


@pytest.mark.slow
@pytest.mark.parametrize("fault", KEPT)
def test_a_fault_leaves_the_prepared_store_as_it_was(desk: Path, fault: str) -> None:
    spoil, arguments, words = KEPT[fault]
    assert forked(desk, *DATA, door="prepare")[:2] == (0, "")
    spoil(desk)
    before = files_of(desk)
    refused(forked(desk, *DATA, *arguments.split()), words)
    assert files_of(desk) == before


@pytest.mark.slow
def test_one_serving_updater_of_ones_own_runs(desk: Path) -> None:
    assert forked(desk, *COMMAND, "updater=[one,incmsr]")[:2] == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["optimizer.lr=1e30", "incremental_lr=1e30"])
def test_a_loss_that_is_not_finite_names_period_step_and_updaters_and_keeps_what_was(
    desk: Path, setting: str
) -> None:
    done = forked(desk, *COMMAND, "updater=[incmsr,incctr]", setting)
    at_once = setting.startswith("optimizer")
    period = "2 (2020-09-16)" if at_once else "3 (2020-09-17)"
    refused(done, [f"not finite in period {period}, from step", "updater incmsr+incctr"])
    folder = run_of(desk)
    assert folder
    served = sorted(file.name for file in folder.glob("serving/*"))
    first = [] if at_once else ["period=0003.safetensors"]
    assert served == first
    again = forked(desk, f"resume={folder}")
    refused(again, [f"not finite in period {period}, from step"])
    assert sorted(file.name for file in folder.glob("serving/*")) == first


@pytest.mark.slow
def test_a_disk_that_is_full_is_said_wherever_it_happens_and_the_run_goes_on_with_more_room(
    desk: Path,
) -> None:
    assert forked(desk, *COMMAND)[:2] == (0, "")
    whole = content(desk)
    stored = {name: value for name, value in files_of(desk).items() if name.startswith("store/")}
    for folder in ("store", "multirun"):
        shutil.rmtree(desk / folder)
    limits = sorted({0, 1, *(len(value) - 1 for value in whole.values())})
    places = set()
    for limit in limits:
        folder = run_of(desk)
        done = forked(desk, *(COMMAND if folder is None else [f"resume={folder}"]), limit=limit)
        if done.returncode == 0:
            break
        refused(done, ["disk is full"])
        place = "the store" if "data.store=store" in done.stderr else "the run"
        places.add(place)
        folder = run_of(desk)
        if place == "the run":
            assert "multirun/" in done.stderr
        else:
            assert not [n for n in files_of(desk) if n != "store/shop/"]
        left = files_of(desk)
        assert not [n for n in left if "partial" in n or "tmp" in n]
        left.pop("store/shop/", None)
        assert {n: v for n, v in left.items() if n.startswith("store/")} in ({}, stored)
    assert places == {"the store", "the run"}
    folder = run_of(desk)
    assert folder
    assert forked(desk, f"resume={folder}")[:2] == (0, "")
    assert content(desk) == whole


def files_without_clock(desk: Path) -> dict[str, bytes]:
    """Return what a run on a copy of a log ends with, but for where and when."""
    kept = ("results.csv", "losses.csv", "curves.png", ".safetensors")
    return {name: value for name, value in content(desk).items() if name.endswith(kept)}


class Uneven(SmallSource):
    """Period 3 has no row of the scenario `feed`, and of `search` no positive."""

    def read(self, t: int) -> Period:
        period = super().read(t)
        if t != 3:
            return period
        scenario = period.rows.scenario
        label = period.rows.label.masked_fill(scenario == 1, 0)
        rows = period.rows._replace(scenario=scenario.masked_fill(scenario == 2, 0), label=label)
        return Period(t, period.name, period.role, rows, period.truth)


def test_a_scenario_that_is_absent_or_has_one_class_gets_an_empty_value_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    stream = PeriodStream(Uneven(), 16, None, unknown_rate=0.01)
    adam = partial(torch.optim.Adam, lr=0.01)
    module = ScenarioModule(SmallBackbone(), {"one": Finetune()}, adam, 3)
    about = Run("0", "small", "small", "test", 7)
    rows = run(stream, module, partial(L.Trainer, accelerator="cpu"), RunFolder(tmp_path), about)
    value = {(row.period, row.scenario, row.metric): row for row in rows}
    for metric in ("auc", "gauc", "logloss"):
        assert (value[3, "feed", metric].value, value[3, "feed", metric].rows) == (None, 0)
    assert value[3, "search", "auc"].value is None
    assert value[3, "search", "gauc"].value is None
    assert value[3, "search", "auc"].rows > 0 == value[3, "search", "auc"].positives
    for period in (2, 3, 4, 5):
        for scenario in ("home", POOLED):
            assert value[period, scenario, "auc"].value is not None
    assert value[4, "feed", "auc"].value is not None
    assert results.read(tmp_path / results.FILE) == rows


@pytest.fixture
def stopped(desk: Path) -> Iterator[tuple[Path, subprocess.Popen, Path]]:
    """Return the folder of a run that stands still in its middle, its process, and a whole run's."""
    whole = desk.with_name("whole")
    shutil.copytree(desk, whole)
    assert forked(whole, *COMMAND)[:2] == (0, "")
    process = subprocess.Popen(
        [sys.executable, "-m", "incrs.train", *COMMAND], cwd=desk, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(desk.glob("multirun/*/*/serving/*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    folder = run_of(desk)
    assert folder
    yield folder, process, whole
    if process.poll() is None:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_second_process_on_a_run_is_refused_and_the_first_goes_on_unharmed(
    stopped: tuple[Path, subprocess.Popen, Path], desk: Path
) -> None:
    folder, first, whole = stopped
    for _ in range(2):
        before = files_of(desk)
        refused(forked(desk, f"resume={folder}"), ["another process is working on this run"])
        assert files_of(desk) == before
    first.send_signal(signal.SIGCONT)
    assert first.wait(120) == 0
    assert files_without_clock(desk) == files_without_clock(whole)
    assert forked(desk, f"resume={folder}")[:2] == (0, "")


@pytest.mark.slow
def test_a_killed_process_leaves_its_run_to_the_next_one(
    stopped: tuple[Path, subprocess.Popen, Path], desk: Path
) -> None:
    folder, first, whole = stopped
    first.kill()
    first.wait()
    assert (folder / ".lock").exists()
    assert forked(desk, f"resume={folder}")[:2] == (0, "")
    assert not (folder / ".lock").exists()
    assert files_without_clock(desk) == files_without_clock(whole)


@pytest.mark.slow
def test_a_run_stopped_at_random_moments_ends_in_the_bytes_of_the_undisturbed_one() -> None:
    signals = ["--signal", "KILL", "TERM", "INT"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kills", "--times", "6", *signals],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every run ended in the bytes of the undisturbed one" in done.stdout


def test_a_run_whose_folder_is_removed_says_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    said = pytest.raises(Mistake, match="run: the folder was removed while the run worked in it")
    with said, folder.claimed(), folder.written():
        shutil.rmtree(folder.path)
        results.write(folder.results, [])
