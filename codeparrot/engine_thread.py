"""The thread that an engine belongs to: it steps while there is work, and takes orders in between.

Who asks never waits for the model, and the model never waits for who reads: events are handed over as they come, and a
reader that is slow finds more of them at once. They are bounded by `max_new_tokens`.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from codeparrot.completion import Event, Request
from codeparrot.engine import Engine
from codeparrot.errors import GenerationError

logger = logging.getLogger(__name__)

MAX_FAILURES = 3

Told = Callable[[int, Event | Exception], None]
"""Called in the thread: with the number of a request in its order, and its next event, or why there is none."""


@dataclass(eq=False)
class Order:
    """Requests that belong together."""

    requests: Sequence[Request]
    told: Told
    ids: dict[int, int] = field(default_factory=dict)
    """The engine's number of a request that has not ended, to its number in this order."""


class EngineThread:
    """Runs an engine until it is closed."""

    def __init__(self, make_engine: Callable[[], Engine], observe: Callable[[Engine], None] = lambda _: None) -> None:
        """`make_engine`: called again after a failure, which may have left it in any state. `observe`: told after
        every step."""
        self._make_engine, self._observe = make_engine, observe
        self._engine = make_engine()
        self.context = self._engine.context
        self._inbox: SimpleQueue[tuple[str, Order] | None] = SimpleQueue()
        self._orders: dict[int, Order] = {}
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def broken(self) -> bool:
        """Whether it has failed again and again, or has ended."""
        return self._failures >= MAX_FAILURES or not self._thread.is_alive()

    def submit(self, requests: Sequence[Request], told: Told) -> Order:
        """Have these requests computed."""
        order = Order(requests, told)
        self._inbox.put(("add", order))
        return order

    def cancel(self, order: Order) -> None:
        """Forget what has not ended of an order."""
        self._inbox.put(("cancel", order))

    def close(self) -> None:
        """End the thread after its step; what runs is given up."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        while self._obey():
            try:
                for event in self._engine.step():
                    self._hand_over(event)
                self._failures = 0
            except Exception as error:  # of torch, of any kind: the requests fail, the server does not
                logger.exception("a step of the engine failed")
                self._failures += 1
                self._give_up(error)
            self._observe(self._engine)

    def _obey(self) -> bool:
        """Do what was ordered; waits for an order while there is nothing else to do. False: the end."""
        while True:
            try:
                item = self._inbox.get(block=self._engine.idle)
            except Empty:
                return True
            if item is None:
                return False
            what, order = item
            if what == "add":
                self._add(order)
            else:
                for request_id in order.ids:
                    self._engine.cancel(request_id)
                    self._orders.pop(request_id, None)
                order.ids.clear()
                self._observe(self._engine)

    def _add(self, order: Order) -> None:
        for index, request in enumerate(order.requests):
            try:
                request_id = self._engine.add(request)
            except GenerationError as error:
                order.told(index, error)
            else:
                order.ids[request_id] = index
                self._orders[request_id] = order
        self._observe(self._engine)

    def _hand_over(self, event: Event) -> None:
        order = self._orders[event.request_id]
        index = order.ids[event.request_id]
        if event.finish_reason:
            del self._orders[event.request_id], order.ids[event.request_id]
        order.told(index, event)

    def _give_up(self, error: Exception) -> None:
        orders, self._orders = self._orders, {}
        for request_id, order in orders.items():
            order.told(order.ids.pop(request_id), error)
        self._engine = self._make_engine()
