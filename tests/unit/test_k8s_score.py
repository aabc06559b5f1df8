"""Scoring in a pod: what is created, what is run in it, and that it is gone afterwards."""

import gzip
from pathlib import Path

import pytest

from k8s.api import CONFIG_MAP, POD, Kind, Object
from k8s.errors import Misuse, ReleaseError, RunError, WaitTimeout
from k8s.release import find
from k8s.score import read, score
from k8s.tools import Done
from tests.unit.k8s_doubles import FakeClock, FakePrograms, FakeServer, release_objects

TEMPLATE = """
apiVersion: v1
kind: Pod
metadata: {name: SCORE_NAME, namespace: lab}
spec:
  activeDeadlineSeconds: 7200
  containers: [{name: score, resources: {limits: {cpu: 2500m, memory: 3Gi}}}]
"""
ANSWER = '{"task_id": "a", "sample": 0}\n{"task_id": "b", "sample": 0}\n{"pass@1": {}}\n'


def template(text: str = TEMPLATE) -> tuple[Kind, Object]:
    return CONFIG_MAP, {"metadata": {"name": "parrot-codeparrot-score"}, "data": {"pod.yaml": text}}


class Scoring:
    """A release, a pod that becomes `phase` after a while, and a kubectl that answers."""

    def __init__(self, *objects: tuple[Kind, Object], phase: str = "Running", answer: Done | str = ANSWER) -> None:
        self.server = FakeServer(*release_objects(), *objects)
        self.programs, self.clock = FakePrograms(), FakeClock()
        self.programs.says("kubectl", answer)
        self.clock.at(5, lambda: self.server.get(POD, "score-1").update(status={"phase": phase}))

    def run(self, *arguments: str, problems: str | None = None) -> tuple[str, str]:
        api = self.server.api
        where = (api, "here", find(api), "lines\n", arguments, self.programs, self.clock)
        return score(*where, lambda name: f"{name}-1", problems)

    def pods(self) -> list[Object]:
        return self.server.api.select(POD)


def test_completions_go_in_and_results_come_out() -> None:
    scoring = Scoring(template())
    assert scoring.run("--allow-missing") == (
        '{"task_id": "a", "sample": 0}\n{"task_id": "b", "sample": 0}\n',
        '{"pass@1": {}}',
    )
    assert scoring.programs.texts == ["lines\n"]
    (command,) = scoring.programs.commands
    assert command == (
        "kubectl --context here --namespace lab exec --stdin pod/score-1 --container score -- "
        "python -m codeparrot.score - --results - --json --num-workers 2 --allow-missing"
    )
    assert scoring.pods() == []


def test_problems_of_ones_own_go_into_the_pod_first() -> None:
    scoring = Scoring(template())
    scoring.run(problems="problems\n")
    assert scoring.programs.texts == ["problems\n", "lines\n"]
    copied, scored = (command.partition(" -- ")[2] for command in scoring.programs.commands)
    assert copied == "cp /dev/stdin /tmp/problems.jsonl"
    assert scored.endswith("--num-workers 2 --problems /tmp/problems.jsonl")
    failing = Scoring(template(), answer=Done(1, "", "cp: no space left on device"))
    with pytest.raises(RunError, match="no space left"):
        failing.run(problems="problems\n")
    assert len(failing.programs.commands) == 1
    assert failing.pods() == []


@pytest.mark.parametrize("answer", [Done(1, "", "error: no completions of HumanEval/3"), Done(0, "", "")])
def test_a_scoring_that_fails_is_told_and_leaves_no_pod(answer: Done) -> None:
    scoring = Scoring(template(), answer=answer)
    with pytest.raises(RunError, match=rf"Pod lab/score-1: scoring ended with exit code {answer.code}:\n  "):
        scoring.run()
    assert scoring.pods() == []


def test_a_pod_that_fails_or_never_starts_is_told_and_deleted() -> None:
    failed = Scoring(template(), phase="Failed")
    with pytest.raises(RunError, match="Pod lab/score-1 ended before it was used"):
        failed.run()
    pending = Scoring(template(), phase="Pending")
    with pytest.raises(WaitTimeout, match=r"Pod lab/score-1: expected it to run: it is starting \(waited 900 s\)"):
        pending.run()
    assert failed.pods() == pending.pods() == []
    assert not failed.programs.commands


@pytest.mark.parametrize("objects", [(), (template("kind: Pod"),), (template("SCORE_NAME: ["),)])
def test_a_release_that_has_no_such_pod_is_named(objects: tuple[tuple[Kind, Object], ...]) -> None:
    scoring = Scoring(*objects)
    with pytest.raises(ReleaseError, match=r"ConfigMap lab/parrot-codeparrot-score"):
        scoring.run()
    assert scoring.pods() == []


def test_a_file_of_completions_is_read_compressed_or_not(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "\u00e9"}\n')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress('{"a": "\u00e9"}\n'.encode()))
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "a.jsonl.gz") == '{"a": "\u00e9"}\n'
    (tmp_path / "b").write_bytes(b"\xff")
    for name in ("b", "none"):
        with pytest.raises(Misuse, match=f"cannot read .*{name}: "):
            read(tmp_path / name)
