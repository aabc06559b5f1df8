"""Scoring without Ray or a store: completions as JSON lines in, pass@k out.

    python -m codeparrot.score COMPLETIONS [--problems FILE] [--results FILE]

COMPLETIONS is what was generated here or elsewhere, `-` is standard input. Exit codes are those of a stage.
"""

import argparse
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from codeparrot.errors import CodeParrotError, ConfigError, Interrupted
from codeparrot.humaneval import Scores, ScoreSettings, read_generations, read_problems, score
from codeparrot.sandbox import Sandbox, SandboxSettings
from codeparrot.settings import Settings, validate

STANDARD_OUTPUT = "-"
PROGRESS_SECONDS = 5.0


class _Options(Settings):
    score: ScoreSettings
    sandbox: SandboxSettings


def summary(scores: Scores) -> list[str]:
    """For a person: pass@k with its interval, and what became of the programs that did not pass."""
    lines = [
        f"pass@{k}  {each.value:.2%}  (95 % interval {each.low:.2%} to {each.high:.2%}, {scores.num_problems} problems)"
        for k, each in scores.pass_at_k.items()
    ]
    kinds = Counter(result.reason.partition(":")[0] for result in scores.results)
    lines.append(f"{len(scores.results):,} programs: " + ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common()))
    if kinds["wall time"]:
        lines.append("what the backstop of wall time ended may end otherwise on a less busy machine")
    return lines


def result_lines(scores: Scores) -> str:
    """One JSON object for each completion: `task_id`, `sample`, `passed`, `reason`."""
    return "".join(json.dumps(asdict(result)) + "\n" for result in scores.results)


def as_json(scores: Scores) -> str:
    """pass@k as one JSON object."""
    estimates = {f"pass@{k}": asdict(each) for k, each in scores.pass_at_k.items()}
    passed = sum(result.passed for result in scores.results)
    counts = {"num_problems": scores.num_problems, "num_samples": len(scores.results), "num_passed": passed}
    return json.dumps({**estimates, **counts})


class _Progress:
    """One line every few seconds, on standard error."""

    def __init__(self) -> None:
        self._began = self._told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            rate = done / (now - self._began)
            line = f"score  {done:,}/{total:,} programs  {rate:.0f} programs/s  {(total - done) / rate:.0f} s left"
            print(line, file=sys.stderr, flush=True)


def _run(options: argparse.Namespace) -> None:
    score_values = {"k": options.k, "allow_missing": options.allow_missing}
    sandbox_values = {key: getattr(options, key) for key in ("num_workers", "cpu_seconds", "allow_weak")}
    given = [
        {key: value for key, value in each.items() if value is not None} for each in (score_values, sandbox_values)
    ]
    settings = validate(_Options, {"score": given[0], "sandbox": given[1]}, "command line")
    problems = read_problems(options.problems)
    generations = read_generations(options.completions)
    with Sandbox(settings.sandbox) as sandbox:
        scores = score(problems, generations, settings.score, sandbox, seed=options.seed, watch=_Progress())
    if options.results == STANDARD_OUTPUT:
        print(result_lines(scores), end="")
    elif options.results is not None:
        try:
            Path(options.results).write_text(result_lines(scores))
        except OSError as error:
            raise ConfigError(f"--results {options.results}: {error.strerror}") from error
    print(as_json(scores) if options.json else "\n".join(summary(scores)), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m codeparrot.score", description="Score completions of HumanEval.")
    parser.add_argument("completions", metavar="COMPLETIONS", help="JSON lines with task_id and completion; - is stdin")
    parser.add_argument("--problems", metavar="FILE", help="JSON lines like HumanEval's, which is the default")
    parser.add_argument("--results", metavar="FILE", help="write what became of each completion; - is stdout")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--k", type=int, action="append", metavar="K", help="of pass@k; repeatable; 1, 10 and 100")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals")
    parser.add_argument("--num-workers", type=int, metavar="N", help="programs at a time; one per core")
    parser.add_argument("--cpu-seconds", type=int, metavar="N", help="CPU time of a program; 3")
    parser.add_argument("--allow-missing", action="store_true", help="leave out problems without completions")
    parser.add_argument("--allow-weak", action="store_true", help="only in a container that holds nothing of worth")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _run(options)
    except (CodeParrotError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):
            error = Interrupted("nothing was scored; run the same command again")
        print(f"{error.kind}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
