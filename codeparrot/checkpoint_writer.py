"""Checkpoints in the background: training goes on while a thread of every rank writes its part.

What is written is a copy on the host, taken between two steps. A store that does not answer is tried again for
`retry_seconds`, then this checkpoint is given up; training goes on until none could be written for `budget_seconds`.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from pydantic import Field, PositiveInt

from codeparrot.checkpoint import CheckpointStore
from codeparrot.errors import CheckpointError, StorageError
from codeparrot.manifest import File
from codeparrot.settings import Settings
from codeparrot.storage import persist

logger = logging.getLogger(__name__)

T = TypeVar("T")

POLL_SECONDS = 0.1


class CheckpointSettings(Settings):
    """When to write checkpoints, and which to keep."""

    every_steps: PositiveInt = 100
    num_to_keep: PositiveInt = 2
    """Newest checkpoints to keep."""
    keep_every_steps: PositiveInt | None = None
    """Checkpoints of steps that are a multiple of this are kept for ever."""
    retry_seconds: float = Field(default=120, gt=0)
    """How long to try to write one checkpoint."""
    budget_seconds: float = Field(default=3600, gt=0)
    """The run ends if no checkpoint could be written for this long."""


class CheckpointWriter:
    """One rank's writer; that of rank 0 also commits.

    `guard` raises LeaseLost if this attempt may not commit any more. `committed` is called
    after each commit, from the thread.
    """

    def __init__(
        self,
        store: CheckpointStore,
        settings: CheckpointSettings,
        *,
        rank: int,
        world_size: int,
        guard: Callable[[], None],
        committed: Callable[[Mapping[str, Any]], object],
    ) -> None:
        self._store = store
        self._settings = settings
        self._rank = rank
        self._world_size = world_size
        self._guard = guard
        self._committed = committed
        self._thread: threading.Thread | None = None
        self._last_success = time.monotonic()
        self._failure: Exception | None = None
        self._fatal: Exception | None = None
        self.started: int | None = None
        """The newest step that this writer has begun to write."""
        self.committed: int | None = None
        """The newest step that this writer has written; on rank 0: committed."""

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def reason_to_end(self) -> Exception | None:
        """Why training must end, if it must: the lease is lost, or the budget is spent."""
        overdue = time.monotonic() - self._last_success > self._settings.budget_seconds
        if self._failure is not None and overdue and self._fatal is None:
            budget = f"{self._settings.budget_seconds:g} s"
            self._fatal = CheckpointError(f"no checkpoint could be written for {budget}: {self._failure}")
        return self._fatal

    def start(self, step: int, files: Callable[[], Mapping[str, bytes]]) -> None:
        """Write this rank's part of a checkpoint in the background. `files` is called there; it owns its tensors."""
        assert not self.busy, "one checkpoint at a time"
        self.started = step
        self._thread = threading.Thread(target=self._run, args=(step, files), name="checkpoint", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, step: int, files: Callable[[], Mapping[str, bytes]]) -> None:
        began = time.monotonic()
        deadline = began + self._settings.retry_seconds
        try:
            part = files()
            self._persist(lambda: self._store.write_part(step, self._rank, part), deadline)
            if self._rank == 0:
                entries = self._all_parts(step, deadline)
                self._guard()
                uri = self._persist(lambda: self._store.commit(step, entries), deadline)
            self.committed, self._failure, self._last_success = step, None, time.monotonic()
            if self._rank == 0:
                self._committed({"step": step, "uri": uri, "seconds": time.monotonic() - began})
                self._store.prune(step)
        except (StorageError, CheckpointError) as error:
            if self.committed != step:
                self._failure = error
                logger.warning("the checkpoint of step %d could not be written: %s", step, error)
        except Exception as error:  # noqa: BLE001 - for the thread that trains
            self._fatal = error

    def _all_parts(self, step: int, deadline: float) -> Collection[File]:
        while True:
            parts = self._persist(lambda: self._store.parts(step, self._world_size), deadline)
            if parts is not None:
                return parts
            if time.monotonic() > deadline:
                raise CheckpointError("another rank did not write its part in time")
            time.sleep(POLL_SECONDS)

    @staticmethod
    def _persist(action: Callable[[], T], deadline: float) -> T:
        return persist(action, deadline - time.monotonic(), "the checkpoint waits")
