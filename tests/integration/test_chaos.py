"""Training that survives anything: the same small run, disturbed, ends with the weights of an undisturbed one.

Everything is real: Ray, Ray Train's workers, the S3 server, the signals. Each test gets a copy of a store that holds
the packed rows, so only training runs. `make chaos` repeats the first test with fifty kills.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codeparrot.manifest import load_manifest
from codeparrot.storage import sha256_hex
from tests.integration.conftest import Machine, micro_recipe

SUCCESS, FAILED, INTERRUPTED = 0, 1, 3
NUM_STEPS = 60
NUM_KILLS = int(os.environ.get("CODEPARROT_NUM_KILLS", "10"))
NEVER = 100_000_000


def chaos_recipe() -> dict[str, Any]:
    """Two workers, steps of about a tenth of a second, a checkpoint every fifth."""
    recipe = micro_recipe()
    recipe["pack"]["max_seq_len"] = 128
    recipe["model"] = {"n_layer": 2, "n_head": 4, "n_embd": 128, "dropout": 0.1}
    recipe["train"] |= {
        "num_workers": 2,
        "max_steps": NUM_STEPS,
        "eval_every_steps": 20,
        "checkpoint": {"every_steps": 5},
        "max_failures": NUM_KILLS,
    }
    return recipe


@dataclass(frozen=True)
class Trained:
    """What a run has learned, and from what."""

    weights: str
    """SHA-256 of the exported model."""
    rows: list[tuple[int, str]]
    """(step, hash chain over the row numbers of all steps up to it) of every step."""
    losses: list[float]


def result(machine: Machine) -> Trained:
    """The export and the record of the machine's run."""
    with machine.storage() as storage:
        run = load_manifest(storage, "runs/micro")
        assert run is not None
        events = [json.loads(line) for line in run.read(storage, "metrics.jsonl").splitlines()]
        steps = [event for event in events if event["kind"] == "step"]
        return Trained(
            weights=sha256_hex(run.read(storage, "export/model.safetensors")),
            rows=[(event["step"], event["rows_digest"]) for event in steps],
            losses=[event["loss"] for event in steps],
        )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a machine on which everything up to training is done."""
    machine = Machine(tmp_path_factory.mktemp("packed"), chaos_recipe())
    for stage in ("collect", "curate", "train_tokenizer", "pack"):
        machine.run(stage)
    return machine.state / "store"


def ready(folder: Path, packed: Path) -> Machine:
    """A machine that has only to train."""
    machine = Machine(folder, chaos_recipe())
    shutil.copytree(packed, machine.state / "store", ignore=shutil.ignore_patterns("ports.json", "m[0-9]*"))
    return machine


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> Trained:
    """The run without any disturbance."""
    machine = ready(tmp_path_factory.mktemp("undisturbed"), packed)
    machine.run("train")
    trained = result(machine)
    assert [step for step, _ in trained.rows] == list(range(1, NUM_STEPS + 1))
    return trained


@pytest.fixture
def trainee(machine: Machine, packed: Path) -> Machine:
    """A machine that has only to train, and whose processes are ended after the test."""
    return ready(machine.folder / "trainee", packed)


@pytest.fixture(autouse=True)
def _end_all(trainee: Machine) -> Iterator[None]:
    yield
    for pid in trainee.left_behind():
        os.kill(pid, signal.SIGKILL)


def store_pid(machine: Machine) -> int:
    return int(json.loads((machine.state / "store" / "server.json").read_bytes())["pid"])


def test_workers_killed_at_random_moments_uploads_included(trainee: Machine, undisturbed: Trained) -> None:
    chance = random.Random(NUM_KILLS)
    process = trainee.start("train")
    seen = 0
    for number in range(NUM_KILLS):
        seen = process.wait_for("training from step", after=seen)
        in_upload = number % 3 == 2
        if in_upload:  # the store stops answering, so the next checkpoint is under way for as long as that
            time.sleep(0.3)
            os.kill(store_pid(trainee), signal.SIGSTOP)
        time.sleep(chance.uniform(0.2, 1.2))
        assert process.popen.poll() is None, process.output
        os.kill(chance.choice(trainee.workers()), signal.SIGKILL)
        if in_upload:
            os.kill(store_pid(trainee), signal.SIGCONT)
    assert process.wait() == SUCCESS, process.output
    assert process.output.count("the worker group was restarted") == NUM_KILLS
    assert result(trainee) == undisturbed
