"""One job per slot until none waits: each in a process of its own, whose end concerns no other.

A process is forked from the command's, which has done the imports and computed nothing: a job begins at
once. It speaks to `log.txt` in its folder.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from incrs.launchers.slots import Slot, confine
from incrs.signals import SIGNALS, unheard

LOG = "log.txt"
"""The file in a job's folder that holds what it printed."""
PATIENCE = ((signal.SIGINT, 60.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
"""What a job is asked to end with, and the seconds it gets until the next."""


class Job(NamedTuple):
    """One job of a sweep.

    number: its place in the sweep.  name: what tells it from the others.  folder: where it writes.
    work: does it and returns the exit status; called in the job's own process.
    """

    number: int
    name: str
    folder: Path
    work: Callable[[], int]


class Running(NamedTuple):
    """A job that has a slot.  since: by the monotonic clock."""

    job: Job
    slot: Slot
    process: BaseProcess
    since: float


class Ended(NamedTuple):
    """A job that is over.  status: its exit status, or minus the number of the signal that killed it."""

    job: Job
    status: int
    seconds: float

    @property
    def words(self) -> str:
        """What is to be said of a job that failed: the last line it printed, or what killed it."""
        if self.status < 0:
            return f"killed by {signal.Signals(-self.status).name}"
        log = self.job.folder / LOG
        lines = log.read_text(errors="replace").split("\n") if log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"exit status {self.status}: {last.removeprefix('incrs: ')}"


class Watch:
    """Is told how the queue stands; every default does nothing.  `pause`: seconds between two `stands`."""

    pause: float | None = None

    def stands(self, running: Sequence[Running], waiting: int) -> None:
        """So many jobs run and so many wait."""

    def ended(self, one: Ended) -> None:
        """A job is over."""


def run_all(jobs: Sequence[Job], slots: Sequence[Slot], watch: Watch) -> list[Ended]:
    """Run every job, at most one in a slot at a time, and return how each ended, in that order.

    Whatever raises here, as a signal does, ends the jobs that run before it goes on.
    """
    waiting, free = deque(jobs), list(slots)
    running: list[Running] = []
    over: list[Ended] = []
    try:
        while waiting or running:
            while waiting and free:
                with unheard():
                    running.append(_start(waiting.popleft(), free.pop(0)))
            watch.stands(running, len(waiting))
            ready = wait([one.process.sentinel for one in running], watch.pause)
            for one in [one for one in running if one.process.sentinel in ready]:
                one.process.join()
                running.remove(one)
                free.append(one.slot)
                status = one.process.exitcode
                over.append(
                    Ended(one.job, 1 if status is None else status, time.monotonic() - one.since)
                )
                watch.ended(over[-1])
    finally:
        _end([one.process for one in running])
    return over


def _start(job: Job, slot: Slot) -> Running:
    process = get_context("fork").Process(target=_live, args=(job, slot, os.getpid()))
    with warnings.catch_warnings():  # of threads, which a library's import may have left asleep
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return Running(job, slot, process, time.monotonic())


def _live(job: Job, slot: Slot, parent: int) -> None:
    """Be the job's process: a group of its own, which the terminal's Ctrl-C does not reach."""
    os.setpgid(0, 0)
    _end_with(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    confine(slot)
    job.folder.mkdir(parents=True, exist_ok=True)
    goes_on = (job.folder / "run.json").exists()
    with (job.folder / LOG).open("a" if goes_on else "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115
    sys.exit(job.work())


def _end_with(parent: int) -> None:
    """Have the system end this process when its parent ends, be it by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            sys.exit(128 + signal.SIGTERM)


def _end(processes: Sequence[BaseProcess]) -> None:
    """End processes, gently first; another signal meanwhile ends them at once."""
    alive = list(processes)
    try:
        for number, seconds in PATIENCE:
            _send(alive, number)
            deadline = time.monotonic() + seconds
            while alive and (left := deadline - time.monotonic()) > 0:
                wait([one.sentinel for one in alive], left)
                alive = [one for one in alive if one.is_alive()]
    finally:
        _send(alive, signal.SIGKILL)


def _send(processes: Sequence[BaseProcess], number: int) -> None:
    for one in processes:
        assert one.pid is not None
        with suppress(ProcessLookupError, PermissionError):
            try:
                os.killpg(one.pid, number)
            except ProcessLookupError:  # the group is the process's own doing, soon after its start
                os.kill(one.pid, number)
