"""A run to completions of the recipe's prompts."""

import json
from functools import partial
from typing import Any

from codeparrot.draws import key
from codeparrot.generate import GenerateSettings, complete
from codeparrot.manifest import Manifest
from codeparrot.storage import open_storage
from codeparrot.tokenizer import Encoder
from ray_jobs.cluster import spread
from ray_jobs.evaluate import EXPORT, exported_model
from ray_jobs.stage import Output, Stage, Work, main, stage_settings


def run(work: Work) -> Output:
    """Complete every prompt."""
    settings, trained = work.recipe.generate, work.inputs["run"]
    write = partial(complete_prompt, uri=work.storage.uri, trained=trained, settings=settings, seed=work.recipe.seed)
    prompts = list(enumerate(settings.prompts))
    completions = spread("generate", prompts, write, "completions", workers=1)
    pairs = [
        {"prompt": prompt, "completion": completion}
        for prompt, completion in zip(settings.prompts, completions, strict=True)
    ]
    file = work.attempt.write("completions.json", json.dumps(pairs, indent=1, ensure_ascii=False).encode())
    return [file], {"num_completions": len(pairs), "max_new_tokens": settings.max_new_tokens}


def complete_prompt(
    prompt: tuple[int, str], *, uri: str, trained: Manifest, settings: GenerateSettings, seed: int
) -> str:
    """The completion of one numbered prompt."""
    encoder = Encoder(trained.read(open_storage(uri), f"{EXPORT}tokenizer.json").decode())
    index, text = prompt
    return complete(exported_model(uri, trained), encoder, text, settings, key(seed, "completion", index))


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
