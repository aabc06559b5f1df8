"""What may be said in the values: the schema, the checks, the files that ship, the page that lists them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from codeparrot.config import Recipe, load_recipe
from codeparrot.settings import validate
from tests.chart.rendered import CHART, EVERYTHING, ROOT, of_kind, one, refusal, render
from tests.chart.schema import RECIPE, VALUES, with_recipe

FILES = ["values-kind.yaml", "values-gpu.yaml", "values-external-s3.yaml"]
OPEN = {"applications"}
"""Objects with fields of others: those of Ray Serve."""


def default_values() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


def small_recipe() -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load((CHART / "files/recipe.yaml").read_text())
    return recipe


def with_changes(folder: Path, **changes: Any) -> Path:
    """A values file with a whole recipe: the small one, changed by `section__key`; None takes a key out."""
    recipe = small_recipe()
    for path, value in changes.items():
        *sections, key = path.split("__")
        node = recipe
        for section in sections:
            node = node[section]
        node[key] = value
        if value is None:
            del node[key]
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump({"recipe": recipe}))
    return file


def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(VALUES.read_text())
    return loaded


def test_the_schema_holds_that_of_a_recipe() -> None:
    assert schema() == with_recipe(schema(), json.loads(RECIPE.read_text())), "make schema"


def test_the_definitions_of_chart_and_recipe_cannot_meet() -> None:
    recipe = json.loads(RECIPE.read_text())
    assert all(name[0].isupper() for name in recipe["$defs"])


def test_every_object_of_the_schema_is_closed() -> None:
    def walk(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, list):
            for item in node:
                walk(item, path)
        if isinstance(node, dict):
            kind = node.get("type")
            if kind == "object" and not OPEN & set(path):
                assert "additionalProperties" in node, "/".join(path)
                assert node["additionalProperties"] is not True, "/".join(path)
            for key, value in node.items():
                if key not in ("default", "enum", "const"):
                    walk(value, (*path, key))

    walk(schema(), ())


def test_the_small_recipe_is_the_tiny_one_with_a_cpu_for_each_worker() -> None:
    tiny = yaml.safe_load((ROOT / "recipes/tiny.yaml").read_text())
    tiny["train"]["resources_per_worker"] = {"CPU": 1}
    assert small_recipe() == tiny


def test_the_version_of_ray_is_the_locked_one() -> None:
    (locked,) = re.findall(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert default_values()["rayVersion"] == locked
    assert one(render(), "RayCluster", "tiny-codeparrot")["spec"]["rayVersion"] == locked


def test_the_version_of_the_application_is_that_of_the_project() -> None:
    (version,) = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version


def recipe_of(objects: list[Any], folder: Path) -> Recipe:
    """The recipe of a release, read as the driver reads it."""
    file = folder / "recipe.yaml"
    file.write_text(one(objects, "ConfigMap", "tiny-codeparrot-recipe")["data"]["recipe.yaml"])
    return load_recipe(file)


@pytest.mark.parametrize("name", FILES)
def test_every_values_file_makes_a_release(name: str, tmp_path: Path) -> None:
    assert recipe_of(render(values=[name]), tmp_path).run_name == "tiny"


def test_the_small_recipe_reaches_the_driver_as_it_is(tmp_path: Path) -> None:
    assert recipe_of(render(), tmp_path) == load_recipe(CHART / "files/recipe.yaml")


def test_a_recipe_of_the_values_reaches_the_driver_with_nothing_of_the_small_one(tmp_path: Path) -> None:
    own = with_changes(tmp_path, collect__max_bytes=None, run_name="mine")
    recipe = recipe_of(render(values=[own]), tmp_path)
    assert recipe.run_name == "mine"
    assert recipe.collect.max_bytes is None


def test_the_small_recipe_uses_the_bucket_of_an_external_store(tmp_path: Path) -> None:
    assert recipe_of(render(values=["values-external-s3.yaml"]), tmp_path).storage.uri == "s3://my-bucket/tiny"
    own = with_changes(tmp_path, storage__uri="s3://other/one")
    message = refusal(values=["values-external-s3.yaml", own])
    assert "storage.external.bucket: my-bucket, but recipe.storage.uri is in other" in message


def listed() -> set[str]:
    """The keys in the table of the chart's page."""
    _, _, table = (CHART / "README.md").read_text().partition("## Values")
    return set(re.findall(r"^\| ([a-zA-Z.]+) \| (?!type)", table, re.MULTILINE))


def test_the_page_lists_every_key() -> None:
    def leaves(node: Any, path: str = "") -> set[str]:
        if not isinstance(node, dict) or not node or path in listed():
            return {path}
        return {leaf for key, value in node.items() for leaf in leaves(value, f"{path}.{key}" if path else key)}

    assert leaves(default_values()) == listed()


def test_the_page_lists_no_key_that_does_not_exist() -> None:
    for path in listed():
        node: Any = default_values()
        for key in path.split("."):
            assert key in node, path
            node = node[key]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("bogus=1",), ["bogus", "not allowed"]),
        (("training.replica=4",), ["/training", "replica", "not allowed"]),
        (("training.replicas=two",), ["/training/replicas", "want integer"]),
        (("pods.shmSize=1GB",), ["/pods/shmSize"]),
        (("storage.mode=s3",), ["/storage/mode"]),
        (("recipe.run_name=mine",), ["/recipe", "missing properties", "'train'"]),
        (("training.replicas=2",), ["2 pods", "recipe's 4 Ray Train workers", "training.replicas"]),
        (
            ("autoscaling.enabled=true", "training.replicas=2", "training.maxReplicas=3"),
            ["3 pods", "recipe's 4 Ray Train workers", "training.maxReplicas"],
        ),
        (("autoscaling.enabled=true", "data.maxReplicas=0"), ["data", "maxReplicas (0)"]),
        (("preemption.gracePeriodSeconds=90",), ["gracePeriodSeconds (90)", "drainTimeoutSeconds (90)"]),
        (("preemption.pollIntervalSeconds=100",), ["pollIntervalSeconds (100)"]),
        (("storage.mode=external",), ["existingSecret", "workloadIdentity"]),
        (
            (
                "storage.mode=external",
                "storage.external.existingSecret=a",
                "storage.external.endpoint=http://minio:9000",
            ),
            ["storage.external.ports", "port 9000"],
        ),
        (("sources.keys={AWS_SECRET_ACCESS_KEY}",), ["/sources/keys/0", "GITHUB_TOKEN"]),
        (("sources.cidrs={github.com}",), ["/sources/cidrs/0"]),
        (
            ("serve.enabled=true", "serve.numCpus=0"),
            ["serve: 1 pods with 0 CPUs", "room for 0 of the recipe's 1 replicas"],
        ),
        (("serve.apiKeys.key=abc",), ["/serve/apiKeys", "key", "not allowed"]),
    ],
)
def test_what_is_wrong_is_refused_with_its_name(settings: tuple[str, ...], words: list[str]) -> None:
    message = refusal(*settings)
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__bogus": 1}, ["/recipe/train", "bogus", "not allowed"]),
        ({"train__learning_rate": -1}, ["/recipe/train/learning_rate"]),
        ({"model__n_layer": "many"}, ["/recipe/model/n_layer", "want integer"]),
        ({"tokenizer": None}, ["/recipe", "missing property 'tokenizer'"]),
        ({"run_name": "Big"}, ["/recipe/run_name"]),
        ({"storage__uri": "/data"}, ["recipe.storage.uri", "/data", "s3://"]),
        ({"train__use_gpu": True}, ["0 GPUs", "room for 0"]),
        ({"train__num_workers": 5}, ["room for 4", "recipe's 5"]),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_made(
    changes: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    message = refusal(values=[with_changes(tmp_path, **changes)])
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("release", "settings", "words"),
    [
        ("x" * 41, (), ["at most 40", "shorter release name"]),
        (f"codeparrot-{'x' * 28}", ("job.enabled=true",), ["at most 38"]),
        (f"codeparrot-{'x' * 22}", ("job.enabled=true", "job.schedule=0 3 * * *"), ["at most 32"]),
        ("1st-codeparrot", (), ["begin with a letter"]),
    ],
)
def test_a_name_that_does_not_fit_is_refused(release: str, settings: tuple[str, ...], words: list[str]) -> None:
    message = refusal(*settings, release=release)
    for word in words:
        assert word in message, message


def test_the_longest_names_fit_into_what_the_operator_allows() -> None:
    longest = f"codeparrot-{'x' * 27}"
    job = of_kind(render("job.enabled=true", release=longest), "RayJob")
    assert [len(item["metadata"]["name"]) for item in job] == [47]
    scheduled = of_kind(render("job.enabled=true", "job.schedule=0 3 * * *", release=longest[:32]), "RayCronJob")
    assert [len(item["metadata"]["name"]) + 6 for item in scheduled] == [47]


def test_a_cluster_without_the_operator_is_refused() -> None:
    assert "install the operator first" in refusal(apis=())
    message = refusal("job.enabled=true", "job.schedule=0 3 * * *", apis=["ray.io/v1/RayCluster"])
    assert "RayCronJob" in message


@pytest.mark.parametrize(
    "settings",
    [
        ("storage.external.existingSecret=mine",),
        ("storage.external.workloadIdentity=true",),
        ("serviceAccount.annotations.role=one",),
        ("storage.external.existingSecret=a", "storage.external.endpoint=https://s3.example.org/"),
        (
            "storage.external.existingSecret=a",
            "storage.external.endpoint=http://[::1]:8333",
            "storage.external.ports={8333}",
        ),
    ],
)
def test_an_external_store_needs_a_secret_or_an_identity(settings: tuple[str, ...]) -> None:
    objects = render("storage.mode=external", *settings)
    assert not of_kind(objects, "StatefulSet")
    assert [secret["metadata"]["name"] for secret in of_kind(objects, "Secret")] == ["tiny-codeparrot-ray-token"]


def test_the_application_that_is_served_takes_what_the_chart_gives_it() -> None:
    from ray_jobs.serve import Arguments

    service = one(render("serve.enabled=true", "serve.checkpoint=tiny@120"), "RayService", "tiny-codeparrot-serve")
    (served,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    arguments = Arguments.model_validate(served["args"])
    assert served["import_path"] == "ray_jobs.serve:application"
    assert arguments.checkpoint == "tiny@120"
    assert validate(Recipe, arguments.recipe, "the recipe") == load_recipe(CHART / "files/recipe.yaml")
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert arguments.api_keys is not None
    assert str(Path(arguments.api_keys).parent) in mounted


@pytest.mark.parametrize("changes", [{"resources_per_worker": {"CPU": 0.5}}, {"min_workers": 2}])
def test_fewer_pods_are_enough_where_workers_share_them_or_fewer_do(changes: dict[str, Any], tmp_path: Path) -> None:
    own = with_changes(tmp_path, **{f"train__{key}": value for key, value in changes.items()})
    assert render("training.replicas=2", values=[own])


def test_the_dashboard_asks_for_metrics_that_runs_and_replicas_export() -> None:
    from codeparrot.serving_metrics import ServingMetrics
    from ray_jobs.telemetry import GAUGES

    metrics = ServingMetrics()
    metrics.requests.labels("200")
    served = {name.removeprefix("codeparrot_") for name, _, _ in metrics.samples()}
    text = one(render(*EVERYTHING), "ConfigMap", "tiny-codeparrot-dashboard")["data"]["codeparrot.json"]
    asked = set(re.findall(r"ray_codeparrot_([a-z_]+)", json.dumps(json.loads(text))))
    assert set(GAUGES) < asked
    assert len(asked - set(GAUGES)) == 5
    assert asked - set(GAUGES) <= served
