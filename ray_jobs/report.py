"""All outputs of a run to one self-contained page."""

import json
from typing import Any

from codeparrot.config import dump_recipe
from codeparrot.manifest import Manifest
from codeparrot.report import ReportData, render
from ray_jobs import collect, curate, evaluate, generate, humaneval, pack, train, train_tokenizer
from ray_jobs.progress import size
from ray_jobs.stage import MADE_BY, Output, Stage, Work, main

PAGE = "report.html"
SHOWN = (
    collect.STAGE,
    curate.STAGE,
    train_tokenizer.STAGE,
    pack.STAGE,
    train.STAGE,
    evaluate.STAGE,
    generate.STAGE,
    humaneval.STAGE,
)
"""The stages before this one, in order."""


def run(work: Work) -> Output:
    """Gather counts, history and completions, and render them."""
    inputs = work.inputs
    samples = _lines(inputs["curated"].read(work.storage, "rejected.jsonl"))
    evaluation = inputs["evaluation"]
    asked = evaluate.ANSWERS in evaluation.names()
    data = ReportData(
        run_name=work.recipe.run_name,
        created=max(manifest.created for manifest in inputs.values()),
        stages=[_row(noun, manifest) for noun, manifest in inputs.items()],
        raw=inputs["raw"].counts,
        curated={**inputs["curated"].counts, "rejected_samples": samples},
        tokenizer=inputs["tokenizer"].counts,
        packed=inputs["packed"].counts,
        run=inputs["run"].counts,
        evaluation=evaluation.counts,
        humaneval=inputs["humaneval"].counts if "humaneval" in inputs else None,
        completions=json.loads(inputs["completions"].read(work.storage, "completions.json")),
        history=_lines(inputs["run"].read(work.storage, "metrics.jsonl")),
        recipe=dump_recipe(work.recipe),
        breakdown=json.loads(evaluation.read(work.storage, evaluate.BREAKDOWN)),
        answers=_lines(evaluation.read(work.storage, evaluate.ANSWERS)) if asked else [],
    )
    page = render(data).encode()
    return [work.attempt.write(PAGE, page)], {"size_bytes": len(page)}


def _row(noun: str, manifest: Manifest) -> dict[str, Any]:
    came, went = next(stage for stage in SHOWN if stage.makes == noun).summary(manifest)
    return {"name": MADE_BY[noun], "seconds": manifest.seconds, "status": "done", "in": came, "out": went}


def _lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def summary(manifest: Manifest) -> tuple[str, str]:
    """All outputs; the page."""
    counts: Any = manifest.counts
    return "all outputs", f"{PAGE}, {size(counts['size_bytes'])}"


STAGE = Stage(
    makes="report",
    inputs=tuple(stage.makes for stage in SHOWN),
    settings=lambda recipe: recipe.model_dump(mode="json"),
    run=run,
    summary=summary,
)

if __name__ == "__main__":
    main("ray_jobs.report")
