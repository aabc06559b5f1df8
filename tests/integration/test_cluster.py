"""A running Ray cluster: jobs submitted to it, and what happens if it is too small or not there."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from codeparrot.local_store import LocalStore
from codeparrot.manifest import load_manifest
from codeparrot.s3 import S3Storage
from tests.integration.conftest import RAY, ROOT, Cluster, micro_recipe, ray_cluster, wait_until

FAILED = 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster(num_cpus=2) as cluster:
        yield cluster


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    values = micro_recipe()
    values["storage"]["uri"] = f"s3://codeparrot/{tmp_path.name}"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(command: list[str], **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


def test_a_stage_runs_through_ray_job_submit(cluster: Cluster, recipe: Path, s3: LocalStore) -> None:
    variables = ", ".join(f'"{name}": "{value}"' for name, value in s3.environment().items())
    done = run(
        [
            RAY,
            "job",
            "submit",
            f"--address={cluster.dashboard}",
            "--working-dir=.",
            f'--runtime-env-json={{"env_vars": {{{variables}}}}}',
            "--",
            sys.executable,
            *("-m", "ray_jobs.collect", "--config", str(recipe)),
        ],
        **cluster.environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"collect +done", done.stdout)
    uri = yaml.safe_load(recipe.read_text())["storage"]["uri"]
    manifest = load_manifest(S3Storage(uri, "codeparrot", recipe.parent.name), "raw")
    assert manifest is not None
    assert manifest.counts["num_documents"] > 0


def test_a_stage_uses_the_cluster_that_ray_address_names(cluster: Cluster, recipe: Path, s3: LocalStore) -> None:
    command = [sys.executable, "-m", "ray_jobs.collect", "--config", str(recipe)]
    done = run(command, RAY_ADDRESS=cluster.gcs, **cluster.environment())
    assert done.returncode == 0, done.stdout + done.stderr
    secret = s3.credentials.read_text().split()[-1]
    assert secret not in done.stdout + done.stderr


def test_a_cluster_without_room_for_four_workers_is_told_what_is_missing(
    cluster: Cluster, recipe: Path, s3: LocalStore
) -> None:
    values = yaml.safe_load(recipe.read_text())
    values["train"] |= {"resources_per_worker": {"CPU": 1}, "placement_timeout_seconds": 1}
    recipe.write_text(yaml.safe_dump(values))
    done = run(
        [sys.executable, "-m", "ray_jobs.pipeline", "--config", str(recipe)],
        RAY_ADDRESS=cluster.gcs,
        **cluster.environment(),
    )
    assert done.returncode == FAILED
    message = "the cluster has room for 2 of 4 workers: each needs 1 CPU, its 1 nodes have 2 CPU"
    assert message in done.stderr, done.stdout + done.stderr


def test_a_cluster_that_is_not_there_is_told(recipe: Path, s3: LocalStore) -> None:
    command = [sys.executable, "-m", "ray_jobs.collect", "--config", str(recipe)]
    done = run(command, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == FAILED
    assert "error: cannot use the cluster at RAY_ADDRESS=127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


TERMINATED_WHILE_CONNECTING = """
import os
import signal
import time
import ray
from ray_jobs.cluster import connect, ray_session
from ray_jobs.interrupt import interruptible

class Terminates:
    def __del__(self):  # what a handler raises in a destructor is printed and lost
        os.kill(os.getpid(), signal.SIGTERM)

init = ray.init
def and_then_terminate(**options):
    init(**options)
    Terminates()
ray.init = and_then_terminate

try:
    with interruptible(), ray_session():
        connect()
        print("went on")
finally:
    time.sleep(4)  # longer than the alarm of Ray's handler
"""


def test_sigterm_while_connecting_is_not_lost(cluster: Cluster) -> None:
    command = [sys.executable, "-c", TERMINATED_WHILE_CONNECTING]
    done = run(command, RAY_ADDRESS=cluster.gcs, **cluster.environment())
    assert done.returncode == FAILED, done.stderr
    assert "codeparrot.errors.Interrupted: stopped by SIGTERM" in done.stderr
    assert "went on" not in done.stdout


SCRAPE = """
import time, urllib.request
import ray
from ray_jobs.cluster import connect, ray_session
from ray_jobs.telemetry import GAUGES, Telemetry

with ray_session():
    connect()
    telemetry = Telemetry("tiny")
    step = {"kind": "step", "step": 10, "seconds": 2.0, "loss": 5.5, "mfu": 0.25}
    telemetry.observe({"kind": "started", "number": 1})
    telemetry.observe({"kind": "training", "step": 0})
    telemetry.observe(step)
    telemetry.observe({"kind": "started", "number": 2})
    telemetry.observe({"kind": "training", "step": 5})
    (node,) = ray.nodes()
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 60
    lines = []
    while not any("codeparrot_recovery_seconds" in line for line in lines) and time.monotonic() < deadline:
        time.sleep(1)
        lines = urllib.request.urlopen(address).read().decode().splitlines()
    print("\\n".join(line for line in lines if "codeparrot_" in line))
"""


def test_prometheus_can_ask_how_a_run_goes(cluster: Cluster) -> None:
    done = run([sys.executable, "-c", SCRAPE], RAY_ADDRESS=cluster.gcs, **cluster.environment())
    assert done.returncode == 0, done.stdout + done.stderr

    def value(name: str) -> float:
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"ray_codeparrot_{name}{{")]
        assert 'run_name="tiny"' in line
        return float(line.rpartition(" ")[2])

    assert value("loss") == 5.5
    assert value("mfu") == 0.25
    assert value("num_restarts") == 1
    assert value("lost_work_seconds") == 2.0
    assert value("recovery_seconds") >= 0


SCRAPE_SERVING = """
import time, urllib.request
import ray
from codeparrot.serving_metrics import ServingMetrics
from ray_jobs.cluster import connect, ray_session
from ray_jobs.telemetry import export_serving

with ray_session():
    connect()
    for replica in ("one", "two"):
        metrics = ServingMetrics()
        export_serving(metrics, replica, interval_seconds=0.2)
        for _ in range(3 if replica == "one" else 4):
            metrics.requests.labels("200").inc()
        metrics.first_token.observe(0.3)
    (node,) = ray.nodes()
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 60
    lines = []
    while sum('ray_codeparrot_requests_total{' in line for line in lines) < 2 and time.monotonic() < deadline:
        time.sleep(1)
        lines = urllib.request.urlopen(address).read().decode().splitlines()
    print("\\n".join(line for line in lines if "codeparrot_" in line))
"""


def test_prometheus_can_ask_each_replica_by_rays_own_port(cluster: Cluster) -> None:
    done = run([sys.executable, "-c", SCRAPE_SERVING], RAY_ADDRESS=cluster.gcs, **cluster.environment())
    assert done.returncode == 0, done.stdout + done.stderr

    def value(name: str, *labels: str) -> float:
        lines = [line for line in done.stdout.splitlines() if line.startswith(f"ray_codeparrot_{name}{{")]
        (line,) = [line for line in lines if all(label in line for label in labels)]
        return float(line.rpartition(" ")[2])

    assert value("requests_total", 'replica="one"', 'status="200"') == 3
    assert value("requests_total", 'replica="two"', 'status="200"') == 4
    assert value("time_to_first_token_seconds_bucket", 'replica="one"', 'le="0.25"') == 0
    assert value("time_to_first_token_seconds_bucket", 'replica="one"', 'le="0.5"') == 1


CONTINUED = """
import sys
import time
from functools import partial
from pathlib import Path
from codeparrot.storage import open_storage
from ray_jobs.cluster import ray_session, spread
from ray_jobs.kept import Kept

folder, uri = Path(sys.argv[1]), sys.argv[2]

def work(number, folder=folder):
    with (folder / f"done-{number}").open("a") as done:
        done.write("once ")
    while number >= 3 and not (folder / "go-on").exists():
        time.sleep(0.1)
    return number * number

with ray_session():
    print(spread("squares", list(range(5)), work, kept=Kept(uri, "out/data/attempt")))
"""


def test_a_killed_driver_continues_from_the_tasks_that_are_done(
    cluster: Cluster, recipe: Path, s3: LocalStore, tmp_path: Path
) -> None:
    uri = yaml.safe_load(recipe.read_text())["storage"]["uri"]
    command = [sys.executable, "-c", CONTINUED, str(tmp_path), uri]
    environment = {**os.environ, "RAY_ADDRESS": cluster.gcs, **cluster.environment()}
    storage = S3Storage(uri, "codeparrot", recipe.parent.name)
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as first:
        kept = "out/data/attempt/results/squares/"
        wait_until(lambda: len(list(storage.list(kept))) == 3, "the first three results")
        first.kill()
    (tmp_path / "go-on").touch()
    done = run(command, RAY_ADDRESS=cluster.gcs, **cluster.environment())
    assert "[0, 1, 4, 9, 16]" in done.stdout, done.stdout + done.stderr
    assert [(tmp_path / f"done-{number}").read_text() for number in range(3)] == ["once "] * 3
