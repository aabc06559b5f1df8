"""Which row is trained on when: a pure function of (seed, position), so nothing has to be remembered or replayed.

Position p of the stream (row i of step s is p = s * global_batch_size + i) belongs to epoch p div n. Every row comes
exactly once per epoch, the data position of a run is one integer, resuming costs O(1), the number of workers changes
nothing, and batches run over the border of an epoch.

So that a corpus larger than the local cache can be read shard by shard, an epoch permutes the shards and then the
rows within a window of consecutive ones. A permutation is a Feistel network over the next power of four, walked until
it lands in range (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, section 3): O(1) memory for any
number of rows.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from codeparrot.draws import key

NUM_ROUNDS = 6
UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DataOrder:
    """The order of the rows of a packed split."""

    seed: int
    num_rows: int
    rows_per_shard: int
    """Of every shard but the last, which may have fewer."""
    window_shards: int
    """Shards whose rows are shuffled together."""

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.rows_per_shard)

    @property
    def _window_rows(self) -> int:
        return self.window_shards * self.rows_per_shard

    def global_batch(self, step: int, global_batch_size: int) -> Int64:
        """The row numbers of one step, in order: shape (global_batch_size,)."""
        first = step * global_batch_size
        return self.rows(np.arange(first, first + global_batch_size))

    def rows(self, positions: Int64) -> Int64:
        """The rows at these positions of the stream: shape of `positions`."""
        rows = np.empty_like(positions)
        blocks = np.stack([positions // self.num_rows, positions % self.num_rows // self._window_rows])
        for epoch, window in np.unique(blocks, axis=1).T.tolist():
            here = (blocks[0] == epoch) & (blocks[1] == window)
            first, stop = self._slots(window)
            within = (positions[here] % self.num_rows - first).astype(np.uint64)
            slots = first + permute(within, stop - first, self.seed, "rows", epoch, window).astype(np.int64)
            place, row = self._place(slots, epoch)
            rows[here] = self._shard_order(epoch)[place] * self.rows_per_shard + row
        return rows

    def shards(self, position: int, num_windows: int) -> list[int]:
        """The shards needed from this position on, first come first, for this window and those that follow it."""
        epoch, within = divmod(position, self.num_rows)
        window = within // self._window_rows
        found: dict[int, None] = {}
        for _ in range(num_windows):
            first, stop = self._slots(window)
            places, _ = self._place(np.array([first, stop - 1]), epoch)
            found |= dict.fromkeys(self._shard_order(epoch)[places[0] : places[1] + 1].tolist())
            window += 1
            if stop == self.num_rows:
                epoch, window = epoch + 1, 0
        return list(found)

    def _slots(self, window: int) -> tuple[int, int]:
        first = window * self._window_rows
        return first, min(first + self._window_rows, self.num_rows)

    def _place(self, slots: Int64, epoch: int) -> tuple[Int64, Int64]:
        """(place in the epoch's order of shards, row within that shard) of slots in the concatenation of shards."""
        size = self.rows_per_shard
        order = self._shard_order(epoch)
        short_place = int(np.flatnonzero(order == self.num_shards - 1)[0])
        missing = self.num_shards * size - self.num_rows
        padded = np.where(slots < (short_place + 1) * size - missing, slots, slots + missing)
        return padded // size, padded % size

    def _shard_order(self, epoch: int) -> Int64:
        return _permutation(self.num_shards, self.seed, epoch)


@dataclass(frozen=True)
class MixedOrder:
    """Several corpora, each in its own order, mixed by whole-number weights.

    Every `sum(weights)` positions hold each corpus as often as its weight says, in a keyed order, so the share of a
    corpus is exact, and where its stream stands is a function of the position. Rows are numbered through: those of
    the second corpus follow those of the first.
    """

    seed: int
    orders: tuple[DataOrder, ...]
    weights: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        return sum(order.num_rows for order in self.orders)

    def global_batch(self, step: int, global_batch_size: int) -> Int64:
        """The row numbers of one step, in order: shape (global_batch_size,)."""
        first = step * global_batch_size
        return self.rows(np.arange(first, first + global_batch_size))

    def rows(self, positions: Int64) -> Int64:
        """The rows at these positions of the mixed stream: shape of `positions`."""
        rows = np.empty_like(positions)
        corpora, places = self._streams(positions)
        offset = 0
        for corpus, order in enumerate(self.orders):
            here = corpora == corpus
            rows[here] = offset + order.rows(places[here])
            offset += order.num_rows
        return rows

    def shards(self, position: int, num_windows: int) -> list[int]:
        """The shards needed from this position on, of all corpora; they are numbered through as rows are."""
        cycle, slot = divmod(position, sum(self.weights))
        pattern, _ = _pattern(self.seed, self.weights, cycle)
        found, offset = list[int](), 0
        for corpus, (order, weight) in enumerate(zip(self.orders, self.weights, strict=True)):
            place = cycle * weight + int((pattern[:slot] == corpus).sum())
            found += [offset + shard for shard in order.shards(place, num_windows)]
            offset += order.num_shards
        return found

    def _streams(self, positions: Int64) -> tuple[Int64, Int64]:
        """(corpus, position in its own stream) of positions in the mixed stream."""
        total = sum(self.weights)
        corpora, places = np.empty_like(positions), np.empty_like(positions)
        for cycle in np.unique(positions // total).tolist():
            here = positions // total == cycle
            pattern, seen = _pattern(self.seed, self.weights, cycle)
            slots = positions[here] % total
            corpora[here] = pattern[slots]
            places[here] = cycle * np.array(self.weights)[pattern[slots]] + seen[slots]
        return corpora, places


@lru_cache(maxsize=4096)
def _pattern(seed: int, weights: tuple[int, ...], cycle: int) -> tuple[Int64, Int64]:
    """(corpus of each slot, how often it came before in this cycle): shapes (sum(weights),)."""
    total = sum(weights)
    order = permute(np.arange(total, dtype=np.uint64), total, seed, "mixture", cycle).astype(np.int64)
    pattern = np.repeat(np.arange(len(weights)), weights)[order]
    seen = np.zeros_like(pattern)
    for corpus in range(len(weights)):
        seen[pattern == corpus] = np.arange(weights[corpus])
    return pattern, seen


Order = DataOrder | MixedOrder


@lru_cache(maxsize=8)
def _permutation(count: int, seed: int, epoch: int) -> Int64:
    return permute(np.arange(count, dtype=np.uint64), count, seed, "shards", epoch).astype(np.int64)


def permute(indices: UInt64, count: int, seed: int, *purpose: str | int) -> UInt64:
    """The images of `indices` (each < count) under the permutation with this key: shape of `indices`."""
    half = np.uint64(max(1, (max(1, count - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = _round_keys(seed, *purpose)
    values = _feistel(indices.astype(np.uint64), half, mask, keys)
    outside = values >= count
    while outside.any():
        values[outside] = _feistel(values[outside], half, mask, keys)
        outside = values >= count
    return values


def _feistel(values: UInt64, half: np.uint64, mask: np.uint64, keys: UInt64) -> UInt64:
    left, right = values >> half, values & mask
    for round_key in keys:
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << half) | right


def _mix(values: UInt64) -> UInt64:
    """The finaliser of SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=64)
def _round_keys(seed: int, *purpose: str | int) -> UInt64:
    keys: list[Any] = [key(seed, *purpose, index, num_bits=64) for index in range(NUM_ROUNDS)]
    return np.array(keys, dtype=np.uint64)


def rank_rows(batch: Int64, rank: int, world_size: int) -> Int64:
    """The rows of a batch that one rank trains on: every world_size-th, so that ranks together see all."""
    return batch[rank::world_size]


def spread(num_rows: int, wanted: int | None) -> list[int]:
    """At most `wanted` row numbers, evenly spread over `num_rows` and without repetition."""
    if wanted is None or wanted >= num_rows:
        return list(range(num_rows))
    return [index * num_rows // wanted for index in range(wanted)]
