"""The loop with every objective: resumed bit for bit, the same on two ranks, with the loss of transformers."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers

from codeparrot.checkpoint import CheckpointStore, Identity
from codeparrot.hub import restored_model
from codeparrot.launch import leave
from codeparrot.loss import loss_of
from codeparrot.model import (
    ARCHITECTURES,
    ModelSettings,
    build_model,
    export_files,
    model_config,
    num_parameters,
)
from codeparrot.objectives import Causal, Masked, MaskedSettings, Objective, Spans, SpanSettings
from codeparrot.parallel import World, whole
from codeparrot.storage import LocalStorage
from codeparrot.throughput import flops_per_token
from codeparrot.train import fit, validation_loss
from codeparrot.training_job import TrainingJob, Unsupervised
from tests.unit.test_train import (
    MAX_SEQ_LEN,
    VOCAB_SIZE,
    Killed,
    Watching,
    assert_same_learning,
    job,
    learned,
    packed_corpus,
    run_ranks,
    settle,
    weights,
)

WORDS = np.zeros((2, VOCAB_SIZE), np.bool_)
WORDS[:, : VOCAB_SIZE // 2] = True
OBJECTIVES: dict[str, Objective] = {
    "masked": Masked(MaskedSettings(kind="masked", rate=0.3), VOCAB_SIZE - 1, VOCAB_SIZE - 8, WORDS),
    "words": Masked(MaskedSettings(kind="masked", rate=0.3, whole_words=True), VOCAB_SIZE - 1, VOCAB_SIZE - 8, WORDS),
    "span": Spans(SpanSettings(kind="span", rate=0.3), np.arange(VOCAB_SIZE - 7, VOCAB_SIZE), 0),
}
ARCHITECTURE = {"masked": "modernbert", "words": "modernbert", "span": "t5"}


def asking(folder: Path, name: str, *, run: str = "run", **settings: Any) -> TrainingJob:
    plain = job(folder, run=run, model={"architecture": ARCHITECTURE[name]}, **settings)
    return replace(plain, objective=OBJECTIVES[name])


def built(name: str, seed: int = 3) -> Any:
    settings = ModelSettings.model_validate(
        {"architecture": ARCHITECTURE[name], "n_layer": 2, "n_head": 2, "n_embd": 16}
    )
    return build_model(model_config(settings, vocab_size=VOCAB_SIZE, max_seq_len=MAX_SEQ_LEN, eos_token_id=0), seed)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_killed_after_a_step_ends_with_the_same_weights_and_the_same_curve(
    tmp_path: Path, name: str, padded: bool
) -> None:
    packed_corpus(LocalStorage(str(tmp_path / "storage")), padded=padded)
    undisturbed = fit(asking(tmp_path, name, run="a", dropout=0.2), World(), Unsupervised())

    def kill(event: Mapping[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        fit(asking(tmp_path, name, run="b", dropout=0.2), World(), Watching(kill))
    settle()
    resumed = fit(asking(tmp_path, name, run="b", dropout=0.2), World(), Watching())
    assert weights(resumed) == weights(undisturbed)
    assert learned(resumed) == learned(undisturbed)
    assert undisturbed.history[-1]["loss" if "loss" in undisturbed.history[-1] else "validation_loss"] < 6
    assert validation_loss(resumed) == validation_loss(resumed)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_size_of_micro_batches_does_not_change_what_is_learned(tmp_path: Path, name: str) -> None:
    whole_batch = fit(asking(tmp_path, name, run="a", micro_batch_size=4), World(), Unsupervised())
    single = fit(asking(tmp_path, name, run="b", micro_batch_size=1), World(), Unsupervised())
    for mine, theirs in zip(single.history, whole_batch.history, strict=True):
        for key in ("loss", "grad_norm", "validation_loss"):
            assert mine.get(key, 0.0) == pytest.approx(theirs.get(key, 0.0), rel=1e-4)


class Recording(Masked):
    """Keeps for which positions it was asked, by seed."""

    seen: ClassVar[dict[int, list[int]]] = {}

    def ask(self, rows: Any, lengths: Any, seed: int, positions: Any) -> Any:
        self.seen.setdefault(seed, []).extend(map(int, positions))
        return super().ask(rows, lengths, seed, positions)


def test_every_row_of_every_step_is_asked_by_its_own_position_and_validation_always_the_same(tmp_path: Path) -> None:
    plain = asking(tmp_path, "masked")
    masked = OBJECTIVES["masked"]
    assert isinstance(masked, Masked)
    recording = Recording(masked.settings, masked.mask_id, masked.num_plain, masked.word_edges)
    fit(replace(plain, objective=recording), World(), Unsupervised())
    (trained, validated) = recording.seen.values()
    assert trained == [0, *range(6 * 4)]  # once before the first step
    assert validated == [0, 1, 3] * 2


@pytest.mark.parametrize("name", ["masked", "span"])
def test_activation_checkpointing_learns_the_same(tmp_path: Path, name: str) -> None:
    plain = fit(asking(tmp_path, name, run="a", dropout=0.2), World(), Unsupervised())
    saving = fit(asking(tmp_path, name, run="b", dropout=0.2, activation_checkpointing=True), World(), Unsupervised())
    assert_same_learning(learned(saving), learned(plain))


def _rank(rank: int, folder: str, port: int, name: str, parallel: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    trainer = fit(asking(Path(folder), name, run="two", parallel=parallel), World(rank, 2), Unsupervised())
    state = {key: whole(value.detach()).flatten().tolist() for key, value in trainer.model.state_dict().items()}
    if rank == 0:
        (Path(folder) / "two.json").write_text(json.dumps({"history": learned(trainer), "weights": len(state)}))
    torch.distributed.destroy_process_group()
    leave(0)


@pytest.mark.parametrize(("name", "parallel"), [("words", "ddp"), ("words", "fsdp"), ("span", "ddp"), ("span", "fsdp")])
def test_two_ranks_are_asked_the_same_as_one(tmp_path: Path, free_port: int, name: str, parallel: str) -> None:
    one = fit(asking(tmp_path, name, run="one"), World(), Unsupervised())
    run_ranks(_rank, str(tmp_path), free_port, name, parallel)
    assert_same_learning(json.loads((tmp_path / "two.json").read_text())["history"], learned(one))


@pytest.mark.parametrize("name", ["masked", "span"])
def test_a_checkpoint_becomes_a_model_that_transformers_loads(tmp_path: Path, name: str) -> None:
    asks = asking(tmp_path, name)
    owner = Identity({"model": asks.model.model_dump(mode="json")}, {})
    kept = replace(asks, checkpoints=CheckpointStore(asks.checkpoints.storage, "run", owner))
    trainer = fit(kept, World(), Unsupervised())
    checkpoint = kept.checkpoints.latest()
    assert checkpoint is not None
    model = restored_model(checkpoint, 0)
    for name_, tensor in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name_], tensor)
    for file, data in export_files(model).items():
        (tmp_path / file).write_bytes(data)
    loader = getattr(transformers, ARCHITECTURES[asks.model.architecture].loader)
    loaded = loader.from_pretrained(tmp_path)
    assert all(torch.equal(each, model.state_dict()[key]) for key, each in loaded.state_dict().items())


def rows_and_lengths() -> tuple[Any, Any]:
    rows = np.random.default_rng(0).integers(1, VOCAB_SIZE - 8, (3, MAX_SEQ_LEN))
    return rows, np.array([MAX_SEQ_LEN, 9, 4])


def tensors(arrays: Any) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def theirs(model: Any, objective: Objective, row: Any, position: int) -> Any:
    """The mean that transformers computes with labels, for one row."""
    batch = tensors(objective.ask(row[None], None, 5, [position]))
    if isinstance(objective, Spans):
        return model(input_ids=batch[0], labels=batch[1]).loss
    labels = torch.full_like(batch[0], -100).scatter_(1, batch[1], batch[2])
    return model(input_ids=batch[0], labels=labels).loss


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_is_the_one_that_transformers_computes_and_padding_changes_nothing(name: str) -> None:
    objective, mine, other = OBJECTIVES[name], built(name), built(name)
    rows, lengths = rows_and_lengths()
    total = loss_of(mine)(*tensors(objective.ask(rows, lengths, 5, [7, 8, 9])))
    total.backward()
    wanted = torch.zeros((), dtype=torch.float64)
    for row, length, position in zip(rows, lengths.tolist(), (7, 8, 9), strict=True):
        num = objective.num_predicted(np.array([length]))
        wanted = wanted + theirs(other, objective, row[:length], position).double() * num
    wanted.backward()  # type: ignore[no-untyped-call]
    assert total.item() == pytest.approx(wanted.item(), rel=1e-5)
    for (parameter, own), their in zip(mine.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own.grad, their.grad, rtol=1e-3, atol=1e-5, msg=parameter)
    with torch.no_grad():
        each = loss_of(mine).token_nll(*tensors(objective.ask(rows, lengths, 5, [7, 8, 9])))
    assert not isinstance(objective, Causal)
    kept = objective.placed(rows, lengths, 5, [7, 8, 9]).kept
    assert float((each.double() * torch.from_numpy(kept).flatten()).sum()) == pytest.approx(total.item(), rel=1e-5)


def test_operations_are_counted_where_they_are_done() -> None:
    for name, objective in OBJECTIVES.items():
        config = built(name).config
        all_of_it = flops_per_token(config, num_parameters(config))
        asked = flops_per_token(config, num_parameters(config), objective.sizes(MAX_SEQ_LEN))
        assert 0 < asked < all_of_it
