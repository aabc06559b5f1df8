"""What is told to who watches from outside, and the stop that comes from there."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_jobs import status
from ray_jobs.progress import MIN_RATE_SECONDS
from ray_jobs.status import Status
from ray_jobs.train import Told, _watch

STEP = {"kind": "step", "step": 20, "loss": 5.5, "tokens_per_second": 3000.0}

DRIVER = """
import signal, sys, time
from ray_jobs.status import announced
def end(*_): time.sleep(0.5); sys.exit(3)
with announced():
    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_the_file_tells_stage_steps_and_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    watched = Status(path)
    watched.begin("collect")
    assert json.loads(path.read_text())["step"] is None
    watched.begin("train")
    watched.observe(STEP, 700)
    time.sleep(MIN_RATE_SECONDS)
    watched.observe({**STEP, "step": 40}, 700)
    watched.observe({"kind": "checkpoint", "step": 30, "seconds": 1.0}, 700)
    told = json.loads(path.read_text())
    assert (told["stage"], told["step"], told["max_steps"], told["checkpoint_step"]) == ("train", 40, 700, 30)
    assert told["loss"] == 5.5
    assert told["seconds_left"] > 0
    assert told["updated_at"].endswith("Z")
    watched.begin("evaluate")
    told = json.loads(path.read_text())
    assert (told["stage"], told["step"], told["loss"], told["seconds_left"]) == ("evaluate", 40, 5.5, None)


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    Status(tmp_path / "gone" / "status.json").begin("collect")


def test_nobody_watches_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Status(None).begin("collect")
    assert not list(tmp_path.iterdir())


def test_who_stops_the_driver_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(status.VARIABLE, str(tmp_path / "status.json"))
    with subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"ready\n"
        began = time.monotonic()
        assert status.stop_driver(tmp_path / "driver.pid")
        assert time.monotonic() - began >= 0.5  # its last half second was waited for
        assert driver.wait(5) == 3
    assert not (tmp_path / "driver.pid").exists()


def test_without_a_driver_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    assert not status.stop_driver(tmp_path / "driver.pid")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "driver.pid").write_text(str(gone.pid))
    assert not status.stop_driver(tmp_path / "driver.pid")


def test_the_failure_of_a_worker_is_told_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    event = {"kind": "failed", "rank": 2, "message": "ManifestError: cannot cache rows in /cache"}
    with caplog.at_level(logging.WARNING, "ray_jobs"):
        _watch(event, told, lambda *_: None)
    assert "rank 2 failed: ManifestError: cannot cache rows in /cache" in caplog.text
    assert "cannot cache rows" in told.failure
