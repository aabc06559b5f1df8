"""From a status file to annotations, with as few patches as possible and through any trouble."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from k8s.annotate import Annotator
from k8s.api import RAY_JOB
from k8s.errors import Unavailable
from k8s.progress import annotations, changes, is_stale, line
from tests.unit.k8s_doubles import FakeServer, rayjob, refused

STATUS: dict[str, Any] = {
    "stage": "train", "step": 120, "max_steps": 700, "loss": 5.1, "tokens_per_second": 3630.0, "seconds_left": 312.0,
    "checkpoint_step": 100, "updated_at": "2026-11-23T13:00:00Z",
}  # fmt: skip
EXPECTED = {
    "codeparrot/stage": "train",
    "codeparrot/step": "120/700",
    "codeparrot/loss": "5.1000",
    "codeparrot/tokens-per-second": "3630.0",
    "codeparrot/time-left": "5 min 12 s",
    "codeparrot/checkpoint": "100",
    "codeparrot/updated-at": "2026-11-23T13:00:00Z",
}


def write(path: Path, **changed: Any) -> Path:
    path.write_text(json.dumps(STATUS | changed))
    return path


def patches(server: FakeServer) -> list[dict[str, Any]]:
    return [body["metadata"]["annotations"] for method, _, body in server.requests if method == "PATCH" and body]


def test_a_status_becomes_the_annotations_of_the_contract() -> None:
    assert annotations(json.dumps(STATUS)) == EXPECTED


def test_null_keys_have_no_annotation() -> None:
    empty = dict.fromkeys(STATUS) | {"stage": "pack", "updated_at": "2026-11-23T13:00:00Z"}
    expected = {"codeparrot/stage": "pack", "codeparrot/updated-at": "2026-11-23T13:00:00Z"}
    assert annotations(json.dumps(empty)) == expected


def test_odd_values_are_left_out_and_nan_is_shown() -> None:
    found = annotations(json.dumps(STATUS | {"step": "x", "checkpoint_step": True, "loss": float("nan")}))
    assert "codeparrot/step" not in found
    assert "codeparrot/checkpoint" not in found
    assert found["codeparrot/loss"] == "nan"
    assert "codeparrot/time-left" not in annotations(json.dumps(STATUS | {"seconds_left": float("inf")}))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"stage": 1}', "null"])
def test_what_is_no_status_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        annotations(text)


def test_a_patch_holds_only_what_changed() -> None:
    before = {**EXPECTED, "other/key": "kept"}
    assert changes(EXPECTED, before) == {}
    now = {key: value for key, value in EXPECTED.items() if key != "codeparrot/loss"} | {"codeparrot/step": "130/700"}
    assert changes(now, before) == {"codeparrot/step": "130/700", "codeparrot/loss": None}


def test_progress_is_one_line_for_a_person() -> None:
    text = line(EXPECTED)
    assert text == "train  120/700 steps  loss 5.1000  3,630 tokens/s  5 min 12 s left  checkpoint 100"
    assert line({}) == ""
    assert "\x1b" not in line({"codeparrot/stage": "a\x1b[2J", "codeparrot/tokens-per-second": "many\x1b"})
    assert is_stale(EXPECTED, 1795438800.0 + 121, 120)
    assert not is_stale(EXPECTED, 1795438800.0 + 60, 120)


def test_only_what_changed_is_patched(tmp_path: Path) -> None:
    server = FakeServer(rayjob(annotations={"codeparrot/stage": "train", "other/key": "kept"}))
    file = write(tmp_path / "status.json")
    annotator = Annotator(server.api, file, "tiny-1")
    annotator.update()
    annotator.update()
    write(file, step=130)
    annotator.update()
    write(file, step=130, loss=None)
    annotator.update()
    first, second, third = patches(server)
    assert "codeparrot/stage" not in first
    assert second == {"codeparrot/step": "130/700"}
    assert third == {"codeparrot/loss": None}
    assert server.get(RAY_JOB, "tiny-1")["metadata"]["annotations"]["other/key"] == "kept"
    assert "codeparrot/loss" not in server.get(RAY_JOB, "tiny-1")["metadata"]["annotations"]


def test_without_a_file_nothing_is_asked_of_the_api_server(tmp_path: Path) -> None:
    server = FakeServer(rayjob())
    Annotator(server.api, tmp_path / "none", "tiny-1").update()
    (tmp_path / "half").write_text('{"stage": "tr')
    Annotator(server.api, tmp_path / "half", "tiny-1").update()
    assert server.requests == []


def test_trouble_is_waited_out_with_growing_pauses(tmp_path: Path) -> None:
    server = FakeServer(rayjob())
    server.next = [Unavailable("away"), refused(500, "x", "y"), refused(403, "Forbidden", "z"), refused(409, "C", "z")]
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == 7

    Annotator(server.api, write(tmp_path / "status.json"), "tiny-1").run(pause)
    assert pauses == [10, 20, 40, 60, 5, 5, 5]
    assert server.get(RAY_JOB, "tiny-1")["metadata"]["annotations"] == EXPECTED


def test_the_pause_stays_bounded_for_ever(tmp_path: Path) -> None:
    server = FakeServer()
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == 3000

    Annotator(server.api, write(tmp_path / "status.json"), "tiny-1").run(pause)
    assert max(pauses) == pauses[-1] == 60


def test_after_trouble_the_annotations_are_read_anew(tmp_path: Path) -> None:
    server = FakeServer(rayjob())
    file = write(tmp_path / "status.json")
    annotator = Annotator(server.api, file, "tiny-1")
    annotator.update()
    server.put(*rayjob())  # made again, without annotations
    server.next = [refused(500, "x", "y")]
    write(file, step=130)
    with pytest.raises(Unavailable):
        annotator.update()
    annotator.update()
    assert server.get(RAY_JOB, "tiny-1")["metadata"]["annotations"]["codeparrot/loss"] == "5.1000"


def test_the_last_words_are_patched_when_it_is_over(tmp_path: Path) -> None:
    server = FakeServer(rayjob())
    file = write(tmp_path / "status.json")

    def pause(_seconds: float) -> bool:
        write(file, step=699)
        return True

    Annotator(server.api, file, "tiny-1").run(pause)
    assert server.get(RAY_JOB, "tiny-1")["metadata"]["annotations"]["codeparrot/step"] == "699/700"


def test_sigterm_ends_the_sidecar_with_exit_code_0(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
                "users": [{"name": "u", "user": {}}],
            }
        )
    )
    command = [sys.executable, "-m", "k8s", "annotate", "--rayjob=x", "--namespace=y", f"--file={tmp_path / 'none'}"]
    process = subprocess.Popen(command, env={"KUBECONFIG": str(config), "PATH": ""}, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "annotations of RayJob y/x" in process.stderr.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert time.monotonic() - began < 4
    process.stderr.close()
