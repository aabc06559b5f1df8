"""Training that survives anything: the same small run, disturbed, ends with the weights of an undisturbed one.

Everything is real: Ray, Ray Train's workers, the S3 server, the signals. Each test gets a copy of a store that holds
the packed rows, so only training runs. The longest come first, since two run at a time. `make chaos` repeats the first
test with fifty kills. A killed driver, and bits that do not depend on a signal, are in test_pipeline.py, which disturbs
every stage.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from codeparrot import local_store
from codeparrot.manifest import load_manifest
from codeparrot.storage import sha256_hex
from tests.integration.conftest import BEFORE_TRAINING, Cluster, Machine, Process, made_once, micro_recipe, ray_cluster

pytestmark = pytest.mark.faults

SUCCESS, FAILED, INTERRUPTED = 0, 1, 3
NUM_STEPS = 120
NUM_KILLS = int(os.environ.get("CODEPARROT_NUM_KILLS", "10"))
STEPS_PER_KILL = 40
"""Twice what was seen of two cores; a run that ends before its last kill fails the test."""
FEW_STEPS = 30
"""Enough for a checkpoint to fall back to."""
NEVER = 100_000_000
NO_CHECKPOINTS = f"train.checkpoint.every_steps={NEVER}"


def chaos_recipe() -> dict[str, Any]:
    """Two workers, a checkpoint every fifth step; long enough that what the log tells is still true when it is read."""
    recipe = micro_recipe()
    recipe["pack"]["max_seq_len"] = 128
    recipe["model"] = {"n_layer": 2, "n_head": 4, "n_embd": 128}
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

    def make(folder: Path) -> None:
        Machine(folder, chaos_recipe()).run_at_once(*BEFORE_TRAINING)

    return Machine(made_once(tmp_path_factory, "packed", make), {}).state / "store"


def ready(folder: Path, packed: Path) -> Machine:
    """A machine that has only to train."""
    machine = Machine(folder, chaos_recipe())
    shutil.copytree(packed, machine.state / "store", ignore=shutil.ignore_patterns("ports.json", "m[0-9]*"))
    return machine


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> Trained:
    """The run without any disturbance."""

    def make(folder: Path) -> None:
        machine = ready(folder, packed)
        machine.run("train")
        (folder / "trained.json").write_text(json.dumps(asdict(result(machine))))

    values = json.loads((made_once(tmp_path_factory, "trained", make) / "trained.json").read_bytes())
    trained = Trained(**values | {"rows": [tuple(row) for row in values["rows"]]})
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


def test_workers_killed_at_random_moments_uploads_included(trainee: Machine, packed: Path) -> None:
    trainee.values["train"] |= {"max_steps": NUM_KILLS * STEPS_PER_KILL, "eval_every_steps": 100}
    alone = ready(trainee.folder / "alone", packed)
    alone.values = trainee.values
    alone.run("train")
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
    assert result(trainee) == result(alone)


def train_on(cluster: Cluster, trainee: Machine, store: local_store.LocalStore) -> Process:
    """The training stage, with enough steps to be disturbed in, on a cluster that runs already."""
    command = [sys.executable, "-m", "ray_jobs.train", "--config", str(trainee.write_recipe())]
    environment = {**store.environment(), **cluster.environment(), "CODEPARROT_STATE": str(trainee.state)}
    return Process(command, {**environment, "RAY_ADDRESS": cluster.gcs})


@pytest.mark.in_e2e
def test_a_cluster_that_is_stopped_and_another_that_continues(trainee: Machine, undisturbed: Trained) -> None:
    with local_store.running(trainee.state / "store", "codeparrot") as store:
        with ray_cluster(num_cpus=1) as cluster:
            process = train_on(cluster, trainee, store)
            process.wait_for("checkpoint in")
            os.killpg(cluster.head.popen.pid, signal.SIGKILL)
            assert process.wait() == FAILED, process.output
            assert "Traceback" not in process.output
        with ray_cluster(num_cpus=1) as another:
            process = train_on(another, trainee, store)
            assert process.wait() == SUCCESS, process.output
    assert "resumed at step" in process.output
    assert result(trainee) == undisturbed


@pytest.mark.in_e2e
def test_a_drained_node_costs_no_step(trainee: Machine, packed: Path) -> None:
    """Of three nodes with room for one worker each, one that has a worker gets SIGTERM, as from Kubernetes."""
    trainee.values["train"] |= {
        "max_steps": 500,
        "resources_per_worker": {"CPU": 1},
        "log_every_steps": 50,
        "checkpoint": {"every_steps": NEVER},
    }
    with local_store.running(trainee.state / "store", "codeparrot") as store, ray_cluster(num_cpus=1) as cluster:
        second = cluster.join(num_cpus=1)
        process = train_on(cluster, trainee, store)
        process.wait_for("training from step 0 on 2 workers")
        third = cluster.join(num_cpus=1)
        second.popen.terminate()
        place = process.wait_for("a node is about to go")
        saved = re.findall(r"step (\d+): checkpoint in", process.output)
        assert len(saved) == 1, process.output
        process.wait_for(f"resumed at step {saved[0]}/500", after=place)
        assert process.wait() == SUCCESS, process.output
        second.wait()
        third.popen.terminate()
        third.wait()
    again = ready(trainee.folder / "again", packed)
    again.values = trainee.values | {"train": trainee.values["train"] | {"resources_per_worker": {"CPU": 0.5}}}
    again.run("train")
    assert result(trainee) == result(again)


def test_a_run_shrinks_with_its_cluster(trainee: Machine, undisturbed: Trained) -> None:
    trainee.values["train"] |= {"min_workers": 1, "resources_per_worker": {"CPU": 1}}
    with local_store.running(trainee.state / "store", "codeparrot") as store, ray_cluster(num_cpus=1) as cluster:
        second = cluster.join(num_cpus=1)
        process = train_on(cluster, trainee, store)
        place = process.wait_for("training from step 0 on 2 workers")
        os.killpg(second.popen.pid, signal.SIGKILL)
        process.wait_for("on 1 workers", after=place)
        assert process.wait() == SUCCESS, process.output
    trained = result(trainee)
    assert trained.rows == undisturbed.rows
    assert trained.losses == pytest.approx(undisturbed.losses, rel=1e-5)


@pytest.mark.in_e2e
def test_a_store_that_is_gone_for_a_minute_only_delays_the_end(trainee: Machine, undisturbed: Trained) -> None:
    """Training goes on without it; the last checkpoint waits."""
    folder = trainee.state / "store"
    with local_store.running(folder, "codeparrot") as store:
        process = trainee.start("train", **store.environment())
        process.wait_for("checkpoint in")
    time.sleep(60)
    assert process.popen.poll() is None, process.output
    with local_store.running(folder, "codeparrot") as again:
        assert again.endpoint == store.endpoint
        assert process.wait() == SUCCESS, process.output
    assert "does not answer" in process.output
    assert "restarted" not in process.output
    assert result(trainee) == undisturbed


def test_a_store_killed_during_an_upload_is_started_again_and_loses_nothing(
    trainee: Machine, undisturbed: Trained
) -> None:
    process = trainee.start("train")
    for _ in range(3):
        process.wait_for("training from step")
        os.kill(store_pid(trainee), signal.SIGSTOP)
        time.sleep(0.5)  # the upload of a checkpoint begins, and hangs
        os.kill(store_pid(trainee), signal.SIGKILL)
        time.sleep(2)
    assert process.wait() == SUCCESS, process.output
    assert "the embedded object store died; starting it again" in process.output
    assert result(trainee) == undisturbed


def test_a_full_local_disk_costs_the_cache_and_not_the_run(trainee: Machine, undisturbed: Trained) -> None:
    cache = trainee.folder / "cache"
    cache.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", cache], check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        (cache / "filler").write_bytes(bytes(8192))
        with local_store.running(trainee.state / "store", "codeparrot") as store:
            process = Process(
                [sys.executable, "-m", "ray_jobs.train", "--config", str(trainee.write_recipe())],
                {
                    **store.environment(),
                    "CODEPARROT_CACHE": str(cache),
                    "CODEPARROT_STATE": str(trainee.state),
                },
            )
            assert process.wait() == SUCCESS, process.output
    finally:
        subprocess.run(["umount", "--lazy", cache], check=True)
    assert "no space to cache shards" in process.output
    assert result(trainee) == undisturbed


def test_of_two_drivers_with_one_run_name_one_wins_and_the_other_says_so(
    trainee: Machine, undisturbed: Trained
) -> None:
    with local_store.running(trainee.state / "store", "codeparrot") as store:
        first = trainee.start("train", **store.environment())
        first.wait_for("train", "starting")
        other = Machine(trainee.folder / "other", trainee.values)
        other.folder.mkdir()
        second = other.start("train", **store.environment())
        assert second.wait() == FAILED
        assert re.search(
            r"error: another run \(process \d+ on .*\) writes s3://codeparrot/micro/runs/micro; wait", second.output
        )
        assert first.wait() == SUCCESS, first.output
    assert result(trainee) == undisturbed


def train_alone(machine: Machine) -> tuple[str, dict[str, str]]:
    """(output, hashes of weights and moments at the end) of one process of `codeparrot.launch`, which needs no Ray."""
    machine.values["train"] |= {"max_steps": FEW_STEPS}
    command = [sys.executable, "-m", "codeparrot.launch", "--config", str(machine.write_recipe())]
    with machine.storage() as storage, local_store.running(machine.state / "store", "codeparrot") as store:
        process = Process(command, {**store.environment(), "CODEPARROT_CACHE": str(machine.folder / "cache")})
        assert process.wait() == SUCCESS, process.output
        last = load_manifest(storage, f"runs/micro/checkpoints/step-{FEW_STEPS:08d}")
        assert last is not None
        return process.output, {file.name: file.sha256 for file in last.files if "safetensors" in file.name}


@pytest.fixture(scope="module")
def trained_alone(tmp_path_factory: pytest.TempPathFactory, packed: Path) -> tuple[Path, dict[str, str]]:
    """(the store of a machine on which one process has trained, what it has learned)."""

    def make(folder: Path) -> None:
        machine = ready(folder, packed)
        (folder / "weights.json").write_text(json.dumps(train_alone(machine)[1]))

    folder = made_once(tmp_path_factory, "alone", make)
    return Machine(folder, {}).state / "store", json.loads((folder / "weights.json").read_bytes())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "without a manifest"])
def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(
    machine: Machine, trained_alone: tuple[Path, dict[str, str]], damage: str
) -> None:
    folder, weights = trained_alone
    damaged = ready(machine.folder / "damaged", folder)
    with damaged.storage() as storage:
        newest = f"runs/micro/checkpoints/step-{FEW_STEPS:08d}/manifest.json"
        model = next(path for path, _ in storage.list("runs/micro/checkpoints") if f"{FEW_STEPS:08d}/data" in path)
        data = storage.read(model)
        if damage == "truncated":
            storage.write(model, data[:-1])
        elif damage == "flipped":
            storage.write(model, data[:-1] + bytes([data[-1] ^ 1]))
        else:
            storage.delete([newest])
        steps = {int(path.partition("step-")[2][:8]) for path, _ in storage.list("runs/micro/checkpoints")}
    output, again = train_alone(damaged)
    assert f"kind=resumed step={max(steps - {FEW_STEPS})}" in output
    assert again == weights
    assert damage == "without a manifest" or f"checkpoint of step {FEW_STEPS} is damaged" in output


def test_stopped_by_a_signal_it_continues_at_the_same_step_with_fewer_workers_and_with_more(
    trainee: Machine, undisturbed: Trained
) -> None:
    """The undisturbed run has two workers; here there are four, two and four, and no checkpoints but at the signals."""
    place = 0
    for workers in (4, 2):
        process = trainee.start("train", "--set", f"train.num_workers={workers}", "--set", NO_CHECKPOINTS)
        process.wait_for(f"training from step {place} on {workers} workers")
        time.sleep(0.5)
        os.kill(process.popen.pid, signal.SIGTERM)
        assert process.wait() == INTERRUPTED, process.output
        place = int(re.findall(r"step (\d+): checkpoint in", process.output)[-1])
        assert 0 < place < NUM_STEPS
    process = trainee.run("train", "--set", "train.num_workers=4", "--set", NO_CHECKPOINTS)
    assert f"training from step {place} on 4 workers" in process.output
    trained = result(trainee)
    assert trained.rows == undisturbed.rows
    assert trained.losses == pytest.approx(undisturbed.losses, rel=1e-5)
