"""SIGINT and SIGTERM: the stage ends in order, with exit code 3, and the same command continues.

The signal raises KeyboardInterrupt where the main thread is, which no `except Exception` of a library can swallow.
Where one is lost all the same (in a destructor or a callback), `check` raises it at the next occasion.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from codeparrot.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_received: list[str] = []


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first signal into Interrupted at the end of this block; further ones are ignored meanwhile."""

    def interrupt(number: int, _: FrameType | None) -> None:
        for ignored in SIGNALS:
            signal.signal(ignored, signal.SIG_IGN)
        _received.append(signal.Signals(number).name)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # whoever started this process may have held them back
        yield
    except BaseException:
        if _received:  # whatever came out: the signal is what began it
            raise Interrupted(_message()) from None
        raise
    finally:
        _received.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """A block that Ray is connected in, after which the handlers of signals are what they were.

    Ray's Python handler would raise SystemExit wherever the main thread is; in a destructor or a callback that is
    printed and lost, and the run goes on, whereas ours remembers the signal. Ray's C++ handler calls the Python one,
    but first sets an alarm that aborts the process three seconds later.
    """
    from ray._private import utils

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    install = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = install
        for number in SIGNALS:
            signal.signal(number, signal.getsignal(number) or signal.SIG_DFL)
        signal.alarm(0)


def check() -> None:
    """Raise Interrupted if a signal came whose exception was lost."""
    if _received:
        raise Interrupted(_message())


def _message() -> str:
    return f"stopped by {_received[0]}; the same command continues where it was"
