"""The transport: a kubeconfig or a service account, through the `kubernetes` package.

The package brings what is hard: kubeconfig in all its forms, login plugins, tokens that are renewed, TLS, proxies. Of
its generated classes none is used but for `exec`: importing them takes longer than all else, and the status sidecar
of every run imports this module. Retrying is the callers' affair: they know what they wait for, and until when.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from k8s.api import Api, Object, Response, refusal
from k8s.errors import ClientError, Misuse, NoCluster, Unauthorized, Unavailable

REQUEST_SECONDS = 30.0
CONNECT_SECONDS = 10.0
LOG_SILENCE_SECONDS = 60.0
"""A followed log that says nothing for so long is asked for again: a dead connection looks the same."""
EXEC_SECONDS = 60.0
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Executed:
    """A command that ran in a container."""

    code: int
    out: str
    err: str


class Cluster(Protocol):
    """What the commands need of a cluster."""

    @property
    def api(self) -> Api:
        """Its objects, seen from one namespace."""

    def log(self, pod: str, query: Mapping[str, str]) -> Iterator[str]:
        """The lines of a pod's log. Raises ApiError; Unavailable if the connection breaks or stays silent."""

    def execute(self, pod: str, container: str, command: list[str], seconds: float = EXEC_SECONDS) -> Executed:
        """Run a command in a container, to its end. Raises ApiError."""


class Silence(Unavailable):
    """A followed log brought nothing for a while."""


@dataclass(frozen=True)
class Connection:
    """A cluster that is reached through the `kubernetes` package."""

    client: Any
    api: Api = field(init=False)
    namespace: str

    def __post_init__(self) -> None:
        host = str(self.client.configuration.host)
        object.__setattr__(self, "api", Api(self.request, self.namespace, f"the API server at {host}"))

    def request(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str | None
    ) -> Response:
        """One request, tried once."""
        answer = self._send(method, path, query, body, content_type, REQUEST_SECONDS)
        try:
            return Response(answer.status, dict(answer.headers), answer.read())
        except _transport_errors() as error:
            raise self._unreachable(error) from error

    def log(self, pod: str, query: Mapping[str, str]) -> Iterator[str]:
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        answer = self._send("GET", path, query, None, None, LOG_SILENCE_SECONDS)
        try:
            if answer.status >= 400:
                response = Response(answer.status, dict(answer.headers), answer.read())
                raise refusal(response, f"log of Pod {self.namespace}/{pod}", self.api.server)
            yield from _lines(answer.response.stream(65536, decode_content=True))
        except _transport_errors() as error:
            if "timed out" in str(error).lower():
                raise Silence(f"log of Pod {self.namespace}/{pod}: silent for {LOG_SILENCE_SECONDS:.0f} s") from error
            raise self._unreachable(error) from error
        finally:
            answer.response.close()

    def execute(self, pod: str, container: str, command: list[str], seconds: float = EXEC_SECONDS) -> Executed:
        from kubernetes.client import CoreV1Api
        from kubernetes.client.exceptions import ApiException
        from kubernetes.stream import stream

        what = f"exec in Pod {self.namespace}/{pod}, container {container}"
        try:
            session = stream(
                CoreV1Api(self.client).connect_get_namespaced_pod_exec,
                pod,
                self.namespace,
                container=container,
                command=command,
                stdin=False,
                stdout=True,
                stderr=True,
                tty=False,
                _preload_content=False,
            )
            try:
                session.run_forever(timeout=seconds)
                if session.is_open():
                    raise Unavailable(f"{what}: `{command[0]}` did not end within {seconds:.0f} s")
                return Executed(_code(session), session.read_stdout(timeout=0), session.read_stderr(timeout=0))
            finally:
                session.close()
        except ApiException as error:
            # A refused upgrade of the connection carries no Status object, only a line.
            raise Unavailable(f"{what}: {' '.join(str(error.reason or error).split())[:300]}") from error

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | None,
        content_type: str | None,
        seconds: float,
    ) -> Any:
        headers = {"Accept": "application/json, */*", "User-Agent": "codeparrot-k8s"}
        if content_type:
            headers["Content-Type"] = content_type
        try:
            prepared = self.client.param_serialize(
                method, path, query_params=list(query.items()), header_params=headers, body=body,
                auth_settings=["BearerToken"],
            )  # fmt: skip
            return self.client.call_api(*prepared, _request_timeout=(CONNECT_SECONDS, seconds))
        except _transport_errors() as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ClientError:
        text = " ".join(str(error).split())[:300]
        if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
            return Unauthorized(f"{self.api.server} shows a certificate that this kubeconfig does not trust: {text}")
        return Unavailable(f"{self.api.server} does not answer: {text}")


def connect(context: str | None = None, namespace: str | None = None) -> Connection:
    """The cluster of a kubeconfig's context, or, in a pod without a kubeconfig, that of its service account.

    Raises NoCluster if there is neither, Misuse for a context that does not exist.
    """
    from kubernetes import config
    from kubernetes.client import ApiClient, Configuration

    configuration = Configuration()
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").exists()
    try:
        if context is None and in_pod and not os.environ.get("KUBECONFIG"):
            config.load_incluster_config(client_configuration=configuration)
            default = _read(SERVICE_ACCOUNT / "namespace")
        else:
            default = _namespace_of(config, context)
            config.load_kube_config(context=context, client_configuration=configuration)
    except config.ConfigException as error:
        raise _no_cluster(error) from error
    except OSError as error:
        raise NoCluster(f"the kubeconfig cannot be read: {error}") from error
    configuration.retries = False
    return Connection(ApiClient(configuration), namespace or default or "default")


def _namespace_of(config: Any, context: str | None) -> str | None:
    contexts, current = config.list_kube_config_contexts()
    names = [str(each["name"]) for each in contexts]
    if context is not None and context not in names:
        raise Misuse(f"--context {context}: the kubeconfig has no such context; it has {', '.join(names) or 'none'}")
    chosen = next((each for each in contexts if each["name"] == context), current)
    return (chosen.get("context") or {}).get("namespace") if chosen else None


def _no_cluster(error: Exception) -> ClientError:
    where = os.environ.get("KUBECONFIG") or "~/.kube/config"
    return NoCluster(
        f"no cluster is configured ({where}: {' '.join(str(error).split())}): set KUBECONFIG or log in to a cluster; "
        "`python -m k8s cluster up` makes one on this machine"
    )


def _read(path: Path) -> str | None:
    return path.read_text("utf-8").strip() if path.exists() else None


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the package lets through when a request does not get an answer."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    return (HTTPError, ApiException, OSError)


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


def _code(session: Any) -> int:
    """The exit code of a command; its Status tells it, and one that never started has none."""
    text = session.read_channel(3)
    status = json.loads(text) if text else {}
    if status.get("status") == "Success":
        return 0
    causes = (status.get("details") or {}).get("causes") or []
    codes = [each.get("message", "") for each in causes if each.get("reason") == "ExitCode"]
    if codes and codes[0].isdigit():
        return int(codes[0])
    raise Unavailable(f"the command did not run: {status.get('message', 'the connection closed')}")
