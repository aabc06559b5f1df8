import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.checkpoint import Checkpoint, CheckpointStore, Identity, pack_tensors, shares, unpack_tensors
from codeparrot.errors import CheckpointError
from codeparrot.manifest import load_manifest
from codeparrot.storage import LocalStorage
from tests.unit.doubles import DyingStorage, Killed

FOLDER = "runs/tiny/checkpoints"


def store(
    storage: LocalStorage,
    *,
    num_to_keep: int = 2,
    keep_every_steps: int | None = None,
    learning_rate: float = 0.1,
    data: str = "d0",
    code: str = "c0",
    any_code: bool = False,
    token: str = "00000001",
) -> CheckpointStore:
    identity = Identity({"learning_rate": learning_rate}, {"packed": data}, code, any_code)
    return CheckpointStore(
        storage, "runs/tiny", identity, num_to_keep=num_to_keep, keep_every_steps=keep_every_steps, token=token
    )


def save(checkpoints: CheckpointStore, step: int, content: dict[str, bytes] | None = None) -> str:
    """What the ranks do, two of them here: write parts, commit, prune."""
    content = content or files(step)
    for rank, name in enumerate(content):
        checkpoints.write_part(step, rank, {name: content[name]})
    entries = checkpoints.parts(step, len(content))
    assert entries is not None
    uri = checkpoints.commit(step, entries)
    checkpoints.prune(step)
    return uri


def files(step: int) -> dict[str, bytes]:
    return {"model-0.safetensors": b"model %d" % step, "train_state.json": b"state %d" % step}


def contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: checkpoint.read(name) for name in checkpoint.manifest.names()}


def newest(checkpoints: CheckpointStore) -> Checkpoint:
    checkpoint = checkpoints.latest()
    assert checkpoint is not None
    return checkpoint


def damage(storage: LocalStorage, step: int, name: str = "model-0.safetensors") -> None:
    manifest = load_manifest(storage, f"{FOLDER}/step-{step:08d}")
    assert manifest is not None
    data = storage.read(manifest.path(name))
    storage.write(manifest.path(name), bytes([data[0] ^ 1]) + data[1:])


def test_there_is_no_checkpoint_at_first(storage: LocalStorage) -> None:
    assert store(storage).latest() is None
    assert store(storage).steps() == []


def test_the_newest_checkpoint_is_loaded_with_its_files(storage: LocalStorage) -> None:
    for step in (9, 10):
        uri = save(store(storage), step)
    assert (newest(store(storage)).step, newest(store(storage)).uri) == (10, uri)
    assert contents(newest(store(storage))) == files(10)
    assert uri == f"{storage.uri}/{FOLDER}/step-00000010"


def test_steps_are_ordered_as_numbers(storage: LocalStorage) -> None:
    for step in (5, 100_000_000, 99_999_999):
        save(store(storage, num_to_keep=5), step)
    assert store(storage).steps() == [5, 99_999_999, 100_000_000]
    assert newest(store(storage)).step == 100_000_000


@pytest.mark.parametrize("num_to_keep", [1, 2, 3])
def test_the_newest_few_are_kept_and_nothing_stays_of_the_others(storage: LocalStorage, num_to_keep: int) -> None:
    for step in range(10, 60, 10):
        save(store(storage, num_to_keep=num_to_keep), step)
    expected = list(range(10, 60, 10))[-num_to_keep:]
    assert store(storage).steps() == expected
    assert len(list(storage.list(FOLDER))) == 3 * num_to_keep


def test_a_step_saved_again_is_replaced(storage: LocalStorage) -> None:
    save(store(storage), 10)
    save(store(storage), 10, files(11))
    assert contents(newest(store(storage))) == files(11)
    assert len(list(storage.list(FOLDER))) == 3


@pytest.mark.parametrize("name", ["model-0.safetensors", "train_state.json"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_loaded(
    storage: LocalStorage, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        save(store(storage), step)
    damage(storage, 20, name)
    with caplog.at_level(logging.WARNING):
        assert newest(store(storage)).step == 10
    (message,) = caplog.messages
    assert message.startswith("checkpoint of step 20 is damaged (")
    assert name in message


def test_a_checkpoint_that_lacks_a_file_or_has_a_damaged_manifest_is_passed_over(storage: LocalStorage) -> None:
    for step in (10, 20, 30):
        save(store(storage, num_to_keep=3), step)
    storage.write(f"{FOLDER}/step-00000030/manifest.json", b"{")
    manifest = load_manifest(storage, f"{FOLDER}/step-00000020")
    assert manifest is not None
    storage.delete([manifest.path("train_state.json")])
    assert newest(store(storage)).step == 10


def test_if_all_are_damaged_there_is_none(storage: LocalStorage) -> None:
    save(store(storage), 10)
    damage(storage, 10)
    assert store(storage).latest() is None


def test_a_damaged_checkpoint_does_not_push_out_an_intact_older_one(storage: LocalStorage) -> None:
    """Training goes on from step 20 because 30 is damaged, and is interrupted at step 25."""
    for step in (10, 20, 30):
        save(store(storage, num_to_keep=2), step)
    damage(storage, 30)
    for step in (25, 26):
        save(store(storage, num_to_keep=1), step)
        assert contents(newest(store(storage))) == files(step)
    save(store(storage, num_to_keep=1), 40)
    assert store(storage).steps() == [40]


@pytest.mark.parametrize("change", [{"learning_rate": 0.2}, {"data": "d1"}])
def test_checkpoints_of_another_training_are_ignored_then_replaced(
    storage: LocalStorage, change: dict[str, float | str]
) -> None:
    for step in (10, 20):
        save(store(storage), step)
    other = store(storage, **change)  # type: ignore[arg-type]
    assert other.latest() is None
    assert newest(store(storage)).step == 20
    save(other, 5)
    save(other, 10, files(11))
    assert newest(store(storage)).step == 20, "the other training is not complete yet"
    assert contents(newest(other)) == files(11)
    other.remove_others()
    assert other.steps() == [5, 10]
    assert store(storage).latest() is None


def test_killed_before_any_change_the_newest_checkpoint_is_whole(tmp_path: Path) -> None:
    found = []
    for num_changes in range(100):
        storage = LocalStorage(str(tmp_path / str(num_changes)))
        for step in (10, 20):
            save(store(storage), step)
        try:
            save(store(DyingStorage(str(storage.root), num_changes)), 30)
        except Killed:
            killed = True
        else:
            killed = False
        checkpoint = newest(store(storage))
        assert contents(checkpoint) == files(checkpoint.step)
        found.append(checkpoint.step)
        for step in store(storage).steps():
            manifest = load_manifest(storage, f"{FOLDER}/step-{step:08d}")
            assert manifest is not None
            assert {name: manifest.read(storage, name) for name in manifest.names()} == files(step)
        save(store(storage), 40)
        assert newest(store(storage)).step == 40
        assert {path.split("/")[3] for path, _ in storage.list(FOLDER)} <= {
            "step-00000020",
            "step-00000030",
            "step-00000040",
        }
        if not killed:
            break
    assert found[:6] == [20, 20, 20, 20, 20, 30]  # two files, two lists, the manifest
    assert {*found[5:]} == {30}


def test_what_a_killed_save_left_is_not_there_and_is_removed_by_a_later_one(storage: LocalStorage) -> None:
    save(store(storage), 10)
    with pytest.raises(Killed):
        save(store(DyingStorage(str(storage.root), 2), token="00000002"), 15)
    assert store(storage).steps() == [10]
    assert list(storage.list(f"{FOLDER}/step-00000015/"))
    save(store(storage, token="00000001"), 20)
    assert list(storage.list(f"{FOLDER}/step-00000015/")), "it may be a later attempt's, which still writes"
    save(store(storage, token="00000003"), 20)
    assert not list(storage.list(f"{FOLDER}/step-00000015/"))
    assert store(storage).steps() == [10, 20]


def test_permanent_checkpoints_stay(storage: LocalStorage) -> None:
    for step in range(10, 80, 10):
        save(store(storage, num_to_keep=1, keep_every_steps=30), step)
    assert store(storage).steps() == [30, 60, 70]


def test_a_checkpoint_of_other_code_is_used_only_if_asked_for(
    storage: LocalStorage, caplog: pytest.LogCaptureFixture
) -> None:
    save(store(storage), 10)
    with caplog.at_level(logging.WARNING):
        assert store(storage, code="c1").latest() is None
    assert "made by another version of the code" in caplog.text
    assert newest(store(storage, code="c1", any_code=True)).step == 10


def test_parts_are_complete_only_when_every_rank_has_written_its_list(storage: LocalStorage) -> None:
    checkpoints = store(storage)
    checkpoints.write_part(10, 1, {"b": b"2"})
    assert checkpoints.parts(10, 2) is None
    checkpoints.write_part(10, 0, {"a": b"1"})
    parts = checkpoints.parts(10, 2)
    assert parts is not None
    assert {file.name for file in parts} == {"a", "b"}
    assert checkpoints.steps() == []


def test_attempts_do_not_mix_their_parts(storage: LocalStorage) -> None:
    first, second = store(storage, token="00000001"), store(storage, token="00000002")
    first.write_part(10, 0, {"a": b"1"})
    second.write_part(10, 1, {"b": b"2"})
    assert first.parts(10, 2) is None
    assert second.parts(10, 2) is None


def test_a_stale_attempt_that_commits_late_harms_nothing(storage: LocalStorage) -> None:
    """The first was stopped before its commit; the second has gone on from there."""
    first, second = store(storage, token="00000001"), store(storage, token="00000002")
    first.write_part(10, 0, files(10))
    late = first.parts(10, 1)
    assert late is not None
    second.write_part(10, 0, files(10))
    save(second, 10)
    with pytest.raises(CheckpointError, match="nothing was committed"):
        first.commit(10, late)  # its files are gone: the second has cleared them away
    first.prune(10)
    assert contents(newest(second)) == files(10)


def test_a_checkpoint_whose_files_are_gone_is_not_committed(storage: LocalStorage) -> None:
    checkpoints = store(storage)
    checkpoints.write_part(10, 0, files(10))
    entries = checkpoints.parts(10, 1)
    assert entries is not None
    storage.delete([path for path, _ in storage.list(FOLDER) if path.endswith("safetensors")])
    with pytest.raises(CheckpointError, match=r"model-0\.safetensors is gone"):
        checkpoints.commit(10, entries)
    assert checkpoints.steps() == []


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 10**9), max_size=20), st.integers(1, 8))
def test_every_tensor_is_dealt_to_one_rank_and_no_rank_has_much_more(sizes: dict[str, int], world_size: int) -> None:
    dealt = shares(sizes, world_size)
    assert sorted(name for part in dealt for name in part) == sorted(sizes)
    loads = [sum(sizes[name] for name in part) for part in dealt]
    assert max(loads) <= sum(sizes.values()) / world_size + max(sizes.values(), default=0)


def test_runs_are_kept_apart(storage: LocalStorage) -> None:
    save(store(storage), 10)
    other = CheckpointStore(storage, "runs/tiny-2", Identity({}, {}), num_to_keep=1)
    save(other, 5)
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
