"""One request and its answer, as it comes from the thread of the engine into an event loop."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from codeparrot.completion import Event
from codeparrot.completion_plan import Plan
from codeparrot.completions_api import ApiError, CompletionRequest, Delta, Head, joined
from codeparrot.engine_thread import EngineThread
from codeparrot.served_choice import ServedChoice

if TYPE_CHECKING:
    from codeparrot.serving_metrics import ServingMetrics

logger = logging.getLogger(__name__)


class Exchange:
    """An accepted request. Whoever has it closes it, whatever happens."""

    def __init__(
        self,
        request: CompletionRequest,
        plan: Plan,
        choices: list[ServedChoice],
        head: Head,
        thread: EngineThread,
        metrics: "ServingMetrics",
        client: str,
        began: float,
        on_close: Callable[["Exchange"], None],
    ) -> None:
        self.request, self.plan, self.head, self.client = request, plan, head, client
        self.num_tokens = 0
        """Generated so far."""
        self._choices, self._thread, self._metrics = choices, thread, metrics
        self._began, self._on_close = began, on_close
        self._loop = asyncio.get_running_loop()
        self._arrived: list[tuple[int, Event | Exception]] = []
        self._wake = asyncio.Event()
        self._num_left = len(choices)
        self._first_seconds: float | None = None
        self._reasons: dict[int, str] = {}
        self._texts: dict[int, list[str]] = {}
        self._failed = self._closed = False
        self._order = thread.submit(plan.requests, self._tell)

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.monotonic() - self._began

    def _tell(self, index: int, event: Event | Exception) -> None:
        """Called in the thread of the engine."""
        self._loop.call_soon_threadsafe(self._arrive, index, event)

    def _arrive(self, index: int, event: Event | Exception) -> None:
        if isinstance(event, Exception):
            self._failed = True
        elif self._first_seconds is None:
            self._first_seconds = self.seconds
            self._metrics.first_token.observe(self._first_seconds)
        self._arrived.append((index, event))
        self._wake.set()

    async def deltas(self) -> AsyncIterator[Delta]:
        """The answer, in parts. All that came while the reader was busy is one part of each choice.

        Raises ApiError (500) if the model failed.
        """
        while self._num_left:
            await self._wake.wait()
            self._wake.clear()
            arrived, self._arrived = self._arrived, []
            parts: dict[int, list[Delta]] = {}
            for index, event in arrived:
                if isinstance(event, Exception):
                    raise ApiError(500, "the model failed; the log of the server says why") from event
                parts.setdefault(index, []).append(self._choices[index].take(event))
            for index in parts:
                delta = joined(parts[index])
                self._note(delta)
                if delta.text or delta.tokens or delta.finish_reason:
                    yield delta

    def _note(self, delta: Delta) -> None:
        self.num_tokens += delta.num_tokens
        self._metrics.tokens.inc(delta.num_tokens)
        self._texts.setdefault(delta.index, []).append(delta.text)
        if delta.finish_reason:
            self._num_left -= 1
            self._reasons[delta.index] = delta.finish_reason

    def close(self) -> None:
        """Give up what has not come, if anything, and say how it went."""
        if self._closed:
            return
        self._closed = True
        if self._num_left:
            self._thread.cancel(self._order)
            if not self._failed:
                self._metrics.left.inc()
        self._metrics.duration.observe(self.seconds)
        self._on_close(self)

    def log_line(self, *, with_text: bool) -> str:
        """What the log says of it; texts only if asked for."""
        first = "none" if self._first_seconds is None else f"{self._first_seconds:.3f} s"
        otherwise = "failed" if self._failed else "left"
        reasons = ",".join(self._reasons.get(choice.index, otherwise) for choice in self._choices)
        line = (
            f"{self.head.identity} client {self.client}: {self.plan.num_prompt_tokens} + {self.num_tokens} tokens, "
            f"{len(self._choices)} choices ({reasons}), first token {first}, {self.seconds:.3f} s"
        )
        if not with_text:
            return line
        texts = ["".join(self._texts.get(choice.index, ())) for choice in self._choices]
        return f"{line}, prompts {self.request.prompts!r}, completions {texts!r}"
