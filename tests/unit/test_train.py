"""The loop, on a tiny model in one process and in two processes of gloo."""

import json
import multiprocessing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codeparrot import train
from codeparrot.checkpoint import CheckpointStore
from codeparrot.dataloader import PackedRows
from codeparrot.errors import TrainingError
from codeparrot.manifest import Attempt, Manifest
from codeparrot.model import ModelSettings, build_model, model_config, num_parameters
from codeparrot.packing import to_npy
from codeparrot.storage import LocalStorage
from codeparrot.train import TrainingJob, TrainSettings, World, fit

VOCAB_SIZE, MAX_SEQ_LEN, NUM_ROWS = 64, 16, 21
SETTINGS: dict[str, Any] = {
    "num_workers": 2,
    "max_steps": 6,
    "global_batch_size": 4,
    "micro_batch_size": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "log_every_steps": 1,
    "eval_every_steps": 3,
    "eval_rows": 3,
    "checkpoint_every_steps": 2,
}


def packed_corpus(storage: LocalStorage) -> Manifest:
    """Random rows, in two shards of the train split and one of the validation split."""
    random = np.random.default_rng(0)
    attempt = Attempt(storage, "pack", "packed", {}, {}, "")
    splits, files = {}, []
    for split, sizes in {"train": (11, NUM_ROWS - 11), "validation": (5,)}.items():
        for index, size in enumerate(sizes):
            rows = random.integers(1, VOCAB_SIZE, size=(size, MAX_SEQ_LEN)).astype("<u2")
            files.append(attempt.write(f"{split}/rows-{index:05d}.npy", to_npy(rows)))
        splits[split] = {"num_rows": sum(sizes), "tokens_in": sum(sizes) * MAX_SEQ_LEN}
    return attempt.commit(files, {"max_seq_len": MAX_SEQ_LEN, "rows_per_shard": 11, "splits": splits})


def job(folder: Path, *, run: str = "run", dropout: float = 0.0, **settings: Any) -> TrainingJob:
    storage = LocalStorage(str(folder / "storage"))
    packed = packed_corpus(storage)
    train_settings = TrainSettings(**{**SETTINGS, **settings})
    checkpoints = CheckpointStore(
        storage, run, settings=train_settings.identity(), inputs={"packed": packed.digest}, num_to_keep=2
    )
    return TrainingJob(
        model=ModelSettings(n_layer=1, n_head=2, n_embd=8, dropout=dropout),
        train=train_settings,
        seed=3,
        vocab_size=VOCAB_SIZE,
        eos_token_id=0,
        rows=PackedRows(storage, packed, "train", folder / "cache"),
        validation=PackedRows(storage, packed, "validation", folder / "cache"),
        checkpoints=checkpoints,
    )


def weights(trainer: train.Trainer) -> dict[str, list[float]]:
    return {name: value.flatten().tolist() for name, value in trainer.model.state_dict().items()}


def watched(events: list[Mapping[str, Any]]) -> train.Observe:
    return events.append


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads cost more than they bring in a model of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Killed(Exception):
    """Stands for SIGKILL at the end of a step."""


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kill_at", [1, 2, 3, 5])
def test_a_run_killed_after_any_step_ends_with_the_same_weights_and_the_same_curve(
    tmp_path: Path, kill_at: int, dropout: float
) -> None:
    undisturbed = fit(job(tmp_path, run="a", dropout=dropout), World(), lambda _: None)

    def kill(event: Mapping[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == kill_at:
            raise Killed

    with pytest.raises(Killed):
        fit(job(tmp_path, run="b", dropout=dropout), World(), kill)
    events: list[Mapping[str, Any]] = []
    resumed = fit(job(tmp_path, run="b", dropout=dropout), World(), watched(events))

    assert weights(resumed) == weights(undisturbed)
    last = (kill_at - 1) // 2 * 2  # a checkpoint at every second step; the kill comes before that of its own step
    assert [event["step"] for event in events if event["kind"] == "resumed"] == ([last] if last else [])
    for mine, theirs in zip(resumed.history, undisturbed.history, strict=True):
        assert {k: v for k, v in mine.items() if k not in ("time", "tokens_per_second")} == {
            k: v for k, v in theirs.items() if k not in ("time", "tokens_per_second")
        }


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    first = fit(job(tmp_path), World(), lambda _: None)
    events: list[Mapping[str, Any]] = []
    second = fit(job(tmp_path), World(), watched(events))
    assert [event["kind"] for event in events] == ["resumed"]
    assert weights(first) == weights(second)


def test_the_size_of_micro_batches_does_not_change_what_is_learned(tmp_path: Path) -> None:
    whole = fit(job(tmp_path, run="a", micro_batch_size=4), World(), lambda _: None)
    single = fit(job(tmp_path, run="b", micro_batch_size=1), World(), lambda _: None)
    for mine, theirs in zip(single.history, whole.history, strict=True):
        for key in ("loss", "grad_norm", "validation_loss"):
            assert mine.get(key, 0.0) == pytest.approx(theirs.get(key, 0.0), rel=1e-5)


def _rank(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    trainer = fit(job(Path(folder), run="two"), World(rank, 2), lambda _: None)
    if rank == 0:
        result = {"history": trainer.history, "weights": weights(trainer)}
        (Path(folder) / "result.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


def test_two_ranks_see_the_same_rows_and_the_same_losses_as_one(tmp_path: Path, free_port: int) -> None:
    one = fit(job(tmp_path, run="one"), World(), lambda _: None)
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path), free_port)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    two = json.loads((tmp_path / "result.json").read_text())
    for mine, theirs in zip(two["history"], one.history, strict=True):
        for key in ("loss", "validation_loss"):
            if key in mine:
                assert mine[key] == pytest.approx(theirs[key], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_are_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = job(tmp_path)
    trainer = train.prepare(broken, World(), lambda _: None)
    before = weights(trainer)
    monkeypatch.setattr(
        train, "row_nll", lambda model, rows: model(input_ids=rows).logits.sum(dim=(1, 2)) * float("nan")
    )
    with pytest.raises(TrainingError, match=r"step 0: loss nan, gradient norm nan is not finite; rows \[\d+, "):
        train.train_step(trainer)
    assert weights(trainer) == before


def test_operational_settings_do_not_make_another_training_of_it() -> None:
    base = TrainSettings(**SETTINGS)
    assert TrainSettings(**{**SETTINGS, "num_workers": 4, "checkpoint_every_steps": 5}).identity() == base.identity()
    assert TrainSettings(**{**SETTINGS, "learning_rate": 2e-2}).identity() != base.identity()


def test_a_global_batch_that_the_workers_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a multiple of num_workers"):
        TrainSettings(**{**SETTINGS, "num_workers": 3})


def test_gpt2_xl_with_the_vocabulary_of_the_slides_has_1529_6_million_parameters() -> None:
    settings = ModelSettings(n_layer=48, n_head=25, n_embd=1600)
    config = model_config(settings, vocab_size=32_768, max_seq_len=1024, eos_token_id=0)
    assert round(num_parameters(config) / 1e6, 1) == 1529.6


def test_the_same_seed_gives_the_same_model() -> None:
    config = model_config(ModelSettings(n_layer=1, n_head=1, n_embd=4), vocab_size=8, max_seq_len=4, eos_token_id=0)
    first, second, other = (build_model(config, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
