"""`make run` and `make clean` as a person at a terminal meets them: signals, a full disk, a live progress line."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from codeparrot import local_store
from tests.integration.conftest import BEFORE_TRAINING, ROOT, Machine, wait_until

FAILED, INTERRUPTED = 1, 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_store_starts_is_an_interruption(machine: Machine, number: signal.Signals) -> None:
    process = machine.start("collect")
    wait_until((machine.state / "store" / "server.json").exists, "the store to start")
    os.kill(process.popen.pid, number)
    assert process.wait() == INTERRUPTED, process.output
    assert re.search(rf"interrupted: .*{number.name}.* continues", process.lines[-1])
    wait_until(lambda: not machine.left_behind(), "all processes to end")


def test_clean_stops_a_run_and_removes_what_it_made(machine: Machine) -> None:
    process = machine.start("collect")
    process.wait_for("collect", "starting")
    pid = process.popen.pid
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs.clean"],
        cwd=ROOT,
        env={
            **os.environ,
            "CODEPARROT_STATE": str(machine.state),
            "CODEPARROT_CACHE": str(machine.folder / "cache"),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"stopping the run of process {pid}" in done.stdout
    assert process.wait() == INTERRUPTED
    assert not machine.state.exists()
    assert not machine.left_behind()


def test_clean_stops_a_store_that_was_left_running(machine: Machine) -> None:
    with local_store.running(machine.state / "store", "codeparrot"):
        environment = {**os.environ, "CODEPARROT_STATE": str(machine.state)}
        command = [sys.executable, "-m", "ray_jobs.clean"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "stopped the embedded object store" in done.stdout
    assert not machine.state.exists()


@pytest.fixture
def small_disk(machine: Machine) -> Iterator[Path]:
    """A file that fills the disk of the machine's state folder but for some 300 kB."""
    machine.state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(machine.state)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield machine.state / "filler"
    finally:
        subprocess.run(["umount", "--lazy", str(machine.state)], check=True)


@pytest.mark.faults
def test_a_full_disk_under_the_store_is_named_and_nothing_is_lost(machine: Machine, small_disk: Path) -> None:
    machine.run("collect", "--set", "collect.max_bytes=200_000")
    free = os.statvfs(machine.state).f_bavail * os.statvfs(machine.state).f_bsize
    small_disk.write_bytes(bytes(free - 300_000))
    process = machine.start("collect")
    assert process.wait() == FAILED
    errors = [line for line in process.lines if line.startswith("error:")]
    assert re.search(rf"the disk of {machine.state} is full \(.* left\); free some and run again", errors[-1])
    assert "Traceback" not in process.output
    small_disk.unlink()
    assert "up to date" in machine.run("collect", "--set", "collect.max_bytes=200_000").output, "the old output is lost"
    assert "done" in machine.run("collect").output


def test_on_a_terminal_progress_is_one_live_line_with_rate_and_time_left(machine: Machine) -> None:
    machine.values["train"] |= {"num_workers": 1, "max_steps": 400, "checkpoint": {"every_steps": 400}}
    machine.run_at_once(*BEFORE_TRAINING)
    text = on_a_terminal(machine, "train")
    frames = [line for line in re.split(r"[\r\n]", text) if "steps/s" in line]
    assert frames, text
    assert re.search(r"train +\S* ?.*\d+/400 steps  [\d.]+ steps/s  [\d.:]+ \w+ left  loss [\d.]+", plain(frames[-1]))
    assert "\x1b[1A" in text or "\x1b[2K" in text  # the line is drawn anew in place


def on_a_terminal(machine: Machine, stage: str) -> str:
    """What the stage writes to a terminal of 160 columns."""
    primary, secondary = pty.openpty()
    environment = {**os.environ, "CODEPARROT_STATE": str(machine.state), "COLUMNS": "160", "TERM": "xterm"}
    command = [sys.executable, "-m", "ray_jobs.local", stage, "--config", str(machine.write_recipe())]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=secondary, stdout=secondary, stderr=secondary, start_new_session=True
    )
    os.close(secondary)
    chunks = []
    while True:
        try:
            chunk = os.read(primary, 65_536)
        except OSError:  # the other side is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(primary)
    text = b"".join(chunks).decode("utf-8", "replace")
    assert process.wait() == 0, text
    return text


def plain(line: str) -> str:
    """Without control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)
