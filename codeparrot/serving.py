"""A model as a service: which requests are accepted, and for how many there is room.

It stands between the API, whose words it speaks, and the thread of the engine, and belongs to one event loop. What is
accepted is answered, also while the service ends; what there is no room for is refused at once.
"""

import logging
import math
from typing import TYPE_CHECKING, Any

from codeparrot.completion_plan import Served, ServeSettings, plan
from codeparrot.completions_api import ApiError, CompletionRequest, Head
from codeparrot.engine import Engine, EngineSettings
from codeparrot.engine_thread import EngineThread
from codeparrot.exchange import Exchange
from codeparrot.served_choice import ServedChoice, labels

if TYPE_CHECKING:
    from codeparrot.serving_metrics import ServingMetrics

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1
MAX_RETRY_SECONDS = 30
WEIGHT_OF_NEWEST = 0.2
"""In the running mean of how long requests take."""


class CompletionService:
    """Completions of one model."""

    def __init__(self, served: Served, settings: ServeSettings, metrics: "ServingMetrics") -> None:
        self.settings, self.metrics = settings, metrics
        self._served = served
        engine = EngineSettings(max_batch_size=settings.max_batch_size)
        self._thread = EngineThread(lambda: Engine(served.model, served.vocabulary, engine), self._observe)
        self._label = labels(served.vocabulary)
        self.num_open = 0
        """Completions that were accepted and are not answered yet."""
        self._ending = False
        self._mean_seconds = 1.0

    @property
    def description(self) -> dict[str, Any]:
        """The model, as the API lists it."""
        served = self._served
        own = {"id": served.name, "object": "model", "created": served.created, "owned_by": "codeparrot"}
        return {**own, "max_model_len": self._thread.context}

    @property
    def problem(self) -> str | None:
        """Why no request is accepted; None if they are."""
        if self._ending:
            return "the server is shutting down"
        return "the model fails again and again; the log says why" if self.broken else None

    @property
    def broken(self) -> bool:
        """Whether the model fails again and again."""
        return self._thread.broken

    def require_model(self, name: str) -> None:
        """Raise ApiError (404) unless the model has this name."""
        if name != self._served.name:
            message = f"the model {name!r} is not served here; {self._served.name!r} is"
            raise ApiError(404, message, param="model", code="model_not_found")

    def accept(self, request: CompletionRequest, client: str, began: float) -> Exchange:
        """Begin with an answer. `client`: what the log calls who asks; `began`: when, by `time.monotonic`.

        Raises ApiError: 400 or 404 if it cannot be done, 429 if there is no room, 503 while the server ends.
        """
        if self.problem is not None:
            raise ApiError(503, self.problem, code="unavailable", retry_after=RETRY_SECONDS)
        self.require_model(request.model)
        planned = plan(request, self._served, self._thread.context, self.settings)
        num_choices = len(planned.requests)
        if self.num_open + num_choices > self.settings.max_batch_size + self.settings.max_queued:
            wait = min(MAX_RETRY_SECONDS, max(RETRY_SECONDS, math.ceil(self._mean_seconds)))
            raise ApiError(429, "too many completions wait already", code="queue_full", retry_after=wait)
        self.num_open += num_choices
        self.metrics.prompt_tokens.inc(planned.num_prompt_tokens)
        choices = [
            ServedChoice(index, self._served.vocabulary, self._label, echo, request.logprobs)
            for index, echo in enumerate(planned.echoes)
        ]
        head = Head.new(self._served.name, self._served.fingerprint)
        return Exchange(request, planned, choices, head, self._thread, self.metrics, client, began, self._closed)

    def _closed(self, exchange: Exchange) -> None:
        self.num_open -= len(exchange.plan.requests)
        self._mean_seconds += WEIGHT_OF_NEWEST * (exchange.seconds - self._mean_seconds)
        logger.info("%s", exchange.log_line(with_text=self.settings.log_text))

    def _observe(self, engine: Engine) -> None:
        self.metrics.running.set(engine.num_running)
        self.metrics.queued.set(engine.num_waiting)

    def end(self) -> None:
        """Accept nothing more; what was accepted is answered."""
        self._ending = True

    def close(self) -> None:
        """End at once."""
        self.end()
        self._thread.close()
