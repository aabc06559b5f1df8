"""Install, submit, disturb, upgrade and remove: on a real cluster, the weights are those of an undisturbed run.

One after the other, in this order: a machine with two cores holds one training cluster at a time.
"""

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from codeparrot.humaneval import read_problems
from tests.e2e.conftest import (
    CHART,
    NUM_STEPS,
    SMALL,
    Namespace,
    Release,
    e2e_recipe,
    install,
    is_ready,
    namespace,
    run,
    values,
    wait_until,
)
from tests.integration.conftest import ROOT, Process

SUCCESS, BAD_CONFIGURATION, INTERRUPTED = 0, 2, 3
UNAUTHORIZED = 401
RECIPE = "/etc/codeparrot/recipe/recipe.yaml"


def client(where: Namespace, *arguments: str) -> Process:
    """`python -m k8s` in the background."""
    command, *rest = arguments
    return Process.of_python(["-m", "k8s", command, "--namespace", where.name, *rest], {})


def rayjob(where: Namespace, name: str) -> dict[str, Any]:
    """The RayJob."""
    found: dict[str, Any] = json.loads(where.kubectl("get", "rayjob", name, "--output", "json"))
    return found


def step_of(where: Namespace, name: str) -> int:
    """The step that stands on the RayJob; 0 before the first."""
    annotations = rayjob(where, name)["metadata"].get("annotations", {})
    return int(annotations.get("codeparrot/step", "0").partition("/")[0] or 0)


@pytest.fixture(scope="module")
def undisturbed(release: Release, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run learns that nobody disturbs: by `ray job submit`, on the standing cluster."""
    path = tmp_path_factory.mktemp("token") / "auth_token"
    path.touch(0o600)
    path.write_text(release.token())
    began = time.monotonic()
    with release.dashboard() as address:
        command = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", address]
        done = run(
            *command,
            "--",
            *("python", "-m", "ray_jobs.pipeline", "--config", RECIPE),
            environment={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)},
        )
    print(f"\nray job submit, whole pipeline: {time.monotonic() - began:.0f} s")
    assert "succeeded" in done.stdout.lower()
    assert "training from step 0 on 4 workers" in done.stdout
    return release.trained("standing")


def test_all_pods_are_ready_where_restricted_is_enforced(release: Release) -> None:
    pods = release.namespace.pods(instance=release.name)
    assert {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods} >= {"head", "training", "store"}
    assert all(is_ready(pod) for pod in pods)
    release.namespace.helm("test", release.name)


def test_the_doctor_finds_nothing_wrong(release: Release) -> None:
    done = release.namespace.k8s("doctor", check=False)
    print(done.stdout)
    assert done.returncode == SUCCESS, done.stdout + done.stderr
    assert "FAILED" not in done.stdout


def test_jobs_without_the_token_are_refused(release: Release) -> None:
    with release.dashboard() as address:
        jobs = urllib.request.Request(f"{address}/api/jobs/")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(jobs, timeout=30)
        assert refused.value.code == UNAUTHORIZED
        jobs.add_header("Authorization", f"Bearer {release.token()}")
        with urllib.request.urlopen(jobs, timeout=30) as answer:
            assert json.load(answer) == []


def test_no_secret_stands_in_the_environment_of_a_pod(release: Release) -> None:
    environment = release.python("import os, json; print(json.dumps(dict(os.environ)))")
    assert release.token() not in environment
    for pod in release.namespace.pods(instance=release.name):
        for container in pod["spec"]["containers"]:
            assert not [entry for entry in container.get("env", ()) if "secretKeyRef" in entry.get("valueFrom", {})]


def test_ray_job_submit_trains_with_a_worker_in_each_of_four_pods(undisturbed: dict[str, Any]) -> None:
    assert [step for step, _ in undisturbed["rows"]] == list(range(1, NUM_STEPS + 1))


def test_a_job_that_cannot_be_placed_is_explained_within_two_minutes(release: Release) -> None:
    release.upgrade(
        cluster={"enabled": False}, training={"resources": {"requests": {"cpu": "64"}, "limits": {"cpu": "64"}}}
    )
    path = release.folder / "large.yaml"
    path.write_text(yaml.safe_dump(e2e_recipe("large")))
    began = time.monotonic()
    command = [sys.executable, "-m", "k8s", "submit", str(path), "--namespace", release.namespace.name, "--wait"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as waiting:
        assert waiting.stdout is not None
        lines = []
        for line in waiting.stdout:
            lines.append(line)
            if "Insufficient cpu" in line:
                break
            assert time.monotonic() - began < 120, lines
        waiting.kill()
    assert "Insufficient cpu" in lines[-1], lines
    print(f"\nexplained after {time.monotonic() - began:.0f} s: {lines[-1].strip()}")
    [job] = release.namespace.get("rayjob")
    release.namespace.kubectl("delete", "rayjob", job["metadata"]["name"], "--wait=true")


def delete_pod(component: str) -> Callable[[Release], None]:
    """Delete one pod at once."""

    def disturb(release: Release) -> None:
        pod = release.namespace.pods(component=component)[0]["metadata"]["name"]
        release.namespace.kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")

    return disturb


def drain(release: Release) -> None:
    """Drain the node of a training pod, one without the head and the store if there is such a node."""

    def nodes(component: str) -> set[str]:
        return {pod["spec"]["nodeName"] for pod in release.namespace.pods(component=component)}

    choice = sorted(nodes("training") - nodes("head") - nodes("store")) or sorted(nodes("training"))
    command = ("kubectl", "drain", choice[0], "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s")
    try:
        run(*command, f"--pod-selector=app.kubernetes.io/instance={release.name}")
    finally:
        run("kubectl", "uncordon", choice[0])


def restart_operator(_: Release) -> None:
    """Kill the KubeRay operator."""
    labels = ("--selector", "app.kubernetes.io/component=kuberay-operator")
    run("kubectl", "delete", "pod", "--namespace", "kuberay-system", *labels, "--grace-period=0", "--force")


def delete_store(release: Release) -> None:
    """Delete the store's pod, and wait until there is another."""
    delete_pod("store")(release)
    wait_until(lambda: bool(release.namespace.ready(component="store")), "the store")


def upgrade(release: Release) -> None:
    """Upgrade the release, and roll it back."""
    release.upgrade(cluster={"enabled": False}, pods={"annotations": {"upgraded": "yes"}})
    release.namespace.helm("rollback", release.name)


GOES_ON, CONTINUES = "checkpoint in", "training from step"
DISTURBANCES = (
    ("a training pod deleted", delete_pod("training"), CONTINUES),
    ("the operator restarted", restart_operator, GOES_ON),
    ("the release upgraded and rolled back", upgrade, GOES_ON),
    ("the store's pod deleted", delete_store, GOES_ON),
    ("a node drained", drain, CONTINUES),
    ("the head pod deleted", delete_pod("head"), CONTINUES),
)
"""What happens, and the words of the log that tell that training has got over it."""


def test_a_run_disturbed_in_every_way_ends_with_the_weights_of_an_undisturbed_one(
    release: Release, undisturbed: dict[str, Any]
) -> None:
    where = release.namespace
    release.upgrade(cluster={"enabled": False})
    path = release.folder / "disturbed.yaml"
    path.write_text(yaml.safe_dump(e2e_recipe("disturbed")))
    began = time.monotonic()
    waiting = client(where, "submit", str(path), "--retries", "5", "--wait")
    wait_until(lambda: bool(where.get("rayjob")), "the RayJob")
    name = where.get("rayjob")[0]["metadata"]["name"]
    log = client(where, "logs", name, "--follow")
    wait_until(lambda: step_of(where, name) > 0, "the first step")
    print(f"\nsubmit to first step: {time.monotonic() - began:.0f} s")
    shown = rayjob(where, name)["metadata"]["annotations"]
    assert {"codeparrot/stage", "codeparrot/step", "codeparrot/loss", "codeparrot/tokens-per-second"} <= set(shown)
    assert name in where.k8s("list").stdout
    log.wait_for("training from step 0 on 4 workers")

    def wait_for_news(words: str, old: set[str] | None = None) -> str:
        """A line with these words that is not old; by default, one from now on.

        Lines are compared whole, for a submitter that is made anew repeats the old ones.
        """
        old = set(log.lines) if old is None else old
        fresh: list[str] = []

        def told() -> bool:
            fresh[:] = [line for line in list(log.lines) if words in line and line not in old]
            return bool(fresh) or log.popen.poll() is not None

        wait_until(told, f"{words!r} in the log", poll_seconds=0.1)
        assert fresh, f"the log ended ({log.popen.poll()}) without news of {words!r}\n{log.output[-4000:]}"
        return fresh[0]

    for what, disturb, words in DISTURBANCES:
        wait_for_news(GOES_ON)
        before, began, old = step_of(where, name), time.monotonic(), set(log.lines)
        disturb(release)
        # Training may have begun anew before a drain has ended; that it goes on is news only afterwards.
        line = wait_for_news(words, old if words == CONTINUES else None)
        print(f"\n{what} at step {before}: {time.monotonic() - began:.0f} s to: {line}")

    wait_for_news(GOES_ON)
    before = step_of(where, name)
    where.k8s("cancel", name)
    assert log.wait() == SUCCESS, log.output
    assert waiting.wait() == INTERRUPTED, waiting.output
    wait_until(lambda: rayjob(where, name)["status"]["jobDeploymentStatus"] == "Suspended", "the end of the pods")
    began = time.monotonic()
    waiting = client(where, "resume", name, "--wait")
    log = client(where, "logs", name, "--follow")
    line = wait_for_news(CONTINUES)
    print(f"\ncancelled at step {before} and resumed: {time.monotonic() - began:.0f} s to: {line}")
    assert before <= int(re.findall(r"from step (\d+)", line)[0]) < NUM_STEPS
    assert log.wait() == SUCCESS, log.output
    assert waiting.wait() == SUCCESS, waiting.output
    assert rayjob(where, name)["status"]["jobStatus"] == "SUCCEEDED"
    assert where.k8s("status", name).returncode == SUCCESS
    assert step_of(where, name) == NUM_STEPS
    release.upgrade(**SMALL)
    disturbed = release.trained("disturbed")
    assert disturbed["rows"] == undisturbed["rows"]
    assert disturbed["weights"] == undisturbed["weights"]


def test_a_trained_run_is_served_to_those_who_have_a_key(release: Release, undisturbed: dict[str, Any]) -> None:
    where = release.namespace
    began = time.monotonic()
    release.upgrade(cluster={"enabled": False}, serve={"enabled": True})
    wait_until(lambda: bool(where.ready(component="serve")), "a replica that answers")
    print(f"\nserving after {time.monotonic() - began:.0f} s")
    [secret] = where.get("secret", "--field-selector", f"metadata.name={release.name}-serve-keys")
    key = b64decode(secret["data"]["api-keys"]).decode().strip()
    service = f"service/{release.name}-serve-serve-svc"
    forward = Process(["kubectl", "--namespace", where.name, "port-forward", service, ":8000"], {})
    try:
        forward.wait_for("Forwarding from 127.0.0.1")
        [port] = re.findall(r"127\.0\.0\.1:(\d+)", forward.output)
        url = f"http://127.0.0.1:{port}/v1"
        with openai.OpenAI(base_url=url, api_key=key) as client:
            [model] = client.models.list().data
            assert model.id == "standing"
            texts = {
                client.completions.create(model=model.id, prompt="import ", max_tokens=8, temperature=0).choices[0].text
                for _ in range(2)
            }
            assert len(texts) == 1
            assert texts != {""}
        with openai.OpenAI(base_url=url, api_key="wrong") as stranger, pytest.raises(openai.AuthenticationError):
            stranger.models.list()
    finally:
        forward.popen.terminate()
        forward.wait()
    release.upgrade(**SMALL)
    wait_until(lambda: not where.pods(component="serve"), "the end of serving")


def test_programs_of_a_model_are_scored_in_a_pod_of_their_own(release: Release) -> None:
    """HumanEval's, and one of the user's own."""
    problems = read_problems(None)
    right = [(problem, problem.canonical_solution) for problem in problems]
    completions = [*right, (problems[0], "    raise SystemExit\n")]
    path = release.folder / "completions.jsonl"
    path.write_text(
        "".join(json.dumps({"task_id": each.task_id, "completion": text}) + "\n" for each, text in completions)
    )
    began = time.monotonic()
    results = release.folder / "results.jsonl"
    done = release.namespace.k8s("score", str(path), "--results", str(results))
    print(f"\n{len(completions)} programs scored in {time.monotonic() - began:.0f} s: {done.stdout.strip()}")
    passed = [json.loads(line)["passed"] for line in results.read_text().splitlines()]
    assert sum(passed) == len(problems)
    assert len(passed) == len(completions)
    own = {"task_id": "own/1", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    return 1\n"}
    (release.folder / "problems.jsonl").write_text(json.dumps({**own, "test": "def check(f):\n    assert f() == 1\n"}))
    path.write_text(json.dumps({"task_id": "own/1", "completion": "    return 1\n"}) + "\n")
    done = release.namespace.k8s("score", str(path), "--problems", str(release.folder / "problems.jsonl"))
    assert json.loads(done.stdout)["num_passed"] == 1
    assert not release.namespace.pods(component="score")


def test_network_policies_hold_where_the_network_enforces_them(release: Release) -> None:
    """A pod without labels of the release reaches neither Ray nor the store; a probe tells whether anybody enforces."""
    where = release.namespace
    head = where.ready(component="head")[0]["status"]["podIP"]
    store = where.ready(component="store")[0]["status"]["podIP"]
    image = where.ready(component="head")[0]["spec"]["containers"][0]["image"]
    reached = {target: reaches(where, image, *target) for target in ((head, 6379), (head, 8265), (store, 8333))}
    enforced = not reaches_in_denied_namespace(image)
    does = "enforces" if enforced else "does not enforce"
    print(f"\nthis cluster's network {does} network policies; reached: {reached}")
    if enforced:
        assert not any(reached.values())


STRANGER = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
    print("reached")
except OSError as error:
    print("refused", error)
"""


def stranger(where: Namespace, image: str, name: str, command: list[str]) -> str:
    """What a pod prints that belongs to nobody."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "stranger",
                    "image": image,
                    "command": command,
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }
    where.kubectl("apply", "--filename", "-", text=json.dumps(manifest))
    try:
        wait_until(
            lambda: (
                json.loads(where.kubectl("get", "pod", name, "-o", "json"))["status"]["phase"]
                in ("Succeeded", "Failed")
            ),
            f"the end of pod {name}",
        )
        return where.kubectl("logs", name)
    finally:
        where.kubectl("delete", "pod", name, "--grace-period=0", "--force")


def reaches(where: Namespace, image: str, address: str, port: int) -> bool:
    """Whether a stranger in the namespace reaches it."""
    return "reached" in stranger(where, image, f"stranger-{port}", ["python", "-c", STRANGER, address, str(port)])


def reaches_in_denied_namespace(image: str) -> bool:
    """Whether a pod under a policy that denies everything still reaches the API server's service."""
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "deny"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    }
    with namespace() as denied:
        denied.kubectl("apply", "--filename", "-", text=json.dumps(policy))
        address = json.loads(run("kubectl", "-n", "default", "get", "service", "kubernetes", "-o", "json").stdout)
        return reaches(denied, image, address["spec"]["clusterIP"], 443)


CLUSTER_WITHOUT_TOKEN = """
apiVersion: ray.io/v1
kind: RayCluster
metadata:
  name: open
spec:
  headGroupSpec:
    rayStartParams: {}
    template:
      spec:
        containers:
          - {name: ray-head, image: none}
"""


def test_the_admission_policy_refuses_what_it_must_and_nothing_else(release: Release) -> None:
    where = release.namespace

    def answer(*arguments: str, text: str | None = None) -> str:
        command = ("kubectl", "--namespace", where.name, *arguments, "--dry-run=server")
        done = run(*command, text=text, check=False)
        return done.stdout + done.stderr

    release.upgrade(admissionPolicy={"enabled": True}, **SMALL)
    with_token = CLUSTER_WITHOUT_TOKEN.replace("spec:\n  head", "spec:\n  authOptions: {mode: token}\n  head", 1)
    create = ("create", "--filename", "-")
    wait_until(lambda: "must be token" in answer(*create, text=CLUSTER_WITHOUT_TOKEN), "the policy", seconds=60)
    assert "created" in answer(*create, text=with_token)
    name = where.get("rayjob")[0]["metadata"]["name"]
    sidecar = f"--as=system:serviceaccount:{where.name}:{release.name}-status"
    patch = ("patch", "rayjob", name, sidecar, "--type=merge", "--patch")
    assert "patched" in answer(*patch, '{"metadata": {"annotations": {"codeparrot/step": "1/2"}}}')
    for change in ({"spec": {"suspend": True}}, {"metadata": {"annotations": {"other": "1"}}}):
        assert "status sidecar may" in answer(*patch, json.dumps(change)), change
    release.upgrade(**SMALL)
    left = run("kubectl", "get", "validatingadmissionpolicies", "--output", "name").stdout
    assert where.name not in left


def test_an_upgrade_and_a_rollback_keep_data_and_credentials(release: Release) -> None:
    where = release.namespace
    before = {
        secret["metadata"]["name"]: secret["data"] for secret in where.get("secret") if secret["type"] == "Opaque"
    }
    [claim] = where.get("pvc")
    release.upgrade(preemption={"gracePeriodSeconds": 120}, **SMALL)
    where.helm("rollback", release.name)
    release.wait_until_settled(SMALL["training"]["replicas"])
    after = {secret["metadata"]["name"]: secret["data"] for secret in where.get("secret") if secret["type"] == "Opaque"}
    assert before == after
    assert where.get("pvc")[0]["metadata"]["uid"] == claim["metadata"]["uid"]
    assert release.trained("disturbed")["rows"]


def test_wrong_values_are_refused_before_anything_starts(release: Release) -> None:
    bad_recipe = values(release.folder, recipe=e2e_recipe("wrong", max_steps=0))
    with namespace() as where:
        for name, settings, words in (
            ("codeparrot", ["--set", "trainig.replicas=2"], "trainig"),
            ("codeparrot", ["--set", "training.replicas=many"], "replicas"),
            ("codeparrot", ["--values", str(bad_recipe)], "max_steps"),
            ("codeparrot", ["--set", "storage.mode=external"], "existingSecret"),
            ("codeparrot", ["--set", "storage.mode=external,storage.external.existingSecret=none"], "no Secret none"),
            (45 * "a", [], "at most 40"),
        ):
            done = where.helm("install", name, str(CHART), *settings, check=False)
            assert done.returncode != 0, settings
            assert words in done.stderr, (settings, done.stderr)
        assert not where.get("pods")
        path = release.folder / "wrong.yaml"
        path.write_text(yaml.safe_dump(e2e_recipe("wrong", learning_rate=-1)))
        refused = release.namespace.k8s("submit", str(path), check=False)
        assert refused.returncode == BAD_CONFIGURATION
        assert "train.learning_rate" in refused.stderr + refused.stdout


def test_two_releases_do_not_disturb_each_other_and_uninstalling_leaves_the_volume_alone(release: Release) -> None:
    before = {pod["metadata"]["uid"] for pod in release.pods("store", "head", "training")}
    with namespace() as where:
        install(where, values(release.folder, cluster={"enabled": False}), name="codeparrot")
        wait_until(lambda: bool(where.ready(component="store")), "the second store")
        where.helm("uninstall", "codeparrot", "--wait")
        wait_until(lambda: not where.get("pods"), "pods to go")
        kinds = "all,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets"
        rest = {f"{item['kind']}/{item['metadata']['name']}" for item in where.get(kinds)}
        assert rest <= {"ConfigMap/kube-root-ca.crt", "ServiceAccount/default"}, rest
        assert len(where.get("pvc")) == 1
    release.wait_until_settled(SMALL["training"]["replicas"])
    assert {pod["metadata"]["uid"] for pod in release.pods("store", "head", "training")} == before
    assert release.trained("disturbed")["rows"]
