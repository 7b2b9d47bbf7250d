"""Sweeps whose jobs have processes of their own: slots, the queue, and launchers that others wrote."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import permutations
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from incrs.errors import Mistake
from incrs.launchers.board import Board, clock
from incrs.launchers.queue import Ended, Job, Watch, run_all
from incrs.launchers.slots import Slot, cores_here, gpus_here, share_out
from incrs.launchers.standing import agree, is_finished
from tests.commands import command, forked, fresh
from tests.test_processes import gone
from tests.test_train import SMALL

FEW = [*SMALL, "data.periods=9", "share=false"]
ONE = cores_here()[:1]
SLOTS = [Slot("one", "", tuple(ONE), 1), Slot("two", "7", tuple(cores_here()[-1:]), 1)]


# ------------------------------------------------------------------------------------------- slots


def test_without_a_gpu_every_core_is_a_slot() -> None:
    slots = share_out("auto", "auto", 1, None, [], [0, 1, 5])
    assert [slot.cores for slot in slots] == [(0,), (1,), (5,)]
    assert {slot.gpu for slot in slots} == {""}
    assert {slot.threads for slot in slots} == {1}


def test_cores_are_shared_only_when_there_are_too_few() -> None:
    pairs = share_out("auto", "cpu", 1, 2, ["0"], [0, 1, 2, 3, 4])
    assert [slot.cores for slot in pairs] == [(0, 1), (2, 3)]
    three = share_out(3, "cpu", 1, 1, [], [0, 1])
    assert [slot.cores for slot in three] == [(0,), (1,), (0,)]


def test_gpus_are_filled_one_after_the_other_and_split_the_cores() -> None:
    slots = share_out("auto", "auto", 2, None, ["0", "3"], list(range(8)))
    assert [slot.gpu for slot in slots] == ["0", "3", "0", "3"]
    assert len({slot.name for slot in slots}) == 4
    assert {slot.threads for slot in slots} == {2}
    assert [slot.gpu for slot in share_out(2, "gpu", 2, 3, ["0", "3"], [0, 1, 2])] == ["0", "3"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("many", "auto", 1, None), "slots=many: give a whole number from 1, or auto"),
        ((0, "auto", 1, None), "slots=0"),
        ((True, "auto", 1, None), "slots=True"),
        (("auto", "tpu", 1, None), "device=tpu: give auto, gpu or cpu"),
        (("auto", "auto", 0.5, None), "per_gpu=0.5"),
        (("auto", "auto", 1, 3), "cores=3: there are 2"),
        ((9, "gpu", 4, None), "have room for 4"),
    ],
)
def test_settings_that_make_no_sense_are_a_sentence(
    settings: tuple[object, ...], sentence: str
) -> None:
    with pytest.raises(Mistake, match=sentence.replace("(", r"\(")):
        share_out(*settings, ["0"], [0, 1])  # type: ignore[arg-type]


def test_asking_for_gpus_where_there_are_none_is_a_sentence() -> None:
    with pytest.raises(Mistake, match="PyTorch finds no GPU"):
        share_out("auto", "gpu", 1, None, [], [0])


def test_counting_gpus_leaves_this_process_free_to_fork() -> None:
    assert len(gpus_here()) == torch.cuda.device_count()
    assert not torch.cuda.is_initialized()


# ------------------------------------------------------------------------------------------- queue


class Noted(Watch):
    """Notes how the queue stood."""

    pause = 0.02

    def __init__(self) -> None:
        self.most, self.order, self.seen = 0, [], 0
        self.slots: set[tuple[str, ...]] = set()

    def stands(self, running: Sequence[object], waiting: int) -> None:
        self.most = max(self.most, len(running))
        self.slots.add(tuple(sorted(one.slot.name for one in running)))  # type: ignore[attr-defined]

    def ended(self, one: Ended) -> None:
        self.order.append(one.job.number)


def jobs_of(folder: Path, *works: Callable[[], int]) -> list[Job]:
    return [Job(k, f"seed={k}", folder / str(k), work) for k, work in enumerate(works)]


def fine() -> int:
    print("fine")
    return 0


def refused() -> int:
    print("incrs: seed=x: give a whole number from 0", file=sys.stderr)
    return 2


def broken() -> int:
    raise ValueError("broken here")


def killed() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_a_job_that_fails_stops_no_other_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = jobs_of(tmp_path, fine, refused, broken, killed, fine)
    with Board(5, 0, ["one", "two"]) as board:
        over = run_all(jobs, SLOTS, board)
    assert {one.job.number: one.status for one in over} == {0: 0, 1: 2, 2: 1, 3: -9, 4: 0}
    words = {one.job.number: one.words for one in over}
    assert words[1] == "exit status 2: seed=x: give a whole number from 0"
    assert words[2] == "exit status 1: ValueError: broken here"
    assert words[3] == "killed by SIGKILL"
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "5 jobs; 2 at a time: one, two"
    assert sum(": done in " in line for line in printed) == 2
    assert any(line.startswith("#3 seed=3: failed after") for line in printed)
    assert f"    its log: {tmp_path / '3' / 'log.txt'}" in printed
    assert (tmp_path / "0" / "log.txt").read_text() == "fine\n"


def test_a_job_sees_its_slot_alone(tmp_path: Path) -> None:
    def look() -> int:
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "POLARS_MAX_THREADS")
        found = {name: os.environ[name] for name in names}
        found |= {"cores": cores_here(), "threads": torch.get_num_threads(), "group": os.getpgid(0)}
        print(json.dumps(found | {"pid": os.getpid()}))
        return 0

    run_all(jobs_of(tmp_path, look, look), SLOTS, Watch())
    first, second = (json.loads((tmp_path / k / "log.txt").read_text()) for k in "01")
    assert first["CUDA_VISIBLE_DEVICES"] == ""
    assert second["CUDA_VISIBLE_DEVICES"] == "7"
    assert first["cores"] == ONE
    assert (
        first["threads"] == int(first["OMP_NUM_THREADS"]) == int(first["POLARS_MAX_THREADS"]) == 1
    )
    assert first["group"] == first["pid"] != second["pid"]


def test_no_slot_has_two_jobs_and_none_waits_beside_a_free_slot(tmp_path: Path) -> None:
    def work() -> int:
        time.sleep(0.05)
        return 0

    noted = Noted()
    over = run_all(jobs_of(tmp_path, *[work] * 7), SLOTS, noted)
    assert len(over) == 7
    assert sorted(noted.order) == list(range(7))
    assert noted.most == 2
    assert all(len(set(names)) == len(names) for names in noted.slots)


def test_an_interruption_ends_the_jobs_first_gently_then_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def polite() -> int:
        signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
        print("ready")
        time.sleep(60)
        return 0

    def deaf() -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print("ready")
        time.sleep(60)
        return 0

    class Stopping(Watch):
        pause = 0.01

        def __init__(self) -> None:
            self.pids: list[int] = []

        def stands(self, running: Sequence[object], waiting: int) -> None:
            self.pids = [one.process.pid for one in running]  # type: ignore[attr-defined]
            logs = [tmp_path / k / "log.txt" for k in "01"]
            if all(log.exists() and "ready" in log.read_text() for log in logs):
                raise KeyboardInterrupt

    patience = ((signal.SIGINT, 0.3), (signal.SIGTERM, 0.2), (signal.SIGKILL, 2.0))
    monkeypatch.setattr("incrs.launchers.queue.PATIENCE", patience)
    stopping = Stopping()
    with pytest.raises(KeyboardInterrupt):
        run_all(jobs_of(tmp_path, polite, deaf, fine), SLOTS, stopping)
    assert len(stopping.pids) == 2
    assert all(map(gone, stopping.pids))
    assert not (tmp_path / "2").exists()


def test_jobs_do_not_outlive_a_command_that_is_killed(tmp_path: Path) -> None:
    def sleep() -> int:
        print(os.getpid())
        time.sleep(60)
        return 0

    command = get_context("fork").Process(
        target=run_all, args=(jobs_of(tmp_path, sleep, sleep), SLOTS, Watch())
    )
    command.start()
    logs = [tmp_path / k / "log.txt" for k in "01"]
    deadline = time.monotonic() + 20
    while not all(log.exists() and log.read_text().endswith("\n") for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    jobs = [int(log.read_text()) for log in logs]
    command.kill()
    command.join()
    while not all(map(gone, jobs)):
        assert time.monotonic() < deadline, "a job outlived its command"
        time.sleep(0.01)


def test_a_clock_is_read_as_people_read_it() -> None:
    assert [clock(s) for s in (7.25, 245, 7445)] == ["7.2 s", "4:05", "2:04:05"]


# ---------------------------------------------------------------------------- what is there already


def test_a_folder_holds_its_own_run_or_another() -> None:
    record = {"overrides": ["seed=1", "logger.wandb.api_key=***"], "finished": True}
    mine = ["logger.wandb.api_key=abc", "seed=1"]
    assert not is_finished({}, mine, Path("3"))
    assert is_finished(record, mine, Path("3"))
    assert not is_finished(record | {"finished": False}, mine, Path("3"))
    with pytest.raises(Mistake, match=r"^3 holds .* with seed=1 where this one has seed=2;"):
        is_finished(record, [mine[0], "seed=2"], Path("3"))


def test_a_masked_secret_agrees_with_any_value_of_the_same_key() -> None:
    assert agree("a.token=***", "a.token=xyz")
    for recorded, given in permutations(["a=1", "a=2", "b.token=***", "b.tok=1"], 2):
        assert not agree(recorded, given)


# ---------------------------------------------------------------------------------- whole commands


def test_the_plugin_that_every_hydra_program_imports_is_light() -> None:
    plugin = Path(__file__).parent.parent / "hydra_plugins" / "incrs_gpu_queue.py"
    met = [node for node in ast.parse(plugin.read_text()).body if isinstance(node, ast.ImportFrom)]
    assert {str(node.module).split(".")[0] for node in met} - set(sys.stdlib_module_names) == {
        "hydra",
        "omegaconf",
    }


QUEUE = ["-m", "hydra/launcher=gpu_queue", "hydra.launcher.device=cpu", "hydra.launcher.slots=2"]


def finished_in(folder: Path) -> list[str]:
    records = sorted(folder.glob("*/run.json"), key=lambda one: int(one.parent.name))
    return [one.parent.name for one in records if json.loads(one.read_text())["finished"]]


def jobs_under(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(ready: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 150
    while not ready():
        assert process.poll() is None, "the sweep ended"
        assert time.monotonic() < deadline, "the sweep hangs"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_sweep_survives_a_kill_and_a_bad_option_and_goes_on_where_it_was(tmp_path: Path) -> None:
    rates = "optimizer.lr=-1,0.01"
    sweep = [*QUEUE, *FEW, "updater=finetune", rates, "seed=0,1,2", "hydra.sweep.dir=swept"]
    process = subprocess.Popen(
        command(sweep), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until((tmp_path / "swept" / "3" / "serving").exists, process)
        victim = next(
            pid
            for pid in jobs_under(process.pid)
            if Path(f"/proc/{pid}/fd/1").readlink().parent.name == "3"
        )
        os.kill(victim, signal.SIGKILL)
        printed, errors = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == 1
    assert finished_in(tmp_path / "swept") == ["4", "5"]
    assert "#3 optimizer.lr=0.01 seed=0: failed after" in printed
    assert "killed by SIGKILL" in printed
    assert printed.count("exit status 2: optimizer or trainer: their settings") == 3
    assert "its log: swept/3/log.txt" in printed
    assert "means over 2 seeds" in printed
    assert errors == (
        "incrs: 4 of 6 jobs failed (#0, #1, #2, #3); to run what is missing: the same command\n"
    )
    kept = (tmp_path / "swept" / "4" / "run.json").stat().st_mtime_ns

    again = fresh(tmp_path, *sweep)
    assert again.returncode == 1
    assert "6 jobs, 2 finished before" in again.stdout
    assert "4 of 6" not in again.stderr
    assert "3 of 6 jobs failed (#0, #1, #2)" in again.stderr
    assert finished_in(tmp_path / "swept") == ["3", "4", "5"]
    assert (tmp_path / "swept" / "4" / "run.json").stat().st_mtime_ns == kept

    one = forked(tmp_path, *FEW, "updater=finetune", "optimizer.lr=0.01", "hydra.run.dir=alone")
    assert one.returncode == 0, one.stderr
    for name in ("results.csv", "serving/period=0009.safetensors"):
        ours, theirs = (tmp_path / where / name for where in ("swept/3", "alone"))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_ctrl_c_ends_every_job_and_says_how_to_go_on(tmp_path: Path) -> None:
    slow = ["model=shared_bottom", "updater=finetune", "data.rows_per_period=6000", "batch_size=50"]
    process = subprocess.Popen(
        command([*QUEUE, *slow, "seed=0,1,2", "hydra.sweep.dir=swept"]),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    logs = [tmp_path / "swept" / k / "log.txt" for k in "01"]
    wait_until(lambda: all(log.exists() and "seed" in log.read_text() for log in logs), process)
    jobs = jobs_under(process.pid)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert len(jobs) == 2
    assert all(map(gone, jobs))
    assert "to go on with the sweep: the same command" in printed
    assert not errors
    assert not (tmp_path / "swept" / "2").exists()
    assert all("resume=" in log.read_text() for log in logs)


ELSEWHERE = {
    "submitit_local": ("submitit", []),
    "ray": ("ray", ["+hydra.launcher.ray.init.num_cpus=2"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ELSEWHERE)
def test_four_jobs_run_under_a_launcher_of_others(launcher: str, tmp_path: Path) -> None:
    library, settings = ELSEWHERE[launcher]
    pytest.importorskip(f"hydra_plugins.hydra_{library}_launcher")
    sweep = ["-m", f"hydra/launcher={launcher}", *settings, *FEW, "hydra.sweep.dir=swept"]
    done = forked(tmp_path, *sweep, "updater=finetune,frozen", "seed=0,-1")
    assert done.returncode == 2  # two are refused, and stop none
    assert "incrs: seed=-1: give a whole number from 0" in done.stderr
    assert "Traceback" not in done.stderr
    assert "UserWarning" not in done.stderr
    assert finished_in(tmp_path / "swept") == ["0", "2"]
