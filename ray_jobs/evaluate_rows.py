"""Rows of the validation split, and what predicting them costs, by piece of a document.

What the tasks of `ray_jobs.evaluate` run, and where the pieces come from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from codeparrot.breakdown import Costs, Origins, added, joined, piece_costs
from codeparrot.dataloader import PackedRows
from codeparrot.draws import key
from codeparrot.evaluate import asked_costs, token_nll
from codeparrot.manifest import Manifest
from codeparrot.model import sees_documents_alone
from codeparrot.objectives import Causal, CausalSettings, ObjectiveSettings, fills_holes, objective_of
from codeparrot.pretrained import Pretrained, load_pretrained
from codeparrot.provenance import shard_index, whole_index
from codeparrot.storage import Storage, open_storage
from codeparrot.tokenizer import kept_encoder

Int64 = npt.NDArray[np.int64]
Kept = TypeVar("Kept")

SPLIT = "validation"
IDENTITY = ("source", "repository", "path")


@dataclass(frozen=True)
class Model:
    """What a task of Ray needs to load the model, which a process does once."""

    where: str
    """As `codeparrot.pretrained` knows it."""
    uri: str | None
    """Of the store in which names of runs are looked up."""
    version: str = ""
    """Another one: load it anew."""
    any_kind: bool = False
    """Whether it need not be a causal one."""

    def load(self) -> Pretrained:
        """The model. Raises CheckpointError."""
        storage = open_storage(self.uri) if self.uri else None
        return once("model", self, lambda: load_pretrained(self.where, storage, any_kind=self.any_kind))


@dataclass(frozen=True)
class Batch:
    """What a batch of rows has cost."""

    pieces: Costs
    positions: Costs


def batch_costs(
    indices: Sequence[int],
    *,
    uri: str,
    packed: Manifest,
    tokenizer_json: str,
    model: Model,
    settings: ObjectiveSettings = CausalSettings(),  # noqa: B008 - frozen
    seed: int = 0,
) -> Batch:
    """What is asked of these rows costs: the same as of the same rows during training with this seed."""
    import torch

    storage = open_storage(uri)
    rows = once("rows", (uri, packed.folder), lambda: PackedRows(storage, packed, SPLIT))
    tokens = rows.tensor(indices)
    if fills_holes(settings):
        objective = once(
            "objective", (settings, packed.folder), lambda: objective_of(settings, tokenizer_json, rows.max_seq_len)
        )
        assert not isinstance(objective, Causal)
        lengths = rows.lengths(indices) if rows.has_padding else None
        table = kept_encoder(tokenizer_json).token_bytes()
        with torch.inference_mode():
            costs = asked_costs(
                model.load().model, objective, tokens.numpy(), lengths, key(seed, "validation"), indices, table
            )
        return Batch(*piece_costs(costs, *_pieces(storage, packed, indices)))
    with torch.inference_mode():
        loaded = model.load().model
        positions = None
        if sees_documents_alone(loaded.config):
            positions = torch.from_numpy(rows.positions(indices)).to(loaded.device)
        nll = token_nll(loaded, tokens.to(loaded.device), positions).double().cpu().numpy()
    sizes = kept_encoder(tokenizer_json).token_bytes()[tokens.numpy()]
    # The first token of a row is not predicted.
    seen = np.ones_like(sizes)
    seen[:, 0] = sizes[:, 0] = 0
    costs = Costs(np.pad(nll, ((0, 0), (1, 0))), seen, sizes)
    return Batch(*piece_costs(costs, *_pieces(storage, packed, indices)))


def _pieces(storage: Storage, packed: Manifest, indices: Sequence[int]) -> tuple[Int64, Int64, Int64]:
    """(row in the batch, offset, tokens) of all pieces in these rows, which are in order."""
    found = [
        once("pieces", (storage.uri, packed.folder, shard), partial(_columns, storage, packed, shard))
        for shard in sorted({index // packed.counts["rows_per_shard"] for index in indices})
    ]
    row, offset, length = (np.concatenate(column) for column in zip(*found, strict=True))
    place = np.searchsorted(indices, row)
    here = np.asarray(indices)[np.minimum(place, len(indices) - 1)] == row
    return place[here], offset[here], length[here]


def _columns(storage: Storage, packed: Manifest, shard: int) -> tuple[Int64, ...]:
    names = ["row", "offset", "num_tokens"]
    table = shard_index(storage, packed, SPLIT, f"{shard:05d}", names)
    return tuple(table[name].to_numpy().astype(np.int64) for name in names)


def origins_of(storage: Storage, packed: Manifest, chosen: Sequence[int]) -> Origins:
    """Where the pieces in these rows come from, in order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    index = whole_index(storage, packed, SPLIT, ["row", "num_tokens", *IDENTITY, "license"])
    names = pc.binary_join_element_wise(*(index[name] for name in IDENTITY), "\0").combine_chunks().dictionary_encode()
    document = names.indices.to_numpy().astype(np.int64)
    length = np.bincount(document, index["num_tokens"].to_numpy()).astype(np.int64)
    here = pc.is_in(index["row"], pa.array(chosen, pa.int64()))
    kept = index.filter(here)
    of_piece = document[here.to_numpy()]
    return Origins(kept["repository"].to_pylist(), kept["license"].to_pylist(), of_piece.tolist(), length[of_piece])


def together(batches: Sequence[Batch]) -> tuple[Costs, Costs]:
    """(by piece, by position) of all rows, in their order."""
    return joined([batch.pieces for batch in batches]), added([batch.positions for batch in batches])


_kept: dict[str, tuple[Any, Any]] = {}
"""What this process has opened, by kind: what it is, and the thing itself. One of each kind at most."""


def once(kind: str, identity: Any, load: Callable[[], Kept]) -> Kept:
    """What `load` returns, kept until another thing of this kind is asked for."""
    if kind not in _kept or _kept[kind][0] != identity:
        _kept.pop(kind, None)
        _kept[kind] = (identity, load())
    kept: Kept = _kept[kind][1]
    return kept
