"""Submitting, listing, cancelling, resuming and following runs."""

from functools import partial
from typing import Any

import pytest

from k8s import jobs, recipe, release
from k8s.api import CONFIG_MAP, EVENT, RAY_JOB
from k8s.errors import AlreadyExists, NotFound, ReleaseError, RunError, Stopped, Unavailable, WaitTimeout
from k8s.follow import follow, wait_until
from k8s.rayjob import Limits
from tests.unit.k8s_doubles import (
    BEGAN,
    RECIPE,
    TEMPLATE,
    UNSCHEDULABLE,
    FakeClock,
    FakeServer,
    pod,
    rayjob,
    refused,
    release_objects,
)

TINY = recipe.parse(RECIPE)
WALL = FakeClock().wall()
NO_LIMITS = Limits()


@pytest.fixture
def server() -> FakeServer:
    return FakeServer(*release_objects())


def submit(server: FakeServer, name: str | None = None, limits: Limits = NO_LIMITS, **more: Any) -> str:
    return jobs.submit(server.api, release.find(server.api), TINY, limits, name, **more)


def test_submitting_makes_a_rayjob_and_its_recipe(server: FakeServer) -> None:
    name = submit(server, limits=Limits(retries=1))
    assert name.startswith("tiny-")
    made = server.get(RAY_JOB, name)
    assert made["spec"]["backoffLimit"] == 1
    config_map = server.get(CONFIG_MAP, name)
    assert config_map["data"]["recipe.yaml"] == RECIPE
    assert config_map["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]


def test_a_name_that_is_taken_is_made_anew_unless_a_person_chose_it(server: FakeServer) -> None:
    suffixes = iter(["a", "a", "b"])
    assert submit(server, make_name=lambda run: f"{run}-{next(suffixes)}") == "tiny-a"
    assert submit(server, make_name=lambda run: f"{run}-{next(suffixes)}") == "tiny-b"
    with pytest.raises(AlreadyExists, match="RayJob lab/tiny-a: exists already"):
        submit(server, "tiny-a")


def test_a_run_without_its_recipe_is_taken_back(server: FakeServer) -> None:
    server.put(CONFIG_MAP, {"metadata": {"name": "taken"}})
    with pytest.raises(RunError, match=r"RayJob lab/taken was taken back.*ConfigMap lab/taken: exists"):
        submit(server, "taken")
    assert server.api.find(RAY_JOB, "taken") is None


def test_a_template_with_the_releases_own_recipe_is_refused_before_anything_is_made(server: FakeServer) -> None:
    fixed = TEMPLATE.replace("configMap: {name: RAYJOB_NAME}", "configMap: {name: parrot-codeparrot-recipe}")
    server.get(CONFIG_MAP, "parrot-codeparrot-rayjob")["data"]["rayjob.yaml"] = fixed
    with pytest.raises(ReleaseError, match="would all get the release's recipe"):
        submit(server)
    assert not [each for each in server.requests if each[0] == "POST"]


def test_the_list_shows_state_and_progress(server: FakeServer) -> None:
    assert jobs.runs(server.api, WALL) == ["no runs in namespace lab"]
    server.put(*rayjob(annotations={"codeparrot/step": "1/7", "codeparrot/loss": "5.1"}))
    server.put(*rayjob("other", state="Failed", labels={"app.kubernetes.io/instance": "second"}))
    head, *rows = jobs.runs(server.api, WALL + 61)
    assert head.split() == ["NAME", "RUN", "STATE", "STEP", "LOSS", "AGE"]
    assert sorted(row.split()[:5] for row in rows) == [
        ["other", "tiny", "failed", "-", "-"],
        ["tiny-1", "tiny", "running", "1/7", "5.1"],
    ]
    assert rows[0].endswith("1 min 1 s")
    assert len(jobs.runs(server.api, WALL, "second")) == 2


def test_the_status_tells_pods_problems_and_events(server: FakeServer) -> None:
    stale = {"codeparrot/stage": "train", "codeparrot/updated-at": BEGAN}
    server.put(*rayjob(annotations=stale))
    server.put(*pod("tiny-1-abcde-head", "head"))
    server.put(*pod("tiny-1-abcde-worker-1", "training", "Pending", conditions=[UNSCHEDULABLE]))
    for name, about in (("e1", "tiny-1-abcde-gone"), ("e2", "unrelated")):
        involved = {"kind": "Pod", "name": about}
        server.put(EVENT, {"metadata": {"name": name}, "involvedObject": involved, "reason": "Why", "message": name})
    text = "\n".join(jobs.status(server.api, "tiny-1", WALL + 200))
    assert "running: the driver runs" in text
    assert "failed attempts: 0 of 4 allowed; RayCluster: tiny-1-abcde" in text
    assert "progress: train  (old: no news for over two minutes)" in text
    assert "- training pod tiny-1-abcde-worker-1 cannot be scheduled: 0/3 nodes" in text
    assert "Pod/tiny-1-abcde-gone: e1" in text
    assert "unrelated" not in text


def test_a_run_that_is_not_there_is_told_with_those_that_are(server: FakeServer) -> None:
    server.put(*rayjob())
    with pytest.raises(NotFound, match=r"no RayJob lab/tiny-2; there are tiny-1"):
        jobs.status(server.api, "tiny-2", WALL)


def test_cancelling_suspends_and_says_how_to_go_on(server: FakeServer) -> None:
    server.put(*rayjob())
    assert "python -m k8s resume tiny-1 --namespace lab" in jobs.cancel(server.api, "tiny-1")
    assert server.get(RAY_JOB, "tiny-1")["spec"]["suspend"] is True
    assert "is cancelling already" in jobs.cancel(server.api, "tiny-1")


def test_what_has_ended_is_not_cancelled(server: FakeServer) -> None:
    server.put(*rayjob(state="Complete", job="SUCCEEDED"))
    assert "is succeeded already; nothing was changed" in jobs.cancel(server.api, "tiny-1")
    assert "suspend" not in server.get(RAY_JOB, "tiny-1")["spec"]


def test_what_the_operator_or_kueue_would_undo_is_refused(server: FakeServer) -> None:
    server.put(*rayjob(spec={"shutdownAfterJobFinishes": False}))
    with pytest.raises(RunError, match=r"shutdownAfterJobFinishes.*kubectl delete"):
        jobs.cancel(server.api, "tiny-1")
    server.put(*rayjob(labels={"kueue.x-k8s.io/queue-name": "q"}))
    with pytest.raises(RunError, match="queue q"):
        jobs.cancel(server.api, "tiny-1")


def test_a_cancelled_run_is_switched_on_again(server: FakeServer) -> None:
    server.put(*rayjob(state="Suspended", job="", spec={"suspend": True}))
    assert jobs.resume(server.api, "tiny-1") == "tiny-1"
    assert server.get(RAY_JOB, "tiny-1")["spec"]["suspend"] is False


def test_a_failed_run_goes_on_as_a_new_one_with_its_recipe_and_limits(server: FakeServer) -> None:
    changed = RECIPE + "seed: 21\n"
    server.put(*rayjob(state="Failed", job="FAILED", spec={"backoffLimit": 7, "activeDeadlineSeconds": 60}))
    server.put(CONFIG_MAP, {"metadata": {"name": "tiny-1"}, "data": {"recipe.yaml": changed}})
    name = jobs.resume(server.api, "tiny-1", lambda run: f"{run}-2")
    assert name == "tiny-2"
    spec = server.get(RAY_JOB, name)["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (7, 60)
    assert server.get(CONFIG_MAP, name)["data"]["recipe.yaml"] == changed


@pytest.mark.parametrize(("state", "job"), [("Complete", "SUCCEEDED"), ("Running", "RUNNING"), ("Initializing", "")])
def test_there_is_nothing_to_resume_in_a_run_that_runs_or_has_succeeded(
    server: FakeServer, state: str, job: str
) -> None:
    server.put(*rayjob(state=state, job=job))
    with pytest.raises(RunError, match="there is nothing to resume"):
        jobs.resume(server.api, "tiny-1")


def becomes(server: FakeServer, **more: Any) -> Any:
    return lambda: server.put(*rayjob(**more))


def test_following_tells_states_and_progress_and_ends_with_success(server: FakeServer) -> None:
    clock, said = FakeClock(), list[str]()
    server.put(*rayjob(state="Initializing", job=""))
    clock.at(9, becomes(server))
    for second in range(12, 60, 3):
        progress = {"codeparrot/stage": "train", "codeparrot/step": f"{second}", "codeparrot/updated-at": f"{second}"}
        clock.at(second, becomes(server, annotations=progress))
    clock.at(60, becomes(server, state="Complete", job="SUCCEEDED"))
    follow(server.api, "tiny-1", said.append, clock)
    words = [line.split(" ", 1)[1].split(":")[0] for line in said if "steps" not in line]
    assert words == ["starting", "running", "succeeded"]
    steps = [line for line in said if "steps" in line]
    assert 3 <= len(steps) <= 5
    assert steps[0].endswith("train  12 steps")


def test_a_failure_ends_it_with_reason_pods_and_events(server: FakeServer) -> None:
    clock, said = FakeClock(), list[str]()
    server.put(*rayjob())
    ended = {"name": "ray", "state": {"terminated": {"exitCode": 2, "reason": "Error"}}}
    server.put(*pod("tiny-1-s", "submitter", "Failed", containerStatuses=[ended]))
    involved = {"kind": "RayJob", "name": "tiny-1"}
    server.put(EVENT, {"metadata": {"name": "e"}, "involvedObject": involved, "reason": "Why", "message": "because"})
    clock.at(10, becomes(server, state="Failed", job="FAILED", reason="AppFailed"))
    with pytest.raises(RunError) as caught:
        follow(server.api, "tiny-1", said.append, clock)
    text = str(caught.value)
    assert text.startswith("RayJob lab/tiny-1: expected it to succeed, seen failed: it failed, and no retry is left")
    for words in ("the driver ended with an error", "ended with exit code 2", "RayJob/tiny-1: because"):
        assert words in text


def test_a_retry_is_no_end(server: FakeServer) -> None:
    clock, said = FakeClock(), list[str]()
    server.put(*rayjob())
    clock.at(5, becomes(server, state="Retrying", job="FAILED", failed=1))
    clock.at(10, becomes(server, state="Initializing", job="", failed=1))
    clock.at(15, becomes(server, failed=1))
    clock.at(20, becomes(server, state="Complete", job="SUCCEEDED", failed=1))
    follow(server.api, "tiny-1", said.append, clock)
    assert any("starting" in line and "attempt 2 of 4" in line for line in said)


def test_a_run_that_finds_no_room_is_explained_within_two_minutes_and_once(server: FakeServer) -> None:
    clock, said = FakeClock(), list[tuple[float, str]]()
    server.put(*rayjob(state="Initializing", job=""))
    for i in range(4):
        server.put(*pod(f"w-{i}", "training", "Pending", conditions=[UNSCHEDULABLE]))
    with pytest.raises(
        WaitTimeout, match=r"expected it to run, seen starting.*\n.*4 training pods cannot be scheduled"
    ):
        follow(server.api, "tiny-1", lambda text: said.append((clock.now(), text)), clock, 200)
    explained = [when for when, text in said if "Insufficient cpu" in text]
    assert len(explained) == 1
    assert explained[0] < 60


def test_a_problem_stays_the_same_though_the_scheduler_finds_other_words(server: FakeServer) -> None:
    clock, said = FakeClock(), list[str]()
    server.put(*rayjob(state="Initializing", job=""))
    server.put(*pod("w", "training", "Pending", conditions=[UNSCHEDULABLE]))
    for second in range(3, 120, 3):
        condition = UNSCHEDULABLE | {"message": f"0/3 nodes are available: {second} Insufficient cpu."}
        clock.at(second, partial(server.put, *pod("w", "training", "Pending", conditions=[condition])))
    with pytest.raises(WaitTimeout):
        follow(server.api, "tiny-1", said.append, clock, 120)
    assert len([line for line in said if "Insufficient cpu" in line]) == 1


def test_a_pod_that_is_only_slow_is_not_called_a_problem(server: FakeServer) -> None:
    clock, said = FakeClock(), list[str]()
    server.put(*rayjob(state="Initializing", job=""))
    server.put(*pod("w", "training", "Pending", conditions=[UNSCHEDULABLE]))
    clock.at(12, lambda: server.put(*pod("w", "training")))
    clock.at(60, becomes(server, state="Complete", job="SUCCEEDED"))
    follow(server.api, "tiny-1", said.append, clock)
    assert not [line for line in said if "not well" in line]


def test_an_operator_that_does_nothing_is_noticed(server: FakeServer) -> None:
    clock, said = FakeClock(), list[str]()
    server.put(*rayjob(state="", job=""))
    with pytest.raises(WaitTimeout, match="the operator has not taken up this RayJob"):
        follow(server.api, "tiny-1", said.append, clock, 120)
    assert any("doctor" in line for line in said)


def test_a_cancelled_run_is_an_interruption_and_no_failure(server: FakeServer) -> None:
    clock = FakeClock()
    server.put(*rayjob())
    clock.at(10, becomes(server, state="Suspended", job="", spec={"suspend": True}))
    with pytest.raises(Stopped, match="python -m k8s resume tiny-1") as caught:
        follow(server.api, "tiny-1", lambda _: None, clock)
    assert caught.value.exit_code == 3


def test_a_resumed_run_is_followed_though_the_operator_has_not_noticed_yet(server: FakeServer) -> None:
    clock = FakeClock()
    server.put(*rayjob(state="Suspended", job="", spec={"suspend": False}))
    clock.at(10, becomes(server, state="Complete", job="SUCCEEDED"))
    follow(server.api, "tiny-1", lambda _: None, clock)


def test_a_deleted_run_ends_the_watching(server: FakeServer) -> None:
    clock = FakeClock()
    server.put(*rayjob())
    clock.at(10, lambda: server.api.delete(RAY_JOB, "tiny-1"))
    with pytest.raises(NotFound, match="RayJob lab/tiny-1"):
        follow(server.api, "tiny-1", lambda _: None, clock)


def test_an_api_server_that_is_away_for_a_while_is_waited_for(server: FakeServer) -> None:
    clock = FakeClock()
    server.put(*rayjob(state="Complete", job="SUCCEEDED"))
    server.next = [Unavailable("away"), refused(500, "x", "y"), Unavailable("away")]
    follow(server.api, "tiny-1", lambda _: None, clock)
    assert clock.now() == 9


def test_a_run_with_a_deadline_is_not_watched_for_ever(server: FakeServer) -> None:
    clock = FakeClock()
    server.put(*rayjob(spec={"activeDeadlineSeconds": 100}))
    with pytest.raises(WaitTimeout, match="expected it to end, seen running"):
        follow(server.api, "tiny-1", lambda _: None, clock)
    assert clock.now() < 720


def test_waiting_for_a_state_ends_with_what_was_seen(server: FakeServer) -> None:
    server.put(*rayjob(spec={"suspend": True}))
    with pytest.raises(WaitTimeout, match="RayJob lab/tiny-1: expected it to be cancelled, seen cancelling"):
        wait_until(server.api, "tiny-1", "cancelled", 30, FakeClock())
