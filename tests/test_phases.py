"""Runs that share trainings: the same bytes, nothing computed twice, and nothing torn on the shelf."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from incrs import environment, results, states
from incrs import phases as sharing
from incrs.dashboard import LossCsv, Timing, Watcher
from incrs.data.stream import PeriodStream
from incrs.folder import RunFolder
from incrs.kept import Kept
from incrs.models.base import Backbone
from incrs.module import ScenarioModule
from incrs.period import Period, Stored
from incrs.phases import Phases, digest, read, rows_of, write
from incrs.results import Row, Run
from incrs.runner import Fit, run, update
from incrs.shelf import Shelf
from incrs.updaters.base import reaches_training
from tests.commands import command, forked, fresh, run_folders
from tests.conftest import CONF, SCHEMA, SmallBackbone, SmallSource
from tests.updaters.test_contract import NAMES, made

CPU = partial(L.Trainer, accelerator="cpu")


def go(
    folder: Path,
    names: Sequence[str],
    shelf: Shelf | None = None,
    source: SmallSource | None = None,
    lr: float = 0.01,
    watchers: Sequence[Watcher] = (),
    seed: int = 0,
    epochs: int = 1,
) -> list[Timing]:
    """Run the updaters, with what is on the shelf if any; return the timings."""
    updaters = made(tuple(names))
    optimizer = partial(torch.optim.Adam, lr=lr)
    module = ScenarioModule(SmallBackbone(seed=seed), updaters, optimizer, 3)
    phases = (
        None
        if shelf is None
        else Phases(shelf, {"lr": lr}, {name.split()[0]: name for name in names})
    )
    about = Run("0", "small", "small", "+".join(updaters), seed)
    stream = PeriodStream(source or SmallSource(), 32, None, 0.02)
    record = RunFolder(folder)
    run(stream, module, CPU, record, about, watchers, epochs=epochs, phases=phases)
    return [timing for t in range(9) if (timing := record.timing(t))]


def files_of(folder: Path) -> dict[str, bytes]:
    """Return all that a run left but its record."""
    found = [file for file in folder.rglob("*") if file.is_file() and file.name != "run.json"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def shared(timings: Sequence[Timing]) -> list[bool]:
    return [timing.shared for timing in timings]


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a source that is edited meanwhile disturb no test."""
    monkeypatch.setattr(sharing, "code", lambda: {"code": "of now"})


def test_the_code_counts_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment.code()
    assert len(before["phases.py"]) == 64
    assert __name__ in before
    assert not any(name.startswith("torch") for name in before)
    monkeypatch.setattr(environment, "mark_of", lambda file: None)  # written again
    assert environment.code() == before
    monkeypatch.setattr(environment, "digest_now", lambda file: "another")
    assert "changed" in environment.code()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf", 1)


SOME = [("finetune",), ("incmsr", "asmg")]
OTHERS = [*((name,) for name in NAMES if (name,) not in SOME), ("incctr", "sml")]
LISTS = [*SOME, *(pytest.param(names, marks=pytest.mark.slow) for names in OTHERS)]


@pytest.mark.parametrize("names", LISTS, ids="+".join)
def test_a_run_that_shares_leaves_the_bytes_of_one_that_does_not(
    names: tuple[str, ...], tmp_path: Path, shelf: Shelf
) -> None:
    go(tmp_path / "alone", names)
    go(tmp_path / "other", ["finetune"], shelf)
    first = go(tmp_path / "first", names, shelf)
    again = go(tmp_path / "again", names, shelf)
    alone = files_of(tmp_path / "alone")
    assert files_of(tmp_path / "first") == alone
    assert files_of(tmp_path / "again") == alone
    assert first[0].shared
    trained = [one for one in again if one.rows_trained]
    assert all(one.shared and one.phase for one in trained)
    assert [one.fit_seconds > 0 for one in trained] == [True] * len(trained)


def test_what_does_not_reach_the_training_shares_all_of_it(tmp_path: Path, shelf: Shelf) -> None:
    assert shared(go(tmp_path / "0", ["finetune"], shelf)) == [False] * 5
    for name in ("asmg", "asmg k=1 hidden_size=2"):
        assert shared(go(tmp_path / name, [name], shelf)) == [True] * 5
    assert shared(go(tmp_path / "1", ["incmsr"], shelf)) == [True] + [False] * 4
    assert shared(go(tmp_path / "3", ["incmsr weight=0.1"], shelf)) == [True] + [False] * 4
    assert shared(go(tmp_path / "5", ["finetune"], shelf, epochs=2)) == [True] + [False] * 4
    assert shared(go(tmp_path / "6", ["finetune"], shelf, lr=0.02)) == [False] * 5
    assert shared(go(tmp_path / "7", ["finetune"], shelf, seed=1)) == [False] * 5


def test_another_day_is_shared_up_to_the_first_row_that_differs(
    tmp_path: Path, shelf: Shelf
) -> None:
    go(tmp_path / "0", ["finetune"], shelf)
    noisy = go(tmp_path / "1", ["finetune"], shelf, SmallSource(noise_from=4))
    assert shared(noisy) == [True, True, True, False, False]


@pytest.mark.slow
def test_a_run_that_goes_on_shares_like_any_other(tmp_path: Path, shelf: Shelf) -> None:
    class Cut(SmallSource):
        def read(self, t: int):
            if t == 4:
                raise KeyboardInterrupt
            return super().read(t)

    for names in (["incmsr"], ["sml"]):
        whole = go(tmp_path / names[0] / "whole", names, shelf)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / names[0] / "cut", names, None, Cut())
        found = go(tmp_path / names[0] / "cut", names, shelf)
        assert [one.phase for one in found[-3:]] == [one.phase for one in whole[-3:]]
        assert shared(found[-3:]) == [True] * 3
        assert files_of(tmp_path / names[0] / "cut") == files_of(tmp_path / names[0] / "whole")


def test_rows_on_disk_are_looked_at_and_how_they_are_cut() -> None:
    period = SmallSource().read(2)

    def cut(period: Period, buffer: int = 40) -> str:
        rows = period.rows
        parts = [rows.take(slice(0, 20)), rows.take(slice(20, 60))]
        return digest(rows_of(replace(period, content=Stored([20, 40], parts.__getitem__, buffer))))

    other = period.rows._replace(label=1 - period.rows.label)
    assert cut(period) == cut(SmallSource().read(2))
    assert len({cut(period), cut(period, 60), cut(replace(period, content=other))}) == 3
    assert digest(rows_of(period)) != digest(rows_of(replace(period, content=other)))


def fitted(model: str, names: tuple[str, ...], shelf: Path) -> dict[str, object]:
    """Return all that a warm-up leaves."""
    backbone: Backbone = instantiate(
        OmegaConf.load(CONF / "model" / f"{model}.yaml"), _partial_=True
    )(schema=SCHEMA, seed=0)
    updaters = made(names)
    module = ScenarioModule(backbone, updaters, partial(torch.optim.Adam, lr=0.01), 3)
    stream = PeriodStream(SmallSource(), 32)
    fit = Fit(CPU, stream, [])
    L.seed_everything(0, verbose=False)
    before = [updater.state_dict() for updater in updaters.values() if reaches_training(updater)]
    history, _ = next(stream.pairs())
    update(stream, module, history, fit, 2, 1, None)
    after = [updater.state_dict() for updater in updaters.values() if reaches_training(updater)]
    assert digest(before) == digest(after)
    shelf.mkdir(parents=True)
    write(shelf, module, {}, 1.0)
    return read(shelf)._asdict()


MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_an_updater_that_rests_in_the_warm_up_does_not_reach_it(model: str, tmp_path: Path) -> None:
    resting = [name for name in NAMES if made((name,))[name].rests_in_warmup]
    assert {"incctr", "incmsr", "sml"} <= set(resting)
    plain = fitted(model, ("finetune",), tmp_path / "finetune")
    for name in resting:
        assert digest(fitted(model, (name,), tmp_path / name)) == digest(plain), name


def test_what_lies_damaged_is_computed_again(tmp_path: Path, shelf: Shelf) -> None:
    go(tmp_path / "0", ["finetune"], shelf)
    entries = sorted(shelf.folder.glob("phase-*"))
    assert len(entries) == 5
    weights = [entry / "backbone.safetensors" for entry in entries]
    content = weights[0].read_bytes()
    weights[0].write_bytes(content[:-1])
    weights[1].write_bytes(content[:-4] + bytes(4))
    (entries[2] / "whole.json").write_text("{")
    weights[3].unlink()
    again = go(tmp_path / "1", ["finetune"], shelf)
    assert sorted(shared(again)) == [False] * 4 + [True]
    assert files_of(tmp_path / "0") == files_of(tmp_path / "1")
    assert shared(go(tmp_path / "2", ["finetune"], shelf)) == [True] * 5


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    def put(shelf: Shelf, name: str) -> None:
        shelf.put(name, lambda to: (to / "x").write_bytes(bytes(10_000)) and None)

    shelf = Shelf(tmp_path, 45_000 / 2**30)
    for k in range(4):
        put(shelf, f"{k}")
        os.utime(tmp_path / f"{k}", (k, k))
    (tmp_path / "9.lock").touch()
    (tmp_path / ".9.1.partial").mkdir()
    for left in ("9.lock", ".9.1.partial"):
        os.utime(tmp_path / left, (0, 0))
    assert shelf.find("0")
    put(Shelf(tmp_path, 45_000 / 2**30), "4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2", "3", "4"]


def test_a_full_disk_ends_the_keeping_and_not_the_run(
    tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    go(tmp_path / "alone", ["finetune"])
    with monkeypatch.context() as patched:
        patched.setattr(
            sharing.states, "write", partial(_fails_below, shelf.folder, states.write, full)
        )
        assert shared(go(tmp_path / "0", ["finetune"], shelf)) == [False] * 5
    assert caplog.text.count("nothing more is kept there") == 1
    assert not list(shelf.folder.iterdir())
    assert files_of(tmp_path / "0") == files_of(tmp_path / "alone")


def _fails_below(folder: Path, write: object, fail: object, stem: Path, state: object) -> None:
    (fail if folder in stem.parents else write)(stem, state)  # type: ignore[operator]


def test_of_two_that_want_a_phase_one_waits(tmp_path: Path, shelf: Shelf) -> None:
    told: list[str] = []

    def other() -> None:
        with Shelf(shelf.folder, 1).claimed("a"):
            told.append("other")

    with shelf.claimed("a"):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.1)
        told.append("first")
    thread.join()
    assert told == ["first", "other"]
    assert not list(shelf.folder.iterdir())


def test_a_whole_run_is_taken_and_its_watchers_are_told(tmp_path: Path, shelf: Shelf) -> None:
    (tmp_path / "0").mkdir()
    losses = LossCsv(str(tmp_path / "0"), every=3)
    go(tmp_path / "0", ["finetune"], shelf, watchers=[losses])
    Kept(shelf, "a", RunFolder(tmp_path / "0")).keep()

    class Told(Watcher):
        def __init__(self) -> None:
            self.learnt, self.rows = list[Timing](), list[Row]()

        def period_learnt(self, losses: Sequence[float], timing: Timing) -> None:
            assert len(losses) * 32 >= timing.rows_trained
            self.learnt.append(timing)

        def period_scored(self, rows: Sequence[Row], timing: Timing) -> None:
            self.rows += rows

    def take(name: str, key: str = "a") -> list[Row] | None:
        folder = RunFolder(tmp_path / name)
        folder.write_record({"about": name})
        return Kept(shelf, key, folder).take([told, LossCsv(str(folder.path), every=3)])

    told = Told()
    assert take("1", "b") is None
    rows = take("1")
    assert rows == told.rows == results.read(tmp_path / "0" / "results.csv")
    assert shared(told.learnt) == [True] * 5
    assert files_of(tmp_path / "1") == files_of(tmp_path / "0")
    assert RunFolder(tmp_path / "1").record["about"] == "1"
    assert go(tmp_path / "1", ["finetune"]) == told.learnt  # finished: there is nothing to do
    serving = tmp_path / "0" / "serving" / "period=0003.safetensors"
    assert serving.stat().st_nlink == 3
    serving.write_bytes(serving.read_bytes()[:-1] + b"x")
    assert take("2") is None


HAMMER = """
import sys, torch
from pathlib import Path
from incrs.shelf import Shelf
from incrs import states
shelf = Shelf(Path(sys.argv[1]), 4e-4)
print("ready", flush=True)
for k in range(int(sys.argv[2]), 10**9):
    name = f"phase-{k % 7}"
    with shelf.claimed(name):
        found = shelf.find(name)
        if found is not None:
            try:
                read = states.read(found / "state")
                weights = read["weights"]
                assert bool((weights == read["value"]).all()) and len(weights) == 20_000
            except FileNotFoundError:
                pass
            if k % 3 == 0:
                shelf.drop(name)
        else:
            state = {"weights": torch.full((20_000,), float(k)), "value": k}
            shelf.put(name, lambda to: states.write(to / "state", state))
"""


@pytest.mark.slow
def test_kills_leave_nothing_on_the_shelf_that_loads_wrong(tmp_path: Path) -> None:
    dice = random.Random(0)
    script = tmp_path / "hammer.py"
    script.write_text(HAMMER)
    shelf, kills = Shelf(tmp_path / "shelf", 1), 0

    def start(k: int) -> subprocess.Popen:
        arguments = [sys.executable, "-c", FORKS, str(script), str(shelf.folder)]
        return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    hammers = [start(k) for k in range(2)]
    while kills < 200:
        for hammer in hammers:
            assert hammer.stdin and hammer.stdout
            print(
                json.dumps([dice.randrange(7), dice.uniform(0.001, 0.06)]),
                file=hammer.stdin,
                flush=True,
            )
        for hammer in hammers:
            assert hammer.stdout
            assert hammer.stdout.readline().strip() == f"{-signal.SIGKILL}"
            kills += 1
        for name in (f"phase-{k}" for k in range(7)):
            entry = shelf.folder / name
            if entry.exists():
                found = states.read(entry / "state")
                assert bool((found["weights"] == found["value"]).all())
                assert shelf.find(name) == entry
    for hammer in hammers:
        hammer.communicate(timeout=20)
    names = {path.name for path in shelf.folder.iterdir() if not path.name.startswith(".")}
    assert {name for name in names if not name.endswith(".lock")}


FORKS = """
import json, os, runpy, signal, sys, time
import torch, incrs.shelf, incrs.states
torch.set_num_threads(1)
script, folder = sys.argv[1:]
for line in sys.stdin:
    first, seconds = json.loads(line)
    pid = os.fork()
    if not pid:
        sys.argv = [script, folder, str(first)]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            runpy.run_path(script, run_name="__main__")
        finally:
            os._exit(3)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

DOOR = ["model=shared_bottom", "data.rows_per_period=400", "data.users=100", "data.items=80"]


@pytest.mark.slow
def test_a_sweep_counts_what_it_shared_and_is_whole_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INCRS_SHARE", "true")
    monkeypatch.setenv("INCRS_STORE", str(tmp_path / "store"))
    sweep = ["-m", "updater=finetune,asmg", "data.periods=10", *DOOR]
    alone, first, again = (tmp_path / name for name in ("alone", "first", "again"))
    for folder in (alone, first, again):
        folder.mkdir()
    assert "phases" not in forked(alone, *sweep, "share=false").stdout
    assert not (tmp_path / "store").exists()
    assert "4 phases computed, 4 shared" in forked(first, *sweep).stdout
    assert "0 phases computed, 8 shared" in forked(again, *sweep).stdout
    for one, *others in zip(*map(run_folders, (alone, first, again)), strict=True):
        assert {"curves.png", "losses.csv", "results.csv"} <= set(files_of(one))
        for other in others:
            assert files_of(other) == files_of(one)
            assert (other / "run.json").exists()
    record = json.loads((run_folders(again)[0] / "run.json").read_text())
    assert record["phases"] == {"computed": 0, "shared": 4}


@pytest.mark.slow
def test_a_waiting_run_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCRS_SHARE", "true")
    monkeypatch.setenv("INCRS_STORE", str(tmp_path / "store"))
    assert fresh(tmp_path, *DOOR, "data.periods=8").returncode == 0
    folder = tmp_path / "store" / "shared"
    shelf, names = Shelf(folder, 1), [path.name for path in folder.iterdir()]
    for name in names:
        shelf.drop(name)
    (warmup,) = [
        f"phase-{one['phase']}"
        for one in json.loads((run_folders(tmp_path)[0] / "run.json").read_text())["timings"][:1]
    ]
    with shelf.claimed(warmup):
        process = subprocess.Popen(
            command([*DOOR, "data.periods=8"]),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        assert "seed 0" in process.stdout.readline()
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "resume=" in printed
    assert "Traceback" not in errors
