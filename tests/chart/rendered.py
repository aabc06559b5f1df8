"""The chart, rendered by the `helm` program, as plain values."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/codeparrot"
APIS = ("ray.io/v1/RayCluster", "ray.io/v1/RayCronJob", "monitoring.coreos.com/v1/PodMonitor")
RELEASE = "tiny"
NAMESPACE = "ml"
EVERYTHING = (
    "job.enabled=true",
    "serve.enabled=true",
    "serve.applications[0].name=code",
    "serve.applications[0].import_path=code:app",
    "serve.allowedNamespaces={apps}",
    "autoscaling.enabled=true",
    "podDisruptionBudget.enabled=true",
    "priorityClass.create=true",
    "kueue.queueName=queue",
    "grafana.dashboard.enabled=true",
    "admissionPolicy.enabled=true",
)
"""Settings with which every template renders something."""

Object = dict[str, Any]


def helm(
    *settings: str,
    values: Sequence[str | Path] = (),
    release: str = RELEASE,
    apis: Sequence[str] = APIS,
) -> "subprocess.CompletedProcess[str]":
    """`helm template`, with `--set` settings and values files, those of the chart by their name."""
    program = shutil.which("helm")
    assert program, "these tests need the program helm on the PATH"
    command = [program, "template", release, str(CHART), "--namespace", NAMESPACE]
    command += [f"--api-versions={api}" for api in apis]
    command += [f"--values={CHART / name}" for name in values]
    command += [f"--set={setting}" for setting in settings]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def render(*settings: str, values: Sequence[str | Path] = (), release: str = RELEASE) -> list[Object]:
    """Every object of the release."""
    done = helm(*settings, values=values, release=release)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def refusal(
    *settings: str, values: Sequence[str | Path] = (), release: str = RELEASE, apis: Sequence[str] = APIS
) -> str:
    """The message with which Helm refuses these settings."""
    done = helm(*settings, values=values, release=release, apis=apis)
    assert done.returncode != 0, "these values were accepted"
    return done.stderr


def of_kind(objects: Sequence[Object], kind: str) -> list[Object]:
    return [item for item in objects if item["kind"] == kind]


def one(objects: Sequence[Object], kind: str, name: str) -> Object:
    (found,) = [item for item in of_kind(objects, kind) if item["metadata"]["name"] == name]
    return found


@dataclass(frozen=True)
class Pod:
    """The template of a pod, and where it stands."""

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods(objects: Sequence[Object]) -> list[Pod]:
    """All pods of a release: its own, and those that the operator makes for it, its own containers included."""
    found = []
    for item in objects:
        owner = f"{item['kind']} {item['metadata']['name']}"
        found += [Pod(owner, template["metadata"]["labels"], template["spec"]) for template in _templates(item)]
    return found


def _templates(item: Object) -> Iterator[dict[str, Any]]:
    kind = item["kind"]
    if kind == "ConfigMap" and "rayjob.yaml" in item["data"]:
        yield from _templates(yaml.safe_load(item["data"]["rayjob.yaml"]))
    elif kind == "ConfigMap" and "pod.yaml" in item["data"]:
        yield yaml.safe_load(item["data"]["pod.yaml"])
    elif kind == "Pod":
        yield item
    elif kind == "StatefulSet":
        yield item["spec"]["template"]
    elif kind == "RayCluster":
        yield from _of_cluster(item["spec"])
    elif kind == "RayService":
        yield from _of_cluster(item["spec"]["rayClusterConfig"])
    elif kind in ("RayJob", "RayCronJob"):
        spec = item["spec"] if kind == "RayJob" else item["spec"]["jobTemplate"]
        yield spec["submitterPodTemplate"]
        yield from _of_cluster(spec["rayClusterSpec"])


def _of_cluster(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    head = spec["headGroupSpec"]["template"]
    if spec.get("enableInTreeAutoscaling"):
        options = spec["autoscalerOptions"]
        taken = ("image", "resources", "securityContext", "env", "volumeMounts")
        autoscaler = {"name": "autoscaler", **{key: options[key] for key in taken}}
        head = {**head, "spec": {**head["spec"], "containers": [*head["spec"]["containers"], autoscaler]}}
    yield head
    yield from (group["template"] for group in spec["workerGroupSpecs"])
