"""The record of a run in its prefix: metrics as JSON lines, and as a TensorBoard file.

    runs/tiny/metrics.jsonl
    runs/tiny/tensorboard/events.out.tfevents.0000000000.codeparrot

Both are written whole from the history after every checkpoint, so they never hold a step twice, whatever was killed.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codeparrot.manifest import json_lines
from codeparrot.storage import Storage

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard/events.out.tfevents.0000000000.codeparrot"
NOT_PLOTTED = ("kind", "step", "time", "max_steps")

History = Sequence[Mapping[str, Any]]


def tensorboard_events(history: History) -> bytes:
    """The numbers of the history as a TensorBoard file: `step/loss`, `evaluation/validation_loss` and so on."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        for event in history:
            for name, value in event.items():
                if isinstance(value, int | float) and name not in NOT_PLOTTED:
                    writer.add_scalar(f"{event['kind']}/{name}", value, event["step"], walltime=event.get("time"))
        writer.close()
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


def write_record(storage: Storage, run_prefix: str, history: History) -> None:
    """Write both files. Raises StorageError."""
    storage.write(f"{run_prefix}/{METRICS}", json_lines(history))
    storage.write(f"{run_prefix}/{TENSORBOARD}", tensorboard_events(history))
