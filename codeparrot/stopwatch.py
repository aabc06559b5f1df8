"""Where the time of a training run goes: steps, and what they waited for."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Steps and seconds since the last reading."""

    step: int = 0
    began: float = field(default_factory=time.perf_counter)
    waits: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds by reason; those of `pause` do not count as training at all."""

    @contextmanager
    def waiting(self, reason: str) -> Iterator[None]:
        """A block that training waits for."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.waits[reason] += time.perf_counter() - began

    def restart(self, step: int) -> None:
        """Forget everything so far."""
        self.step, self.began, self.waits = step, time.perf_counter(), defaultdict(float)

    def read(self, step: int) -> tuple[int, float, dict[str, float]]:
        """(steps, seconds without pauses, seconds waited by reason) since the last reading."""
        steps, seconds, waits = step - self.step, time.perf_counter() - self.began, self.waits
        self.restart(step)
        return steps, max(seconds - waits["pause"], 1e-9), waits
