"""Packing: documents become rows of exactly `max_seq_len` tokens, and no token is lost.

All documents of a split, in corpus order, joined by the end-of-text token, are one long sequence of tokens; a row
is its next `max_seq_len` tokens. Only what is left at the very end of the split (less than one row) is kept
apart, once, and written down. The slides' ConstantLengthDataset fills a buffer instead and drops the tail of
every buffer.

It is done in two passes so that the bytes do not depend on the number of workers: every curated shard is encoded
on its own (`encode_documents`); the lengths then say which token ranges make up which packed shard (`plan`).
A packed shard is a NumPy file of shape (rows, max_seq_len), uint16 if the vocabulary fits, else uint32.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt

from codeparrot.errors import LedgerError
from codeparrot.settings import Settings
from codeparrot.tokenizer import Encoder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    TokenArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

UINT16_TOKENS = 1 << 16


class PackSettings(Settings):
    """The shape of a packed row."""

    max_seq_len: int = Field(default=1024, ge=2)
    """Tokens in a row."""
    shard_bytes: PositiveInt = 64_000_000
    """Size of one packed shard."""


@dataclass(frozen=True)
class Piece:
    """Tokens `start` to `stop` of one encoded shard."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class PackedShard:
    """One packed shard to be written: its rows are these pieces, one after the other."""

    index: int
    num_rows: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Ledger:
    """Where every token of a split went."""

    tokens_in: int
    tokens_in_rows: int
    tokens_remainder: int
    num_rows: int
    num_documents: int
    size_bytes: int
    """Text that was encoded, in bytes of UTF-8."""

    def check(self, max_seq_len: int) -> "Ledger":
        """Return the ledger if it balances. Raises LedgerError."""
        balanced = (
            self.tokens_in == self.tokens_in_rows + self.tokens_remainder
            and self.tokens_in_rows == self.num_rows * max_seq_len
            and 0 <= self.tokens_remainder < max_seq_len
        )
        if not balanced:
            raise LedgerError(
                f"the ledger does not balance for rows of {max_seq_len}: {asdict(self)}; nothing was committed"
            )
        return self


def token_dtype(vocab_size: int) -> "np.dtype[Any]":
    """The width of a stored token, little-endian."""
    import numpy as np

    return np.dtype("<u2" if vocab_size <= UINT16_TOKENS else "<u4")


def encode_documents(texts: Sequence[str], encoder: Encoder) -> "TokenArray":
    """All documents as one sequence, each followed by the end-of-text token: shape (tokens,)."""
    import numpy as np

    ids, lengths = encoder.encode(texts)
    ends = np.cumsum(lengths)
    return np.insert(ids, ends, encoder.eos_token_id).astype(token_dtype(encoder.vocab_size))


def plan(lengths: Sequence[int], *, max_seq_len: int, rows_per_shard: int) -> tuple[list[PackedShard], list[Piece]]:
    """Which ranges of the encoded shards (with these lengths in tokens) make up which packed shard.

    Returns the packed shards and the pieces of the remainder.
    """
    num_rows = sum(lengths) // max_seq_len
    shards = []
    for index, first in enumerate(range(0, num_rows, rows_per_shard)):
        rows = min(rows_per_shard, num_rows - first)
        pieces = _pieces(lengths, first * max_seq_len, (first + rows) * max_seq_len)
        shards.append(PackedShard(index, rows, tuple(pieces)))
    return shards, _pieces(lengths, num_rows * max_seq_len, sum(lengths))


def _pieces(lengths: Sequence[int], start: int, stop: int) -> list[Piece]:
    """The parts of the encoded shards that hold tokens `start` to `stop` of the whole sequence."""
    pieces, offset = [], 0
    for shard, length in enumerate(lengths):
        low, high = max(start, offset), min(stop, offset + length)
        if low < high:
            pieces.append(Piece(shard, low - offset, high - offset))
        offset += length
    return pieces


def to_npy(rows: "TokenArray") -> bytes:
    """An array as the bytes of a NumPy file."""
    import numpy as np

    sink = io.BytesIO()
    np.save(sink, rows, allow_pickle=False)
    return sink.getvalue()
