"""Waiting ends: with the object, or with what was seen last."""

import pytest

from k8s.errors import Forbidden, Unavailable, WaitTimeout
from k8s.waiting import wait_for
from tests.unit.k8s_doubles import FakeClock


def describe(seen: int | None) -> str:
    return f"expected 3, seen {seen}"


def test_waiting_returns_what_was_read_last() -> None:
    values = iter([1, 2, 3, 4])
    clock = FakeClock()
    assert wait_for(lambda: next(values), lambda seen: seen == 3, 60, describe, clock, 5) == 3
    assert clock.now() == 10


def test_a_deadline_ends_it_with_the_last_status() -> None:
    clock = FakeClock()
    with pytest.raises(WaitTimeout, match=r"expected 3, seen 1 \(waited 60 s\)"):
        wait_for(lambda: 1, lambda seen: seen == 3, 60, describe, clock, 7)
    assert 60 <= clock.now() <= 67


def test_a_server_that_is_away_is_waited_for() -> None:
    clock = FakeClock()
    answers: list[int | Exception] = [Unavailable("away"), 1, Unavailable("away"), 3]

    def read() -> int:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    assert wait_for(read, lambda seen: seen == 3, 60, describe, clock) == 3


def test_a_server_that_stays_away_is_the_reason_of_the_timeout() -> None:
    def read() -> int:
        raise Unavailable("no answer from 127.0.0.1")

    with pytest.raises(WaitTimeout, match=r"seen None.*no answer from 127\.0\.0\.1") as caught:
        wait_for(read, lambda seen: seen == 3, 10, describe, FakeClock())
    assert isinstance(caught.value.__cause__, Unavailable)


def test_a_refusal_is_not_waited_out() -> None:
    def read() -> int:
        raise Forbidden("no")

    clock = FakeClock()
    with pytest.raises(Forbidden):
        wait_for(read, lambda seen: seen == 3, 10, describe, clock)
    assert clock.now() == 0


def test_a_last_look_is_taken_at_the_deadline() -> None:
    clock = FakeClock()
    assert wait_for(clock.now, lambda seen: seen >= 10, 10, lambda seen: f"{seen}", clock, 10) == 10
