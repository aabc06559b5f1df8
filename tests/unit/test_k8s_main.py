"""The command line: its options, and every way a command can end."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from k8s.__main__ import COMMANDS, main
from k8s.errors import LocalClusterError, Misuse
from k8s.options import parser


def test_every_command_has_an_action_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n    {name}" in text for name in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["nothing"], ["submit"], ["submit", "r.yaml", "--retries", "-1"], ["submit", "r.yaml", "--retries", "x"],
        ["submit", "r.yaml", "--deadline-seconds", "0"], ["status"], ["cluster"], ["cluster", "sideways"],
        ["annotate", "--file", "x"],
        ["list", "--nam", "x"],
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_a_bad_name_is_told_before_anything_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "no-such-recipe.yaml", "--name", "Bad"]) == 2
    assert "error: --name Bad: " in capsys.readouterr().err


def test_every_way_to_end_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(error: BaseException) -> tuple[int, str]:
        def act(_options: Any) -> int:
            raise error

        monkeypatch.setitem(COMMANDS, "list", act)
        code = main(["list"])
        return code, capsys.readouterr().err

    assert ends(LocalClusterError("boom")) == (1, "error: boom\n")
    assert ends(Misuse("wrong")) == (2, "error: wrong\n")
    assert ends(KeyboardInterrupt()) == (3, "interrupted: by a signal; what runs in the cluster goes on\n")
    code, text = ends(KeyError("x"))
    assert code == 1
    assert "unexpected KeyError" in text
    assert "--debug" in text


def test_ctrl_c_in_wait_leaves_the_run_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Connected:
        class api:  # noqa: N801
            namespace = "lab"

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("k8s.connection.connect", lambda *_: Connected)
    monkeypatch.setattr("k8s.jobs.resume", lambda *_: "tiny-1")
    monkeypatch.setattr("k8s.follow.follow", interrupted)
    assert main(["resume", "tiny-1", "--wait"]) == 3
    captured = capsys.readouterr()
    assert "interrupted: no longer watching; RayJob lab/tiny-1 goes on" in captured.err
    assert "python -m k8s logs -f tiny-1 --namespace lab" in captured.out


def test_sigterm_counts_as_ctrl_c(tmp_path: Path) -> None:
    program = (
        "import k8s.__main__ as m, time\n"
        "def act(options):\n    print('on', flush=True)\n    time.sleep(60)\n"
        "m.COMMANDS['list'] = act\nimport sys\nsys.argv = ['k8s', 'list']\nm._run()"
    )
    environment = {**os.environ, "KUBECONFIG": str(tmp_path / "none")}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[1].startswith(b"interrupted: ")
    assert process.returncode == 3


def test_the_options_of_submit_reach_it() -> None:
    found = parser().parse_args(["submit", "r.yaml", "--set", "a=1", "--set", "b=2", "--retries", "0", "--wait"])
    assert (found.overrides, found.retries, found.wait, found.deadline_seconds) == (["a=1", "b=2"], 0, True, None)
