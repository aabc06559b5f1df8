"""What a job asks of Ray for its workers, beside what `ray job submit` was given."""

import json

import pytest

from ray_jobs.worker_environment import DEFAULTS, JOB_CONFIG, forked, runtime_environment


@pytest.fixture(autouse=True)
def _driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in DEFAULTS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv(JOB_CONFIG, raising=False)


def test_a_cluster_is_told_where_the_store_is_and_no_key() -> None:
    asked = runtime_environment(local=False)
    assert asked["env_vars"]["AWS_ENDPOINT_URL"] == "http://store"
    assert asked["env_vars"].items() >= DEFAULTS.items()
    assert "secret" not in json.dumps(asked)
    assert set(runtime_environment(local=True)) == {"py_executable"}


@pytest.mark.parametrize("given", [{}, {"runtime_env": None}, {"runtime_env": {}}])
def test_pods_of_a_submitted_job_have_their_own_store(
    given: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOB_CONFIG, json.dumps(given))
    asked = runtime_environment(local=False)
    assert asked["env_vars"] == DEFAULTS
    assert "worker_fork.py" in asked["py_executable"]


def test_nothing_is_asked_that_the_submission_has_said(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"py_executable": "python", "env_vars": {"HF_HUB_OFFLINE": "0", "OTHER": "1"}}
    monkeypatch.setenv(JOB_CONFIG, json.dumps({"runtime_env": theirs, "metadata": {}}))
    asked = runtime_environment(local=False)
    assert forked("ray.data") == {}
    assert asked == {"env_vars": {name: value for name, value in DEFAULTS.items() if name != "HF_HUB_OFFLINE"}}


def test_elsewhere_than_on_linux_workers_are_no_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path of this machine would be none of the cluster's."""
    monkeypatch.setattr("sys.platform", "darwin")
    assert "py_executable" not in runtime_environment(local=False)
    assert runtime_environment(local=True) == {}
