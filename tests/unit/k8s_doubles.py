"""Doubles of a cluster: an API server in a dictionary, a clock that tests move, programs that only talk."""

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from k8s.api import CONFIG_MAP, POD, RAY_JOB, Api, Kind, Object, Response
from k8s.connection import Executed
from k8s.tools import Done
from k8s.wording import moment

NAMESPACE = "lab"
BEGAN = "2026-11-23T12:00:00Z"
DIALECT = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}


def answer(status: int, body: Any = None, **headers: str) -> Response:
    return Response(status, headers, json.dumps(body if body is not None else {}).encode())


def refused(status: int, reason: str, message: str, name: str = "it") -> Response:
    return answer(status, {**DIALECT, "reason": reason, "message": message, "details": {"name": name}, "code": status})


class FakeServer:
    """As much of an API server as the client uses: objects by path, label selectors, merge patches."""

    def __init__(self, *objects: tuple[Kind, Object]) -> None:
        self.objects: dict[str, Object] = {}
        self.raw: dict[str, Response] = {}
        self.next: list[Response | Exception] = []
        """Answers that come before any other; an exception is raised."""
        self.requests: list[tuple[str, str, Object | None]] = []
        self.collections = True
        for kind, manifest in objects:
            self.put(kind, manifest)

    @property
    def api(self) -> Api:
        return Api(self, NAMESPACE, "the API server at test")

    def put(self, kind: Kind, manifest: Object) -> None:
        metadata = {"namespace": NAMESPACE, "uid": "u-1", "creationTimestamp": BEGAN} | manifest["metadata"]
        path = Api(self, metadata["namespace"])._path(kind, metadata["name"])
        self.objects[path] = copy.deepcopy({**manifest, "metadata": metadata})

    def get(self, kind: Kind, name: str) -> Object:
        return self.objects[self.api._path(kind, name)]

    def __call__(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str | None
    ) -> Response:
        self.requests.append((method, path, copy.deepcopy(body)))
        if self.next:
            first = self.next.pop(0)
            if isinstance(first, Exception):
                raise first
            return first
        if path in self.raw:
            return self.raw[path]
        if method == "POST":
            return self._create(f"{path}/{body['metadata']['name']}" if body else path, body or {})
        if path in self.objects:
            return self._one(method, path, body)
        name = path.rpartition("/")[2]
        if method == "GET" and self._is_collection(path):
            return answer(200, {"items": [each for each in self._below(path) if matches(each, query)]})
        return refused(404, "NotFound", f'"{name}" not found', name)

    def _create(self, path: str, body: Object) -> Response:
        if path in self.objects:
            return refused(409, "AlreadyExists", "exists")
        self.objects[path] = copy.deepcopy(body)
        self.objects[path]["metadata"] |= {"uid": f"u-{len(self.objects)}", "creationTimestamp": BEGAN}
        return answer(201, self.objects[path])

    def _one(self, method: str, path: str, body: Object | None) -> Response:
        if method == "DELETE":
            return answer(200, self.objects.pop(path))
        if method == "PATCH":
            merge(self.objects[path], body or {})
        return answer(200, self.objects[path])

    def _is_collection(self, path: str) -> bool:
        return self.collections and path.rpartition("/")[2].endswith("s") and "/" in path

    def _below(self, path: str) -> list[Object]:
        prefix, _, plural = path.rpartition("/")
        everywhere = re.compile(rf"{re.escape(prefix)}(/namespaces/[^/]+)?/{plural}/[^/]+")
        return [value for place, value in self.objects.items() if everywhere.fullmatch(place)]


def matches(value: Object, query: Mapping[str, str]) -> bool:
    labels = value["metadata"].get("labels") or {}
    selector = query.get("labelSelector", "")
    chosen = re.fullmatch(r"(\S+) in \(([^)]*)\)", selector)
    if chosen:
        return labels.get(chosen[1]) in chosen[2].split(", ")
    wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
    return all(labels.get(key) == value for key, value in wanted.items())


def merge(target: Any, changes: Object) -> None:
    for key, value in changes.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


class FakeClock:
    """Time passes when somebody sleeps; `at` does something then."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.plans: list[tuple[float, Callable[[], object]]] = []

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        self.plans.append((seconds, action))

    def now(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return (moment(BEGAN) or 0.0) + self.seconds

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        assert self.seconds < 10**6, "a wait that never ends"
        self.seconds += seconds
        due = [plan for plan in self.plans if plan[0] <= self.seconds]
        self.plans = [plan for plan in self.plans if plan[0] > self.seconds]
        for _, action in due:
            action()


class FakeCluster:
    """A cluster whose pods have logs and answer questions."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.logs: dict[str, list[list[str | Exception]]] = {}
        """For every reading of a pod's log, its lines; an exception is raised."""
        self.queries: list[Mapping[str, str]] = []
        self.answers: dict[str, str] = {}
        """What a program prints, by a part of its text."""

    @property
    def api(self) -> Api:
        return self.server.api

    def log(self, pod: str, query: Mapping[str, str]) -> Iterator[str]:
        self.queries.append(dict(query))
        for line in self.logs[pod].pop(0):
            if isinstance(line, Exception):
                raise line
            yield line

    def execute(self, pod: str, container: str, command: list[str], seconds: float = 60) -> Executed:
        for part, printed in self.answers.items():
            if part in command[2]:
                return Executed(0, printed, "")
        return Executed(1, "", "no such question")


class FakePrograms:
    """Runs nothing: each command's answer is that of the first pattern found in it; the last answer stays."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Done]] = {}
        self.commands: list[str] = []
        self.texts: list[str] = []

    def says(self, pattern: str, *answers: Done | str) -> None:
        self.answers[pattern] = [Done(0, each, "") if isinstance(each, str) else each for each in answers]

    def __call__(
        self,
        command: Sequence[str],
        *,
        text: str | None = None,
        timeout: float = 0,
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        line = " ".join(command)
        self.commands.append(line)
        if text is not None:
            self.texts.append(text)
        for pattern, answers in self.answers.items():
            if re.search(pattern, line):
                return answers.pop(0) if len(answers) > 1 else answers[0]
        return Done(0, "", "")

    def ran(self, pattern: str) -> bool:
        return any(re.search(pattern, line) for line in self.commands)


TEMPLATE = """
apiVersion: ray.io/v1
kind: RayJob
metadata:
  name: RAYJOB_NAME
  namespace: lab
  labels: {app.kubernetes.io/name: codeparrot, app.kubernetes.io/instance: parrot, app.kubernetes.io/version: "1"}
spec:
  backoffLimit: 3
  shutdownAfterJobFinishes: true
  submitterPodTemplate:
    spec: {containers: [{name: submitter, resources: {requests: {cpu: 100m, memory: 128Mi}}}]}
  rayClusterSpec:
    rayVersion: 2.60.0
    headGroupSpec:
      template:
        spec:
          initContainers: [{name: status, restartPolicy: Always, args: [--rayjob=RAYJOB_NAME]}]
          containers:
            - name: ray
              env: [{name: AWS_ENDPOINT_URL, value: "http://parrot-codeparrot-store.lab.svc:8333"}]
              resources: {requests: {cpu: "1", memory: 1Gi}}
          volumes:
            - {name: tmp, emptyDir: {}}
            - {name: recipe, configMap: {name: RAYJOB_NAME}}
    workerGroupSpecs:
      - replicas: 4
        template: {spec: {containers: [{name: ray, resources: {requests: {cpu: 500m, memory: 1Gi}}}]}}
"""
RECIPE = "run_name: tiny\nstorage:\n  uri: s3://codeparrot/tiny\n"


def release_objects(name: str = "parrot", fullname: str = "parrot-codeparrot") -> list[tuple[Kind, Object]]:
    labels = {"app.kubernetes.io/name": "codeparrot", "app.kubernetes.io/instance": name}
    template = {"metadata": {"name": f"{fullname}-rayjob", "labels": labels}, "data": {"rayjob.yaml": TEMPLATE}}
    recipe = {"metadata": {"name": f"{fullname}-recipe", "labels": labels}, "data": {"recipe.yaml": RECIPE}}
    return [(CONFIG_MAP, template), (CONFIG_MAP, recipe)]


def rayjob(name: str = "tiny-1", state: str = "Running", job: str = "RUNNING", **more: Any) -> tuple[Kind, Object]:
    labels = {"app.kubernetes.io/instance": "parrot", "codeparrot/run": "tiny"} | more.pop("labels", {})
    head = {"template": {"spec": {"volumes": [{"name": "recipe", "configMap": {"name": name}}]}}}
    spec = {"shutdownAfterJobFinishes": True, "backoffLimit": 3, "rayClusterSpec": {"headGroupSpec": head}}
    status = {"jobDeploymentStatus": state, "jobStatus": job, "rayClusterName": f"{name}-abcde"}
    return RAY_JOB, {
        "metadata": {"name": name, "labels": labels, "annotations": more.pop("annotations", {})},
        "spec": spec | more.pop("spec", {}),
        "status": status | more,
    }


def pod(name: str, component: str, phase: str = "Running", **status: Any) -> tuple[Kind, Object]:
    labels = {"app.kubernetes.io/component": component, "app.kubernetes.io/instance": "parrot"}
    if component == "submitter":
        labels["job-name"] = "tiny-1"
    else:
        labels |= {"ray.io/cluster": "tiny-1-abcde", "ray.io/node-type": "head" if component == "head" else "worker"}
    ready = {"type": "Ready", "status": "True" if phase == "Running" else "False"}
    status = {"phase": phase, "conditions": [ready, *status.pop("conditions", [])], **status}
    requests = {"resources": {"requests": {"cpu": "2", "memory": "4Gi"}}}
    spec = {"nodeName": "node-1", "containers": [{"name": "ray", **requests}]}
    return POD, {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": status}


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient cpu.",
}
