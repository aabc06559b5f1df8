"""The local cluster: kind with three nodes, the operator, and the project's image.

Every step looks first whether it is done, so that `up` can be run again after anything, a kill included. A cluster
that is there is believed only if all its nodes run and the API server says it is ready; stopped nodes are started; one
that does not recover is deleted and made anew, data included, and the message says so. Images are loaded into the
workers only (nothing of ours runs on the control plane), and only if they are not there already, which kind itself
checks. Others' names for things come from the environment:

    KIND_CLUSTER_NAME   the cluster (codeparrot)
    KIND_NODE_IMAGE     the node image (kind's own)
    IMAGE               the project's image (codeparrot:dev); empty: none is loaded
    KUBERAY_MANIFESTS   a kustomize folder with the operator, instead of its chart
    KUBERAY_IMAGE       the operator's image for those manifests
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from k8s import operator
from k8s.errors import LocalClusterError, Misuse, WaitTimeout
from k8s.tools import Done, Run, require, succeed
from k8s.waiting import Clock, wait_for

CONFIG = Path(__file__).with_name("kind.yaml")
NUM_NODES = 3
TOOLS = ("docker", "kind", "kubectl", "helm")
LABEL = "io.x-k8s.kind.cluster"
NETWORK = "kind"
CREATE_SECONDS = 600
READY_SECONDS = 180
REPAIR_SECONDS = 90
LOAD_SECONDS = 1800

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What the environment says."""

    name: str = "codeparrot"
    node_image: str = ""
    image: str = "codeparrot:dev"
    manifests: str = ""
    operator_image: str = operator.IMAGE

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> "Settings":
        return cls(
            name=variables.get("KIND_CLUSTER_NAME") or cls.name,
            node_image=variables.get("KIND_NODE_IMAGE", ""),
            image=variables.get("IMAGE", cls.image),
            manifests=variables.get("KUBERAY_MANIFESTS", ""),
            operator_image=variables.get("KUBERAY_IMAGE") or cls.operator_image,
        )

    @property
    def context(self) -> str:
        return f"kind-{self.name}"


@dataclass(frozen=True)
class LocalCluster:
    """One cluster of this machine's Docker engine."""

    settings: Settings
    run: Run
    say: Say
    clock: Clock
    need: Callable[..., None] = require

    def up(self) -> None:
        """Make it, or make it whole again. Raises MissingTool, Misuse, LocalClusterError, ToolFailed."""
        self._check()
        settings = self.settings
        if settings.image and not self._has_image(settings.image):
            raise Misuse(
                f"image {settings.image} is not in the local Docker engine: `make image` builds it, "
                "IMAGE=NAME:TAG names another, IMAGE= loads none"
            )
        if not self._revive():
            self._create()
        self._load(settings.image)
        if settings.manifests:
            self._load(settings.operator_image)
            self.say(f"installing the operator from {settings.manifests}")
            operator.install_manifests(self.run, settings.context, settings.manifests, settings.operator_image)
        else:
            self.say(f"installing the operator {operator.VERSION} from its chart")
            operator.install_chart(self.run, settings.context)
        operator.wait_until_ready(self.run, settings.context)
        self.say(f"cluster {settings.name} is ready, context {settings.context}")

    def down(self) -> None:
        """Delete it and what it left. Raises MissingTool, LocalClusterError, ToolFailed."""
        self._check("docker", "kind")
        self._delete()
        if not self._clusters():
            # kind leaves its network; another cluster, or another user of it, keeps it.
            self.run(["docker", "network", "rm", NETWORK])
        self.say(f"cluster {self.settings.name} is gone")

    def status(self) -> bool:
        """Print how it is; whether it is ready."""
        self._check("docker", "kind", "kubectl")
        nodes = self._containers()
        if not nodes:
            self.say(f"there is no cluster {self.settings.name}; `python -m k8s cluster up` makes it")
            return False
        for name, state in sorted(nodes.items()):
            self.say(f"node {name}: container {state}")
        healthy, why = self._healthy()
        self.say("API server and nodes: ready" if healthy else f"not ready: {why}")
        namespace = ["--namespace", operator.NAMESPACE]
        found = self._kubectl(
            *namespace, "get", "deployment", operator.NAME, "--output", "jsonpath={.status.readyReplicas}"
        )
        running = found.code == 0 and found.out.strip() not in ("", "0")
        self.say(f"operator: {'ready' if running else 'not ready'}")
        return healthy and running

    def _check(self, *names: str) -> None:
        self.need(*(names or TOOLS))
        done = self.run(["docker", "info", "--format", "{{.ServerVersion}}"])
        if done.code != 0:
            raise Misuse(f"the Docker engine does not answer; is it running, and may you use it?\n  {done.tail}")

    def _revive(self) -> bool:
        """Whether the cluster is there and whole, started again if its nodes had stopped."""
        nodes = self._containers()
        if not nodes:
            return False
        stopped = sorted(name for name, state in nodes.items() if state != "running")
        if len(nodes) == NUM_NODES:
            if stopped:
                self.say(f"starting stopped nodes: {', '.join(stopped)}")
                self.run(["docker", "start", *stopped])
            # A kill between the making of nodes and the writing of the kubeconfig leaves no context.
            self.run(["kind", "export", "kubeconfig", "--name", self.settings.name])
            try:
                self._wait_until_healthy(REPAIR_SECONDS)
            except WaitTimeout as error:
                self.say(str(error))
            else:
                self.say(f"cluster {self.settings.name} is there")
                return True
        self.say(f"cluster {self.settings.name} is broken ({len(nodes)} of {NUM_NODES} nodes); making it anew, empty")
        self._delete()
        return False

    def _create(self) -> None:
        settings = self.settings
        self.say(f"making cluster {settings.name}")
        command = ["kind", "create", "cluster", "--name", settings.name, "--config", str(CONFIG)]
        command += ["--image", settings.node_image] if settings.node_image else []
        done = self.run(command, timeout=CREATE_SECONDS)
        if done.code != 0:
            self._delete()
            raise LocalClusterError(f"kind could not make cluster {settings.name}:\n  {done.tail}")
        self._wait_until_healthy(READY_SECONDS)

    def _delete(self) -> None:
        done = self.run(["kind", "delete", "cluster", "--name", self.settings.name], timeout=CREATE_SECONDS)
        left = sorted(self._containers())
        if left:
            succeed(self.run, ["docker", "rm", "--force", "--volumes", *left])
        elif done.code != 0:
            raise LocalClusterError(f"kind could not delete cluster {self.settings.name}:\n  {done.tail}")

    def _wait_until_healthy(self, seconds: float) -> None:
        wait_for(
            self._healthy,
            lambda seen: seen[0],
            seconds,
            lambda seen: f"cluster {self.settings.name}: expected {NUM_NODES} ready nodes, seen {seen and seen[1]}",
            self.clock,
        )

    def _healthy(self) -> tuple[bool, str]:
        """Whether API server and nodes are ready, or why not."""
        answer = self._kubectl("get", "--raw", "/readyz", "--request-timeout=5s")
        if answer.code != 0:
            return False, f"the API server: {answer.tail}"
        template = '{range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}'
        nodes = self._kubectl("get", "nodes", "--output", f"jsonpath={template}", "--request-timeout=5s")
        states = dict(each.split("=", 1) for each in nodes.out.split() if "=" in each)
        if len(states) == NUM_NODES and all(state == "True" for state in states.values()):
            return True, ""
        return False, ", ".join(f"{name} ready: {state}" for name, state in sorted(states.items())) or nodes.tail

    def _load(self, image: str) -> None:
        """Into the workers; kind skips the nodes that have it. An image that is not here is the nodes' to pull."""
        if not image or not self._has_image(image):
            return
        workers = sorted(name for name in self._containers() if not name.endswith("-control-plane"))
        self.say(f"loading image {image} where it is missing")
        command = ["kind", "load", "docker-image", image, "--name", self.settings.name, "--nodes", ",".join(workers)]
        succeed(self.run, command, timeout=LOAD_SECONDS)

    def _has_image(self, image: str) -> bool:
        return self.run(["docker", "image", "inspect", "--format", "{{.Id}}", image]).code == 0

    def _containers(self) -> dict[str, str]:
        """The nodes' containers and their states, those of a half-made cluster too."""
        command = ["docker", "ps", "--all", "--filter", f"label={LABEL}={self.settings.name}"]
        out = succeed(self.run, [*command, "--format", "{{.Names}} {{.State}}"])
        return {name: state for name, _, state in (line.partition(" ") for line in out.splitlines()) if name}

    def _clusters(self) -> list[str]:
        return succeed(self.run, ["docker", "ps", "--all", "--quiet", "--filter", f"label={LABEL}"]).split()

    def _kubectl(self, *arguments: str) -> Done:
        return self.run(["kubectl", "--context", self.settings.context, *arguments])
