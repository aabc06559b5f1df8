"""The completions of OpenAI's API: what a request may say, what answers and errors look like.

Plain data, without a server: `ray_jobs.http_api` speaks HTTP. Parameters that this API has and a model of ours cannot
honour are refused rather than ignored, unless their value asks for nothing. Keys that it does not know are ignored, as
clients send all kinds of them.

Shapes: https://platform.openai.com/docs/api-reference/completions.
"""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from codeparrot.draws import key

MAX_LOGPROBS = 5
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 200
DEFAULT_TOKENS = 16
"""Of OpenAI's API."""
MAX_SEED = 2**63

TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class ApiError(Exception):
    """An answer that is an error, in the API's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """What stands in the answer."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """When to come again, how to say who one is."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return {**headers, "WWW-Authenticate": "Bearer"} if self.status == 401 else headers


class StreamOptions(BaseModel):
    """Of a stream."""

    model_config = ConfigDict(strict=True, frozen=True)

    include_usage: bool = False
    """One more event at the end says how many tokens it took."""


class CompletionRequest(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(strict=True, frozen=True)

    model: str
    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1)]
        | None
    ) = None
    suffix: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED, lt=MAX_SEED)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def num_choices(self) -> int:
        """Completions of each prompt."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop sequences."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or more, all texts or all token ids."""
        if self.prompt is None or isinstance(self.prompt, str):
            return [self.prompt or ""]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    def keys(self, num_completions: int) -> list[int]:
        """What the random numbers of each completion are a function of; of nothing else, where a seed is given."""
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return [key(seed, "served", index) for index in range(num_completions)]


def parse_request(body: bytes) -> CompletionRequest:
    """The request in a body. Raises ApiError (400) that names the parameter."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ApiError(400, f"the body must be a JSON object, not {type(values).__name__}")
    try:
        request = CompletionRequest.model_validate(values)
    except ValidationError as error:
        # Of the alternatives of a parameter, the one whose kind is right.
        found = error.errors(include_url=False, include_input=False)
        problem = min(found, key=lambda each: each["type"].endswith("_type"))
        param = str(problem["loc"][0]) if problem["loc"] else None
        raise ApiError(400, f"{param}: {problem['msg']}", param=param) from None
    _refuse_what_is_not_supported(request)
    return request


def _refuse_what_is_not_supported(request: CompletionRequest) -> None:
    neutral = {
        "best_of": request.best_of in (None, request.num_choices),
        "presence_penalty": not request.presence_penalty,
        "frequency_penalty": not request.frequency_penalty,
        "logit_bias": not request.logit_bias,
    }
    for param, asks_for_nothing in neutral.items():
        if not asks_for_nothing:
            raise ApiError(400, f"{param} is not supported", param=param, code="unsupported_parameter")
    if any(not stop or len(stop) > MAX_STOP_CHARACTERS for stop in request.stops):
        raise ApiError(400, f"stop: a sequence has 1 to {MAX_STOP_CHARACTERS} characters", param="stop")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options is for streams: set stream", param="stream_options")


@dataclass(frozen=True)
class Scored:
    """A token, how likely it was, and the likeliest others."""

    text: str
    logprob: float | None
    """None for the first token of all: nothing stands before it."""
    top: Mapping[str, float] | None
    offset: int
    """Where its text begins in that of the choice."""


@dataclass(frozen=True)
class Delta:
    """What is new of one choice."""

    index: int
    text: str = ""
    tokens: tuple[Scored, ...] = ()
    num_tokens: int = 0
    """Generated; those of an echo do not count."""
    finish_reason: str | None = None


@dataclass(frozen=True)
class Head:
    """What all parts of an answer begin with."""

    model: str
    fingerprint: str
    """Changes when the same seed may give other completions."""
    identity: str
    created: int

    @classmethod
    def new(cls, model: str, fingerprint: str) -> "Head":
        """Of an answer that begins now."""
        return cls(model, fingerprint, f"cmpl-{secrets.token_hex(12)}", int(time.time()))

    def answer(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int] | None) -> dict[str, Any]:
        """A whole answer, or a part of a stream."""
        return {
            "id": self.identity,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
            "usage": usage,
        }


def choice(delta: Delta, *, logprobs: int | None) -> dict[str, Any]:
    """A choice, or what is new of it in a stream."""
    scores = None
    if logprobs is not None:
        scores = {
            "tokens": [token.text for token in delta.tokens],
            "token_logprobs": [token.logprob for token in delta.tokens],
            "top_logprobs": [token.top for token in delta.tokens] if logprobs else None,
            "text_offset": [token.offset for token in delta.tokens],
        }
    return {"index": delta.index, "text": delta.text, "logprobs": scores, "finish_reason": delta.finish_reason}


def joined(deltas: Sequence[Delta]) -> Delta:
    """All that has come of one choice."""
    return Delta(
        index=deltas[0].index,
        text="".join(delta.text for delta in deltas),
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        num_tokens=sum(delta.num_tokens for delta in deltas),
        finish_reason=deltas[-1].finish_reason,
    )


def usage(num_prompt_tokens: int, num_completion_tokens: int) -> dict[str, int]:
    """How many tokens it took."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
    }


def event(data: Mapping[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


DONE = event("[DONE]")
