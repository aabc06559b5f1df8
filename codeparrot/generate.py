"""Completions of the recipe's prompts: what a model writes after each.

Draws are keyed by (seed, prompt number), so a completion depends on nothing else.
"""

from collections.abc import Iterator, Mapping

from pydantic import Field, PositiveInt

from codeparrot.completion import Completion, Request
from codeparrot.draws import key
from codeparrot.engine import Engine
from codeparrot.settings import Settings


class GenerateSettings(Settings):
    """What to complete, and how."""

    prompts: tuple[str, ...] = Field(min_length=1)
    max_new_tokens: PositiveInt = 96
    temperature: float = Field(default=0.6, ge=0)
    """0: always the likeliest token."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    repetition_penalty: float = Field(default=1.1, gt=0)
    """Above 1: tokens seen before become less likely."""


def complete(engine: Engine, prompts: Mapping[int, str], settings: GenerateSettings, seed: int) -> list[Completion]:
    """The completions of numbered prompts, in their order. Of a prompt that is too long, the end counts."""
    return engine.complete(_requests(engine, prompts, settings, seed))


def _requests(engine: Engine, prompts: Mapping[int, str], settings: GenerateSettings, seed: int) -> Iterator[Request]:
    for number, prompt in prompts.items():
        yield Request(
            engine.vocabulary.encode(prompt),
            max_new_tokens=min(settings.max_new_tokens, engine.context - 1),
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=key(seed, "completion", number),
            repetition_penalty=settings.repetition_penalty,
            cut_prompt=True,
        )
