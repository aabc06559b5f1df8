"""Is everything there that a run needs? One line per thing, each `ok`, `warning` or `FAILED` with what to do.

From the outside in: the API server, the operator, the namespace, the release, and then, through a running head, what
only a pod can see. What depends on something that is missing is left out rather than failed once more.
"""

from collections.abc import Iterator
from functools import partial

from k8s import operator, outside
from k8s.api import POD, RAY_CLUSTER, Api, Object
from k8s.connection import Cluster
from k8s.errors import ReleaseError
from k8s.findings import FAILED, Check, Finding, carry_out, failed, warning
from k8s.inside import SHM, Inside
from k8s.pods import phase, ready
from k8s.recipe import parse
from k8s.release import COMPONENT, Release, find, own_recipe
from k8s.waiting import Clock
from k8s.wording import plain


def examine(cluster: Cluster, release_name: str | None, clock: Clock) -> Iterator[Finding]:
    """All findings, each as soon as it is known."""
    api = cluster.api
    first = list(carry_out("API server", partial(outside.server, api)))
    yield from first
    if first[-1].level == FAILED and first[-1].subject == "API server":
        return
    yield from carry_out("CRDs", partial(outside.kinds, api))
    yield from carry_out("operator", partial(operator.check, api))
    yield from carry_out("Pod Security", partial(outside.pod_security, api))
    try:
        release = find(api, release_name)
    except ReleaseError as error:
        yield failed("release", plain(error), "what follows needs one")
        return
    yield from carry_out("release", partial(outside.cluster, api, release))
    yield from carry_out("quota", partial(outside.quota, api, release))
    yield from carry_out("volume", partial(outside.storage, api, release))
    yield from carry_out("pods", partial(_inside, cluster, release, clock))


def _inside(cluster: Cluster, release: Release, clock: Clock) -> Iterator[Finding]:
    api, inside = cluster.api, Inside(cluster, clock)
    pods = [each for each in api.select(POD, f"app.kubernetes.io/instance={release.name}") if _runs(each)]
    head = next((each for each in pods if _label(each, "ray.io/node-type") == "head"), None)
    training = next((each for each in pods if _label(each, COMPONENT) == "training"), None)
    if head is None:
        seen = "not checked: no head of this release is ready: Ray's version, store, token, clock"
        yield warning("pods", seen, "run the doctor again when one is")
    else:
        for subject, check in _of_head(inside, release, head):
            yield from carry_out(subject, check)
    if training is None:
        yield warning(SHM, "not checked: no training pod of this release is ready", "again when one is")
    else:
        yield from carry_out(SHM, partial(inside.shared_memory, training))


def _of_head(inside: Inside, release: Release, head: Object) -> list[tuple[str, Check]]:
    api = inside.cluster.api
    return [
        ("Ray", lambda: inside.ray_version(head, _declared(api, head))),
        ("store", lambda: inside.store(head, _bucket(api, release))),
        ("token", lambda: inside.token(head)),
        ("clock", lambda: inside.skew(head)),
    ]


def _runs(pod: Object) -> bool:
    return phase(pod) == "Running" and ready(pod)


def _label(pod: Object, key: str) -> str:
    return str((pod["metadata"].get("labels") or {}).get(key, ""))


def _declared(api: Api, head: Object) -> str:
    found = api.get(RAY_CLUSTER, _label(head, "ray.io/cluster"))
    return str((found.get("spec") or {}).get("rayVersion", "nothing"))


def _bucket(api: Api, release: Release) -> str:
    """Raises ReleaseError, Misuse."""
    text = own_recipe(api, release)
    if text is None:
        raise ReleaseError(f"ConfigMap {release.namespace}/{release.fullname}-recipe: expected key recipe.yaml")
    return parse(text).bucket
