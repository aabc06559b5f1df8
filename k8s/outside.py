"""What the doctor asks the API server: the operator's kinds, the release, the namespace, its quota, its storage.

Nothing here needs a running pod. Each check yields its lines; `findings.carry_out` turns what it raises into one.
"""

import json
from collections.abc import Iterator
from decimal import Decimal

from k8s.api import CLAIM, NAMESPACE, NODE, QUOTA, RAY_CLUSTER, STORAGE_CLASS, Api, Object
from k8s.errors import Forbidden, NotFound
from k8s.findings import Finding, failed, ok, warning
from k8s.operator import INSTALL
from k8s.quantity import parse, show
from k8s.release import INSTANCE, Release
from k8s.wording import plain

NEEDED = ("rayclusters", "rayjobs")
OPTIONAL = ("rayservices", "raycronjobs")
LEVEL = "pod-security.kubernetes.io/enforce"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


def server(api: Api) -> Iterator[Finding]:
    """Whether the API server answers, and its version."""
    version = json.loads(api.raw("/version").body)
    yield ok("API server", f"{api.server.removeprefix('the API server at ')}, {plain(version.get('gitVersion', '?'))}")
    try:
        nodes = api.select(NODE)
    except Forbidden:
        return
    away = [str(node["metadata"]["name"]) for node in nodes if not _is_true(node, "Ready")]
    if away:
        yield warning("nodes", f"not ready: {', '.join(away)}", "kubectl describe node NAME")
    else:
        yield ok("nodes", f"{len(nodes)} ready")


def kinds(api: Api) -> Iterator[Finding]:
    """Whether the operator's CRDs are served."""
    try:
        group = json.loads(api.raw("/apis/ray.io").body)
    except NotFound:
        yield failed("CRDs", "the API server knows no ray.io", INSTALL)
        return
    served = [str(each["version"]) for each in group.get("versions") or []]
    if "v1" not in served:
        yield failed("CRDs", f"ray.io serves {', '.join(served)}, not v1", "upgrade the operator and its CRDs")
        return
    there = {str(each["name"]) for each in json.loads(api.raw("/apis/ray.io/v1").body).get("resources") or []}
    missing = [name for name in NEEDED if name not in there]
    if missing:
        yield failed("CRDs", f"ray.io/v1 has no {', '.join(missing)}", INSTALL)
        return
    absent = [name for name in OPTIONAL if name not in there]
    yield ok("CRDs", f"ray.io serves {', '.join(served)}" + (f"; without {', '.join(absent)}" if absent else ""))


def cluster(api: Api, release: Release) -> Iterator[Finding]:
    """The release, and the head of its standing cluster."""
    yield ok("release", f"{release.namespace}/{release.name}")
    found = api.find(RAY_CLUSTER, release.fullname)
    if found is None:
        yield ok("head", "the release has no standing cluster (cluster.enabled: false); runs bring their own")
        return
    conditions = {str(each["type"]): each for each in (found.get("status") or {}).get("conditions") or []}
    ready = conditions.get("HeadPodReady") or {}
    where = f"RayCluster {release.namespace}/{release.fullname}"
    if ready.get("status") == "True":
        yield ok("head", f"{where} has a ready head")
    else:
        said = plain(ready.get("message") or ready.get("reason") or "no condition HeadPodReady")
        advice = f"kubectl --namespace {release.namespace} describe pods --selector ray.io/cluster={release.fullname}"
        yield failed("head", f"{where}: {said}", advice)


def quota(api: Api, release: Release) -> Iterator[Finding]:
    """Whether a run of this release fits into what the namespace's quotas leave."""
    quotas = api.select(QUOTA)
    if not quotas:
        yield ok("quota", f"namespace {api.namespace} has none")
        return
    needs = needed(release.rayjob("any"))
    for each in quotas:
        name, status = str(each["metadata"]["name"]), each.get("status") or {}
        hard, used = status.get("hard") or {}, status.get("used") or {}
        short = []
        for key, need in needs.items():
            for field in (key, key.removeprefix("requests.")):
                if field in hard and parse(hard[field]) - parse(used.get(field, "0")) < need:
                    left = parse(hard[field]) - parse(used.get(field, "0"))
                    short.append(f"{field}: a run needs {show(key, need)}, {show(key, left)} left")
        if short:
            advice = "cancel a run, ask for less in the chart's values, or for a larger quota"
            yield warning("quota", f"{name}: {'; '.join(short)}", advice)
        else:
            yield ok("quota", f"{name}: a run fits")


def needed(rayjob: Object) -> dict[str, Decimal]:
    """What the pods of a RayJob ask for, all together, as the keys of a quota."""
    spec = rayjob["spec"]["rayClusterSpec"]
    groups = [(1, spec["headGroupSpec"]["template"])]
    groups += [(int(each.get("replicas", 1)), each["template"]) for each in spec.get("workerGroupSpecs") or []]
    if rayjob["spec"].get("submitterPodTemplate"):
        groups.append((1, rayjob["spec"]["submitterPodTemplate"]))
    totals: dict[str, Decimal] = {"pods": Decimal(sum(number for number, _ in groups))}
    for number, template in groups:
        sidecars = [each for each in template["spec"].get("initContainers") or [] if each.get("restartPolicy")]
        for container in [*template["spec"]["containers"], *sidecars]:
            resources = container.get("resources") or {}
            for prefix in ("requests", "limits"):
                for key, value in (resources.get(prefix) or {}).items():
                    name = f"{prefix}.{key}"
                    totals[name] = totals.get(name, Decimal(0)) + number * parse(value)
    return totals


def storage(api: Api, release: Release) -> Iterator[Finding]:
    """Whether the store's volume is bound, or could be."""
    claims = api.select(CLAIM, f"{INSTANCE}={release.name}")
    for claim in claims:
        name, phase = str(claim["metadata"]["name"]), str((claim.get("status") or {}).get("phase"))
        chosen = (claim.get("spec") or {}).get("storageClassName", "(none)")
        if phase == "Bound":
            yield ok("volume", f"{name} is bound, storage class {plain(chosen)}")
        else:
            advice = f"kubectl --namespace {api.namespace} describe pvc {name}"
            yield failed("volume", f"{name} is {phase}, storage class {plain(chosen)}", advice)
    if claims:
        return
    if f"{release.fullname}-store." not in release.template:
        yield ok("volume", "none needed: the store is external")
        return
    default = [each for each in api.select(STORAGE_CLASS) if _annotation(each, DEFAULT_CLASS) == "true"]
    if default:
        yield warning("volume", "the embedded store has no claim yet", "is the store's pod there? kubectl get pods")
    else:
        advice = "set storage.embedded.storageClassName, or make a class the default"
        yield failed("volume", "no claim, and the cluster has no default storage class", advice)


def pod_security(api: Api) -> Iterator[Finding]:
    """Whether the namespace enforces the level that the chart is made for."""
    found = api.get(NAMESPACE, api.namespace)
    level = str((found["metadata"].get("labels") or {}).get(LEVEL, "none"))
    if level == "restricted":
        yield ok("Pod Security", f"namespace {api.namespace} enforces restricted")
    else:
        advice = f"kubectl label namespace {api.namespace} {LEVEL}=restricted"
        yield warning("Pod Security", f"namespace {api.namespace} enforces {plain(level)}", advice)


def _is_true(value: Object, condition: str) -> bool:
    conditions = (value.get("status") or {}).get("conditions") or []
    return any(each.get("type") == condition and each.get("status") == "True" for each in conditions)


def _annotation(value: Object, key: str) -> str:
    return str((value["metadata"].get("annotations") or {}).get(key, ""))
