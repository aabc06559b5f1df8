"""A release in a namespace that enforces the Pod Security Standard `restricted`, and what is asked of it.

The tests see a kubeconfig and nothing else: everything goes through `kubectl`, `helm`, `ray` and `python -m k8s`.
"""

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration import conftest
from tests.integration.conftest import ROOT, Process, micro_recipe

CHART = ROOT / "helm" / "codeparrot"
DEADLINE_SECONDS = 600.0
wait_until = functools.partial(conftest.wait_until, seconds=DEADLINE_SECONDS, poll_seconds=1.0)
NUM_STEPS = 300 if (os.cpu_count() or 1) <= 2 else 1000
"""So many that a run has not ended before its last disturbance; two cores, which make about two steps a second in four
pods, had made 140 by then."""
NUM_WORKERS = 4
OURS = "codeparrot/e2e"
"""The label of our namespaces."""
WEIGHTS = """
import json, sys
from codeparrot.manifest import load_manifest
from codeparrot.storage import open_storage, sha256_hex
storage = open_storage(sys.argv[1])
run = load_manifest(storage, "runs/" + sys.argv[2])
steps = [json.loads(line) for line in run.read(storage, "metrics.jsonl").splitlines()]
print(json.dumps({
    "weights": sha256_hex(run.read(storage, "export/model.safetensors")),
    "rows": [[step["step"], step["rows_digest"]] for step in steps if step["kind"] == "step"],
}))
"""


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """A whole run on a cluster takes longer than a unit test may."""
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.timeout(1500))


def e2e_recipe(run_name: str, **train: Any) -> dict[str, Any]:
    """Four workers, one in each pod; long enough to be disturbed."""
    recipe = micro_recipe()
    recipe["run_name"] = run_name
    recipe["storage"]["uri"] = "s3://codeparrot/e2e"
    recipe["pack"]["max_seq_len"] = 128
    recipe["model"] = {"n_layer": 2, "n_head": 4, "n_embd": 128}
    recipe["train"] |= {
        "resources_per_worker": {"CPU": 1},
        "max_steps": NUM_STEPS,
        "eval_every_steps": 200,
        "checkpoint": {"every_steps": 10},
        **train,
    }
    return recipe


SMALL: dict[str, Any] = {
    "training": {"replicas": 1},
    "recipe": e2e_recipe("standing", resources_per_worker={"CPU": 0.25}),
}
"""A standing cluster that nothing is trained on: three pods less to start."""


def run(
    *command: str, text: str | None = None, environment: Mapping[str, str] | None = None, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    """A command's output; a failure shows it."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        input=text,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS * 2,
    )
    if check:
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


@dataclass(frozen=True)
class Namespace:
    """One namespace of the cluster."""

    name: str

    def kubectl(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        """The output of kubectl in this namespace."""
        return run("kubectl", "--namespace", self.name, *arguments, text=text, check=check).stdout

    def get(self, kind: str, *arguments: str) -> list[dict[str, Any]]:
        """Objects of a kind."""
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, *arguments, "--output", "json"))["items"]
        return items

    def pods(self, **labels: str) -> list[dict[str, Any]]:
        """Pods with these labels (`component` is app.kubernetes.io/component) that are not about to go."""
        names = {"component": "app.kubernetes.io/component", "instance": "app.kubernetes.io/instance"}
        selector = ",".join(f"{names.get(key, key)}={value}" for key, value in labels.items())
        found = self.get("pods", "--selector", selector)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def ready(self, **labels: str) -> list[dict[str, Any]]:
        """Those of them that are ready."""
        return [pod for pod in self.pods(**labels) if is_ready(pod)]

    def k8s(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """`python -m k8s` in this namespace."""
        command, *rest = arguments
        return run(sys.executable, "-m", "k8s", command, "--namespace", self.name, *rest, check=check)

    def helm(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """helm in this namespace."""
        return run("helm", *arguments, "--namespace", self.name, check=check)


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether the kubelet says so."""
    conditions = {condition["type"]: condition["status"] for condition in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True"


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """A new namespace, which refuses pods that are not `restricted`."""
    name = f"e2e-{secrets.token_hex(3)}"
    manifest = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "labels": {
                OURS: "yes",
                "pod-security.kubernetes.io/enforce": "restricted",
                "pod-security.kubernetes.io/enforce-version": "latest",
            },
        },
    }
    run("kubectl", "apply", "--filename", "-", text=json.dumps(manifest))
    try:
        yield Namespace(name)
    finally:
        run("kubectl", "delete", "namespace", name, "--wait=true", "--timeout=180s", check=False)


def values(folder: Path, **overrides: Any) -> Path:
    """A values file for helm."""
    path = folder / f"values-{secrets.token_hex(3)}.yaml"
    path.write_text(yaml.safe_dump({"recipe": e2e_recipe("standing"), **overrides}))
    return path


@dataclass(frozen=True)
class Release:
    """One installed chart."""

    namespace: Namespace
    folder: Path

    name = "codeparrot"

    def upgrade(self, **overrides: Any) -> None:
        """`helm upgrade` with other values; a standing cluster is ready after it, or gone."""
        install(self.namespace, values(self.folder, **overrides))
        standing = overrides.get("cluster", {}).get("enabled", True)
        self.wait_until_settled(standing * overrides.get("training", {}).get("replicas", NUM_WORKERS))

    def wait_until_settled(self, num_training: int) -> None:
        """Wait for a ready store and for a standing cluster with so many training pods, none if zero, no others."""
        wanted = {"store": 1, "head": int(num_training > 0), "training": num_training}

        def settled() -> bool:
            pods = {name: self.pods(name) for name in wanted}
            return all(len(pods[name]) == count and all(map(is_ready, pods[name])) for name, count in wanted.items())

        wait_until(settled, f"the release to have {wanted}")

    def pods(self, *components: str) -> list[dict[str, Any]]:
        """Those of the release itself, without those of RayJobs."""
        found = [pod for name in components for pod in self.namespace.pods(component=name, instance=self.name)]
        return [pod for pod in found if "codeparrot/rayjob" not in pod["metadata"]["labels"]]

    @contextlib.contextmanager
    def dashboard(self) -> Iterator[str]:
        """The address of the standing head, on loopback."""
        command = [sys.executable, "-m", "k8s", "dashboard", "--namespace", self.namespace.name, "--port", "0"]
        process = Process(command, {})
        try:
            process.wait_for("Ctrl-C ends it")
            [address] = re.findall(r"^dashboard: (http://127\.0\.0\.1:\d+)$", process.output, re.MULTILINE)
            yield address
        finally:
            process.popen.send_signal(signal.SIGINT)
            assert process.wait() == 0, process.output

    def head(self) -> str:
        """The name of a head pod that is ready, of the release's cluster or of a RayJob's."""
        wait_until(lambda: bool(self.namespace.ready(component="head")), "a head pod")
        return str(self.namespace.ready(component="head")[0]["metadata"]["name"])

    def token(self) -> str:
        """Ray's token."""
        [secret] = self.namespace.get("secret", "--field-selector", f"metadata.name={self.name}-ray-token")
        return b64decode(secret["data"]["auth_token"]).decode()

    def python(self, code: str, *arguments: str) -> str:
        """The output of a program in the head pod."""
        command = ["exec", self.head(), "--container", "ray-head", "--", "python", "-c", code, *arguments]
        return self.namespace.kubectl(*command)

    def trained(self, run_name: str) -> dict[str, Any]:
        """What a run has learned, and from what."""
        found: dict[str, Any] = json.loads(self.python(WEIGHTS, "s3://codeparrot/e2e", run_name).splitlines()[-1])
        return found


def install(where: Namespace, *files: Path, name: str = "codeparrot") -> None:
    """Install or upgrade the chart, without `--wait`: see the runbook, "Upgrade, backup"."""
    kind = CHART / "values-kind.yaml"
    settings = [argument for path in (kind, *files) for argument in ("--values", str(path))]
    where.helm("upgrade", "--install", name, str(CHART), *settings)


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The chart with a standing Ray cluster, all of whose pods are ready."""
    for tool in ("kubectl", "helm"):
        assert shutil.which(tool), f"{tool} is needed"
    folder = tmp_path_factory.mktemp("e2e")
    run("kubectl", "delete", "namespace", "--selector", OURS)  # of tests that were killed: they would share the CPUs
    with namespace() as where:
        began = time.monotonic()
        release = Release(where, folder)
        release.upgrade()
        print(f"\nhelm install to ready: {time.monotonic() - began:.0f} s")
        yield release
        where.helm("uninstall", "codeparrot", "--wait", check=False)
