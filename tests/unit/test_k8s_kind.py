"""The local cluster, made of programs that only say what they are told."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s import operator, tools
from k8s.errors import LocalClusterError, MissingTool, Misuse, ToolFailed
from k8s.kind import CONFIG, LocalCluster, Settings
from k8s.tools import Done
from tests.unit.k8s_doubles import FakeClock, FakePrograms

NODES = "codeparrot-control-plane {0}\ncodeparrot-worker {0}\ncodeparrot-worker2 {0}\n"
READY = "codeparrot-control-plane=True codeparrot-worker=True codeparrot-worker2=True "
BAD = Done(1, "", "boom\n")
MANIFESTS = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  annotations: {a: b}
  name: rayjobs.ray.io
spec: {}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: kuberay-operator, namespace: default}
---
kind: ClusterRoleBinding
metadata: {name: b}
subjects: [{kind: ServiceAccount, name: kuberay-operator, namespace: default}]
---
kind: Deployment
metadata: {name: kuberay-operator, namespace: default}
spec: {template: {spec: {containers: [{name: o, image: other}]}}}
"""


class Machine:
    """A machine with Docker and kind, on which everything works unless told otherwise."""

    def __init__(self, **settings: Any) -> None:
        self.programs, self.said, self.clock = FakePrograms(), list[str](), FakeClock()
        programs = self.programs
        programs.says(r"^docker ps --all --filter label=\S+=codeparrot --format", NODES.format("running"))
        programs.says(r"get nodes", READY)
        programs.says(r"^helm status", Done(1, "", "release: not found"))
        programs.says(r"kustomize", MANIFESTS)
        self.cluster = LocalCluster(Settings(**settings), programs, self.said.append, self.clock, need=lambda *_: None)

    def containers(self, *answers: str) -> None:
        self.programs.says(r"^docker ps --all --filter label=\S+=codeparrot --format", *answers)


def test_the_configuration_is_one_control_plane_and_two_workers_on_any_cgroup() -> None:
    values = yaml.safe_load(CONFIG.read_text())
    assert [node["role"] for node in values["nodes"]] == ["control-plane", "worker", "worker"]
    (patch,) = values["kubeadmConfigPatches"]
    assert yaml.safe_load(patch) == {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "failCgroupV1": False,
    }


def test_a_new_cluster_is_made_with_operator_and_image() -> None:
    machine = Machine(node_image="my/node:1")
    machine.containers("", NODES.format("running"))
    machine.cluster.up()
    assert machine.programs.ran(f"^kind create cluster --name codeparrot --config {CONFIG} --image my/node:1$")
    assert machine.programs.ran(
        "^kind load docker-image codeparrot:dev --name codeparrot --nodes codeparrot-worker,codeparrot-worker2$"
    )
    assert machine.programs.ran(
        "^helm upgrade --install kuberay-operator .*--version 1.6.2 --kube-context kind-codeparrot"
    )
    assert machine.programs.ran("rollout status deployment/kuberay-operator")
    assert machine.said[-1] == "cluster codeparrot is ready, context kind-codeparrot"


def test_a_cluster_that_is_there_is_kept() -> None:
    machine = Machine()
    machine.cluster.up()
    assert not machine.programs.ran("^kind (create|delete) cluster")
    assert machine.programs.ran("^kind export kubeconfig")


def test_stopped_nodes_are_started() -> None:
    machine = Machine()
    machine.containers(NODES.format("exited"))
    machine.cluster.up()
    assert machine.programs.ran("^docker start codeparrot-control-plane codeparrot-worker codeparrot-worker2$")
    assert not machine.programs.ran("^kind (create|delete) cluster")


@pytest.mark.parametrize("containers", ["codeparrot-control-plane running\n", NODES.format("running")])
def test_a_broken_cluster_is_made_anew_and_it_is_said(containers: str) -> None:
    machine = Machine()
    machine.containers(containers, "", NODES.format("running"))
    broken = [Done(1, "", "connection refused")] * (47 if "worker" in containers else 0)
    machine.programs.says("readyz", *broken, "ok")
    machine.cluster.up()
    commands = [line for line in machine.programs.commands if line.startswith(("kind create", "kind delete"))]
    assert [line.split()[1] for line in commands] == ["delete", "create"]
    assert any("is broken" in line and "empty" in line for line in machine.said)


def test_a_cluster_that_cannot_be_made_leaves_nothing_and_says_why() -> None:
    machine = Machine()
    machine.containers("", "codeparrot-control-plane created", "")
    machine.programs.says("kind create", BAD)
    with pytest.raises(LocalClusterError, match="kind could not make cluster codeparrot:\n  boom"):
        machine.cluster.up()
    assert machine.programs.ran("^kind delete cluster --name codeparrot$")
    assert machine.programs.ran("^docker rm --force --volumes codeparrot-control-plane$")


def test_an_image_that_was_not_built_is_told_before_anything_is_made() -> None:
    machine = Machine()
    machine.programs.says("image inspect", BAD)
    with pytest.raises(Misuse, match=r"image codeparrot:dev .*make image.*IMAGE="):
        machine.cluster.up()
    assert not machine.programs.ran("^kind")
    without = Machine(image="")
    without.cluster.up()
    assert not without.programs.ran("^kind load")


def test_a_docker_engine_that_does_not_answer_is_told() -> None:
    machine = Machine()
    machine.programs.says("docker info", Done(1, "", "Cannot connect to the Docker daemon"))
    with pytest.raises(Misuse, match=r"Docker engine does not answer.*\n  Cannot connect"):
        machine.cluster.up()


def test_the_operator_comes_from_a_folder_if_one_is_named() -> None:
    machine = Machine(manifests="/somewhere", operator_image="mine:1")
    machine.cluster.up()
    programs = machine.programs
    assert not programs.ran("^helm")
    assert programs.ran("^kind load docker-image mine:1 ")
    assert programs.ran("^kubectl kustomize /somewhere$")
    definitions, others = programs.texts
    assert [each["kind"] for each in yaml.safe_load_all(definitions)] == ["CustomResourceDefinition"]
    applied = {each["kind"]: each for each in yaml.safe_load_all(others)}
    assert applied["Namespace"]["metadata"]["name"] == "kuberay-system"
    assert applied["ServiceAccount"]["metadata"]["namespace"] == "kuberay-system"
    assert applied["ClusterRoleBinding"]["subjects"][0]["namespace"] == "kuberay-system"
    assert "namespace" not in applied["ClusterRoleBinding"]["metadata"]
    assert applied["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"] == "mine:1"
    waits = [line for line in programs.commands if "condition=Established" in line]
    assert waits[0].endswith("crd/rayjobs.ray.io")
    assert all("--server-side" in line for line in programs.commands if " apply " in line)


def test_a_folder_that_is_not_the_operators_is_refused() -> None:
    with pytest.raises(LocalClusterError, match="KUBERAY_MANIFESTS"):
        operator.prepared("kind: Pod\nmetadata: {name: x}\n", "i")


def test_a_helm_that_was_killed_does_not_stop_the_next_one() -> None:
    machine = Machine()
    machine.programs.says("^helm status", json.dumps({"info": {"status": "pending-install"}}))
    machine.cluster.up()
    commands = [line.split()[1] for line in machine.programs.commands if line.startswith("helm")]
    assert commands == ["status", "uninstall", "upgrade"]


def test_an_operator_that_does_not_get_ready_is_told_with_its_pods() -> None:
    machine = Machine()
    machine.programs.says("rollout status", Done(1, "", "timed out"))
    machine.programs.says("get pods", "kuberay-operator-1 ImagePullBackOff")
    with pytest.raises(LocalClusterError, match="timed out\n  kuberay-operator-1 ImagePullBackOff"):
        machine.cluster.up()


def test_down_leaves_nothing() -> None:
    machine = Machine()
    machine.containers("")
    machine.cluster.down()
    assert machine.programs.ran("^kind delete cluster --name codeparrot$")
    assert machine.programs.ran("^docker network rm kind$")
    other = Machine()
    other.containers("")
    other.programs.says("--quiet", "1234abcd\n")
    other.cluster.down()
    assert not other.programs.ran("network rm")


def test_the_status_tells_nodes_and_operator() -> None:
    machine = Machine()
    machine.programs.says("readyReplicas", "1")
    assert machine.cluster.status()
    assert machine.said[-2:] == ["API server and nodes: ready", "operator: ready"]
    gone = Machine()
    gone.containers("")
    assert not gone.cluster.status()
    assert "there is no cluster codeparrot" in gone.said[0]
    half = Machine()
    half.programs.says("get nodes", READY.replace("worker2=True", "worker2=False"))
    assert not half.cluster.status()
    assert "codeparrot-worker2 ready: False" in half.said[-2]


def test_the_environment_names_cluster_and_images() -> None:
    assert Settings.read({}) == Settings()
    read = Settings.read({"KIND_CLUSTER_NAME": "x", "KIND_NODE_IMAGE": "n", "IMAGE": "", "KUBERAY_MANIFESTS": "/m"})
    assert (read.context, read.node_image, read.image, read.manifests) == ("kind-x", "n", "", "/m")
    assert read.operator_image == "quay.io/kuberay/operator:v1.6.2"


def test_all_missing_tools_are_named_with_what_they_are_for(tmp_path: Path) -> None:
    with pytest.raises(
        MissingTool, match=r"docker: runs the nodes.*\n.*kind: makes.*\n.*kubectl: .*\n.*helm: installs"
    ) as caught:
        tools.require("docker", "kind", "kubectl", "helm", path=str(tmp_path))
    assert caught.value.exit_code == 2
    (tmp_path / "kind").write_text("")
    (tmp_path / "kind").chmod(0o755)
    tools.require("kind", path=str(tmp_path))
    with pytest.raises(MissingTool, match="no-such-program"):
        tools.run(["no-such-program"])


def test_a_program_that_fails_or_hangs_is_told_with_its_last_lines() -> None:
    with pytest.raises(ToolFailed, match="exit code 3:\n  last words"):
        tools.succeed(tools.run, [sys.executable, "-c", "import sys; print('last words'); sys.exit(3)"])
    with pytest.raises(ToolFailed, match="did not end within 0 s"):
        tools.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
    echo = [sys.executable, "-c", "import os, sys; print(sys.stdin.read() + os.environ['X'])"]
    assert tools.run(echo, text="in", environment={"X": "side"}).out == "inside\n"
