from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.dataloader import PackedRows, default_cache, global_batch, permute, rank_rows
from codeparrot.errors import EmptyCorpusError, ManifestError
from codeparrot.manifest import Attempt, Manifest
from codeparrot.packing import to_npy
from codeparrot.storage import LocalStorage

NUM_ROWS = 11
ROWS_PER_SHARD = 4
MAX_SEQ_LEN = 3
ROWS = np.arange(NUM_ROWS * MAX_SEQ_LEN, dtype=np.uint16).reshape(NUM_ROWS, MAX_SEQ_LEN)
PINNED = [2, 6, 9, 8, 4, 1, 3, 0, 7, 5]


def permutation(num_rows: int, seed: int = 0, epoch: int = 0) -> list[int]:
    rows: list[int] = permute(np.arange(num_rows, dtype=np.uint64), num_rows, seed=seed, epoch=epoch).tolist()
    return rows


def stream(num_steps: int, *, global_batch_size: int, num_rows: int, seed: int = 0) -> list[int]:
    """The rows of the first steps, one after the other."""
    batches = [
        global_batch(step, global_batch_size=global_batch_size, num_rows=num_rows, seed=seed)
        for step in range(num_steps)
    ]
    return [row for batch in batches for row in batch.tolist()]


@pytest.mark.parametrize("num_rows", [*range(1, 70), 255, 256, 257, 1000, 1023, 1024, 1025, 4097])
def test_an_epoch_is_a_permutation_of_all_rows(num_rows: int) -> None:
    assert sorted(permutation(num_rows)) == list(range(num_rows))


@given(st.integers(1, 500), st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_is_a_permutation_whatever_the_seed(num_rows: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(num_rows, seed, epoch)) == list(range(num_rows))


@given(st.integers(1, 2**40), st.data())
def test_the_place_of_a_row_is_found_without_the_others(num_rows: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, num_rows - 1), min_size=2, max_size=5, unique=num_rows > 5))
    together = permute(np.array(indices, dtype=np.uint64), num_rows, seed=1, epoch=2).tolist()
    alone = [permute(np.array([index], dtype=np.uint64), num_rows, seed=1, epoch=2).item() for index in indices]
    assert together == alone
    assert all(row < num_rows for row in together)
    assert len({*together}) == len({*indices})


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(permutation(100, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert tuple(range(100)) not in orders


def test_an_order_is_well_mixed() -> None:
    """Of random permutations, the mean distance between neighbours is a third, and one place in n stays."""
    order = np.array(permutation(10_000))
    assert abs(np.abs(np.diff(order)).mean() / 10_000 - 1 / 3) < 0.02
    assert (order == np.arange(10_000)).sum() < 10
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


def test_the_order_is_the_same_in_every_version() -> None:
    """A checkpoint's data position means nothing once this changes."""
    assert permutation(10, seed=1, epoch=0) == PINNED
    assert stream(2, global_batch_size=6, num_rows=10, seed=1)[:10] == PINNED


@given(st.integers(1, 40), st.integers(1, 25), st.integers(1, 3))
def test_each_row_comes_once_per_epoch_with_batches_running_over_the_border(
    num_rows: int, global_batch_size: int, num_epochs: int
) -> None:
    num_steps = -(-num_rows * num_epochs // global_batch_size)
    rows = stream(num_steps, global_batch_size=global_batch_size, num_rows=num_rows)
    assert len(rows) == num_steps * global_batch_size
    for epoch in range(num_epochs):
        here = rows[epoch * num_rows : (epoch + 1) * num_rows]
        assert sorted(here) == list(range(num_rows))
        assert here == permutation(num_rows, epoch=epoch)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_the_stream_does_not_depend_on_the_batch_size(num_rows: int, first: int, second: int) -> None:
    one = stream(second, global_batch_size=first, num_rows=num_rows)
    other = stream(first, global_batch_size=second, num_rows=num_rows)
    assert one == other


@given(st.integers(1, 32), st.integers(1, 8), st.integers(0, 10**9))
def test_all_ranks_together_see_the_batch_whatever_the_world_size(
    global_batch_size: int, world_size: int, step: int
) -> None:
    batch = global_batch(step, global_batch_size=global_batch_size, num_rows=1000, seed=0)
    parts = [rank_rows(batch, rank, world_size).tolist() for rank in range(world_size)]
    assert sorted(row for part in parts for row in part) == sorted(batch.tolist())
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def packed(storage: LocalStorage, rows: npt.NDArray[np.uint16] = ROWS) -> Manifest:
    work = Attempt(storage, "pack", "packed", {}, {}, "")
    shards = range(0, len(rows), ROWS_PER_SHARD)
    files = [
        work.write(f"train/rows-{index:05d}.npy", to_npy(rows[start : start + ROWS_PER_SHARD]))
        for index, start in enumerate(shards)
    ]
    counts = {
        "max_seq_len": MAX_SEQ_LEN,
        "rows_per_shard": ROWS_PER_SHARD,
        "splits": {"train": {"num_rows": len(rows), "tokens_in": rows.size}},
    }
    return work.commit([*files, work.write("train/remainder.npy", b"rest")], counts)


def test_rows_are_read_by_number_in_any_order(storage: LocalStorage, tmp_path: Path) -> None:
    rows = PackedRows(storage, packed(storage), "train", tmp_path / "cache")
    wanted = [10, 0, 3, 4, 3, 7]
    assert (rows.num_rows, rows.max_seq_len) == (NUM_ROWS, MAX_SEQ_LEN)
    assert rows.rows(wanted).dtype == np.int64
    assert rows.rows(wanted).tolist() == ROWS[wanted].tolist()
    assert rows.rows([]).shape == (0, MAX_SEQ_LEN)


def test_rows_become_a_tensor_of_int64(storage: LocalStorage, tmp_path: Path) -> None:
    tensor = PackedRows(storage, packed(storage), "train", tmp_path / "cache").tensor(np.array([1, 2]))
    assert str(tensor.dtype) == "torch.int64"
    assert tensor.tolist() == ROWS[[1, 2]].tolist()


def test_only_the_shards_in_use_are_fetched(storage: LocalStorage, tmp_path: Path) -> None:
    manifest = packed(storage)
    PackedRows(storage, manifest, "train", tmp_path / "cache").rows([5])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [
        f"{manifest.file('train/rows-00001.npy').sha256}.npy"
    ]


def test_a_cached_shard_needs_no_store(storage: LocalStorage, tmp_path: Path) -> None:
    manifest = packed(storage)
    PackedRows(storage, manifest, "train", tmp_path / "cache").rows(range(NUM_ROWS))
    storage.delete([path for path, _ in storage.list()])
    again = PackedRows(storage, manifest, "train", tmp_path / "cache")
    assert again.rows(range(NUM_ROWS)).tolist() == ROWS.tolist()


def test_a_damaged_cache_is_fetched_again(storage: LocalStorage, tmp_path: Path) -> None:
    manifest = packed(storage)
    PackedRows(storage, manifest, "train", tmp_path / "cache").rows([0])
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(cached.read_bytes()[:-1] + b"\xff")
    assert PackedRows(storage, manifest, "train", tmp_path / "cache").rows([3]).tolist() == ROWS[[3]].tolist()


def test_a_damaged_shard_is_an_error_and_is_not_cached(storage: LocalStorage, tmp_path: Path) -> None:
    manifest = packed(storage)
    storage.write(manifest.path("train/rows-00000.npy"), b"damaged")
    with pytest.raises(ManifestError, match=r"train/rows-00000\.npy is damaged"):
        PackedRows(storage, manifest, "train", tmp_path / "cache").rows([0])
    assert not list((tmp_path / "cache").glob("*"))


def test_a_cache_that_cannot_be_written_is_an_error_with_a_way_out(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(ManifestError, match=r"cannot cache train/rows-00000\.npy in .*set CODEPARROT_CACHE"):
        PackedRows(storage, packed(storage), "train", tmp_path / "cache").rows([0])


def test_a_split_without_a_row_is_an_error(storage: LocalStorage) -> None:
    manifest = packed(storage, ROWS[:0])
    with pytest.raises(EmptyCorpusError, match="the train split has 0 tokens, less than one row of 3"):
        PackedRows(storage, manifest, "train")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.setenv("CODEPARROT_CACHE", "")
    assert default_cache().name.startswith("codeparrot-cache-")
