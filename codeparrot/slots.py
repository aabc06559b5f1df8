"""Keys and values of a batch whose rows come and go: the cache of the engine.

    keys, values of a layer: (slots, heads, columns, width of a head)

A row fills a slot from its left, so its column is its position. Slots in use stand together at the front: a new row
takes the next one, and when a row leaves, the last one moves into its place. So a step computes on a view of the front,
as wide as the longest row; what a shorter row has not filled is masked, and finite. Room grows by doubling, up to the
number of slots and columns that the engine allows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

FIRST_COLUMNS = 64


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of the cache."""

    def __init__(self, place: "Place") -> None:
        super().__init__()
        self._place = place

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the first room."""
        place = self._place
        for name, states in (("keys", key_states), ("values", value_states)):
            shape = (place.room[0], states.shape[1], place.room[1], states.shape[3])
            setattr(self, name, states.new_zeros(shape))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store what a forward pass computed where `place` says; returns what it attends to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        place, rows = self._place, len(key_states)
        if place.columns is None:
            where = slice(place.first, place.first + rows)
            self.keys[where, :, : key_states.shape[2]] = key_states
            self.values[where, :, : value_states.shape[2]] = value_states
            return key_states, value_states
        self.keys[place.rows, :, place.columns] = key_states[:, :, 0]
        self.values[place.rows, :, place.columns] = value_states[:, :, 0]
        return self.keys[:rows, :, : place.width], self.values[:rows, :, : place.width]

    def grow(self) -> None:
        """Take the room that `place` asks for, and keep what there is."""
        for name in ("keys", "values") if self.is_initialized else ():
            old = getattr(self, name)
            new = old.new_zeros(self._place.room[0], old.shape[1], self._place.room[1], old.shape[3])
            new[: old.shape[0], :, : old.shape[2]] = old
            setattr(self, name, new)

    def copy(self, source: int, target: int, num_columns: int) -> None:
        """One row to another slot."""
        assert self.keys is not None
        assert self.values is not None
        for states in (self.keys, self.values):
            states[target, :, :num_columns] = states[source, :, :num_columns]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The engine brings its own mask."""
        return (query_length if self._place.columns is None else self._place.width), 0

    def get_seq_length(self) -> int:
        """The engine brings its own positions."""
        return 0

    def get_max_length(self) -> int:
        """Without limit, as far as the model is concerned."""
        return -1


class Place:
    """Where the forward pass that comes next stores its keys and values."""

    def __init__(self, num_slots: int) -> None:
        self.room = (min(num_slots, 4), FIRST_COLUMNS)
        self.first = 0
        self.rows: torch.Tensor | None = None
        self.columns: torch.Tensor | None = None
        """Of each row; None: a prompt, from column 0 of slot `first` on."""
        self.width = 0


class Slots(Cache):  # type: ignore[misc]
    """The cache of a model, as transformers asks for it."""

    def __init__(self, num_layers: int, num_slots: int, num_columns: int) -> None:
        self._limits = (num_slots, num_columns)
        self._place = Place(num_slots)
        super().__init__(layers=[SlotLayer(self._place) for _ in range(num_layers)])

    def for_prompts(self, first: int, num_rows: int, width: int) -> None:
        """Prepare for prompts that fill the slots from `first` on."""
        self._make_room(first + num_rows, width)
        self._place.first, self._place.columns = first, None

    def for_tokens(self, lengths: torch.Tensor, longest: int) -> None:
        """Prepare for one token of each row, which has this length: (rows,)."""
        self._make_room(len(lengths), longest + 1)
        self._place.rows = torch.arange(len(lengths), device=lengths.device)
        self._place.columns, self._place.width = lengths, longest + 1

    def make_room(self, num_rows: int) -> None:
        """Have this many slots."""
        self._make_room(num_rows, 1)

    def copy(self, source: int, target: int, num_columns: int) -> None:
        """What stands in a slot, to another one."""
        for layer in self._own():
            layer.copy(source, target, num_columns)

    def _make_room(self, *wanted: int) -> None:
        room = tuple(map(_doubled, self._place.room, wanted, self._limits))
        if room != self._place.room:
            self._place.room = (room[0], room[1])
            for layer in self._own():
                layer.grow()

    def _own(self) -> Sequence[SlotLayer]:
        layers: list[SlotLayer] = self.layers
        return layers


def _doubled(have: int, wanted: int, limit: int) -> int:
    assert wanted <= limit
    while have < wanted:
        have = min(2 * have, limit)
    return have
