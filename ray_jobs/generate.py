"""A run to completions of the recipe's prompts."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from codeparrot.engine import EngineSettings
from codeparrot.generate import GenerateSettings, complete
from codeparrot.manifest import Manifest
from ray_jobs.cluster import spread
from ray_jobs.engines import engine_of
from ray_jobs.stage import Output, Stage, Work, main, stage_settings

NUM_PER_TASK = EngineSettings().max_batch_size


def run(work: Work) -> Output:
    """Complete every prompt."""
    settings = work.recipe.generate
    write = partial(
        complete_prompts,
        uri=work.storage.uri,
        trained=work.inputs["run"],
        settings=settings,
        seed=work.recipe.seed,
    )
    prompts = list(enumerate(settings.prompts))
    batches = [dict(prompts[start : start + NUM_PER_TASK]) for start in range(0, len(prompts), NUM_PER_TASK)]
    completions = [text for batch in spread("generate", batches, write, "batches", workers=1) for text in batch]
    pairs = [
        {"prompt": prompt, "completion": completion}
        for prompt, completion in zip(settings.prompts, completions, strict=True)
    ]
    file = work.attempt.write("completions.json", json.dumps(pairs, indent=1, ensure_ascii=False).encode())
    return [file], {"num_completions": len(pairs), "max_new_tokens": settings.max_new_tokens}


def complete_prompts(
    prompts: Mapping[int, str], *, uri: str, trained: Manifest, settings: GenerateSettings, seed: int
) -> list[str]:
    """The completions of these numbered prompts."""
    return [completion.text for completion in complete(engine_of(uri, trained), prompts, settings, seed)]


def summary(manifest: Manifest) -> tuple[str, str]:
    """Prompts; completions."""
    counts: Any = manifest.counts
    return (f"{counts['num_completions']} prompts", f"completions of up to {counts['max_new_tokens']} tokens")


STAGE = Stage(
    makes="completions",
    inputs=("run",),
    settings=lambda recipe: stage_settings(recipe, "seed", "generate"),
    run=run,
    summary=summary,
)

if __name__ == "__main__":
    main("ray_jobs.generate")
