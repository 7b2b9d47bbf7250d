"""The pictures of finished runs, drawn at once or, in a sweep, beside the run that comes next."""

from __future__ import annotations

import atexit
import signal
import warnings
from contextlib import suppress
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from incrs import findings, results, show
from incrs.errors import Mistake
from incrs.folder import RunFolder
from incrs.kept import Kept
from incrs.signals import SIGNALS, unheard


def draw(folder: Path) -> None:
    """Draw what a run's results.csv and findings.csv hold, into its folder."""
    show.draw_curves(results.read(folder / results.FILE), folder / "curves.png")
    findings.draw(folder)


def finish(folder: RunFolder, kept: Kept | None) -> None:
    """Draw a run's pictures; then it is finished, and others may take it."""
    draw(folder.path)
    folder.write_record(folder.record | {"finished": True})
    if kept:
        kept.keep()


class Beside:
    """Finishes runs in a process of its own, forked before anything is computed."""

    def __init__(self) -> None:
        context = get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._open = 0  # runs that it has not answered for
        process = context.Process(target=_serve, args=(theirs, self._pipe), daemon=True)
        with unheard(), warnings.catch_warnings():
            # Of threads, which an import may have left asleep.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()
        self._process = process
        atexit.register(self._close)

    def finish(self, folder: RunFolder, kept: Kept | None) -> None:
        """Have a run finished; raise Mistake where one before it could not be."""
        self.settle(wait=False)
        with suppress(BrokenPipeError):  # it has ended, which `settle` finds
            self._pipe.send((folder, kept))
        self._open += 1

    def settle(self, wait: bool = True) -> None:
        """Hear what became of runs.  wait: until all are finished.

        Raises Mistake where one could not be.
        """
        while self._open and (wait or self._pipe.poll()):
            try:
                said = self._pipe.recv()
            except EOFError:
                raise RuntimeError("the process that draws pictures has ended") from None
            self._open -= 1
            if said:
                raise Mistake(said)

    def _close(self) -> None:
        with suppress(Mistake, RuntimeError, OSError):
            self.settle()
        self._pipe.close()
        self._process.join()


@cache
def beside() -> Beside:
    """Return the one process of this command that finishes runs."""
    return Beside()


def settle() -> None:
    """Wait for what is being drawn, if anything is; see `Beside.settle`."""
    if beside.cache_info().currsize:
        beside().settle()


def _serve(asked: Connection, others: Connection) -> None:
    """Be the process: finish what is asked for until nobody is there to ask."""
    others.close()
    # A terminal's Ctrl-C reaches all of a command's processes: this one is told by the pipe's end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    with suppress(EOFError, BrokenPipeError):
        while True:
            folder, kept = asked.recv()
            said = ""
            try:
                with folder.written():
                    finish(folder, kept)
            except Mistake as mistake:
                said = str(mistake)
            asked.send(said)
