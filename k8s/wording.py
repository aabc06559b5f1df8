"""Durations, ages and tables; and text of others made safe for a terminal.

Whoever may write an annotation or an event's message must not be able to move somebody's cursor: control characters
are shown, not obeyed.
"""

import datetime
import re
from collections.abc import Sequence

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
MAX_TEXT = 600


def plain(text: object, limit: int = MAX_TEXT) -> str:
    """One line of printable text."""
    line = CONTROL.sub(lambda found: " " if found[0] in "\t\n\r" else f"\\x{ord(found[0]):02x}", str(text))
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def duration(seconds: float) -> str:
    """`12 s`, `5 min 12 s`, `3 h 20 min`, `2 d 4 h`."""
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 60:
        return f"{whole} s"
    if minutes < 60:
        return f"{minutes} min {whole % 60} s"
    if hours < 24:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def moment(text: object) -> float | None:
    """Seconds since 1970 of a timestamp as Kubernetes writes it; None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        value = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return value.timestamp() if value.tzinfo else None


def age(text: object, wall: float) -> str:
    """How long ago a timestamp was; `-` without one."""
    began = moment(text)
    return "-" if began is None else duration(wall - began)


def count(number: int, noun: str) -> str:
    """`1 pod`, `3 pods`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns; the last column is as wide as it likes."""
    cells = [list(head), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
