"""The progress of a run: from the driver's status file to annotations, and from those to a line.

The driver knows nothing of Kubernetes; it writes a small JSON file. The sidecar turns it into annotations of the
RayJob, which `kubectl get`, dashboards and this client read. Values are strings for people, since annotations are; a
key that is null in the file has no annotation. What is not understood is left out rather than guessed.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from k8s.wording import duration, moment, plain

PREFIX = "codeparrot/"
STAGE, STEP, LOSS, SPEED, LEFT, CHECKPOINT, UPDATED = (
    PREFIX + name for name in ("stage", "step", "loss", "tokens-per-second", "time-left", "checkpoint", "updated-at")
)
ALL = (STAGE, STEP, LOSS, SPEED, LEFT, CHECKPOINT, UPDATED)
MAX_VALUE = 100


def annotations(text: str) -> dict[str, str]:
    """The annotations that a status file means. Raises ValueError if it is not one."""
    status = json.loads(text)
    if not isinstance(status, dict) or not isinstance(status.get("stage"), str):
        raise ValueError(f"expected an object with a stage, got {text[:80]!r}")
    step, limit, left = (_number(status.get(key)) for key in ("step", "max_steps", "seconds_left"))
    loss, speed, checkpoint = (_number(status.get(key)) for key in ("loss", "tokens_per_second", "checkpoint_step"))
    values = {
        STAGE: plain(status["stage"], MAX_VALUE),
        STEP: None if step is None else f"{step:.0f}" if limit is None else f"{step:.0f}/{limit:.0f}",
        LOSS: None if loss is None else f"{loss:.4f}",
        SPEED: None if speed is None else f"{speed:.1f}",
        LEFT: None if left is None or not math.isfinite(left) else duration(left),
        CHECKPOINT: None if checkpoint is None else f"{checkpoint:.0f}",
        UPDATED: plain(status["updated_at"], MAX_VALUE) if isinstance(status.get("updated_at"), str) else None,
    }
    return {key: value for key, value in values.items() if value is not None}


def _number(value: Any) -> float | None:
    # JSON as Python writes it has NaN: a loss of nan is news, and is shown as such.
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def changes(now: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str | None]:
    """The merge patch from one set of our annotations to another: only what differs, None for what went."""
    gone = {key: None for key in ALL if key in before and key not in now}
    return {**{key: value for key, value in now.items() if before.get(key) != value}, **gone}


def line(found: Mapping[str, str]) -> str:
    """One line for a person; empty if there is no progress yet."""
    if STAGE not in found:
        return ""
    parts = [plain(found[STAGE], MAX_VALUE)]
    if STEP in found:
        parts.append(f"{plain(found[STEP])} steps")
    if LOSS in found:
        parts.append(f"loss {plain(found[LOSS])}")
    if SPEED in found:
        parts.append(f"{_grouped(found[SPEED])} tokens/s")
    if LEFT in found:
        parts.append(f"{plain(found[LEFT])} left")
    if CHECKPOINT in found:
        parts.append(f"checkpoint {plain(found[CHECKPOINT])}")
    return "  ".join(parts)


def is_stale(found: Mapping[str, str], wall: float, seconds: float) -> bool:
    """Whether the newest progress is older than that."""
    updated = moment(found.get(UPDATED))
    return updated is not None and wall - updated > seconds


def _grouped(text: str) -> str:
    try:
        return f"{float(text):,.0f}"
    except (ValueError, OverflowError):
        return plain(text)
