"""A run to completions of HumanEval's problems, and how many of them are right.

Ray Data's tasks generate, and store the completions of a problem as soon as all of them are there. So a stage that was
killed, or is done again since only the scoring has changed, generates nothing twice. The programs run in the sandbox,
on the machine of the driver; on Kubernetes the stage runs none, since that machine is the head of the Ray cluster.
"""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any
from urllib.parse import quote

from codeparrot.code_version import CARRIERS, code_version
from codeparrot.config import Recipe
from codeparrot.errors import ConfigError
from codeparrot.humaneval import Generation, Problem, generation_line, read_problems, score
from codeparrot.humaneval_samples import HumanEvalSettings, generate
from codeparrot.manifest import Manifest, canonical, json_lines
from codeparrot.sandbox import Sandbox
from codeparrot.storage import Storage, open_storage, sha256_hex
from ray_jobs.cluster import spread
from ray_jobs.engines import engine_of
from ray_jobs.stage import Output, Stage, Work, main

logger = logging.getLogger(__name__)

SCORING = ("codeparrot.humaneval", "codeparrot.sandbox")
UNSHAPING = ("engine", "num_workers", "resources_per_worker")
"""Settings that change no completion."""
TASKS_PER_WORKER = 4
ROUNDS = 4
"""Full batches that a task should have at least: at the end of each task, rows leave and none join."""
PARTS = "parts"


def run(work: Work) -> Output:
    """Generate what is missing, then score all."""
    settings, problems = settings_of(work.recipe), work.plan
    folder = f"{work.attempt.prefix}/{PARTS}/{parts_key(work)[:12]}"
    there = stored(work.storage, folder)
    missing = [problem for problem in problems if part_name(problem) not in there]
    if len(missing) < len(problems):
        logger.info("humaneval: the completions of %d problems are there already", len(problems) - len(missing))
    write = partial(
        generate_part,
        uri=work.storage.uri,
        folder=folder,
        trained=work.inputs["run"],
        settings=settings,
        seed=work.recipe.seed,
    )
    spread(
        "humaneval",
        chunks(missing, settings),
        write,
        "chunks of problems",
        workers=settings.num_workers,
        resources=settings.resources_per_worker,
    )
    data = b"".join(work.storage.read(f"{folder}/{part_name(problem)}") for problem in problems)
    generations = [Generation(**json.loads(line)) for line in data.splitlines()]
    files = [work.attempt.write("generations.jsonl", data)]
    counts = {
        "num_problems": len(problems),
        "num_samples": settings.num_samples,
        "num_completions": len(generations),
        "num_at_limit": sum(each.finish_reason == "length" for each in generations),
        "temperature": settings.temperature,
        "pass_at_k": None,
    }
    if settings.score is not None:
        results, scored = scores(problems, generations, settings, work.recipe.seed)
        files.append(work.attempt.write("results.jsonl", results))
        counts |= scored
    work.storage.delete(
        path
        for path, _ in work.storage.list(f"{work.attempt.prefix}/{PARTS}/")
        if not path.startswith(f"{folder}/")  # of other settings, or another model
    )
    return files, counts


def settings_of(recipe: Recipe) -> HumanEvalSettings:
    """Those of the recipe, or the usual ones: the stage can be run by itself."""
    return recipe.humaneval or HumanEvalSettings()


def shaping(recipe: Recipe, *left_out: str) -> dict[str, Any]:
    """The settings that the output depends on."""
    values = settings_of(recipe).model_dump(mode="json", exclude={*UNSHAPING, *left_out})
    return {"seed": recipe.seed, "humaneval": values}


def parts_key(work: Work) -> str:
    """What completions depend on, and scores do not change."""
    code = code_version("codeparrot.humaneval_samples", CARRIERS | set(SCORING))
    settings = [shaping(work.recipe, "score", "sandbox"), settings_of(work.recipe).stop]
    return sha256_hex(canonical([code, settings, dict(work.attempt.inputs)]))


def part_name(problem: Problem) -> str:
    """The file with all completions of a problem."""
    return f"{quote(problem.task_id, safe='')}.jsonl"


def stored(storage: Storage, folder: str) -> set[str]:
    """The names of the parts that are there; each was written at once."""
    return {path.removeprefix(f"{folder}/") for path, _ in storage.list(f"{folder}/")}


def chunks(problems: Sequence[Problem], settings: HumanEvalSettings) -> list[list[Problem]]:
    """The problems of each task: enough to fill batches, and to keep all workers busy; long prompts first."""
    filling = math.ceil(ROUNDS * settings.engine.max_batch_size / settings.num_samples)
    size = max(1, min(filling, math.ceil(len(problems) / (TASKS_PER_WORKER * settings.num_workers))))
    ordered = sorted(problems, key=lambda problem: -len(problem.prompt))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def generate_part(
    problems: Sequence[Problem], *, uri: str, folder: str, trained: Manifest, settings: HumanEvalSettings, seed: int
) -> int:
    """Store the completions of these problems, one file each; returns how many completions there are."""
    storage = open_storage(uri)
    device = "cuda" if settings.resources_per_worker.get("GPU") else "cpu"
    engine = engine_of(uri, trained, settings.engine, device=device)
    count = 0
    for problem, generations in generate(engine, problems, settings, seed):
        storage.write(f"{folder}/{part_name(problem)}", b"".join(map(generation_line, generations)))
        count += len(generations)
    return count


def scores(
    problems: Sequence[Problem], generations: Sequence[Generation], settings: HumanEvalSettings, seed: int
) -> tuple[bytes, Mapping[str, Any]]:
    """What became of every completion, as JSON lines, and the counts."""
    assert settings.score is not None
    with Sandbox(settings.sandbox) as sandbox:
        scored = score(problems, generations, settings.score, sandbox, seed=seed)
        protections = sandbox.protections
    return json_lines(asdict(result) for result in scored.results), {
        "num_passed": sum(result.passed for result in scored.results),
        "pass_at_k": {str(k): asdict(estimate) for k, estimate in scored.pass_at_k.items()},
        "sandbox": protections,
    }


def plan(recipe: Recipe) -> tuple[str, list[Problem]]:
    """The problems, by their content. Raises ConfigError."""
    require_no_programs_beside_ray(recipe)
    problems = read_problems(settings_of(recipe).problems)
    return sha256_hex(canonical([asdict(problem) for problem in problems])), problems


def require_no_programs_beside_ray(recipe: Recipe) -> None:
    """Raise ConfigError if programs would run in a pod of the cluster, which has a network and secrets."""
    if settings_of(recipe).score is not None and os.environ.get("KUBERNETES_SERVICE_HOST"):
        raise ConfigError(
            "humaneval.score: must be null on Kubernetes, where programs run in a pod of their own: "
            "`python -m k8s score` scores the stored completions"
        )


def summary(manifest: Manifest) -> tuple[str, str]:
    """Problems and samples; pass@k."""
    counts: Any = manifest.counts
    measured = ", ".join(f"pass@{k} {each['value']:.1%}" for k, each in (counts["pass_at_k"] or {}).items())
    came = f"{counts['num_problems']} problems, {counts['num_samples']} samples of each"
    return came, measured or f"{counts['num_completions']:,} completions, not scored"


STAGE = Stage(
    makes="humaneval",
    inputs=("run",),
    settings=shaping,
    run=run,
    summary=summary,
    plan=plan,
)

if __name__ == "__main__":
    main("ray_jobs.humaneval")
