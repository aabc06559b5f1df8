"""The record of a run: what a person's tools read."""

import json

from codeparrot.manifest import json_lines
from codeparrot.run_record import TENSORBOARD, tensorboard_events, write_record
from codeparrot.storage import LocalStorage

HISTORY = [
    {"kind": "training", "step": 0, "time": 1.0, "world_size": 4},
    {"kind": "step", "step": 1, "time": 2.0, "loss": 5.5, "rows_digest": "ab"},
    {"kind": "evaluation", "step": 1, "time": 3.0, "validation_loss": 5.25},
]


def test_metrics_are_one_json_object_a_line() -> None:
    assert [json.loads(line) for line in json_lines(HISTORY).splitlines()] == HISTORY


def test_tensorboard_gets_the_numbers_under_their_kind() -> None:
    events = tensorboard_events(HISTORY)
    assert b"step/loss" in events
    assert b"evaluation/validation_loss" in events
    assert b"rows_digest" not in events


def test_both_files_are_replaced_whole(storage: LocalStorage) -> None:
    write_record(storage, "runs/tiny", HISTORY[:1])
    write_record(storage, "runs/tiny", HISTORY)
    assert storage.read("runs/tiny/metrics.jsonl") == json_lines(HISTORY)
    assert [path for path, _ in storage.list("runs/tiny/tensorboard/")] == [f"runs/tiny/{TENSORBOARD}"]
