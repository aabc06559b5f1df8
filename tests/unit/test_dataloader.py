import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from codeparrot.data_order import DataOrder
from codeparrot.dataloader import MixedRows, PackedRows, cached, evict
from codeparrot.errors import EmptyCorpusError, ManifestError, StoreUnreachable
from codeparrot.manifest import Attempt, Manifest
from codeparrot.packing import to_npy
from codeparrot.storage import LocalStorage, default_cache

NUM_ROWS = 11
ROWS_PER_SHARD = 4
MAX_SEQ_LEN = 3
ROWS = np.arange(NUM_ROWS * MAX_SEQ_LEN, dtype=np.uint16).reshape(NUM_ROWS, MAX_SEQ_LEN)
ALL = ROWS.tolist()


class WatchedStorage(LocalStorage):
    """A store that remembers what was read of it, and that does not answer the first few times."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.reads: list[str] = []
        self.num_failures = 0
        self.before_read: Callable[[], object] = lambda: None

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        self.reads.append(path)
        self.before_read()
        if self.num_failures > 0:
            self.num_failures -= 1
            raise StoreUnreachable("nobody answers")
        return super().read(path, start, stop)


@pytest.fixture
def storage(tmp_path: Path) -> WatchedStorage:
    return WatchedStorage(str(tmp_path / "store"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codeparrot.storage.FIRST_PAUSE_SECONDS", 0.001)


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


def shard_size(manifest: Manifest, *shards: int) -> int:
    return sum(manifest.file(f"train/rows-{shard:05d}.npy").size_bytes for shard in shards)


def in_cache(manifest: Manifest, cache: Path, shard: int) -> Path:
    return cache / f"{manifest.file(f'train/rows-{shard:05d}.npy').sha256}.npy"


def cached_shards(manifest: Manifest, cache: Path) -> list[int]:
    return [shard for shard in range(3) if in_cache(manifest, cache, shard).exists()]


def fetched(storage: WatchedStorage) -> list[int]:
    """The shards read from the store, in order."""
    return [int(path[-9:-4]) for path in storage.reads if "/rows-" in path]


def wait_for_prefetch() -> None:
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join()


def test_rows_are_read_by_number_in_any_order(storage: WatchedStorage, cache: Path) -> None:
    rows = PackedRows(storage, packed(storage), "train", cache)
    wanted = [10, 0, 3, 4, 3, 7]
    assert (rows.num_rows, rows.max_seq_len) == (NUM_ROWS, MAX_SEQ_LEN)
    assert rows.rows(wanted).dtype == np.int64
    assert rows.rows(wanted).tolist() == ROWS[wanted].tolist()
    assert rows.rows([]).shape == (0, MAX_SEQ_LEN)


def test_rows_become_a_tensor_of_int64(storage: WatchedStorage, cache: Path) -> None:
    tensor = PackedRows(storage, packed(storage), "train", cache).tensor(np.array([1, 2]))
    assert str(tensor.dtype) == "torch.int64"
    assert tensor.tolist() == ROWS[[1, 2]].tolist()


def test_only_the_shards_in_use_are_fetched(storage: WatchedStorage, cache: Path) -> None:
    manifest = packed(storage)
    PackedRows(storage, manifest, "train", cache).rows([5])
    shard = in_cache(manifest, cache, 1)
    assert sorted(cache.iterdir()) == [shard.with_suffix(".lock"), shard]


def test_a_cached_shard_needs_no_store(storage: WatchedStorage, cache: Path) -> None:
    manifest = packed(storage)
    PackedRows(storage, manifest, "train", cache).rows(range(NUM_ROWS))
    storage.delete([path for path, _ in storage.list()])
    assert PackedRows(storage, manifest, "train", cache).rows(range(NUM_ROWS)).tolist() == ALL


@pytest.mark.parametrize("content", ["changed", "cut", "empty", "longer"])
def test_a_damaged_cache_is_fetched_again(storage: WatchedStorage, cache: Path, content: str) -> None:
    manifest = packed(storage)
    PackedRows(storage, manifest, "train", cache).rows([0])
    path = in_cache(manifest, cache, 0)
    whole = path.read_bytes()
    damaged = {"changed": whole[:-1] + b"\xff", "cut": whole[:-1], "empty": b"", "longer": whole + b"\0"}
    path.write_bytes(damaged[content])
    assert PackedRows(storage, manifest, "train", cache).rows([3]).tolist() == ROWS[[3]].tolist()
    assert path.read_bytes() == whole
    assert fetched(storage) == [0, 0]


def test_a_damaged_shard_is_an_error_and_is_not_cached(storage: WatchedStorage, cache: Path) -> None:
    manifest = packed(storage)
    storage.write(manifest.path("train/rows-00000.npy"), b"damaged")
    with pytest.raises(ManifestError, match=r"train/rows-00000\.npy is damaged"):
        PackedRows(storage, manifest, "train", cache).rows([0])
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_an_error_with_a_way_out(storage: WatchedStorage, cache: Path) -> None:
    cache.touch()
    with pytest.raises(ManifestError, match=r"cannot cache train/rows-00000\.npy in .*set CODEPARROT_CACHE"):
        PackedRows(storage, packed(storage), "train", cache).rows([0])


def test_nobody_else_can_write_the_cache(storage: WatchedStorage, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = PackedRows(storage, packed(storage), "train", cache)
    rows.rows([0])
    assert cache.stat().st_mode & 0o777 == 0o700
    owner = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    with pytest.raises(ManifestError, match=r"cannot cache .* it belongs to another user; set CODEPARROT_CACHE"):
        rows.rows([4])


def test_a_split_without_a_row_is_an_error(storage: WatchedStorage) -> None:
    manifest = packed(storage, ROWS[:0])
    with pytest.raises(EmptyCorpusError, match="the train split has 0 tokens, less than one row of 3"):
        PackedRows(storage, manifest, "train")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.setenv("CODEPARROT_CACHE", "")
    assert default_cache().name.startswith("codeparrot-cache-")


def test_rows_know_the_order_to_train_on_them(storage: WatchedStorage, cache: Path) -> None:
    rows = PackedRows(storage, packed(storage), "train", cache)
    assert rows.order(5, 2) == DataOrder(seed=5, num_rows=NUM_ROWS, rows_per_shard=ROWS_PER_SHARD, window_shards=2)


def test_a_cache_too_small_for_two_windows_is_an_error_with_a_way_out(storage: WatchedStorage, cache: Path) -> None:
    """Two windows of one shard may need three: a short shard shifts those after it."""
    manifest = packed(storage)
    needed = shard_size(manifest, 0, 1, 2)
    assert max(len(DataOrder(0, NUM_ROWS, ROWS_PER_SHARD, 1).shards(position, 2)) for position in range(44)) == 3
    PackedRows(storage, manifest, "train", cache, cache_bytes=needed).order(0, 1)
    with pytest.raises(
        ManifestError, match=r"train\.cache_bytes: 449 is too small for two windows of 1 shards"
    ) as told:
        PackedRows(storage, manifest, "train", cache, cache_bytes=needed - 1).order(0, 1)
    assert str(told.value).endswith(f"({needed:,} bytes); raise it, or lower train.shuffle_shards")


def test_shards_are_fetched_ahead_in_the_order_of_their_use(storage: WatchedStorage, cache: Path) -> None:
    rows = PackedRows(storage, packed(storage), "train", cache)
    rows.prefetch([2, 0])
    wait_for_prefetch()
    assert fetched(storage) == [2, 0]
    assert rows.rows([0, 3, 8]).tolist() == ROWS[[0, 3, 8]].tolist()
    assert fetched(storage) == [2, 0]


def test_the_same_shards_are_not_fetched_ahead_twice(storage: WatchedStorage, cache: Path) -> None:
    manifest = packed(storage)
    rows = PackedRows(storage, manifest, "train", cache)
    rows.prefetch([0])
    wait_for_prefetch()
    in_cache(manifest, cache, 0).unlink()
    rows.prefetch([0])
    wait_for_prefetch()
    assert fetched(storage) == [0]


def test_a_shard_needed_before_it_is_there_is_waited_for(storage: WatchedStorage, cache: Path) -> None:
    rows = PackedRows(storage, packed(storage), "train", cache)
    began, go = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        threading.Timer(0.05, go.set).start()
        go.wait()

    storage.before_read = wait
    rows.prefetch([1])
    began.wait()
    assert rows.rows([4]).tolist() == ROWS[[4]].tolist()
    assert go.is_set()
    assert fetched(storage) == [1]


def test_what_is_wanted_no_more_is_not_fetched_ahead(storage: WatchedStorage, cache: Path) -> None:
    rows = PackedRows(storage, packed(storage), "train", cache)
    began, go = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        go.wait()

    storage.before_read = wait
    rows.prefetch([0, 1])
    began.wait()
    rows.prefetch([2])
    go.set()
    wait_for_prefetch()
    assert sorted(fetched(storage)) == [0, 2]


def test_a_fetch_ahead_that_fails_is_told_and_tried_again_when_needed(
    storage: WatchedStorage, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("codeparrot.dataloader.RETRY_SECONDS", 0.0)
    rows = PackedRows(storage, packed(storage), "train", cache)
    storage.num_failures = 1
    rows.prefetch([0, 1])
    wait_for_prefetch()
    assert caplog.messages == ["could not fetch train/rows-00000.npy ahead of its use: nobody answers"]
    assert rows.rows(range(8)).tolist() == ALL[:8]
    assert fetched(storage) == [0, 1, 0]


def test_the_cache_holds_no_more_than_it_may(storage: WatchedStorage, cache: Path) -> None:
    manifest = packed(storage)
    rows = PackedRows(storage, manifest, "train", cache, cache_bytes=shard_size(manifest, 0, 1))
    for wanted in ([0, 1], [1, 2], [2, 0]):
        rows.prefetch(wanted)
        wait_for_prefetch()
        assert cached_shards(manifest, cache) == sorted(wanted)
    assert rows.rows(range(NUM_ROWS)).tolist() == ALL


def test_what_still_fits_stays_in_the_cache(storage: WatchedStorage, cache: Path) -> None:
    manifest = packed(storage)
    rows = PackedRows(storage, manifest, "train", cache, cache_bytes=shard_size(manifest, 0, 1, 2))
    for wanted in ([0, 1], [1, 2], [2, 0]):
        rows.prefetch(wanted)
        wait_for_prefetch()
    assert cached_shards(manifest, cache) == [0, 1, 2]
    assert fetched(storage) == [0, 1, 2]


def test_a_shard_that_cannot_be_deleted_keeps_nobody_from_fetching_ahead(
    storage: WatchedStorage, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    manifest = packed(storage)
    rows = PackedRows(storage, manifest, "train", cache, cache_bytes=shard_size(manifest, 0))
    rows.rows([0])
    monkeypatch.setattr("pathlib.Path.unlink", fail)
    rows.prefetch([1])
    wait_for_prefetch()
    assert caplog.messages == [f"cannot delete shards in {cache}: Read-only file system"]
    assert fetched(storage) == [0, 1]


def a_cache(folder: Path, names: str) -> dict[str, Path]:
    """Shards of 10 bytes, the first of them used the longest time ago."""
    folder.mkdir()
    paths = {name: folder / f"{name * 64}.npy" for name in names}
    for age, path in enumerate(paths.values()):
        path.write_bytes(bytes(10))
        os.utime(path, (1000 + age, 1000 + age))
    return paths


@pytest.mark.parametrize(
    ("max_bytes", "keep", "left"),
    [
        (40, "", "cabd"),
        (39, "", "abd"),
        (30, "", "abd"),
        (29, "", "bd"),
        (0, "", ""),
        (20, "c", "cd"),
        (0, "ab", "ab"),
        (-100, "d", "d"),
    ],
)
def test_the_least_recently_used_shards_leave_the_cache_but_none_that_is_wanted(
    cache: Path, max_bytes: int, keep: str, left: str
) -> None:
    paths = a_cache(cache, "cabd")
    evict(cache, max_bytes, keep={name * 64 for name in keep})
    assert "".join(name for name, path in paths.items() if path.exists()) == left


def test_opening_a_shard_is_using_it(storage: WatchedStorage, cache: Path) -> None:
    manifest = packed(storage)
    PackedRows(storage, manifest, "train", cache).rows(range(NUM_ROWS))
    for shard in range(3):
        os.utime(in_cache(manifest, cache, shard), (1000 + shard, 1000 + shard))
    PackedRows(storage, manifest, "train", cache).rows([0])
    evict(cache, shard_size(manifest, 0, 2), keep=())
    assert cached_shards(manifest, cache) == [0, 2]


def test_a_shard_in_use_can_leave_the_cache(storage: WatchedStorage, cache: Path) -> None:
    manifest = packed(storage)
    rows = PackedRows(storage, manifest, "train", cache)
    rows.rows(range(NUM_ROWS))
    evict(cache, 0, keep=())
    assert cached_shards(manifest, cache) == []
    assert rows.rows(range(NUM_ROWS)).tolist() == ALL


def test_a_shard_that_another_process_is_opening_leaves_the_cache_only_afterwards(cache: Path) -> None:
    path = a_cache(cache, "a")["a"]
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=evict, args=(cache, 0, ()))
        thread.start()
        time.sleep(0.05)
        assert path.exists()
    thread.join()
    assert not path.exists()


def test_files_of_others_in_the_folder_of_the_cache_are_left_alone(cache: Path) -> None:
    ours = a_cache(cache, "a")["a"]
    lock = ours.with_suffix(".lock")
    half = cache / "abc.codeparrot-tmp"
    foreign = [cache / name for name in ("embeddings.npy", "notes.txt", "a.lock")]
    for path in (lock, half, *foreign):
        path.write_bytes(bytes(100))
    assert sorted(cached(cache)) == sorted([ours, lock, half])
    evict(cache, 0, keep=())
    assert sorted(cache.iterdir()) == sorted([lock, half, *foreign])


def test_a_cache_that_is_not_there_is_empty(cache: Path) -> None:
    assert cached(cache) == []
    evict(cache, 0, keep=())
    assert not cache.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_the_shards_stay_in_memory(
    storage: WatchedStorage, cache: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("codeparrot.dataloader._replace", full)
    manifest = packed(storage)
    rows = PackedRows(storage, manifest, "train", cache)
    assert rows.rows(range(NUM_ROWS)).tolist() == ALL
    assert cached_shards(manifest, cache) == []
    assert {*caplog.messages} == {f"no space to cache shards in {cache}; keeping them in memory"}
    num_reads = len(storage.reads)
    assert rows.rows(range(NUM_ROWS)).tolist() == ALL
    assert len(storage.reads) == num_reads


def test_shards_in_memory_are_dropped_when_others_are_wanted(
    storage: WatchedStorage, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("codeparrot.dataloader._replace", full)
    rows = PackedRows(storage, packed(storage), "train", cache)
    rows.prefetch([0, 1])
    wait_for_prefetch()
    rows.prefetch([1, 2])
    wait_for_prefetch()
    storage.reads.clear()
    rows.rows([4, 8])
    assert fetched(storage) == []
    rows.rows([0])
    assert {*fetched(storage)} == {0}


def test_nothing_stays_of_a_shard_that_could_not_be_written(
    storage: WatchedStorage, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: str, target: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    manifest = packed(storage)
    monkeypatch.setattr("codeparrot.dataloader.os.replace", fail)
    with pytest.raises(ManifestError, match=r"cannot cache .*: Input/output error; set CODEPARROT_CACHE"):
        PackedRows(storage, manifest, "train", cache).rows([0])
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_store_that_fails_for_a_moment_is_asked_again(
    storage: WatchedStorage, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = PackedRows(storage, packed(storage), "train", cache)
    storage.num_failures = 3
    with caplog.at_level(logging.WARNING):
        assert rows.rows([0]).tolist() == ALL[:1]
    assert fetched(storage) == [0, 0, 0, 0]
    assert caplog.messages == ["training waits for data: nobody answers; trying again for up to 600 s"]


def test_a_store_that_stays_away_is_an_error(
    storage: WatchedStorage, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codeparrot.dataloader.RETRY_SECONDS", 0.01)
    rows = PackedRows(storage, packed(storage), "train", cache)
    storage.num_failures = 1000
    with pytest.raises(StoreUnreachable, match="nobody answers"):
        rows.rows([0])
    storage.num_failures = 0
    assert rows.rows([0]).tolist() == ALL[:1]


def read_at_once(readers: list[PackedRows]) -> list[list[list[int]]]:
    """What threads read at the same time, one for each of these."""
    start, results = threading.Barrier(len(readers)), []

    def read(rows: PackedRows) -> None:
        start.wait()
        results.append(rows.rows(range(NUM_ROWS)).tolist())

    threads = [threading.Thread(target=read, args=(rows,)) for rows in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("shared", [True, False])
def test_those_who_need_a_shard_at_the_same_time_fetch_it_once(
    storage: WatchedStorage, cache: Path, shared: bool
) -> None:
    """Objects of their own share nothing but the files of the cache, as processes do."""
    manifest = packed(storage)
    storage.before_read = lambda: time.sleep(0.02)
    one = PackedRows(storage, manifest, "train", cache)
    readers = [one if shared else PackedRows(storage, manifest, "train", cache) for _ in range(6)]
    assert read_at_once(readers) == [ALL] * 6
    assert sorted(fetched(storage)) == [0, 1, 2]


def test_rows_of_two_corpora_are_numbered_through_and_share_a_cache(storage: WatchedStorage, cache: Path) -> None:
    """The cache has room for what both want, and for nothing else."""
    first = packed(storage)
    second = packed(LocalStorage(str(storage.root / "other")), ROWS + 100)
    parts = [
        PackedRows(storage, first, "train", cache),
        PackedRows(LocalStorage(str(storage.root / "other")), second, "train", cache),
    ]
    rows = MixedRows(parts, (2, 1))
    assert rows.num_rows == 2 * NUM_ROWS
    wanted = [0, NUM_ROWS, 2 * NUM_ROWS - 1, NUM_ROWS - 1]
    both = np.concatenate([ROWS, ROWS + 100])
    assert rows.tensor(wanted).tolist() == both[wanted].tolist()
    for part in parts:
        part.cache_bytes = 1
    rows.prefetch([1, 3 + 2])
    wait_for_prefetch()
    assert cached_shards(first, cache) == [1]
    assert cached_shards(second, cache) == [2]


def test_a_mixture_has_an_order_of_its_own(storage: WatchedStorage, cache: Path) -> None:
    parts = [PackedRows(storage, packed(storage), "train", cache) for _ in range(2)]
    order = MixedRows(parts, (2, 1)).order(seed=1, window_shards=2)
    batch = order.global_batch(0, 6)
    assert (batch < NUM_ROWS).sum() == 4
