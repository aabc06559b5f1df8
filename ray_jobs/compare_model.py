"""One model, measured as all others are: what the tasks of `ray_jobs.compare` run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from codeparrot.breakdown import Costs
from codeparrot.compare import CompareSettings
from codeparrot.completion import Request
from codeparrot.draws import key
from codeparrot.engine import Engine
from codeparrot.evaluate import context_of, text_costs
from codeparrot.vocabulary import Vocabulary
from ray_jobs.evaluate_rows import Model


@dataclass(frozen=True)
class Measured:
    """What was measured of a model."""

    source: str
    num_parameters: int
    vocab_size: int
    context: int
    costs: Sequence[Costs]
    """By data set, of each document."""
    completions: Sequence[Sequence[str]]
    """By prompt."""
    num_tokens: int
    """Of all completions."""
    seconds: float
    """That they took."""


def measure(
    model: Model, *, data: Sequence[Sequence[str]], prompts: Sequence[str], settings: CompareSettings
) -> Measured:
    """Everything about one model."""
    import torch

    loaded = model.load()
    vocabulary = Vocabulary(loaded.tokenizer)
    with torch.inference_mode():
        costs = [text_costs(loaded.model, vocabulary, texts, settings.batch_size)[0] for texts in data]
    engine = Engine(loaded.model, vocabulary)
    engine.add(Request(vocabulary.encode(prompts[0]), 1, cut_prompt=True))
    _finish(engine)  # what is made once, such as buffers, is not part of the speed
    began = time.perf_counter()
    asked = {
        engine.add(_request(vocabulary.encode(prompt), context_of(loaded.model), settings, number, sample)): number
        for number, prompt in enumerate(prompts)
        for sample in range(settings.num_samples)
    }
    texts, num_tokens = _finish(engine)
    seconds = time.perf_counter() - began
    completions: list[list[str]] = [[] for _ in prompts]
    for request_id, number in asked.items():
        completions[number].append(texts.get(request_id, ""))
    return Measured(
        source=loaded.source,
        num_parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        vocab_size=int(loaded.model.config.get_text_config().vocab_size),
        context=context_of(loaded.model),
        costs=costs,
        completions=completions,
        num_tokens=num_tokens,
        seconds=seconds,
    )


def _request(ids: Sequence[int], context: int, settings: CompareSettings, prompt: int, sample: int) -> Request:
    return Request(
        ids,
        min(settings.max_new_tokens, context - 1),
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=key(settings.seed, "compare", prompt, sample),
        cut_prompt=True,
    )


def _finish(engine: Engine) -> tuple[dict[int, str], int]:
    """(the texts of all requests, how many tokens these took)."""
    texts: dict[int, str] = {}
    num_tokens = 0
    while not engine.idle:
        for event in engine.step():
            texts[event.request_id] = texts.get(event.request_id, "") + event.text
            num_tokens += event.token_id is not None
    return texts, num_tokens
