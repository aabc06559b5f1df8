"""The KubeRay operator: which versions this project works with, whether one is there, and installing it.

Token authentication came with 1.5, pre-running deadlines and the schedule of RayJobs with 1.6; 1.6 is what the tests
run against. Installing is the local cluster's affair: elsewhere the operator is a prerequisite that its own chart
installs. Its CRDs are too large for client-side apply (the annotation with the last applied object has a limit), so
they are applied by the server, first, and waited for.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from k8s.api import DEPLOYMENT, Api, Object
from k8s.errors import LocalClusterError
from k8s.findings import Finding, failed, ok, warning
from k8s.tools import Run, succeed

VERSION = "1.6.2"
OLDEST, BELOW = (1, 6, 0), (1, 7, 0)
NAMESPACE = "kuberay-system"
NAME = "kuberay-operator"
CHART_REPOSITORY = "https://ray-project.github.io/kuberay-helm/"
IMAGE = f"quay.io/kuberay/operator:v{VERSION}"
INSTALL_SECONDS = 300
INSTALL = (
    f"install it: helm install {NAME} {NAME} --repo {CHART_REPOSITORY} --version {VERSION} "
    f"--namespace {NAMESPACE} --create-namespace"
)
RANGE = f"{'.'.join(map(str, OLDEST))} <= version < {'.'.join(map(str, BELOW))}"


def check(api: Api) -> Iterator[Finding]:
    """Whether an operator is there, ready, and of a version that fits."""
    names = "app.kubernetes.io/name in (kuberay, kuberay-operator)"
    found = [each for each in api.select(DEPLOYMENT, names, everywhere=True) if _image(each)]
    if not found:
        yield failed("operator", "no Deployment of the KubeRay operator in any namespace", INSTALL)
        return
    for deployment in found:
        metadata, status = deployment["metadata"], deployment.get("status") or {}
        where = f"Deployment {metadata['namespace']}/{metadata['name']}"
        if not status.get("readyReplicas"):
            advice = f"kubectl --namespace {metadata['namespace']} describe deployment {metadata['name']}"
            yield failed("operator", f"{where} has no ready replica", advice)
        yield version_finding(where, _image(deployment))
    if len(found) > 1:
        yield warning("operator", f"{len(found)} operators", "two that watch one namespace undo each other's work")


def version_finding(where: str, image: str) -> Finding:
    """Whether the version in an image's tag is in range."""
    tag = image.rpartition(":")[2]
    match = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)(?:[-+].*)?", tag)
    if match is None:
        return warning("operator", f"{where}: no version in image {image}", f"expected {RANGE}; make sure yourself")
    version = tuple(int(part) for part in match.groups())
    if version < OLDEST:
        return failed("operator", f"{where}: version {tag}", f"expected {RANGE}; upgrade it")
    if version >= BELOW:
        return warning("operator", f"{where}: version {tag}", f"tested with {RANGE}; newer ones probably work")
    return ok("operator", f"{where}, version {tag}")


def _image(deployment: Object) -> str:
    containers = deployment["spec"]["template"]["spec"]["containers"]
    images = [str(each.get("image", "")) for each in containers]
    return next((image for image in images if "operator" in image or "kuberay" in image), "")


def install_chart(run: Run, context: str) -> None:
    """Install or upgrade the operator by its own chart. Raises ToolFailed."""
    here = ["--kube-context", context, "--namespace", NAMESPACE]
    status = run(["helm", "status", NAME, *here, "--output", "json"])
    if status.code == 0 and str((json.loads(status.out).get("info") or {}).get("status", "")).startswith("pending"):
        # A helm that was killed leaves a lock that the next one respects for ever.
        succeed(run, ["helm", "uninstall", NAME, *here, "--wait"], timeout=INSTALL_SECONDS)
    source = ["--repo", CHART_REPOSITORY, "--version", VERSION]
    options = ["--create-namespace", "--wait", "--timeout", f"{INSTALL_SECONDS}s"]
    succeed(run, ["helm", "upgrade", "--install", NAME, NAME, *source, *here, *options], timeout=INSTALL_SECONDS + 60)


def install_manifests(run: Run, context: str, folder: str, image: str) -> None:
    """Install the operator from a kustomize folder. Raises ToolFailed, LocalClusterError."""
    rendered = succeed(run, ["kubectl", "kustomize", folder])
    definitions, others = prepared(rendered, image)
    kubectl = ["kubectl", "--context", context]
    apply = [*kubectl, "apply", "--server-side", "--force-conflicts", "--filename", "-"]
    succeed(run, apply, text="---\n".join(definitions.values()), timeout=INSTALL_SECONDS)
    named = [f"crd/{name}" for name in definitions]
    succeed(run, [*kubectl, "wait", "--for=condition=Established", "--timeout=60s", *named])
    succeed(run, apply, text=yaml.safe_dump_all(others), timeout=INSTALL_SECONDS)


def wait_until_ready(run: Run, context: str) -> None:
    """Raises ToolFailed, with what the Deployment and its pods say."""
    kubectl = ["kubectl", "--context", context, "--namespace", NAMESPACE]
    rollout = [*kubectl, "rollout", "status", f"deployment/{NAME}", f"--timeout={INSTALL_SECONDS}s"]
    done = run(rollout, timeout=INSTALL_SECONDS + 30)
    if done.code != 0:
        pods = run([*kubectl, "get", "pods", "--output", "wide"])
        events = run([*kubectl, "get", "events", "--sort-by=.lastTimestamp"])
        what = f"Deployment {NAMESPACE}/{NAME} is not ready after {INSTALL_SECONDS} s"
        raise LocalClusterError(f"{what}: {done.tail}\n  {pods.tail}\n  {events.tail}")


def prepared(rendered: str, image: str) -> tuple[dict[str, str], list[Object]]:
    """The CRDs as text by name, and all else in the operator's own namespace with the chosen image.

    The CRDs are four megabytes, which the YAML parser would take half a minute for, and nothing in them changes.
    Raises LocalClusterError.
    """
    texts = [text for text in re.split(r"(?m)^---\n", rendered) if text.strip()]
    definitions = {_name(text): text for text in texts if _is_definition(text)}
    others: list[Any] = [yaml.safe_load(text) for text in texts if not _is_definition(text)]
    for document in others:
        if "namespace" in document["metadata"]:
            document["metadata"]["namespace"] = NAMESPACE
        for subject in document.get("subjects") or []:
            if "namespace" in subject:
                subject["namespace"] = NAMESPACE
        if document["kind"] == "Deployment":
            for container in document["spec"]["template"]["spec"]["containers"]:
                container["image"] = image
    if not definitions or not any(each["kind"] == "Deployment" for each in others):
        raise LocalClusterError("KUBERAY_MANIFESTS: expected the operator's config/default: CRDs and a Deployment")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    return definitions, [namespace, *others]


def _is_definition(text: str) -> bool:
    return re.search(r"(?m)^kind: CustomResourceDefinition$", text) is not None


def _name(text: str) -> str:
    found = re.search(r"(?m)^  name: (\S+)$", text)
    if found is None:
        raise LocalClusterError("KUBERAY_MANIFESTS: a CRD without a name")
    return found[1]
