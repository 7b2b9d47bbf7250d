"""A signal lets the write in progress finish, then stops the run."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator

import pytest

from incrs.signals import Interrupted, listen, uninterrupted


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    hook = sys.unraisablehook
    listen()
    yield
    sys.unraisablehook = hook
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_once(number: int) -> None:
    with pytest.raises(Interrupted) as stopped:
        signal.raise_signal(number)
    assert stopped.value.number == number


def test_a_signal_in_a_write_waits_for_its_end() -> None:
    done = []

    def write() -> None:
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                done.append("inner")
            done.append("outer")

    with pytest.raises(Interrupted):
        write()
    assert done == ["inner", "outer"]


def test_a_signal_that_meets_the_end_of_an_object_is_not_lost() -> None:
    class Ending:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def end_one() -> None:
        one = Ending()
        del one
        time.sleep(5)

    with pytest.raises(Interrupted):
        end_one()


def test_an_error_in_a_write_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="broken"), uninterrupted():
        raise ValueError("broken")
