"""Waiting for a condition: never without a deadline, never with a bare sleep for luck.

`wait_for` returns the object or raises, with the last status in the message. An API server that does not answer for a
while (its node is drained, a laptop sleeps) is no reason to give up before the deadline; a refusal is, at once.
"""

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from k8s.errors import Unavailable, WaitTimeout

T = TypeVar("T")

POLL_SECONDS = 2.0


class Clock(Protocol):
    """Where time comes from; tests have one that does not pass by itself."""

    def now(self) -> float:
        """Seconds since any fixed moment; never goes back."""

    def wall(self) -> float:
        """Seconds since 1970, as this machine believes."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""


class SystemClock:
    """The clock of the machine."""

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def wait_for(
    read: Callable[[], T],
    done: Callable[[T], bool],
    deadline_seconds: float | None,
    describe: Callable[[T | None], str],
    clock: Clock,
    poll_seconds: float = POLL_SECONDS,
) -> T:
    """Read until it is done, and return what was read last.

    `describe` says what was waited for and what was seen last (None: nothing was ever read). With `deadline_seconds`
    None only what is waited for can end the wait; for things that have a deadline of their own.
    Raises WaitTimeout, and whatever `read` raises but Unavailable.
    """
    ends = None if deadline_seconds is None else clock.now() + deadline_seconds
    seen: T | None = None
    trouble: Unavailable | None = None
    while True:
        try:
            seen, trouble = read(), None
            if done(seen):
                return seen
        except Unavailable as error:
            trouble = error
        if ends is not None and clock.now() >= ends:
            text = f"{describe(seen)} (waited {deadline_seconds:.0f} s)"
            raise WaitTimeout(f"{text}; last: {trouble}" if trouble else text) from trouble
        clock.sleep(poll_seconds)
