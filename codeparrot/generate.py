"""Completions of the recipe's prompts: what a model writes after each, or between it and its suffix.

Draws are keyed by (seed, prompt number), so a completion depends on nothing else.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic import Field, PositiveInt

from codeparrot.completion import Completion, Request
from codeparrot.draws import key
from codeparrot.engine import Engine
from codeparrot.settings import Settings


class Infill(Settings):
    """A text in whose middle something is missing."""

    prompt: str
    """What stands before it."""
    suffix: str
    """What stands after it."""


Prompt = str | Infill


class Written(NamedTuple):
    """What a model has written, and what stands around it: one after the other they are a text."""

    prompt: str
    completion: str
    suffix: str = ""


class GenerateSettings(Settings):
    """What to complete, and how."""

    prompts: tuple[Prompt, ...] = Field(min_length=1)
    """Texts to go on with. With the objective `fim` also a `prompt` and a `suffix`; with `masked`, texts that hold
    `<|mask|>`; with `span`, texts that hold `<extra_id_0>`, `<extra_id_1>` and so on."""
    max_new_tokens: PositiveInt = 96
    temperature: float = Field(default=0.6, ge=0)
    """0: always the likeliest token."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    repetition_penalty: float = Field(default=1.1, gt=0)
    """Above 1: tokens seen before become less likely."""


def complete(engine: Engine, prompts: Mapping[int, Prompt], settings: GenerateSettings, seed: int) -> list[Completion]:
    """The completions of numbered prompts, in their order. Of a prompt that is too long, the end counts.

    Raises GenerationError if one with a suffix is too long, or the model does not know of suffixes.
    """
    return engine.complete(_requests(engine, prompts, settings, seed))


def _requests(
    engine: Engine, prompts: Mapping[int, Prompt], settings: GenerateSettings, seed: int
) -> Iterator[Request]:
    vocabulary = engine.vocabulary
    for number, prompt in prompts.items():
        if isinstance(prompt, Infill):
            ids = vocabulary.encode_infill(prompt.prompt, prompt.suffix)
        else:
            ids = vocabulary.encode(prompt)
        yield Request(
            ids,
            max_new_tokens=min(settings.max_new_tokens, engine.context - 1),
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=key(seed, "completion", number),
            repetition_penalty=settings.repetition_penalty,
            cut_prompt=isinstance(prompt, str),
        )
