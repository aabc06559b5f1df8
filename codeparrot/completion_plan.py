"""What a request asks of the engine: prompts as token ids, as long as they may be, and an order for every choice.

Limits are those of the server and of the model's context. Whatever is beyond them is refused with its name and the
limit; nothing is cut unless the server says that it cuts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from codeparrot.completion import Request
from codeparrot.completions_api import DEFAULT_TOKENS, ApiError, CompletionRequest
from codeparrot.errors import GenerationError
from codeparrot.served_choice import Echo
from codeparrot.settings import Resources, Settings
from codeparrot.vocabulary import Vocabulary

if TYPE_CHECKING:
    import transformers


class ServeSettings(Settings):
    """What a server does for its clients, and how much of it."""

    model_name: str | None = Field(default=None, min_length=1)
    """What clients call the model. None: the run, or the last part of `--checkpoint`."""
    max_batch_size: PositiveInt = 8
    """Completions that are computed at once, by each replica."""
    max_queued: NonNegativeInt = 64
    """Completions that may wait for that; more are refused (429)."""
    max_choices: PositiveInt = 16
    """Completions of one request: prompts times `n`."""
    max_prompt_tokens: PositiveInt | None = None
    """None: what the model's context has room for."""
    max_tokens: PositiveInt | None = None
    """Tokens of one completion. None: what the model's context has room for."""
    cut_prompts: bool = False
    """Whether a prompt that is too long loses its beginning, as editors expect, rather than being refused (400)."""
    max_body_bytes: PositiveInt = 1_000_000
    """Of a request; larger ones are refused (413)."""
    drain_seconds: PositiveFloat = 120.0
    """How long the end of the server waits for requests that it has accepted."""
    log_text: bool = False
    """Whether prompts and completions are logged. They may hold anything."""
    num_replicas: PositiveInt = 1
    """Models that are loaded, each in a process of its own."""
    resources_per_replica: Resources = {"CPU": 1}

    @model_validator(mode="after")
    def _room_for_one_request(self) -> "ServeSettings":
        if self.max_choices > self.max_batch_size + self.max_queued:
            raise ValueError(
                f"max_choices ({self.max_choices}) must be at most max_batch_size ({self.max_batch_size}) + max_queued "
                f"({self.max_queued}): one request has to find room"
            )
        return self


@dataclass(frozen=True)
class Served:
    """A model that is served."""

    model: "transformers.PreTrainedModel"
    vocabulary: Vocabulary
    name: str
    fingerprint: str
    """Of its weights, and of what computes with them: torch, the kind of device, the precision."""
    created: int
    """Unix time, in seconds."""


@dataclass(frozen=True)
class Plan:
    """An accepted request: of every choice, what the engine is asked, and what is said before it."""

    requests: Sequence[Request]
    echoes: Sequence[Echo | None]
    num_prompt_tokens: int


def plan(request: CompletionRequest, served: Served, context: int, settings: ServeSettings) -> Plan:
    """What to do. Raises ApiError (400) that names the parameter that asks for too much."""
    num_choices = len(request.prompts) * request.num_choices
    if num_choices > settings.max_choices:
        message = f"{num_choices} completions in one request; at most {settings.max_choices} are made"
        raise ApiError(400, message, param="n", code="too_many_choices")
    if request.suffix and request.echo:
        raise ApiError(400, "echo and suffix do not go together", param="echo")
    keys = iter(request.keys(num_choices))
    requests: list[Request] = []
    echoes: list[Echo | None] = []
    num_prompt_tokens = 0
    for prompt in request.prompts:
        ids = _prompt_ids(prompt, request.suffix, served.vocabulary)
        ids, max_new_tokens = _fitted(ids, request, served, context, settings)
        num_prompt_tokens += len(ids)
        echoes += [_echo(prompt, ids, served.vocabulary) if request.echo else None] * request.num_choices
        requests += [
            Request(
                ids,
                max_new_tokens,
                temperature=1.0 if request.temperature is None else request.temperature,
                top_p=1.0 if request.top_p is None else request.top_p,
                seed=next(keys),
                stop=request.stops,
                top_logprobs=request.logprobs,
                prompt_logprobs=bool(request.echo) and request.logprobs is not None,
            )
            for _ in range(request.num_choices)
        ]
    return Plan(requests, echoes, num_prompt_tokens)


def _prompt_ids(prompt: str | list[int], suffix: str | None, vocabulary: Vocabulary) -> list[int]:
    if not isinstance(prompt, str):
        if suffix:
            raise ApiError(400, "suffix needs a prompt that is a text", param="suffix")
        return prompt
    if any("\ud800" <= character <= "\udfff" for character in prompt + (suffix or "")):
        raise ApiError(400, "the prompt holds half a character (a surrogate)", param="prompt")
    try:
        return vocabulary.encode_infill(prompt, suffix) if suffix else vocabulary.encode(prompt)
    except GenerationError as error:
        raise ApiError(400, str(error), param="suffix", code="unsupported_parameter") from error


def _fitted(
    ids: list[int], request: CompletionRequest, served: Served, context: int, settings: ServeSettings
) -> tuple[list[int], int]:
    """The prompt, and how many tokens may follow it."""
    most_new = min(settings.max_tokens or context, context - 1)
    wanted = min(DEFAULT_TOKENS, most_new) if request.max_tokens is None else request.max_tokens
    if wanted > most_new:
        message = f"max_tokens is {wanted}; this server makes at most {most_new} tokens"
        raise ApiError(400, message, param="max_tokens", code="max_tokens_too_large")
    room = min(settings.max_prompt_tokens or context, context - wanted)
    if len(ids) > room and settings.cut_prompts and not request.echo and not request.suffix:
        ids = ids[-room:]
    if len(ids) > room:
        message = (
            f"the prompt has {len(ids)} tokens; with max_tokens {wanted} there is room for {room} of the {context} "
            "that the model sees"
        )
        raise ApiError(400, message, param="prompt", code="context_length_exceeded")
    try:
        Request(ids, wanted).prompt_for(context, served.model.config.vocab_size)
    except GenerationError as error:
        raise ApiError(400, str(error), param="prompt") from error
    return ids, wanted


def _echo(prompt: str | list[int], ids: list[int], vocabulary: Vocabulary) -> Echo:
    if not isinstance(prompt, str):
        return Echo(vocabulary.decode(prompt), prompt)
    begins = bool(ids) and ids[0] == vocabulary.tokenizer.bos_token_id
    return Echo(prompt, ids[1:] if begins else ids)
