from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.data_order import DataOrder, MixedOrder, permute, rank_rows, spread

PINNED = {
    1: [5, 6, 4, 7, 9, 0, 1, 8, 3, 2, 7, 5, 4, 6, 8, 1, 0, 9, 2, 3],
    2: [7, 6, 9, 4, 0, 5, 8, 1, 3, 2, 1, 5, 8, 9, 6, 4, 0, 7, 2, 3],
    3: [7, 3, 9, 4, 0, 5, 8, 2, 1, 6, 1, 5, 3, 9, 6, 4, 0, 7, 2, 8],
}
"""The first two epochs of ten rows in shards of four, by the number of shards in a window."""

orders = st.builds(
    DataOrder,
    seed=st.integers(0, 2**40),
    num_rows=st.integers(1, 120),
    rows_per_shard=st.integers(1, 50),
    window_shards=st.integers(1, 6),
)


def permutation(count: int, seed: int = 0, purpose: int = 0) -> list[int]:
    images: list[int] = permute(np.arange(count, dtype=np.uint64), count, seed, purpose).tolist()
    return images


def rows(order: DataOrder, start: int, stop: int) -> list[int]:
    found: list[int] = order.rows(np.arange(start, stop)).tolist()
    return found


def epoch_rows(order: DataOrder, epoch: int = 0) -> list[int]:
    return rows(order, epoch * order.num_rows, (epoch + 1) * order.num_rows)


def stream(order: DataOrder, num_steps: int, global_batch_size: int) -> list[int]:
    """The rows of the first steps, one after the other."""
    batches = [order.global_batch(step, global_batch_size) for step in range(num_steps)]
    return [row for batch in batches for row in batch.tolist()]


def windows(order: DataOrder, num_epochs: int = 2) -> list[range]:
    """The positions of each window of the first epochs."""
    size = order.window_shards * order.rows_per_shard
    return [
        range(epoch * order.num_rows + first, epoch * order.num_rows + min(first + size, order.num_rows))
        for epoch in range(num_epochs)
        for first in range(0, order.num_rows, size)
    ]


def used(order: DataOrder, positions: range) -> set[int]:
    """The shards in which the rows at these positions lie."""
    return {row // order.rows_per_shard for row in rows(order, positions.start, positions.stop)}


@pytest.mark.parametrize("count", [*range(1, 70), 255, 256, 257, 1000, 1023, 1024, 1025, 4097])
def test_every_number_has_one_place_in_a_permutation(count: int) -> None:
    assert sorted(permutation(count)) == list(range(count))


def test_permutations_differ_by_seed_and_by_purpose() -> None:
    found = {tuple(permutation(100, seed, purpose)) for seed in range(5) for purpose in range(5)}
    assert len(found) == 25
    assert tuple(range(100)) not in found


@given(orders, st.integers(0, 1000))
def test_an_epoch_is_a_permutation_of_all_rows(order: DataOrder, epoch: int) -> None:
    assert sorted(epoch_rows(order, epoch)) == list(range(order.num_rows))


@given(orders)
def test_there_are_as_many_shards_as_the_rows_fill(order: DataOrder) -> None:
    assert 0 <= order.num_shards * order.rows_per_shard - order.num_rows < order.rows_per_shard


@given(st.integers(1, 2**40), st.integers(1, 2**20), st.integers(1, 1000), st.data())
def test_the_row_at_a_position_is_found_without_the_others(
    num_rows: int, num_shards: int, window_shards: int, data: st.DataObject
) -> None:
    rows_per_shard = -(-num_rows // min(num_shards, 1000))
    order = DataOrder(1, num_rows, rows_per_shard, window_shards)
    positions = data.draw(st.lists(st.integers(0, 3 * num_rows - 1), min_size=1, max_size=6))
    together = order.rows(np.array(positions)).tolist()
    assert together == [order.rows(np.array([position])).item() for position in positions]
    assert all(0 <= row < num_rows for row in together)
    within_epoch = {(position // num_rows, row) for position, row in zip(positions, together, strict=True)}
    assert len(within_epoch) == len({*positions})


def test_an_order_of_more_rows_than_fit_in_memory_costs_nothing() -> None:
    order = DataOrder(0, 2**40 + 1, 2**32, 16)
    batch = order.global_batch(2**31, 256).tolist()
    assert len({*batch}) == 256
    assert {row // 2**32 for row in batch} <= {*order.shards(2**39, 1)}


@given(orders, st.integers(1, 25), st.integers(1, 3))
def test_each_row_comes_once_per_epoch_with_batches_running_over_the_border(
    order: DataOrder, global_batch_size: int, num_epochs: int
) -> None:
    num_steps = -(-order.num_rows * num_epochs // global_batch_size)
    found = stream(order, num_steps, global_batch_size)
    assert len(found) == num_steps * global_batch_size
    for epoch in range(num_epochs):
        assert found[epoch * order.num_rows : (epoch + 1) * order.num_rows] == epoch_rows(order, epoch)


@given(orders, st.integers(1, 12), st.integers(1, 12))
def test_the_stream_does_not_depend_on_the_batch_size(order: DataOrder, first: int, second: int) -> None:
    assert stream(order, second, first) == stream(order, first, second)


@given(orders, st.integers(1, 32), st.integers(1, 8), st.integers(0, 10**9))
def test_all_ranks_together_see_the_batch_whatever_the_world_size(
    order: DataOrder, global_batch_size: int, world_size: int, step: int
) -> None:
    batch = order.global_batch(step, global_batch_size)
    parts = [rank_rows(batch, rank, world_size).tolist() for rank in range(world_size)]
    assert sorted(row for part in parts for row in part) == sorted(batch.tolist())
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("window_shards", [1, 2, 10])
def test_epochs_and_seeds_differ(window_shards: int) -> None:
    found = {
        tuple(epoch_rows(DataOrder(seed, 100, 10, window_shards), epoch)) for seed in range(5) for epoch in range(5)
    }
    assert len(found) == 25
    assert tuple(range(100)) not in found


def test_the_windows_of_an_epoch_are_mixed_differently() -> None:
    order = DataOrder(0, 1000, 100, 1)
    within = {tuple(row % 100 for row in rows(order, window.start, window.stop)) for window in windows(order)}
    assert len(within) == 20


@pytest.mark.parametrize(("rows_per_shard", "window_shards"), [(10_000, 1), (1000, 10), (999, 16), (1, 10_000)])
def test_an_order_of_one_window_is_well_mixed(rows_per_shard: int, window_shards: int) -> None:
    """Of random permutations, the mean distance between neighbours is a third, and one place in n stays."""
    order = np.array(epoch_rows(DataOrder(0, 10_000, rows_per_shard, window_shards)))
    assert abs(np.abs(np.diff(order)).mean() / 10_000 - 1 / 3) < 0.02
    assert (order == np.arange(10_000)).sum() < 10
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


def test_shards_come_in_any_order() -> None:
    order = DataOrder(0, 10_000, 10, 1)
    shards = np.array([row // 10 for row in epoch_rows(order)[::10]])
    assert abs(np.abs(np.diff(shards)).mean() / 1000 - 1 / 3) < 0.03
    assert abs(np.corrcoef(shards, np.arange(1000))[0, 1]) < 0.1


@pytest.mark.parametrize("window_shards", PINNED)
def test_the_order_is_the_same_in_every_version(window_shards: int) -> None:
    """A checkpoint's data position means nothing once this changes."""
    order = DataOrder(seed=1, num_rows=10, rows_per_shard=4, window_shards=window_shards)
    assert epoch_rows(order) + epoch_rows(order, 1) == PINNED[window_shards]
    assert stream(order, 2, 10) == PINNED[window_shards]


@given(orders, st.integers(1, 4), st.data())
def test_the_shards_of_the_next_windows_are_named_first_come_first(
    order: DataOrder, num_windows: int, data: st.DataObject
) -> None:
    known = windows(order, num_epochs=6)
    first = data.draw(st.integers(0, len(known) - 5))
    position = data.draw(st.sampled_from(known[first]))
    named = order.shards(position, num_windows)
    needed: set[int] = set()
    for window in known[first : first + num_windows]:
        needed |= used(order, window)
        assert {*named[: len(needed)]} == needed
    assert len(named) == len(needed)


@given(orders)
def test_a_window_is_of_few_shards(order: DataOrder) -> None:
    """A short shard shifts the windows after it, so one may begin and end within a shard."""
    for window in windows(order):
        assert len(order.shards(window.start, 1)) <= order.window_shards + 1
        assert len(order.shards(window.start, 2)) <= 2 * order.window_shards + 1


@given(orders, st.integers(1, 20), st.integers(0, 40))
def test_a_batch_needs_only_the_shards_of_its_windows(order: DataOrder, global_batch_size: int, step: int) -> None:
    positions = range(step * global_batch_size, (step + 1) * global_batch_size)
    known = windows(order, num_epochs=positions.stop // order.num_rows + 1)
    num_windows = sum(window.start < positions.stop and positions.start < window.stop for window in known)
    batch = order.global_batch(step, global_batch_size).tolist()
    assert {row // order.rows_per_shard for row in batch} <= {*order.shards(positions.start, num_windows)}


MIXTURES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 4)), min_size=1, max_size=3)


def mixed(parts: list[tuple[int, int]], seed: int = 0) -> MixedOrder:
    """Corpora of so many rows, with these weights."""
    orders = tuple(DataOrder(seed, num_rows, rows_per_shard=4, window_shards=2) for num_rows, _ in parts)
    return MixedOrder(seed, orders, tuple(weight for _, weight in parts))


@given(MIXTURES, st.integers(0, 10**6))
def test_each_corpus_comes_as_often_as_its_weight_says_in_every_cycle(parts: list[tuple[int, int]], cycle: int) -> None:
    order, total = mixed(parts), sum(weight for _, weight in parts)
    rows = order.rows(np.arange(cycle * total, (cycle + 1) * total))
    borders = np.cumsum([0, *(num_rows for num_rows, _ in parts)])
    for corpus, (_, weight) in enumerate(parts):
        assert ((rows >= borders[corpus]) & (rows < borders[corpus + 1])).sum() == weight


@given(MIXTURES)
def test_within_a_mixture_each_corpus_keeps_its_own_order_with_every_row_once_an_epoch(
    parts: list[tuple[int, int]],
) -> None:
    order, total = mixed(parts), sum(weight for _, weight in parts)
    rows = order.rows(np.arange(40 * total))
    borders = np.cumsum([0, *(num_rows for num_rows, _ in parts)])
    for corpus, own in enumerate(order.orders):
        mine = rows[(rows >= borders[corpus]) & (rows < borders[corpus + 1])] - borders[corpus]
        assert mine.tolist() == own.rows(np.arange(len(mine))).tolist()


@given(MIXTURES, st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
def test_a_position_of_a_mixture_is_found_without_the_others(parts: list[tuple[int, int]], places: list[int]) -> None:
    order = mixed(parts)
    together = order.rows(np.array(places)).tolist()
    assert together == [order.rows(np.array([place])).item() for place in places]


@given(MIXTURES, st.integers(0, 500))
def test_a_mixture_names_the_shard_that_its_next_row_uses(parts: list[tuple[int, int]], position: int) -> None:
    order = mixed(parts)
    shards = set(order.shards(position, 2))
    first_row = np.cumsum([0, *(num_rows for num_rows, _ in parts)])
    first_shard = np.cumsum([0, *(own.num_shards for own in order.orders)])
    row = order.rows(np.array([position])).item()
    corpus = int(np.searchsorted(first_row, row, side="right")) - 1
    assert first_shard[corpus] + (row - first_row[corpus]) // 4 in shards


@given(st.integers(0, 200), st.none() | st.integers(1, 300))
def test_rows_are_spread_evenly_without_repetition(num_rows: int, wanted: int | None) -> None:
    chosen = spread(num_rows, wanted)
    assert len(chosen) == min(num_rows, wanted if wanted is not None else num_rows)
    assert chosen == sorted({*chosen})
    assert all(0 <= row < num_rows for row in chosen)
    gaps = {after - before for before, after in pairwise(chosen)}
    assert max(gaps, default=1) - min(gaps, default=1) <= 1
    if chosen:
        assert chosen[0] == 0
        assert num_rows - chosen[-1] in (num_rows // len(chosen), -(-num_rows // len(chosen)))
