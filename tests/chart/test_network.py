"""Who may reach what, computed from the rendered policies, is what docs/network-policies.md says."""

import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest

from tests.chart.rendered import EVERYTHING, NAMESPACE, ROOT, Object, of_kind, pods, render

EXTERNAL = ("storage.mode=external", "storage.external.workloadIdentity=true")


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod with labels in a namespace, or an address outside."""

    name: str
    namespace: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    address: str | None = None


OUTSIDE = (
    Peer("operator", "kuberay-system"),
    Peer("prometheus", "monitoring"),
    Peer("clients", "apps"),
    Peer("DNS", "kube-system"),
    Peer("API server", address="10.96.0.1"),
    Peer("external store", address="203.0.113.7"),
    Peer("a pod beside", NAMESPACE),
    Peer("the same labels elsewhere", "other", {"app.kubernetes.io/instance": "tiny"}),
)
"""All that is not of the release, strangers included."""


def inside(objects: Sequence[Object]) -> list[Peer]:
    """The pods of the release, those with the same labels as one."""
    found = {}
    for pod in pods(objects):
        token = pod.labels.get("codeparrot/kubernetes-api")
        name = f"{pod.component} with a token" if token else pod.component
        found[name] = Peer(name, NAMESPACE, pod.labels)
    return list(found.values())


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] in ("In", "NotIn")
        if (labels.get(expression["key"]) in expression["values"]) != (expression["operator"] == "In"):
            return False
    return True


def is_peer(rule: dict[str, Any], peer: Peer) -> bool:
    """Whether one entry of `from` or `to` means this peer."""
    if "ipBlock" in rule:
        assert set(rule["ipBlock"]) == {"cidr"}
        network = ipaddress.ip_network(rule["ipBlock"]["cidr"])
        return peer.address is not None and ipaddress.ip_address(peer.address) in network
    if peer.namespace is None:
        return False
    if "namespaceSelector" in rule:
        if not selects(rule["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace}):
            return False
    elif peer.namespace != NAMESPACE:
        return False
    return selects(rule.get("podSelector", {}), peer.labels)


def permits(policies: Sequence[Object], direction: str, peer: Peer, other: Peer, port: int) -> bool:
    """Whether the policies let this peer send to, or receive from, another."""
    key, end = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    mine = [
        policy["spec"]
        for policy in policies
        if peer.namespace == NAMESPACE
        and direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], peer.labels)
    ]
    if not mine:
        return True
    return any(
        any(is_peer(entry, other) for entry in rule[end])
        and ("ports" not in rule or any(allowed["port"] == port for allowed in rule["ports"]))
        for spec in mine
        for rule in spec.get(key, [])
    )


def computed(objects: Sequence[Object]) -> set[tuple[str, str, str]]:
    """(from, to, port) for all connections with an end in the release; `all` for every port."""
    policies = of_kind(objects, "NetworkPolicy")
    named = {
        allowed["port"]
        for policy in policies
        for rule in (*policy["spec"].get("ingress", []), *policy["spec"].get("egress", []))
        for allowed in rule.get("ports", [])
    }
    ports = sorted(named | {1, 22, 6379, 10001, 45678})
    own = inside(objects)
    found = set()
    for source, target in product([*own, *OUTSIDE], repeat=2):
        if source not in own and target not in own:
            continue
        may = [
            port
            for port in ports
            if permits(policies, "Egress", source, target, port) and permits(policies, "Ingress", target, source, port)
        ]
        names = ["all"] if may == ports else [str(port) for port in may]
        found |= {(source.name, target.name, name) for name in names}
    return found


def table(when: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """What the document says for a release in which these conditions hold."""
    text = (ROOT / "docs/network-policies.md").read_text()
    for line in re.findall(r"^\| (?!from |name in )([^-].*) \|$", text, re.MULTILINE):
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and (not cells[3] or cells[3].strip("`") in when):
            yield from product(*(re.split(r", ", cell) for cell in cells[:3]))


def expected(when: Sequence[str], objects: Sequence[Object]) -> set[tuple[str, str, str]]:
    """The table's rows; what holds for a head holds for one with a token too, which reaches the API server besides."""
    present = {peer.name for peer in inside(objects)}
    found = set()
    for source, target, port in table(when):
        sources, targets = ({name, f"{name} with a token"} if name == "head" else {name} for name in (source, target))
        found |= {
            (one, other, port)
            for one, other in product(sources, targets)
            if all(name in present or name in {peer.name for peer in OUTSIDE} for name in (one, other))
        }
    return found


@pytest.mark.parametrize("autoscaling", ["true", "false"])
@pytest.mark.parametrize("mode", ["embedded", "external"])
def test_who_may_reach_what_is_what_the_document_says(mode: str, autoscaling: str) -> None:
    # The API server and an external store get addresses of their own here, so that each is seen apart.
    apart = (
        "networkPolicy.kubernetesApi.cidrs={10.96.0.1/32}",
        "storage.external.cidrs={203.0.113.0/24}",
        f"autoscaling.enabled={autoscaling}",
    )
    objects = render(*EVERYTHING, *apart, *(EXTERNAL if mode == "external" else ()))
    when = (f"storage.mode: {mode}", "serve.allowedNamespaces")
    found = computed(objects)
    assert found == expected(when, objects)
    assert ("training", "training", "all") in found


def test_serving_is_closed_unless_namespaces_are_named() -> None:
    objects = render(*EVERYTHING, "serve.allowedNamespaces=null")
    assert not [row for row in computed(objects) if row[0] == "clients"]


def test_two_releases_do_not_reach_each_other() -> None:
    objects = render(*EVERYTHING)
    policies = of_kind(objects, "NetworkPolicy")
    ours = inside(objects)
    others = [Peer(f"other {peer.name}", "elsewhere", peer.labels) for peer in ours]
    instance = {"app.kubernetes.io/instance": "two"}
    beside = [Peer(f"beside {peer.name}", NAMESPACE, peer.labels | instance) for peer in ours]
    for source, target in product([*others, *beside], ours):
        assert not permits(policies, "Ingress", target, source, 8265), (source.name, target.name)
        assert not permits(policies, "Egress", target, source, 8265), (target.name, source.name)


def test_every_pod_of_the_release_is_denied_by_default_both_ways() -> None:
    objects = render(*EVERYTHING)
    (deny,) = [item for item in of_kind(objects, "NetworkPolicy") if item["metadata"]["name"].endswith("default-deny")]
    assert set(deny["spec"]) == {"podSelector", "policyTypes"}
    assert set(deny["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    for pod in pods(objects):
        assert selects(deny["spec"]["podSelector"], pod.labels), pod.owner


def test_no_policy_remains_when_they_are_turned_off() -> None:
    assert not of_kind(render("networkPolicy.enabled=false"), "NetworkPolicy")
