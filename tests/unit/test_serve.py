"""What `ray_jobs.serve` asks of Ray Serve, and how long it waits for it; a real one runs in the integration tests."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve as ray_serve

from codeparrot.errors import ClusterError
from ray_jobs import serve

ARGUMENTS = serve.Arguments(recipe={})


class Ended:
    """Ray Serve, as far as it is called: its application is there for so many looks after it was deleted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, looks: float, failure: Exception | None = None) -> None:
        self.looks, self.failure, self.deleted = looks, failure, False
        for name in ("start", "run", "delete", "status"):
            monkeypatch.setattr(ray_serve, name, getattr(self, name))
        monkeypatch.setattr(serve, "application", lambda _: None)
        monkeypatch.setattr(serve, "WATCH_SECONDS", 0.0)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def start(self, **_: Any) -> None:
        pass

    def run(self, *_: Any, **__: Any) -> str:
        if self.failure:
            raise self.failure
        return "a handle"

    def delete(self, name: str, _blocking: bool = True) -> None:
        assert (name, _blocking) == (serve.APPLICATION, False)
        self.deleted = True

    def status(self) -> SimpleNamespace:
        assert self.deleted
        self.looks -= 1
        return SimpleNamespace(applications={serve.APPLICATION: "DELETING"} if self.looks >= 0 else {})


def test_the_end_waits_until_the_application_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ended(monkeypatch, looks=3)
    with serve._running(ARGUMENTS, 120.0, "127.0.0.1", 1, "logs") as handle:
        assert str(handle) == "a handle"
    assert ending.looks == -1


def test_the_end_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(serve, "SPARE_SECONDS", 0.0)
    Ended(monkeypatch, looks=float("inf"))
    with caplog.at_level(logging.WARNING), serve._running(ARGUMENTS, 0.01, "127.0.0.1", 1, "logs"):
        pass
    assert "the replicas have not ended in 0.01 s" in caplog.text


def test_only_what_loading_raises_is_about_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    Ended(monkeypatch, looks=0, failure=RuntimeError("deploying failed:\nno such run"))
    with pytest.raises(ClusterError, match="could not be loaded: no such run"), serve._running(ARGUMENTS, 1, "", 1, ""):
        pass
    Ended(monkeypatch, looks=0)
    with pytest.raises(RuntimeError, match="of another kind"), serve._running(ARGUMENTS, 1, "", 1, ""):
        raise RuntimeError("of another kind")
