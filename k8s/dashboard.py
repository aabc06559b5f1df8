"""The dashboard and the port for jobs of a head, on a port of this machine's loopback.

The forwarding is kubectl's, as a child process. The Python client can forward too, but one connection at a time: it
opens a websocket and a thread for each, closes both directions when one of them ends (which cuts off answers), and
cannot be used from several threads through one client; a browser opens six connections at once. kubectl
multiplexes, and whoever uses a cluster has it. It ends when the head's pod goes; then it is started again for the
new one, so that a page survives a restart of the head.

The head is never exposed otherwise, and the token is not printed unless asked for: terminals are recorded.
"""

import base64
import contextlib
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from typing import IO

from k8s import tools
from k8s.api import POD, RAY_CLUSTER, SECRET, Api, Object
from k8s.errors import Misuse, NotFound, RunError, Unavailable
from k8s.picture import load
from k8s.pods import explain, phase, ready
from k8s.release import Release
from k8s.waiting import Clock, wait_for
from k8s.wording import plain

PORT = 8265
TOKEN_KEY = "auth_token"  # noqa: S105 - the name of the key in the Secret
FORWARD_SECONDS = 30.0
HEAD_SECONDS = 120.0
PAUSE_SECONDS = 2.0


def cluster_name(api: Api, release: Release | None, rayjob: str | None) -> str:
    """The RayCluster of a run, or the standing one of the release. Raises RunError."""
    if rayjob is not None:
        job = load(api, rayjob)
        if job.cluster is None:
            raise RunError(f"RayJob {api.namespace}/{rayjob} has no cluster: {job.sentence}")
        return job.cluster
    assert release is not None, "the caller gives one of the two"
    return release.fullname


def head(api: Api, cluster: str) -> Object:
    """The ready head pod. Raises NotFound, Unavailable (none is ready yet)."""
    found = api.select(POD, f"ray.io/cluster={cluster},ray.io/node-type=head")
    for pod in found:
        if phase(pod) == "Running" and ready(pod):
            return pod
    if not found and api.find(RAY_CLUSTER, cluster) is None:
        raise NotFound(f"no RayCluster {api.namespace}/{cluster}; `python -m k8s list` shows runs with their own")
    why = "; ".join(str(problem) for problem in explain(found)) or "it is starting, or stopping"
    raise Unavailable(f"the head of RayCluster {api.namespace}/{cluster} is not ready: {why}")


def wait_for_head(api: Api, cluster: str, clock: Clock) -> Object:
    """Raises NotFound, WaitTimeout."""
    return wait_for(
        lambda: head(api, cluster),
        lambda _: True,
        HEAD_SECONDS,
        lambda _: f"RayCluster {api.namespace}/{cluster}: expected a ready head",
        clock,
    )


def token_secret(api: Api, cluster: str) -> str:
    """The Secret that holds the cluster's token. Raises NotFound, RunError (it asks for no token)."""
    options = (api.get(RAY_CLUSTER, cluster)["spec"] or {}).get("authOptions") or {}
    if options.get("mode") != "token":
        raise RunError(
            f"RayCluster {api.namespace}/{cluster} asks for no token: whoever reaches its head runs code there"
        )
    return str(options.get("secretName") or cluster)


def token(api: Api, secret: str) -> str:
    """Raises NotFound, Forbidden."""
    data = api.get(SECRET, secret).get("data") or {}
    if TOKEN_KEY not in data:
        raise NotFound(
            f"Secret {api.namespace}/{secret}: expected key {TOKEN_KEY}, seen {', '.join(sorted(data)) or 'none'}"
        )
    return base64.b64decode(data[TOKEN_KEY]).decode("utf-8").strip()


def free_port(wanted: int) -> int:
    """The port that was asked for, or any if 0. Raises Misuse if somebody has it."""
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", wanted))
            return int(listener.getsockname()[1])
    except OSError as error:
        raise Misuse(f"--port {wanted}: in use on this machine; --port 0 chooses a free one") from error


def command(context: str | None, namespace: str, pod: str, port: int) -> list[str]:
    """What forwards the port."""
    chosen = ["--context", context] if context else []
    where = ["--namespace", namespace, "port-forward", "--address", "127.0.0.1"]
    return ["kubectl", *chosen, *where, f"pod/{pod}", f"{port}:{PORT}"]


def hints(context: str | None, namespace: str, port: int, secret: str | None) -> list[str]:
    """What a person needs to use the forwarded port."""
    lines = [f"dashboard: http://127.0.0.1:{port}"]
    if secret is not None:
        chosen = f"--context {context} " if context else ""
        get = f"kubectl {chosen}--namespace {namespace} get secret {secret}"
        lines += [
            "the token that it asks for (or give this command --show-token):",
            f"  {get} --output jsonpath='{{.data.{TOKEN_KEY}}}' | base64 -d",
            "to submit jobs:",
            f"  export RAY_ADDRESS=http://127.0.0.1:{port} RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE_WITH_THE_TOKEN",
        ]
    return [*lines, "Ctrl-C ends it"]


def forward(
    api: Api, context: str | None, cluster: str, port: int, opened: Callable[[], None], say: Callable[[str], None],
    clock: Clock,
) -> None:  # fmt: skip
    """Forward until Ctrl-C, over restarts of the head. Raises NotFound, WaitTimeout, RunError."""
    tools.require("kubectl")
    first = True
    while True:
        pod = str(wait_for_head(api, cluster, clock)["metadata"]["name"])
        # A file and not a pipe: kubectl writes a line for every connection that breaks, and must not wait for a reader.
        with tempfile.TemporaryFile() as said:
            process = _start(command(context, api.namespace, pod, port), said)
            try:
                _wait_until_open(process, said, port, clock)
                if first:
                    opened()
                else:
                    say(f"forwarding again, to {pod}")
                first = False
                process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                process.wait()
        say("the forwarding ended (did the head restart?); trying again")
        clock.sleep(PAUSE_SECONDS)


def _start(arguments: Sequence[str], said: IO[bytes]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(  # noqa: S603
        list(arguments), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, process_group=0
    )


def _wait_until_open(process: "subprocess.Popen[bytes]", said: IO[bytes], port: int, clock: Clock) -> None:
    def is_open() -> bool:
        if process.poll() is not None:
            said.seek(0)
            text = plain(said.read(4096).decode("utf-8", "replace"))
            raise RunError(f"kubectl port-forward ended with exit code {process.returncode}: {text}")
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(is_open, bool, FORWARD_SECONDS, lambda _: f"kubectl port-forward: nothing on port {port}", clock, 0.1)
