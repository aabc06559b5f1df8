"""What a person sees while a stage runs."""

import logging
import time

import pytest

from ray_jobs.progress import Rate, duration, progress, size


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (61, "1:01 min"), (3599.4, "59:59 min"), (3661, "1:01 h")]
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (40e6, "40.0 MB"), (3e12, "3.0 TB")]
)
def test_sizes_are_for_people(num_bytes: float, text: str) -> None:
    assert size(num_bytes) == text


def test_what_was_done_before_does_not_count_for_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 102.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    rate = Rate()
    assert rate.update(50) is None
    assert rate.update(54) == 2.0


def test_a_burst_of_reports_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.001, 105.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    rate = Rate()
    assert [rate.update(10), rate.update(20), rate.update(30)] == [None, None, 4.0]


def test_plain_lines_have_rate_and_time_left_and_no_control_characters(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO), progress("train", 100, "steps") as advance:
        for step in range(0, 50, 10):
            now[0] += 6
            advance(step, "loss 5.0")
    assert caplog.messages == [
        "train            10/100 steps  1.67 steps/s  54.0 s left  loss 5.0",
        "train            30/100 steps  1.67 steps/s  42.0 s left  loss 5.0",
    ]
