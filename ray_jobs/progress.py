"""What a person sees while a stage runs: a live line on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

PLAIN_INTERVAL_SECONDS = 10.0
MIN_RATE_SECONDS = 1.0  # reports may come in bursts; a shorter time would tell of those

console = Console(stderr=False, soft_wrap=True, highlight=False)

Advance = Callable[..., None]
"""advance(done, note=""): how much is done in total, and what to say about it."""


def configure_logging(debug: bool) -> None:
    """Log lines of this project on standard output; those of libraries only if they warn."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="[%H:%M:%S]")
    else:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("codeparrot", "ray_jobs"):
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.INFO)


@contextmanager
def progress(stage: str, total: float, unit: str) -> Iterator[Advance]:
    """Show how far a stage is, its rate and the time left."""
    if console.is_terminal:
        yield from _live(stage, total, unit)
    else:
        yield from _plain(stage, total, unit)


class Rate:
    """Units per second since the first report, so that starting up and what was done before do not count."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def update(self, done: float) -> float | None:
        """The rate so far, or None if it cannot be known yet."""
        now = time.monotonic()
        if self._first is None:
            self._first = (done, now)
        before, began = self._first
        return (done - before) / (now - began) if done > before and now - began >= MIN_RATE_SECONDS else None


def _live(stage: str, total: float, unit: str) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}  {task.fields[note]}"),
        TimeElapsedColumn(),
    )
    rate = Rate()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(stage, total=total, amount="starting", note="")

        def advance(done: float, note: str = "") -> None:
            bar.update(task, completed=done, amount=_amount(done, total, unit, rate.update(done)), note=note)

        yield advance


def _plain(stage: str, total: float, unit: str) -> Iterator[Advance]:
    logger = logging.getLogger(__name__)
    rate, said = Rate(), time.monotonic()

    def advance(done: float, note: str = "") -> None:
        nonlocal said
        speed = rate.update(done)
        if time.monotonic() - said >= PLAIN_INTERVAL_SECONDS:
            said = time.monotonic()
            logger.info("%-16s %s", stage, "  ".join(filter(None, [_amount(done, total, unit, speed), note])))

    yield advance


def _amount(done: float, total: float, unit: str, rate: float | None) -> str:
    """`40/300 steps  0.81 steps/s  5:20 min left`."""
    parts = [f"{done:,.0f}/{total:,.0f} {unit}"]
    if rate is not None:
        parts += [f"{rate:,.2f} {unit}/s", f"{duration((total - done) / rate)} left"]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """A time for people: `4.2 s`, `3:05 min`, `2:10 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def size(num_bytes: float) -> str:
    """A size for people, in decimal units: `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:,.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"
