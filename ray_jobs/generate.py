"""A run to completions of the recipe's prompts."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from codeparrot.engine import EngineSettings
from codeparrot.exported import load_export
from codeparrot.fill import fill
from codeparrot.generate import GenerateSettings, Infill, Prompt, Written, complete
from codeparrot.manifest import Manifest
from codeparrot.objectives import ObjectiveSettings, fills_holes, identity_of
from codeparrot.storage import open_storage
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
        objective=work.recipe.objective,
    )
    prompts = list(enumerate(settings.prompts))
    batches = [dict(prompts[start : start + NUM_PER_TASK]) for start in range(0, len(prompts), NUM_PER_TASK)]
    written = [each for batch in spread("generate", batches, write, "batches", workers=1) for each in batch]
    pairs = [{name: text for name, text in each._asdict().items() if name != "suffix" or text} for each in written]
    file = work.attempt.write("completions.json", json.dumps(pairs, indent=1, ensure_ascii=False).encode())
    return [file], {"num_completions": len(pairs), "max_new_tokens": settings.max_new_tokens}


def complete_prompts(
    prompts: Mapping[int, Prompt],
    *,
    uri: str,
    trained: Manifest,
    settings: GenerateSettings,
    seed: int,
    objective: ObjectiveSettings,
) -> list[Written]:
    """The completions of these numbered prompts."""
    if fills_holes(objective):
        loaded = load_export(open_storage(uri), trained, device="cpu")
        return fill(loaded, {number: str(prompt) for number, prompt in prompts.items()}, settings, seed)
    written = complete(engine_of(uri, trained), prompts, settings, seed)
    around = [(each.prompt, each.suffix) if isinstance(each, Infill) else (each, "") for each in prompts.values()]
    return [Written(before, made.text, after) for (before, after), made in zip(around, written, strict=True)]


def summary(manifest: Manifest) -> tuple[str, str]:
    """Prompts; completions."""
    counts: Any = manifest.counts
    return (f"{counts['num_completions']} prompts", f"completions of up to {counts['max_new_tokens']} tokens")


STAGE = Stage(
    makes="completions",
    inputs=("run",),
    settings=lambda recipe: {**stage_settings(recipe, "seed", "generate"), **identity_of(recipe.objective)},
    run=run,
    summary=summary,
)

if __name__ == "__main__":
    main("ray_jobs.generate")
