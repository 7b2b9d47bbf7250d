"""Commands that run as `python -m incrs.train` does, but forked from a process that has done their imports.

To import takes a command most of its time, and so it does processes that train together. What starts
processes itself, or is told apart by how Python was started, is run by `subprocess` instead, as whatever
is sent signals.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import selectors
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from runpy import run_module
from typing import NamedTuple

from torch.multiprocessing import start_processes

ROOT = Path(__file__).parent.parent


def command(arguments: Sequence[str], module: str = "incrs.train") -> list[str]:
    """Return the command line of `python -m incrs.train`."""
    return [sys.executable, "-m", module, *arguments]


def fresh(
    folder: Path, *arguments: str, module: str = "incrs.train"
) -> subprocess.CompletedProcess:
    """Run `python -m incrs.train` in a folder, as a process of its own."""
    return subprocess.run(
        command(arguments, module), cwd=folder, capture_output=True, text=True, timeout=200
    )


def run_folders(folder: Path) -> list[Path]:
    """Return the folders of the runs below a folder's `multirun`."""
    return sorted(file.parent for file in folder.glob("multirun/**/run.json"))


class Done(NamedTuple):
    """How a command ended, what it wrote to standard error, and to standard output."""

    returncode: int
    stderr: str
    stdout: str


def at_once(work: Callable[..., None], folder: Path, processes: int) -> None:
    """Run work(rank, folder) in so many processes at once; raise what one of them raises."""
    get_context("forkserver").set_forkserver_preload(["incrs.train"])
    start_processes(work, (str(folder),), processes, start_method="forkserver")


@cache
def server() -> subprocess.Popen:
    """Start the process that the commands are forked from."""
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.commands"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(started.communicate, timeout=20)
    return started


def forked(desk: Path, *arguments: str, door: str = "train", limit: int | None = None) -> Done:
    """Run `python -m incrs.<door>` in the folder `desk`.  limit: bytes that a file may have."""
    running = server()
    assert running.stdin and running.stdout
    order = [str(desk), dict(os.environ), door, arguments, limit]
    print(json.dumps(order), file=running.stdin, flush=True)
    done = Done(*json.loads(running.stdout.readline()))
    assert "Traceback" not in done.stderr
    return done


def serve() -> None:
    """Fork a process for each line of standard input, and answer with how it ended."""
    from incrs import prepare, train
    from incrs.data.log import LogSource
    from incrs.door import enter

    assert LogSource
    doors = {"train": (train.main, train.sum_up), "prepare": (prepare.prepare,)}
    for line in sys.stdin:
        desk, environment, door, arguments, limit = json.loads(line)
        pipes = [os.pipe(), os.pipe()]  # no files: those may be limited
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.chdir(desk)
                os.environ.clear()
                os.environ.update(environment)
                for number, (_, end) in zip((1, 2), pipes, strict=True):
                    os.dup2(end, number)
                if limit is not None:
                    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
                sys.argv = [f"incrs.{door}", *arguments]
                if door in doors:
                    enter(*doors[door])
                else:
                    run_module(f"incrs.{door}", run_name="__main__")
                status = 0
            except SystemExit as ended:
                status = int(ended.code or 0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        for _, end in pipes:
            os.close(end)
        stdout, stderr = told([beginning for beginning, _ in pipes])
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps([status, stderr, stdout]), flush=True)


def told(pipes: list[int]) -> list[str]:
    """Return what comes out of each pipe until its other end is closed."""
    found = dict.fromkeys(pipes, b"")
    with selectors.DefaultSelector() as ready:
        for pipe in pipes:
            ready.register(pipe, selectors.EVENT_READ)
        while ready.get_map():
            for key, _ in ready.select():
                words = os.read(key.fd, 1 << 16)
                found[key.fd] += words
                if not words:
                    ready.unregister(key.fd)
                    os.close(key.fd)
    return [words.decode() for words in found.values()]


if __name__ == "__main__":
    serve()
