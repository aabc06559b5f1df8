"""Names, manifests, states: a run as an object."""

import string
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as some

from k8s import names, recipe, release
from k8s.api import CONFIG_MAP
from k8s.errors import ClientError, Misuse, ReleaseError
from k8s.rayjob import Limits, RayJob, make, make_recipe, recipe_name
from k8s.tools import Done
from tests.unit.k8s_doubles import RECIPE, TEMPLATE, FakePrograms, FakeServer, rayjob, release_objects

TINY = recipe.parse(RECIPE)


def a_release() -> release.Release:
    return release.find(FakeServer(*release_objects()).api)


@given(some.from_regex(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True))
def test_every_run_name_gives_a_name_that_the_operator_takes(run_name: str) -> None:
    name = names.unique(run_name)
    assert names.checked(name) == name
    assert len(name) <= 47


def test_a_name_tells_its_run_and_is_new_each_time() -> None:
    assert names.unique("tiny", lambda _: "x") == "tiny-xxxxx"
    assert names.unique("110m", lambda _: "x") == "run-110m-xxxxx"
    assert len({names.unique("tiny") for _ in range(50)}) == 50


@pytest.mark.parametrize("name", ["", "1a", "a-", "A", "a.b", "a_b", "-a", "a" * 48])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(Misuse, match="--name"):
        names.checked(name)


def test_a_manifest_is_what_the_chart_rendered_under_a_name() -> None:
    made = make(a_release(), TINY, "tiny-1", Limits())
    assert "RAYJOB_NAME" not in str(made)
    assert made["metadata"]["name"] == "tiny-1"
    assert made["metadata"]["namespace"] == "lab"
    assert made["metadata"]["labels"] == {
        "app.kubernetes.io/name": "codeparrot",
        "app.kubernetes.io/instance": "parrot",
        "app.kubernetes.io/version": "1",
        "codeparrot/run": "tiny",
    }
    assert (made["spec"]["backoffLimit"], made["spec"]["suspend"]) == (3, False)
    assert "activeDeadlineSeconds" not in made["spec"]
    assert recipe_name(made) == "tiny-1"
    head = made["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["initContainers"][0]["args"] == ["--rayjob=tiny-1"]


def test_limits_replace_those_of_the_chart_and_zero_counts() -> None:
    spec = make(a_release(), TINY, "tiny-1", Limits(0, 60, 0))["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (0, 60, 0)


def test_the_recipe_belongs_to_its_rayjob() -> None:
    manifest = make(a_release(), TINY, "tiny-1", Limits())
    created = {"metadata": {"name": "tiny-1", "namespace": "lab", "uid": "u-7"}}
    made = make_recipe(manifest, created, TINY)
    assert made["data"] == {"recipe.yaml": RECIPE}
    assert made["metadata"]["name"] == "tiny-1"
    assert made["metadata"]["labels"]["codeparrot/run"] == "tiny"
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("RayJob", "tiny-1", "u-7")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("kind: RayJob", "expected RAYJOB_NAME"),
        ("RAYJOB_NAME: [", "not YAML"),
        ("kind: Pod\nmetadata: {name: RAYJOB_NAME}", "expected a RayJob"),
        ("kind: RayJob\nmetadata: {name: RAYJOB_NAME}", "metadata and spec"),
        ("kind: RayJob\nmetadata: {name: x, labels: {a: RAYJOB_NAME}}\nspec: {}", r"metadata\.name"),
    ],
)
def test_a_template_that_is_not_one_is_named(template: str, words: str) -> None:
    with pytest.raises(ReleaseError, match=f"ConfigMap lab/parrot-codeparrot-rayjob.*{words}"):
        release.Release("lab", "parrot", "parrot-codeparrot", template).rayjob("tiny-1")


def test_a_head_without_a_recipe_is_refused() -> None:
    template = TEMPLATE.replace("{name: recipe,", "{name: other,")
    manifest = release.Release("lab", "parrot", "parrot-codeparrot", template).rayjob("tiny-1")
    with pytest.raises(ReleaseError, match=r"RayJob tiny-1: expected a volume 'recipe'.*seen tmp, other"):
        recipe_name(manifest)


def test_the_only_release_is_found_and_one_of_several_by_name() -> None:
    server = FakeServer(*release_objects())
    assert release.find(server.api).fullname == "parrot-codeparrot"
    for kind, each in release_objects("codeparrot", "codeparrot"):
        server.put(kind, each)
    with pytest.raises(ReleaseError, match="2 releases: codeparrot, parrot; choose by --release"):
        release.find(server.api)
    assert release.find(server.api, "codeparrot").fullname == "codeparrot"
    with pytest.raises(ReleaseError, match=r"no release 'other'.*codeparrot, parrot"):
        release.find(server.api, "other")


def test_no_release_says_how_to_make_one() -> None:
    own_recipe = {"metadata": {"name": "tiny-1", "labels": {"app.kubernetes.io/name": "codeparrot"}}, "data": {}}
    server = FakeServer((CONFIG_MAP, own_recipe))
    with pytest.raises(ReleaseError, match="namespace lab: no release of the chart; `helm install"):
        release.find(server.api)
    with pytest.raises(ReleaseError, match="no release 'x' of the chart; it has none"):
        release.find(server.api, "x")


def test_a_bucket_that_the_embedded_store_does_not_have_is_an_error_before_any_pod() -> None:
    found = a_release()
    found.check(TINY, RECIPE)
    found.check(TINY, None)
    other = recipe.parse(RECIPE.replace("s3://codeparrot/", "s3://elsewhere/"))
    with pytest.raises(
        ReleaseError, match=r"bucket 'codeparrot' and no 'elsewhere'; --set storage.uri=s3://codeparrot/tiny"
    ):
        found.check(other, RECIPE)
    external = release.Release("lab", "parrot", "parrot-codeparrot", TEMPLATE.replace("-store.", "-else."))
    external.check(other, RECIPE)


@pytest.mark.parametrize(
    ("deployment", "job", "spec", "state"),
    [
        ("", "", {}, "new"),
        ("Initializing", "", {}, "starting"),
        ("Running", "", {}, "running"),
        ("Running", "RUNNING", {}, "running"),
        ("Running", "RUNNING", {"suspend": True}, "cancelling"),
        ("", "", {"suspend": True}, "cancelling"),
        ("Retrying", "FAILED", {}, "retrying"),
        ("Complete", "SUCCEEDED", {}, "succeeded"),
        ("Complete", "STOPPED", {}, "stopped"),
        ("Failed", "FAILED", {}, "failed"),
        ("Failed", "", {"suspend": True}, "failed"),
        ("ValidationFailed", "", {}, "refused"),
        ("Suspending", "RUNNING", {"suspend": True}, "cancelling"),
        ("Suspended", "", {"suspend": True}, "cancelled"),
        ("Suspended", "", {"suspend": False}, "new"),
        ("SomethingNew", "RUNNING", {}, "running"),
    ],
)
def test_the_operators_states_are_one_word(deployment: str, job: str, spec: dict[str, bool], state: str) -> None:
    found = RayJob(rayjob(state=deployment, job=job, spec=spec)[1])
    assert found.state == state
    assert found.sentence.startswith(f"{state}: ")


def test_a_job_that_kueue_holds_back_is_queued_and_not_cancelled() -> None:
    queued = {"kueue.x-k8s.io/queue-name": "q"}
    assert RayJob(rayjob(state="Suspended", spec={"suspend": True}, labels=queued)[1]).state == "queued"
    assert RayJob(rayjob(state="Running", spec={"suspend": False}, labels=queued)[1]).state == "running"


def test_a_failure_is_told_with_its_reason() -> None:
    found = RayJob(rayjob(state="Failed", job="FAILED", reason="AppFailed", message="exit code 1\n\x1b[31mboo")[1])
    assert "the driver ended with an error; exit code 1 \\x1b[31mboo" in found.sentence
    again = RayJob(rayjob(state="Running", failed=1)[1])
    assert "attempt 2 of 4" in again.sentence


def test_a_recipe_is_checked_by_the_stages_own_code() -> None:
    programs = FakePrograms()
    programs.says("ray_jobs.pipeline", RECIPE)
    found = recipe.resolve("my.yaml", ["a.b=1", "c=2"], programs)
    assert (found.run_name, found.bucket, found.text) == ("tiny", "codeparrot", RECIPE)
    command = f"{sys.executable} -m ray_jobs.pipeline --config my.yaml --set a.b=1 --set c=2 --dry-run"
    assert programs.commands == [command]


def test_a_wrong_recipe_ends_as_it_does_on_a_laptop() -> None:
    programs = FakePrograms()
    programs.says("pipeline", Done(2, "", "error: my.yaml: 1 problem\n  train.max_steps: must be > 0, got -1\n"))
    with pytest.raises(Misuse, match=r"^my\.yaml: 1 problem\n  train\.max_steps: must be > 0, got -1$"):
        recipe.resolve("my.yaml", [], programs)
    programs.says("pipeline", Done(1, "", "Traceback\nImportError: x\n"))
    with pytest.raises(ClientError, match=r"exit code 1.*\n.*\n  ImportError") as caught:
        recipe.resolve("my.yaml", [], programs)
    assert caught.value.exit_code == 1


def test_a_folder_is_no_store_for_pods() -> None:
    with pytest.raises(Misuse, match=r"storage\.uri: '/tmp/x' is a folder"):
        recipe.parse("run_name: a\nstorage: {uri: /tmp/x}")
    with pytest.raises(Misuse, match="no 'storage'"):
        recipe.parse("run_name: a")


def test_suffixes_are_made_of_letters_that_nobody_mistakes() -> None:
    assert set(names.ALPHABET) <= set(string.ascii_lowercase + string.digits) - set("aeiou01l3")
