"""One completion: what is asked for, and what comes of it, token by token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from codeparrot.errors import GenerationError
from codeparrot.sampling import Draw
from codeparrot.stops import StopSequences
from codeparrot.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Request:
    """One completion to make."""

    prompt_ids: Sequence[int]
    max_new_tokens: int
    temperature: float = 1.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    seed: int = 0
    """Keys its draws. Samples of one prompt need different ones: `draws.key(seed, "humaneval", task_id, sample)`."""
    stop: Sequence[str] = ()
    """The completion ends before the first of these texts."""
    repetition_penalty: float = 1.0
    """Above 1: tokens seen before become less likely."""
    top_logprobs: int | None = None
    """None: no log-probabilities. Else that of each token, and as many of the likeliest tokens with theirs."""
    prompt_logprobs: bool = False
    """Whether those of the prompt's own tokens are asked for too: they come with the first event."""
    cut_prompt: bool = False
    """Whether a prompt that leaves no room for `max_new_tokens` loses its beginning, rather than being refused."""

    def prompt_for(self, context: int, vocab_size: int) -> tuple[int, ...]:
        """The prompt as the model gets it: at most its last `context - max_new_tokens` tokens.

        Raises GenerationError that names what is wrong with the request.
        """
        wrong = [
            f"{name}: must be {rule}, got {value}"
            for name, value, rule, right in (
                ("max_new_tokens", self.max_new_tokens, ">= 0", self.max_new_tokens >= 0),
                ("temperature", self.temperature, ">= 0", 0 <= self.temperature < math.inf),
                ("top_p", self.top_p, "> 0 and <= 1", 0 < self.top_p <= 1),
                ("repetition_penalty", self.repetition_penalty, "> 0", 0 < self.repetition_penalty < math.inf),
                ("top_logprobs", self.top_logprobs, f">= 0 and <= {vocab_size}", self._top_is_right(vocab_size)),
            )
            if not right
        ]
        prompt = tuple(map(int, self.prompt_ids))
        unknown = [token for token in prompt if not 0 <= token < vocab_size]
        if unknown:
            wrong.append(f"prompt: {unknown[0]} is no token of this model, which has {vocab_size}")
        if not prompt:
            wrong.append("prompt: it is empty, and the model has no token with which a document begins")
        if wrong:
            raise GenerationError("; ".join(wrong))
        room = context - self.max_new_tokens
        if room < 1 or (len(prompt) > room and not self.cut_prompt):
            raise GenerationError(
                f"the model's context has {context} tokens: {len(prompt)} of the prompt and {self.max_new_tokens} of "
                "max_new_tokens do not fit; shorten one of them"
            )
        return prompt[-room:]

    def _top_is_right(self, vocab_size: int) -> bool:
        return self.top_logprobs is None or 0 <= self.top_logprobs <= vocab_size


@dataclass(frozen=True)
class TokenScore:
    """What the model thought of a token: natural logarithms of probabilities, before temperature and top-p."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this place, the likeliest first."""


@dataclass(frozen=True)
class Event:
    """One token of one request."""

    request_id: int
    token_id: int | None
    """None: there is no token, since `max_new_tokens` is 0."""
    text: str
    """What can be shown now; joined, the completion. Text that may become a stop sequence comes later, or never."""
    finish_reason: str | None = None
    """`stop`: a stop sequence or the end of the document. `length`: `max_new_tokens`. None: it goes on."""
    score: TokenScore | None = None
    prompt_scores: tuple[TokenScore, ...] | None = None
    """Of all tokens of the prompt but the first."""


@dataclass(frozen=True)
class Completion:
    """A request that has ended."""

    text: str
    """Without the prompt and without the stop sequence."""
    token_ids: tuple[int, ...]
    """With those of the stop sequence, and the one that ends a document."""
    finish_reason: str


def completion(events: Sequence[Event]) -> Completion:
    """All events of one request together."""
    reason = events[-1].finish_reason
    assert reason is not None
    tokens = tuple(event.token_id for event in events if event.token_id is not None)
    return Completion("".join(event.text for event in events), tokens, reason)


@dataclass(eq=False)
class Row:
    """A request that runs."""

    request_id: int
    request: Request
    prompt: tuple[int, ...]
    vocabulary: Vocabulary
    tokens: list[int] = field(default_factory=list)
    after_prompt: "torch.Tensor | None" = None
    """Logits of the token after the prompt, for this row and later samples of it: (vocabulary,)."""
    prompt_scores: tuple[TokenScore, ...] | None = None

    def __post_init__(self) -> None:
        self._stream = self.vocabulary.stream()
        self._stops = StopSequences(self.request.stop)

    @property
    def num_stored(self) -> int:
        """Tokens whose keys and values are stored: all but the newest."""
        return len(self.prompt) + len(self.tokens) - 1

    @property
    def draw(self) -> Draw:
        """How its next token is chosen."""
        request = self.request
        return Draw(request.seed, len(self.tokens), request.temperature, request.top_p)

    def advance(self, token: int, ends: bool, score: TokenScore | None) -> Event:
        """Take the next token; `ends`: with it the document ends."""
        prompt_scores = None if self.tokens else self.prompt_scores
        if self.request.max_new_tokens == 0:
            return Event(self.request_id, None, "", "length", None, prompt_scores)
        self.tokens.append(token)
        full = len(self.tokens) == self.request.max_new_tokens
        text = "" if ends else self._stream.push(token)
        if ends or full:
            text += self._stream.end()
        text, stopped = self._stops.push(text)
        if (ends or full) and not stopped:
            text += self._stops.end()
        reason = "stop" if ends or stopped else "length" if full else None
        return Event(self.request_id, token, text, reason, score, prompt_scores)
