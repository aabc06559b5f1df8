"""Objects of the API server as plain values, and what its refusals mean.

Objects are the dictionaries that YAML files hold, not generated classes: the operator's kinds have no classes, and a
field that this client does not know must survive. So one generic request serves all kinds. The transport is an
argument: `connection.py` has the real one, tests have an API server of thirty lines.

Lists are read in pages; a list that expires in between (410) is read anew by the next poll.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from k8s import errors

Object = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"
PAGE = 500
NO_CRD = "is the KubeRay operator installed? `python -m k8s doctor` says what is missing"


class Response(NamedTuple):
    """What an API server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """One request to the API server. Raises Unavailable if it does not answer."""

    def __call__(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str | None
    ) -> Response:
        """`path` is escaped already."""


@dataclass(frozen=True)
class Kind:
    """Where the objects of a kind live."""

    name: str
    prefix: str
    plural: str
    namespaced: bool = True

    @property
    def group_version(self) -> str:
        return self.prefix.removeprefix("/apis/").removeprefix("/api/")


RAY_JOB = Kind("RayJob", "/apis/ray.io/v1", "rayjobs")
RAY_CLUSTER = Kind("RayCluster", "/apis/ray.io/v1", "rayclusters")
CONFIG_MAP = Kind("ConfigMap", "/api/v1", "configmaps")
SECRET = Kind("Secret", "/api/v1", "secrets")
POD = Kind("Pod", "/api/v1", "pods")
EVENT = Kind("Event", "/api/v1", "events")
QUOTA = Kind("ResourceQuota", "/api/v1", "resourcequotas")
CLAIM = Kind("PersistentVolumeClaim", "/api/v1", "persistentvolumeclaims")
NAMESPACE = Kind("Namespace", "/api/v1", "namespaces", namespaced=False)
NODE = Kind("Node", "/api/v1", "nodes", namespaced=False)
STORAGE_CLASS = Kind("StorageClass", "/apis/storage.k8s.io/v1", "storageclasses", namespaced=False)
DEPLOYMENT = Kind("Deployment", "/apis/apps/v1", "deployments")


@dataclass(frozen=True)
class Api:
    """The API server, seen from one namespace. Every method raises the errors of `errors.ApiError`."""

    transport: Transport
    namespace: str
    server: str = field(default="the API server")

    def get(self, kind: Kind, name: str) -> Object:
        """Raises NotFound."""
        return self._object("GET", kind, name)

    def find(self, kind: Kind, name: str) -> Object | None:
        """The object, or None if there is none of this name."""
        try:
            return self.get(kind, name)
        except errors.NotFound:
            return None

    def select(self, kind: Kind, selector: str = "", *, everywhere: bool = False) -> list[Object]:
        """The objects whose labels match, of this namespace or of all."""
        return list(self._pages(kind, selector, everywhere))

    def create(self, kind: Kind, manifest: Object) -> Object:
        """Raises AlreadyExists, Invalid, Forbidden (a policy or a quota says no)."""
        name = str(manifest["metadata"]["name"])
        return self._object("POST", kind, name, manifest, "application/json", collection=True)

    def patch(self, kind: Kind, name: str, changes: Object) -> Object:
        """A merge patch: None removes a key."""
        return self._object("PATCH", kind, name, changes, MERGE_PATCH)

    def delete(self, kind: Kind, name: str) -> None:
        """With all that it owns, in the background."""
        self._object("DELETE", kind, name)

    def raw(self, path: str) -> Response:
        """Anything by its path. Raises ApiError for every answer but a good one."""
        response = self.transport("GET", path, {}, None, None)
        if response.status >= 400:
            raise refusal(response, path, self.server)
        return response

    def _pages(self, kind: Kind, selector: str, everywhere: bool) -> Iterator[Object]:
        query = {"limit": str(PAGE)} | ({"labelSelector": selector} if selector else {})
        path = self._path(kind, None, everywhere=everywhere)
        what = f"{kind.plural} in {'all namespaces' if everywhere else f'namespace {self.namespace}'}"
        while True:
            response = self.transport("GET", path, query, None, None)
            if response.status >= 400:
                raise refusal(response, what, self.server, kind)
            page = json.loads(response.body)
            yield from page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return
            query = query | {"continue": str(token)}

    def _object(
        self,
        method: str,
        kind: Kind,
        name: str,
        body: Object | None = None,
        content_type: str | None = None,
        *,
        collection: bool = False,
    ) -> Object:
        path = self._path(kind, None if collection else name)
        response = self.transport(method, path, {}, body, content_type)
        if response.status >= 400:
            where = f" {self.namespace}/{name}" if kind.namespaced else f" {name}"
            raise refusal(response, kind.name + where, self.server, kind)
        value: Object = json.loads(response.body)
        return value

    def _path(self, kind: Kind, name: str | None, *, everywhere: bool = False) -> str:
        namespace = f"/namespaces/{quote(self.namespace, safe='')}" if kind.namespaced and not everywhere else ""
        return f"{kind.prefix}{namespace}/{kind.plural}" + (f"/{quote(name, safe='')}" if name else "")


def refusal(response: Response, what: str, server: str, kind: Kind | None = None) -> errors.ApiError:
    """The error that an answer means. `what` is the object or the list that was asked for."""
    message, reason, of_object = _said(response)
    if response.status == 401:
        return errors.Unauthorized(
            f"{what}: {server} does not accept the credentials of this kubeconfig (401): log in again, "
            "or choose another --context"
        )
    if response.status == 403:
        return errors.Forbidden(f"{what}: not allowed (403): {message}")
    if response.status == 404:
        if kind is not None and not of_object:
            text = f"{what}: {server} knows no kind {kind.name} of {kind.group_version}"
            return errors.MissingKind(f"{text}; {NO_CRD}" if "ray.io" in kind.prefix else text)
        return errors.NotFound(f"{what}: there is none (404): {message}")
    if response.status == 409:
        if reason == "AlreadyExists":
            return errors.AlreadyExists(f"{what}: exists already; choose another name")
        return errors.Conflict(f"{what}: {message}; try again")
    if response.status in (400, 422):
        return errors.Invalid(f"{what}: {server} refused it ({response.status}): {message}")
    if response.status == 429 or response.status >= 500:
        return errors.Unavailable(f"{what}: {server} answers {response.status}: {message}")
    return errors.ApiError(f"{what}: {server} answers {response.status}: {message}")


def _said(response: Response) -> tuple[str, str, bool]:
    """Message, reason, and whether the refusal is about an object (and not about its kind)."""
    try:
        status = json.loads(response.body)
    except ValueError:
        status = None
    if not isinstance(status, dict) or status.get("kind") != "Status":
        return response.body.decode("utf-8", "replace").strip()[:300] or "no message", "", False
    details = status.get("details") or {}
    # For an unknown kind the message is "the server could not find the requested resource", without a name.
    return str(status.get("message", "no message")), str(status.get("reason", "")), bool(details.get("name"))
