"""Two processes that train as one: the numbers of one process, also after a kill and a resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from incrs import results
from tests.commands import command, forked, fresh, run_folders
from tests.test_train import wait_for

UPDATERS = ["batch", "finetune", "frozen", "spmf", "[incmsr,asmg]", "[incctr,sml]"]
"""Every updater, some two at a time."""
LOG = [
    "data.rows_per_period=2400",
    "data.users=300",
    "data.items=200",
    "data.periods=11",
    "data.pretrain=5",  # asmg generates from the third day after those on
    "batch_size=600",
    "trainer.precision=64-true",  # in 32 bits a ReLU flips on the last digit, and runs drift apart
]
TWO = ["trainer=ddp", "trainer.accelerator=cpu"]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]  # one fixture for all


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the run folder of every updater, run by one process."""
    where = tmp_path_factory.mktemp("alone")
    done = forked(where, "-m", f"updater={','.join(UPDATERS)}", *LOG)
    assert done.returncode == 0, done.stderr
    return dict(zip(UPDATERS, run_folders(where), strict=True))


def assert_same(ours: Path, theirs: Path, weight: float = 1e-9, metric: float = 1e-6) -> None:
    rows = [results.read(folder / "results.csv") for folder in (ours, theirs)]
    for one, other in zip(*rows, strict=True):
        assert one[:9] == other[:9]
        assert one[10:] == other[10:]
        if one.value is None or other.value is None:
            assert one.value is other.value
        elif one.metric == "logloss" or (one.metric, one.scenario) == ("auc", "all"):
            assert one.value == pytest.approx(other.value, abs=metric)
    names = [
        sorted(path.name for path in (folder / "serving").iterdir()) for folder in (ours, theirs)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        a, b = (load_file(folder / "serving" / name) for folder in (ours, theirs))
        assert list(a) == list(b)
        for key, value in a.items():
            assert value.shape == b[key].shape
            if value.numel():
                assert (value - b[key]).abs().max() <= weight, (name, key)


def children_of(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def kill(process: subprocess.Popen, pid: int) -> None:
    """Kill a process that `process` is or has started, and wait until all those are gone."""
    family = [process.pid, *children_of(process.pid)]
    os.kill(pid, signal.SIGKILL)
    process.wait(60)
    deadline = time.monotonic() + 60
    while not all(map(gone, family)):
        assert time.monotonic() < deadline, "a process outlived the others"
        time.sleep(0.1)


def test_two_processes_killed_and_resumed_give_the_numbers_of_one(
    alone: dict[str, Path], tmp_path: Path
) -> None:
    arguments = ["updater=finetune", *LOG, *TWO]
    process = subprocess.Popen(command(arguments), cwd=tmp_path, stdout=subprocess.DEVNULL)
    folder = wait_for(tmp_path, 2, process)
    assert len(children_of(process.pid)) == 1
    kill(process, process.pid)
    done = fresh(tmp_path, f"resume={folder}")
    assert done.returncode == 0, done.stderr
    assert run_folders(tmp_path) == [folder]
    assert_same(alone["finetune"], folder)


def test_a_sweep_of_two_processes_killed_in_every_run_gives_the_numbers_of_one(
    alone: dict[str, Path], tmp_path: Path
) -> None:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    sweep = ["-m", f"updater={','.join(UPDATERS)}", *LOG, *TWO, "hydra.sweep.dir=multirun"]
    started = [sys.executable, "-m", *launcher, "-m", "incrs.train", *sweep]
    for number in range(len(UPDATERS)):
        with (tmp_path / "errors").open("w") as told:
            process = subprocess.Popen(
                started, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=told
            )
            wait_for(tmp_path, 2, process, f"multirun/{number}")
            kill(process, children_of(process.pid)[number % 2])
    done = subprocess.run(started, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for updater, folder in zip(UPDATERS, run_folders(tmp_path), strict=True):
        assert_same(alone[updater], folder)
    assert done.stdout.count("One seed: pairs") == 1


def test_in_single_precision_they_stay_close_though_a_relu_may_flip(tmp_path: Path) -> None:
    for name, run, arguments in (("one", forked, []), ("two", fresh, TWO)):
        (tmp_path / name).mkdir()
        what = ["model=dcn", "updater=incctr", "trainer.precision=32-true"]
        done = run(tmp_path / name, *LOG, *arguments, *what)
        assert done.returncode == 0, done.stderr
    assert_same(
        *(run_folders(tmp_path / name)[0] for name in ("one", "two")), weight=5e-2, metric=2e-3
    )


def test_a_sweep_that_would_start_processes_of_its_own_is_refused(tmp_path: Path) -> None:
    done = fresh(tmp_path, "-m", "seed=0,1", *LOG, *TWO)
    assert done.returncode == 2
    assert "-m with trainer.devices=2" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not run_folders(tmp_path)


def test_ctrl_c_ends_both_processes_with_one_line(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(["updater=finetune", *LOG, *TWO]),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    folder = wait_for(tmp_path, 2, process)
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed.count(f"resume={folder}") == 1
    assert "Traceback" not in errors
