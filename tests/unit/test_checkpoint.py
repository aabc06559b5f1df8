import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.checkpoint import Checkpoint, CheckpointStore, pack_tensors, unpack_tensors
from codeparrot.errors import CheckpointError
from codeparrot.manifest import load_manifest
from codeparrot.storage import LocalStorage
from tests.unit.doubles import DyingStorage, Killed

FOLDER = "runs/tiny/checkpoints"


def store(
    storage: LocalStorage, *, num_to_keep: int = 2, learning_rate: float = 0.1, data: str = "d0"
) -> CheckpointStore:
    settings, inputs = {"learning_rate": learning_rate}, {"packed": data}
    return CheckpointStore(storage, "runs/tiny", settings=settings, inputs=inputs, num_to_keep=num_to_keep)


def files(step: int) -> dict[str, bytes]:
    return {"model.safetensors": b"model %d" % step, "train_state.json": b"state %d" % step}


def newest(checkpoints: CheckpointStore) -> Checkpoint:
    checkpoint = checkpoints.latest()
    assert checkpoint is not None
    return checkpoint


def damage(storage: LocalStorage, step: int, name: str = "model.safetensors") -> None:
    manifest = load_manifest(storage, f"{FOLDER}/step-{step:08d}")
    assert manifest is not None
    data = storage.read(manifest.path(name))
    storage.write(manifest.path(name), bytes([data[0] ^ 1]) + data[1:])


def test_there_is_no_checkpoint_at_first(storage: LocalStorage) -> None:
    assert store(storage).latest() is None
    assert store(storage).steps() == []


def test_the_newest_checkpoint_is_loaded_with_its_files(storage: LocalStorage) -> None:
    for step in (9, 10):
        uri = store(storage).save(step, files(step))
    assert newest(store(storage)) == Checkpoint(10, uri, files(10))
    assert uri == f"{storage.uri}/{FOLDER}/step-00000010"


def test_steps_are_ordered_as_numbers(storage: LocalStorage) -> None:
    for step in (5, 100_000_000, 99_999_999):
        store(storage, num_to_keep=5).save(step, files(step))
    assert store(storage).steps() == [5, 99_999_999, 100_000_000]
    assert newest(store(storage)).step == 100_000_000


@pytest.mark.parametrize("num_to_keep", [1, 2, 3])
def test_the_newest_few_are_kept_and_nothing_stays_of_the_others(storage: LocalStorage, num_to_keep: int) -> None:
    for step in range(10, 60, 10):
        store(storage, num_to_keep=num_to_keep).save(step, files(step))
    expected = list(range(10, 60, 10))[-num_to_keep:]
    assert store(storage).steps() == expected
    assert len(list(storage.list(FOLDER))) == 3 * num_to_keep


def test_a_step_saved_again_is_replaced(storage: LocalStorage) -> None:
    store(storage).save(10, files(10))
    store(storage).save(10, files(11))
    assert newest(store(storage)).files == files(11)
    assert len(list(storage.list(FOLDER))) == 3


@pytest.mark.parametrize("name", ["model.safetensors", "train_state.json"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_loaded(
    storage: LocalStorage, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        store(storage).save(step, files(step))
    damage(storage, 20, name)
    with caplog.at_level(logging.WARNING):
        assert newest(store(storage)).step == 10
    (message,) = caplog.messages
    assert message.startswith("checkpoint of step 20 is damaged (")
    assert name in message


def test_a_checkpoint_that_lacks_a_file_or_has_a_damaged_manifest_is_passed_over(storage: LocalStorage) -> None:
    for step in (10, 20, 30):
        store(storage, num_to_keep=3).save(step, files(step))
    storage.write(f"{FOLDER}/step-00000030/manifest.json", b"{")
    manifest = load_manifest(storage, f"{FOLDER}/step-00000020")
    assert manifest is not None
    storage.delete([manifest.path("train_state.json")])
    assert newest(store(storage)).step == 10


def test_if_all_are_damaged_there_is_none(storage: LocalStorage) -> None:
    store(storage).save(10, files(10))
    damage(storage, 10)
    assert store(storage).latest() is None


def test_a_damaged_checkpoint_does_not_push_out_an_intact_older_one(storage: LocalStorage) -> None:
    """Training goes on from step 20 because 30 is damaged, and is interrupted at step 25."""
    for step in (10, 20, 30):
        store(storage, num_to_keep=2).save(step, files(step))
    damage(storage, 30)
    for step in (25, 26):
        store(storage, num_to_keep=1).save(step, files(step))
        assert newest(store(storage)) == Checkpoint(step, store(storage).uri(step), files(step))
    store(storage, num_to_keep=1).save(40, files(40))
    assert store(storage).steps() == [40]


@pytest.mark.parametrize("change", [{"learning_rate": 0.2}, {"data": "d1"}])
def test_checkpoints_of_another_training_are_ignored_then_replaced(
    storage: LocalStorage, change: dict[str, float | str]
) -> None:
    for step in (10, 20):
        store(storage).save(step, files(step))
    other = store(storage, **change)  # type: ignore[arg-type]
    assert other.latest() is None
    assert newest(store(storage)).step == 20
    other.save(5, files(5))
    assert other.steps() == [5]
    assert newest(other).files == files(5)
    assert store(storage).latest() is None


def test_killed_before_any_change_the_newest_checkpoint_is_whole(tmp_path: Path) -> None:
    found = []
    for num_changes in range(100):
        storage = LocalStorage(str(tmp_path / str(num_changes)))
        for step in (10, 20):
            store(storage).save(step, files(step))
        try:
            store(DyingStorage(str(storage.root), num_changes)).save(30, files(30))
        except Killed:
            killed = True
        else:
            killed = False
        checkpoint = newest(store(storage))
        assert checkpoint.files == files(checkpoint.step)
        found.append(checkpoint.step)
        for step in store(storage).steps():
            manifest = load_manifest(storage, f"{FOLDER}/step-{step:08d}")
            assert manifest is not None
            assert {name: manifest.read(storage, name) for name in manifest.names()} == files(step)
        store(storage).save(40, files(40))
        assert newest(store(storage)).step == 40
        assert {path.split("/")[3] for path, _ in storage.list(FOLDER)} <= {
            "step-00000020",
            "step-00000030",
            "step-00000040",
        }
        if not killed:
            break
    assert found[:4] == [20, 20, 20, 30]
    assert {*found[3:]} == {30}


def test_what_a_killed_save_left_is_not_there_and_is_removed_by_a_later_one(storage: LocalStorage) -> None:
    store(storage).save(10, files(10))
    with pytest.raises(Killed):
        store(DyingStorage(str(storage.root), 2)).save(15, files(15))
    assert store(storage).steps() == [10]
    assert list(storage.list(f"{FOLDER}/step-00000015/"))
    store(storage).save(20, files(20))
    assert not list(storage.list(f"{FOLDER}/step-00000015/"))
    assert store(storage).steps() == [10, 20]


def test_runs_are_kept_apart(storage: LocalStorage) -> None:
    store(storage).save(10, files(10))
    other = CheckpointStore(storage, "runs/tiny-2", settings={}, inputs={}, num_to_keep=1)
    other.save(5, files(5))
    assert (store(storage).steps(), other.steps()) == ([10], [5])


@given(st.lists(st.integers(0, 4), max_size=4), st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
def test_tensors_survive_packing(shape: list[int], dtype: torch.dtype) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    loaded = unpack_tensors(
        pack_tensors({"a.b": tensor, "t": tensor.clone().t() if tensor.dim() == 2 else tensor.clone()})
    )
    assert torch.equal(loaded["a.b"], tensor)
    assert loaded["a.b"].dtype == dtype
    assert loaded.keys() == {"a.b", "t"}


def test_parameters_are_packed_without_their_gradients() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not unpack_tensors(pack_tensors({"p": parameter}))["p"].requires_grad


@pytest.mark.parametrize("data", [b"", b"no tensors", b"\xff" * 100])
def test_bytes_that_are_no_tensors_are_an_error(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        unpack_tensors(data)
