"""The loop, on a tiny model in one process and in two processes of gloo."""

import json
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codeparrot import train
from codeparrot.checkpoint import CheckpointStore, Identity
from codeparrot.dataloader import PackedRows
from codeparrot.errors import TrainingError
from codeparrot.launch import leave
from codeparrot.loss import NextTokenLoss
from codeparrot.manifest import Attempt, Manifest, load_manifest
from codeparrot.model import ModelSettings, build_model, model_config, num_parameters
from codeparrot.packing import to_npy
from codeparrot.parallel import World, whole
from codeparrot.storage import LocalStorage
from codeparrot.train import fit
from codeparrot.training_job import Trainer, TrainingJob, TrainSettings, Unsupervised

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
    "checkpoint": {"every_steps": 2},
}


def packed_corpus(storage: LocalStorage, *, padded: bool = False) -> Manifest:
    """Random rows, in two shards of the train split and one of the validation split. Made once in a store.

    `padded`: some of them are said to end in padding.
    """
    made = load_manifest(storage, "packed")
    if made is not None:
        return made
    random = np.random.default_rng(0)
    attempt = Attempt(storage, "pack", "packed", {}, {}, "")
    splits, files = {}, []
    for split, sizes in {"train": (11, NUM_ROWS - 11), "validation": (5,)}.items():
        for index, size in enumerate(sizes):
            rows = random.integers(1, VOCAB_SIZE, size=(size, MAX_SEQ_LEN)).astype("<u2")
            files.append(attempt.write(f"{split}/rows-{index:05d}.npy", to_npy(rows)))
            if padded:
                lengths = MAX_SEQ_LEN - np.arange(size, dtype="<u4") % 5
                files.append(attempt.write(f"{split}/lengths-{index:05d}.npy", to_npy(lengths)))
        splits[split] = {"num_rows": sum(sizes), "tokens_in": sum(sizes) * MAX_SEQ_LEN, "tokens_padding": int(padded)}
    return attempt.commit(files, {"max_seq_len": MAX_SEQ_LEN, "rows_per_shard": 11, "splits": splits})


def job(
    folder: Path, *, run: str = "run", dropout: float = 0.0, model: Mapping[str, Any] | None = None, **settings: Any
) -> TrainingJob:
    storage = LocalStorage(str(folder / "storage"))
    packed = packed_corpus(storage)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "dropout": dropout, **(model or {})}
    train_settings = TrainSettings(**{**SETTINGS, **settings})
    checkpoints = CheckpointStore(storage, run, Identity(train_settings.identity(), {"packed": packed.digest}))
    return TrainingJob(
        model=ModelSettings.model_validate(sizes),
        train=train_settings,
        seed=3,
        vocab_size=VOCAB_SIZE,
        eos_token_id=0,
        rows=PackedRows(storage, packed, "train", folder / "cache"),
        validation=PackedRows(storage, packed, "validation", folder / "cache"),
        checkpoints=checkpoints,
    )


def weights(trainer: Trainer) -> dict[str, list[float]]:
    return {name: value.flatten().tolist() for name, value in trainer.model.state_dict().items()}


class Watching(Unsupervised):
    """Keeps what it is told; may have more to do about it, or ask for an end."""

    def __init__(self, react: Callable[[Mapping[str, Any]], None] = lambda _: None, stop_at: int | None = None) -> None:
        self.events: list[Mapping[str, Any]] = []
        self._react = react
        self._stop_at = stop_at

    def observe(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)
        self._react(event)

    def stop_requested(self) -> bool:
        return self._stop_at is not None and any(event["step"] >= self._stop_at for event in self.events)

    def told(self, kind: str) -> list[int]:
        """The steps of the events of a kind."""
        return [event["step"] for event in self.events if event["kind"] == kind]


def learned(trainer: Trainer) -> list[dict[str, Any]]:
    """The history without what depends on the clock."""
    clock = ("time", "seconds", "tokens_per_second", "mfu", "goodput", "data_wait_seconds", "checkpoint_stall_seconds")
    return [
        {name: value for name, value in event.items() if name not in clock}
        for event in trainer.history
        if event["kind"] != "training"
    ]


def settle() -> None:
    """Let the background threads of a run that was broken off end, as a killed process's do."""
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


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
    undisturbed = fit(job(tmp_path, run="a", dropout=dropout), World(), Unsupervised())

    def kill(event: Mapping[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == kill_at:
            raise Killed

    with pytest.raises(Killed):
        fit(job(tmp_path, run="b", dropout=dropout), World(), Watching(kill))
    settle()
    watching = Watching()
    resumed = fit(job(tmp_path, run="b", dropout=dropout), World(), watching)

    assert weights(resumed) == weights(undisturbed)
    last = (kill_at - 1) // 2 * 2  # a checkpoint at every second step; the kill comes before that of its own step
    assert all(step <= last and step % 2 == 0 for step in watching.told("resumed"))
    assert learned(resumed) == learned(undisturbed)


MODERN: dict[str, Any] = {"model": {"architecture": "nanochat"}, "optimizer": "muon", "muon_learning_rate": 2e-2}


@pytest.mark.parametrize("kind", [MODERN, {**MODERN, "model": {}}], ids=["nanochat", "gpt2"])
def test_with_muon_a_killed_run_ends_with_the_same_weights_and_the_same_curve(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    undisturbed = fit(job(tmp_path, run="a", **kind), World(), Unsupervised())

    def kill(event: Mapping[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(job(tmp_path, run="b", **kind), World(), Watching(kill))
    settle()
    watching = Watching()
    resumed = fit(job(tmp_path, run="b", **kind), World(), watching)
    assert watching.told("resumed") in ([2], [4])
    assert weights(resumed) == weights(undisturbed)
    assert learned(resumed) == learned(undisturbed)


def test_with_muon_two_ranks_learn_what_one_does_and_go_on_with_its_checkpoint(tmp_path: Path, free_port: int) -> None:
    one = fit(job(tmp_path, run="one", **MODERN), World(), Unsupervised())
    fit(job(tmp_path, run="two", **MODERN), World(), Watching(stop_at=1))
    two = with_ranks(tmp_path, "two", free_port, **MODERN)
    assert_same_learning(two["history"], learned(one))


def test_nanochat_sharded_over_ranks_learns_the_same(tmp_path: Path, free_port: int) -> None:
    kind: dict[str, Any] = {"model": {"architecture": "nanochat"}}
    one = fit(job(tmp_path, run="one", **kind), World(), Unsupervised())
    assert_same_learning(with_ranks(tmp_path, "two", free_port, parallel="fsdp", **kind)["history"], learned(one))


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    first = fit(job(tmp_path), World(), Unsupervised())
    watching = Watching()
    second = fit(job(tmp_path), World(), watching)
    assert [event["kind"] for event in watching.events] == ["resumed", "training"]
    assert weights(first) == weights(second)


def test_the_size_of_micro_batches_does_not_change_what_is_learned(tmp_path: Path) -> None:
    whole = fit(job(tmp_path, run="a", micro_batch_size=4), World(), Unsupervised())
    single = fit(job(tmp_path, run="b", micro_batch_size=1), World(), Unsupervised())
    for mine, theirs in zip(single.history, whole.history, strict=True):
        for key in ("loss", "grad_norm", "validation_loss"):
            assert mine.get(key, 0.0) == pytest.approx(theirs.get(key, 0.0), rel=1e-5)


def test_two_ranks_see_the_same_rows_and_the_same_losses_as_one(tmp_path: Path, free_port: int) -> None:
    one = fit(job(tmp_path, run="one"), World(), Unsupervised())
    two = with_ranks(tmp_path, "two", free_port)
    assert_same_learning(two["history"], learned(one))


def test_a_gradient_that_is_not_finite_ends_the_run_with_the_weights_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bad step is 3; the next log line comes at step 5, and the checkpoint of step 4 must not be written."""
    fine = fit(job(tmp_path, run="fine", max_steps=3, warmup_steps=0), World(), Unsupervised())
    broken = job(tmp_path, run="broken", warmup_steps=0, log_every_steps=5, eval_every_steps=100)
    object.__setattr__(broken.train, "max_steps", 3)  # the same learning rates as above
    trainer = train.prepare(broken, World(), Unsupervised())
    for _ in range(3):
        train.train_step(trainer)
    assert weights(trainer) == weights(fine)
    fine_loss = NextTokenLoss.forward
    monkeypatch.setattr(NextTokenLoss, "forward", lambda self, rows: fine_loss(self, rows) * float("nan"))
    loss, _ = train.train_step(trainer)
    monkeypatch.undo()
    train.train_step(trainer)
    assert weights(trainer) == weights(fine)
    with pytest.raises(TrainingError, match=r"step 3: the gradient is not finite; rows \[\d+, .*\] on rank 0 .rec"):
        train.require_finite(trainer, loss)
    with pytest.raises(TrainingError, match="step 3"):
        train.save(trainer)
    recorded = json.loads(broken.checkpoints.storage.read("broken/not-finite.json"))
    assert recorded["rows_by_rank"]["0"] == trainer.order.global_batch(3, 4).tolist()


def test_a_run_that_is_asked_to_stop_writes_a_checkpoint_first_and_loses_no_step(tmp_path: Path) -> None:
    undisturbed = fit(job(tmp_path, run="a"), World(), Unsupervised())
    stopped = fit(job(tmp_path, run="b", checkpoint={"every_steps": 100}), World(), Watching(stop_at=3))
    assert stopped.stopped
    assert stopped.writer.committed == stopped.step == 4  # one step later, so that ranks can agree on it
    watching = Watching()
    resumed = fit(job(tmp_path, run="b"), World(), watching)
    assert watching.told("resumed") == [4]
    assert weights(resumed) == weights(undisturbed)
    assert learned(resumed) == learned(undisturbed)


def test_operational_settings_do_not_make_another_training_of_it() -> None:
    base = TrainSettings(**SETTINGS)
    assert (
        TrainSettings(**{**SETTINGS, "num_workers": 4, "checkpoint": {"every_steps": 5}}).identity() == base.identity()
    )
    assert TrainSettings(**{**SETTINGS, "learning_rate": 2e-2}).identity() != base.identity()


def test_a_global_batch_that_the_workers_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at least num_workers"):
        TrainSettings(**{**SETTINGS, "num_workers": 5})


def test_gpt2_xl_with_the_vocabulary_of_the_slides_has_1529_6_million_parameters() -> None:
    settings = ModelSettings(n_layer=48, n_head=25, n_embd=1600)
    config = model_config(settings, vocab_size=32_768, max_seq_len=1024, eos_token_id=0)
    assert round(num_parameters(config) / 1e6, 1) == 1529.6


def test_the_same_seed_gives_the_same_model() -> None:
    config = model_config(ModelSettings(n_layer=1, n_head=1, n_embd=4), vocab_size=8, max_seq_len=4, eos_token_id=0)
    first, second, other = (build_model(config, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def _rank_with(rank: int, world_size: int, folder: str, port: int, name: str, settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    trainer = fit(job(Path(folder), run=name, **settings), World(rank, world_size), Unsupervised())
    state = {key: whole(value.detach()).flatten().tolist() for key, value in trainer.model.state_dict().items()}
    if rank == 0:
        (Path(folder) / f"{name}.json").write_text(json.dumps({"history": learned(trainer), "weights": state}))
    torch.distributed.destroy_process_group()
    leave(0)


def run_ranks(rank_of: Callable[..., None], *arguments: Any, world_size: int = 2, seconds: float = 120) -> None:
    """Processes that each call `rank_of` with their rank and the arguments; all must end well."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=rank_of, args=(rank, *arguments), daemon=True) for rank in range(world_size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(seconds)
    assert [process.exitcode for process in ranks] == [0] * world_size


def with_ranks(folder: Path, name: str, port: int, *, world_size: int = 2, **settings: Any) -> Any:
    """The result of a run of several processes."""
    run_ranks(_rank_with, world_size, str(folder), port, name, settings, world_size=world_size)
    return json.loads((folder / f"{name}.json").read_text())


def assert_same_learning(mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> None:
    for one, other in zip(mine, theirs, strict=True):
        for key in ("loss", "validation_loss", "grad_norm"):
            assert one.get(key, 0.0) == pytest.approx(other.get(key, 0.0), rel=1e-4), key


def test_sharded_over_ranks_it_learns_the_same_and_continues_from_any_layout(tmp_path: Path, free_port: int) -> None:
    """FSDP2, from the start; then from a checkpoint of one process; and one process from a checkpoint of FSDP2."""
    one = fit(job(tmp_path, run="one"), World(), Unsupervised())
    assert_same_learning(with_ranks(tmp_path, "sharded", free_port, parallel="fsdp")["history"], learned(one))
    fit(job(tmp_path, run="changes"), World(), Watching(stop_at=1))
    with_ranks(tmp_path, "changes", free_port, parallel="fsdp", checkpoint={"every_steps": 100})
    last = fit(job(tmp_path, run="changes"), World(), Unsupervised())
    assert_same_learning(learned(last), learned(one))
    for name, values in weights(last).items():
        assert values == pytest.approx(weights(one)[name], rel=1e-3, abs=1e-5), name


def test_activation_checkpointing_learns_the_same(tmp_path: Path) -> None:
    plain = fit(job(tmp_path, run="a", dropout=0.2), World(), Unsupervised())
    saving = fit(job(tmp_path, run="b", dropout=0.2, activation_checkpointing=True), World(), Unsupervised())
    assert_same_learning(learned(saving), learned(plain))


def test_a_run_that_no_longer_improves_ends_early_and_exports_its_best(tmp_path: Path) -> None:
    """A learning rate far too large: the first evaluation is the best."""
    settings: dict[str, Any] = {"learning_rate": 3.0, "warmup_steps": 0, "max_steps": 20, "eval_every_steps": 1}
    early = job(tmp_path, run="early", early_stop_evaluations=3, keep_best=True, **settings)
    trainer = fit(early, World(), Unsupervised())
    assert trainer.best_step is not None
    assert trainer.step == trainer.best_step + 3 < 20
    assert trainer.best_step in early.checkpoints.steps()
    best = fit(job(tmp_path, run="best", **{**settings, "max_steps": 20}), World(), Watching(stop_at=None))
    assert best.step == 20
    again = fit(job(tmp_path, run="early", early_stop_evaluations=3, keep_best=True, **settings), World(), Watching())
    assert again.step == trainer.step
    assert weights(again) == weights(trainer)
    assert train.validation_loss(trainer) == min(loss for _, loss in trainer.evaluations())


def test_the_record_of_a_run_lies_in_its_prefix(tmp_path: Path) -> None:
    trainer = fit(job(tmp_path), World(), Unsupervised())
    storage = trainer.job.checkpoints.storage
    settle()
    events = [json.loads(line) for line in storage.read("run/metrics.jsonl").splitlines()]
    steps = [event for event in events if event["kind"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 7))
    assert all(0 < event["mfu"] < 1 and 0 < event["goodput"] <= 1 for event in steps)
    assert list(storage.list("run/tensorboard/"))


def test_padding_is_not_learned_and_weighs_nothing(tmp_path: Path) -> None:
    packed_corpus(LocalStorage(str(tmp_path / "storage")), padded=True)
    padded = job(tmp_path, max_steps=1, eval_every_steps=1)
    config = model_config(padded.model, vocab_size=VOCAB_SIZE, max_seq_len=MAX_SEQ_LEN, eos_token_id=0)
    loss = NextTokenLoss(build_model(config, padded.seed))

    def mean(rows: PackedRows, indices: Sequence[int]) -> float:
        """Over the rows without their padding, one by one."""
        parts = [rows.tensor([index])[:, : rows.lengths([index])[0]] for index in indices]
        with torch.no_grad():
            return sum(float(loss(part)) for part in parts) / sum(part.shape[1] - 1 for part in parts)

    assert isinstance(padded.rows, PackedRows)
    batch = padded.rows.order(padded.seed, padded.train.shuffle_shards).global_batch(0, 4).tolist()
    assert min(padded.rows.lengths(batch)) < MAX_SEQ_LEN
    expected = mean(padded.rows, batch)
    trainer = fit(padded, World(), Watching())
    loss = NextTokenLoss(trainer.model)
    (step,) = [event for event in trainer.history if event["kind"] == "step"]
    assert step["loss"] == pytest.approx(expected, rel=1e-5)
    ((_, validation),) = trainer.evaluations()
    assert validation == pytest.approx(mean(padded.validation, [0, 1, 3]), rel=1e-5)
