"""Ctrl-C and termination: the write in progress is finished first, then the run stops."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = {signal.SIGINT, signal.SIGTERM}
"""What asks a command to stop."""


class Interrupted(BaseException):
    """A signal asked the run to stop.  `number`: the signal's."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


_held = 0
_waiting: int | None = None


def _stop(number: int, _: FrameType | None) -> None:
    global _waiting
    if _held:
        _waiting = number
    else:
        raise Interrupted(number)


def listen() -> None:
    """Turn SIGINT and SIGTERM into Interrupted from now on; main thread only."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    sys.unraisablehook = _again


def _again(lost: sys.UnraisableHookArgs) -> None:
    """Send a signal once more that came where Python lets no exception out, as in a `__del__`."""
    if isinstance(lost.exc_value, Interrupted):
        arguments = (os.getpid(), lost.exc_value.number)
        threading.Timer(0.05, os.kill, arguments).start()  # by then Python is out of there
    else:
        sys.__unraisablehook__(lost)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let what is inside finish before a signal stops the run."""
    global _held, _waiting
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if not _held and _waiting is not None:
            number, _waiting = _waiting, None
            raise Interrupted(number)


@contextmanager
def unheard() -> Iterator[None]:
    """Let signals wait while a process is started, which begins deaf: one started is one known of."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def silence() -> None:
    """Let a signal end the process at once from now on: nothing is left to finish."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
