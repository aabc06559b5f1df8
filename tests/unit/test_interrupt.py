"""Signals end a stage in order, wherever they meet it."""

import contextlib
import os
import signal

import pytest

from codeparrot.errors import Interrupted
from ray_jobs import interrupt
from ray_jobs.interrupt import interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_interrupted_and_names_itself(number: signal.Signals) -> None:
    with pytest.raises(Interrupted, match=f"stopped by {number.name}; the same command continues"), interruptible():
        os.kill(os.getpid(), number)


def test_a_signal_whose_exception_a_library_swallows_is_raised_at_the_next_occasion() -> None:
    def swallow_and_go_on() -> None:
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        interrupt.check()

    with pytest.raises(Interrupted), interruptible():
        swallow_and_go_on()


def test_other_ends_stay_what_they_are() -> None:
    with pytest.raises(SystemExit), interruptible():
        raise SystemExit(1)
    with pytest.raises(KeyError), interruptible():
        raise KeyError
