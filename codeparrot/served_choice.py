"""One choice of an answer: what the engine says of it becomes text, tokens and their places in the text.

Text and tokens go out together: in every part, the text is that of its tokens, so that a page can colour one by the
other. A token whose text is held back, since it may begin a stop sequence, waits with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from codeparrot.completion import Event, TokenScore
from codeparrot.completions_api import Delta, Scored
from codeparrot.tokenizer import byte_alphabet
from codeparrot.vocabulary import Vocabulary

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not know."""
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Echo:
    """A prompt that is given back before its completion."""

    text: str
    token_ids: Sequence[int]
    """Without the one with which a document begins, if the prompt was a text."""


class ServedChoice:
    """The state of one choice."""

    def __init__(
        self, index: int, vocabulary: Vocabulary, label: Callable[[int], str], echo: Echo | None, logprobs: int | None
    ) -> None:
        """`label`: a token as text by itself. `logprobs`: None, or how many of the likeliest tokens are told."""
        self.index = index
        self._vocabulary, self._label, self._logprobs = vocabulary, label, logprobs
        self._echo = echo
        self._stream = vocabulary.stream()
        self._decoded = 0
        self._given = 0
        self._held = ""
        self._waiting: list[tuple[Scored, int]] = []
        """Tokens that are not given yet, each with where its text ends."""

    def take(self, event: Event) -> Delta:
        """What an event adds."""
        before, scored = self._echoed(event)
        self._held += event.text
        if event.score is not None:
            start = self._decoded
            self._decoded += len(self._stream.push(event.score.token_id))
            self._waiting.append((self._scored(event.score, start), self._decoded))
        text, tokens = self._all() if event.finish_reason else self._settled()
        return Delta(
            self.index,
            before + text,
            (*scored, *tokens),
            int(event.token_id is not None),
            event.finish_reason,
        )

    def _echoed(self, event: Event) -> tuple[str, list[Scored]]:
        echo, self._echo = self._echo, None
        if echo is None:
            return "", []
        self._given = self._decoded = len(echo.text)
        if self._logprobs is None:
            return echo.text, []
        scores = dict(enumerate(event.prompt_scores or (), start=len(echo.token_ids) - len(event.prompt_scores or ())))
        stream, start, scored = self._vocabulary.stream(), 0, []
        for place, token_id in enumerate(echo.token_ids):
            score = scores.get(place)
            known = Scored(self._label(token_id), None, None, start)
            scored.append(known if score is None else self._scored(score, start))
            start += len(stream.push(token_id))
        return echo.text, scored

    def _settled(self) -> tuple[str, list[Scored]]:
        """The tokens whose text is there as a whole."""
        if self._logprobs is None:
            text, self._held = self._held, ""
            return text, []
        reached = self._given + len(self._held)
        ready = [pair for pair in self._waiting if pair[1] <= reached]
        self._waiting = self._waiting[len(ready) :]
        size = ready[-1][1] - self._given if ready else 0
        text, self._held = self._held[:size], self._held[size:]
        self._given += size
        return text, [token for token, _ in ready]

    def _all(self) -> tuple[str, list[Scored]]:
        """What is left; not tokens that lie in a stop sequence."""
        end = self._given + len(self._held)
        eos = {self._label(token_id) for token_id in self._vocabulary.eos_ids}
        kept = [token for token, _ in self._waiting if token.offset < end or token.text in eos]
        return self._held, kept

    def _scored(self, score: TokenScore, offset: int) -> Scored:
        top: dict[str, float] = {}
        for token_id, logprob in score.top:  # likeliest first, which of two with the same text is told
            top.setdefault(self._label(token_id), _finite(logprob))
        if self._logprobs:  # the token itself is told in any case
            top.setdefault(self._label(score.token_id), _finite(score.logprob))
        return Scored(self._label(score.token_id), _finite(score.logprob), top if self._logprobs else None, offset)


def labels(vocabulary: Vocabulary) -> Callable[[int], str]:
    """How a token is written by itself: its text or, if it holds a part of a character, its bytes."""
    byte_of = {character: byte for byte, character in byte_alphabet().items()}

    @lru_cache(maxsize=1 << 16)
    def label(token_id: int) -> str:
        text = vocabulary.token_text(token_id)
        if REPLACEMENT not in text:
            return text
        spelled = str(vocabulary.tokenizer.convert_ids_to_tokens(token_id))
        if not all(character in byte_of for character in spelled):
            return text
        return "bytes:" + "".join(f"\\x{byte_of[character]:02x}" for character in spelled)

    return label


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
