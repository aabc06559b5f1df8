"""What a person sees while a stage runs: a live line on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_INTERVAL_SECONDS = 10.0

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
def progress(stage: str, total: float, unit: str, start: float = 0) -> Iterator[Advance]:
    """Show how far a stage is, its rate and the time left.

    `start`: what was done before this process began; it does not count for the rate.
    """
    if console.is_terminal:
        yield from _live(stage, total, unit, start)
    else:
        yield from _plain(stage, total, unit, start)


def _live(stage: str, total: float, unit: str, start: float) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}  {task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(stage, total=total, completed=start, amount="", note="")

        def advance(done: float, note: str = "") -> None:
            rate = (done - start) / max(time.monotonic() - began, 1e-9)
            amount = f"{done:,.0f}/{total:,.0f} {unit}  {rate:,.2f} {unit}/s"
            bar.update(task, completed=done, amount=amount, note=note)

        yield advance


def _plain(stage: str, total: float, unit: str, start: float) -> Iterator[Advance]:
    logger = logging.getLogger(__name__)
    began = said = time.monotonic()

    def advance(done: float, note: str = "") -> None:
        nonlocal said
        now = time.monotonic()
        if now - said < PLAIN_INTERVAL_SECONDS:
            return
        said = now
        rate = (done - start) / (now - began)
        left = f"{duration((total - done) / rate)} left" if rate > 0 else "time left unknown"
        parts = [f"{done:,.0f}/{total:,.0f} {unit}", f"{rate:,.2f} {unit}/s", note, left]
        logger.info("%-16s %s", stage, "  ".join(part for part in parts if part))

    yield advance


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
