"""What is rendered has no field that the operator does not know, and is the same wherever it must be the same."""

import base64
import configparser
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendered import EVERYTHING, Object, of_kind, one, render

RAY_KINDS = ("RayCluster", "RayJob", "RayCronJob", "RayService")
SCHEDULED = (*EVERYTHING, "job.schedule=0 3 * * *", "autoscaling.enabled=false")


def closed(schema: Any) -> Any:
    """A schema of a resource definition, in which fields that it does not name are errors."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    known = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        known.setdefault("additionalProperties", False)
    return known


def schemas(folder: Path, into: Path) -> None:
    """The definitions of the operator as JSON schemas, one file a kind."""
    for file in sorted(folder.glob("*.y*ml")):
        # Megabytes of YAML: only the loader in C reads them in seconds.
        for document in yaml.load_all(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            kind = document["spec"]["names"]["kind"]
            for version in document["spec"]["versions"]:
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                (into / f"{kind.lower()}-{version['name']}.json").write_text(json.dumps(schema))


def rendered_for_ray(*settings: str) -> list[Object]:
    objects = render(*settings)
    submitted = one(objects, "ConfigMap", "tiny-codeparrot-rayjob")["data"]["rayjob.yaml"]
    job = yaml.safe_load(submitted.replace("RAYJOB_NAME", "tiny-x7k2p"))
    return [item for kind in RAY_KINDS for item in of_kind([*objects, job], kind)]


def test_nothing_is_rendered_that_the_operator_does_not_know(tmp_path: Path) -> None:
    definitions, program = os.environ.get("KUBERAY_CRDS"), shutil.which("kubeconform")
    if not definitions or not program:
        pytest.skip("needs kubeconform on the PATH, and KUBERAY_CRDS: the folder of the operator's definitions")
    schemas(Path(definitions), tmp_path)
    objects = [*rendered_for_ray(*EVERYTHING), *rendered_for_ray(*SCHEDULED)]
    assert {item["kind"] for item in objects} == set(RAY_KINDS)
    location = f"{tmp_path}/{{{{.ResourceKind}}}}-{{{{.ResourceAPIVersion}}}}.json"

    def checked(documents: list[Object]) -> "subprocess.CompletedProcess[str]":
        text = yaml.safe_dump_all(documents)
        command = [program, "-strict", "-summary", "-schema-location", location, "-"]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)

    done = checked(objects)
    assert done.returncode == 0, done.stdout
    assert f"{len(objects)} resources found" in done.stdout
    broken = objects[0] | {"spec": objects[0]["spec"] | {"bogus": 1}}
    assert "bogus" in checked([broken]).stdout


def test_every_ray_cluster_asks_for_the_token() -> None:
    clusters = []
    for item in (*rendered_for_ray(*EVERYTHING), *rendered_for_ray(*SCHEDULED)):
        spec = item["spec"].get("jobTemplate", item["spec"])
        clusters.append(spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec)
    assert len(clusters) == 8
    for cluster in clusters:
        assert cluster["authOptions"] == {"mode": "token", "secretName": "tiny-codeparrot-ray-token"}


def test_the_rayjob_to_fill_in_is_that_of_the_chart_but_for_its_name() -> None:
    objects = render(*EVERYTHING)
    own = one(objects, "RayJob", "tiny-codeparrot-pipeline")
    text = one(objects, "ConfigMap", "tiny-codeparrot-rayjob")["data"]["rayjob.yaml"]
    filled = yaml.safe_load(text.replace("RAYJOB_NAME", "tiny-codeparrot-pipeline"))
    recipe = filled["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    for volume in recipe:
        if volume["name"] == "recipe":
            assert volume["configMap"]["name"] == "tiny-codeparrot-pipeline"
            volume["configMap"]["name"] = "tiny-codeparrot-recipe"
    assert filled["spec"] == own["spec"]
    assert filled["metadata"]["namespace"] == "ml"


def test_the_status_sidecar_patches_its_own_rayjob_and_a_scheduled_one_has_none() -> None:
    job = one(render(*EVERYTHING), "RayJob", "tiny-codeparrot-pipeline")["spec"]
    (sidecar,) = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert "--rayjob=tiny-codeparrot-pipeline" in sidecar["args"]
    (cron,) = of_kind(render(*SCHEDULED), "RayCronJob")
    assert "initContainers" not in cron["spec"]["jobTemplate"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]


def test_credentials_are_random_and_as_their_readers_want_them() -> None:
    first, second = (one(render(), "Secret", "tiny-codeparrot-store")["data"] for _ in range(2))
    assert first != second
    file = configparser.ConfigParser()
    file.read_string(base64.b64decode(first["credentials"]).decode())
    assert len(file["default"]["aws_access_key_id"]) == 20
    assert len(file["default"]["aws_secret_access_key"]) == 40
    token = base64.b64decode(one(render(), "Secret", "tiny-codeparrot-ray-token")["data"]["auth_token"])
    assert len(token) == 48


def test_objects_of_two_releases_never_have_one_name() -> None:
    def names(release: str) -> set[tuple[str, str]]:
        objects = render(*EVERYTHING, release=release)
        return {(item["kind"], item["metadata"]["name"]) for item in objects}

    assert not names("one") & names("two")


def test_cluster_scoped_objects_carry_the_namespace_in_their_name() -> None:
    kinds = ("PriorityClass", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    found = [item for kind in kinds for item in of_kind(render(*EVERYTHING), kind)]
    assert len(found) == 5
    for item in found:
        assert item["metadata"]["name"].startswith("ml-tiny-codeparrot"), item["kind"]


def test_only_the_listed_rights_are_given() -> None:
    objects = render(*EVERYTHING)
    assert not of_kind(objects, "ClusterRole")
    (role,) = of_kind(objects, "Role")
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "patch"]}]
    (binding,) = of_kind(objects, "RoleBinding")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "tiny-codeparrot-status", "namespace": "ml"}]
