"""The pictures of finished runs, drawn at once or, in a sweep, beside the run that comes next."""

from __future__ import annotations

import atexit
import signal
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from incrs import findings, results, show
from incrs.errors import Mistake, is_full
from incrs.signals import SIGNALS, unheard


def draw(folder: Path) -> None:
    """Draw what a run's results.csv and findings.csv hold, into its folder."""
    show.draw_curves(results.read(folder / results.FILE), folder / "curves.png")
    findings.draw(folder)


class Beside:
    """Draws in a process of its own, forked before anything is computed; what remains is drawn at exit."""

    def __init__(self) -> None:
        context = get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._then: deque[tuple[Path, Callable[[], None]]] = deque()
        process = context.Process(target=_draw_all, args=(theirs, self._pipe), daemon=True)
        with unheard(), warnings.catch_warnings():
            # Of threads, which an import may have left asleep.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()
        self._process = process
        atexit.register(self._close)

    def draw(self, folder: Path, then: Callable[[], None]) -> None:
        """Have a run's pictures drawn, and `then` called in this process at the next call after that."""
        self._then.append((folder, then))
        with suppress(BrokenPipeError):  # it has ended, which `settle` finds
            self._pipe.send(folder)
        self.settle(wait=False)

    def settle(self, wait: bool = True) -> None:
        """Call what waits for pictures that are drawn.  wait: until all are.

        Raises Mistake where one could not be drawn.
        """
        while self._then and (wait or self._pipe.poll()):
            try:
                said = self._pipe.recv()
            except EOFError:
                raise RuntimeError("the process that draws pictures has ended") from None
            folder, then = self._then.popleft()
            if said:
                raise Mistake(f"{folder}: its pictures cannot be drawn: {said}")
            then()

    def _close(self) -> None:
        with suppress(Mistake, RuntimeError, OSError):
            self.settle()
        self._pipe.close()
        self._process.join()


@cache
def beside() -> Beside:
    """Return the one process of this command that draws."""
    return Beside()


def settle() -> None:
    """Wait for what is being drawn, if anything is; see `Beside.settle`."""
    if beside.cache_info().currsize:
        beside().settle()


def _draw_all(asked: Connection, others: Connection) -> None:
    """Be the process: draw what is asked for until nobody is there to ask."""
    others.close()
    # A terminal's Ctrl-C reaches all of a command's processes: this one is told by the pipe's end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    with suppress(EOFError, BrokenPipeError):
        while True:
            folder = asked.recv()
            said = ""
            try:
                draw(folder)
            except OSError as error:
                if folder.exists() and not is_full(error):
                    raise
                said = " ".join(str(error).split())
            asked.send(said)
