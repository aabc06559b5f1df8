import contextlib

import pytest

from codeparrot.stopwatch import Stopwatch


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    return clock


def test_it_tells_steps_and_seconds_since_the_last_reading(clock: Clock) -> None:
    watch = Stopwatch(began=clock.now)
    clock.now += 4
    assert watch.read(3)[:2] == (3, 4)
    clock.now += 2
    assert watch.read(10)[:2] == (7, 2)


def test_waits_add_up_by_reason(clock: Clock) -> None:
    watch = Stopwatch(began=clock.now)
    for reason, length in (("data", 1), ("checkpoint", 2), ("data", 4)):
        with watch.waiting(reason):
            clock.now += length
    steps, seconds, waits = watch.read(1)
    assert (steps, seconds) == (1, 7)
    assert (waits["data"], waits["checkpoint"], waits["never"]) == (5, 2, 0)


def test_a_reading_forgets_the_waits_before_it(clock: Clock) -> None:
    watch = Stopwatch(began=clock.now)
    with watch.waiting("data"):
        clock.now += 1
    first, second = watch.read(1)[2], watch.read(2)[2]
    assert (first["data"], second["data"]) == (1, 0)


def test_a_pause_is_no_training_time(clock: Clock) -> None:
    watch = Stopwatch(began=clock.now)
    clock.now += 3
    with watch.waiting("pause"):
        clock.now += 100
    assert watch.read(1)[:2] == (1, 3)


def test_a_speed_can_be_computed_even_if_no_time_has_passed(clock: Clock) -> None:
    watch = Stopwatch(began=clock.now)
    assert watch.read(1)[1] > 0
    with watch.waiting("pause"):
        clock.now += 1
    assert watch.read(2)[1] > 0


def test_a_wait_that_ends_in_an_error_counts(clock: Clock) -> None:
    watch = Stopwatch(began=clock.now)
    with contextlib.suppress(KeyError), watch.waiting("data"):
        clock.now += 2
        raise KeyError
    assert watch.read(1)[2]["data"] == 2


def test_a_restart_forgets_everything(clock: Clock) -> None:
    watch = Stopwatch(began=clock.now)
    with watch.waiting("data"):
        clock.now += 5
    watch.restart(40)
    clock.now += 1
    steps, seconds, waits = watch.read(42)
    assert (steps, seconds, waits["data"]) == (2, 1, 0)
