import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from codeparrot.score import main
from tests.unit.test_humaneval import DOUBLE, RIGHT, WRONG, as_values, write


@pytest.fixture
def problems(tmp_path: Path) -> str:
    return str(write(tmp_path / "problems.jsonl", as_values(DOUBLE)))


def completions(path: Path, *texts: str) -> str:
    return str(write(path / "completions.jsonl", *({"task_id": "Own/1", "completion": text} for text in texts)))


def test_completions_from_elsewhere_are_scored(
    tmp_path: Path, problems: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    path = completions(tmp_path, RIGHT, WRONG, "    while True: pass\n", RIGHT)
    options = ["--cpu-seconds", "1", "--num-workers", "1", "--results", str(results)]
    assert main([path, "--problems", problems, *options]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("pass@1  50.00%  (95 % interval 50.00% to 50.00%, 1 problems)\n")
    assert shown.endswith("4 programs: 2 passed, 1 failed, 1 CPU time\n")
    told = [json.loads(line) for line in results.read_text().splitlines()]
    assert [each["reason"] for each in told] == [
        *("passed", "failed: AssertionError", "CPU time: more than 1 s", "passed"),
    ]


def test_one_json_object_can_be_asked_for(tmp_path: Path, problems: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([completions(tmp_path, RIGHT, WRONG), "--problems", problems, "--json", "--k", "2"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "pass@2": {"value": 1.0, "low": 1.0, "high": 1.0},
        "num_problems": 1,
        "num_samples": 2,
        "num_passed": 1,
    }


def test_what_is_wrong_ends_with_a_message_and_a_code(
    tmp_path: Path, problems: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = completions(tmp_path, RIGHT)
    assert main([path]) == 1
    assert main([str(tmp_path / "none.jsonl"), "--problems", problems]) == 1
    assert main([path, "--problems", problems, "--k", "0", "--cpu-seconds", "0"]) == 2
    shown = capsys.readouterr().err
    assert "error: completions of Own/1, which is no problem of this benchmark\n" in shown
    assert "none.jsonl: No such file or directory\n" in shown
    assert "command line: 2 problems\n  score.k.0: must be > 0, got 0\n  sandbox.cpu_seconds: must be > 0" in shown


def test_ctrl_c_ends_it_at_once_and_leaves_nothing(tmp_path: Path, problems: str) -> None:
    path = completions(tmp_path, *["    while True: pass\n"] * 50)
    command = [sys.executable, "-m", "codeparrot.score", "-", "--problems", problems]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with (
        Path(path).open() as lines,
        subprocess.Popen(command, stdin=lines, stderr=subprocess.PIPE, text=True, env=environment) as scoring,
    ):
        assert scoring.stderr
        assert scoring.stderr.readline().startswith("sandbox: limits, seccomp, Landlock")
        scoring.send_signal(signal.SIGINT)
        assert scoring.stderr.read() == "interrupted: nothing was scored; run the same command again\n"
        assert scoring.wait() == 3
    assert sorted(tmp_path.iterdir()) == [tmp_path / "completions.jsonl", tmp_path / "problems.jsonl"]
