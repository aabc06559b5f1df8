"""Packing: documents become rows of exactly `max_seq_len` tokens, and no token is lost.

Every document is followed by the end-of-text token. There are two strategies:

    concat    All documents of a split, in corpus order, are one long sequence; a row is its next `max_seq_len` tokens.
              What is left at the very end of the split (less than one row) is kept apart and written down.
    best_fit  A document that fits in a row is never cut; a longer one becomes full rows and a rest. Rests and short
              documents share rows so that little room is left (`codeparrot.best_fit`), which end-of-text tokens fill.

The slides' ConstantLengthDataset fills a buffer instead and drops the tail of every buffer.

It is done in two passes so that the bytes do not depend on the number of workers: every curated shard is encoded on
its own (`encode_documents`); the lengths of all documents then say which piece of which document stands where (`plan`).
A packed shard is a NumPy file of shape (rows, max_seq_len), uint16 if the vocabulary fits, else uint32.
"""

import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from codeparrot.best_fit import best_fit, slots
from codeparrot.errors import LedgerError
from codeparrot.settings import Settings
from codeparrot.tokenizer import Encoder, Texts

if TYPE_CHECKING:
    TokenArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

Int64 = npt.NDArray[np.int64]
Strategy = Literal["concat", "best_fit"]
UINT16_TOKENS = 1 << 16


class PackSettings(Settings):
    """The shape of a packed row, and how documents come to share rows."""

    strategy: Strategy = "concat"
    """concat: documents one after the other, cut where a row ends. best_fit: no document that fits in a row is cut; the
    room that is left, some tenths of a percent, is filled with end-of-text tokens."""
    max_seq_len: int = Field(default=1024, ge=2)
    """Tokens in a row."""
    shard_bytes: PositiveInt = 64_000_000
    """Size of one packed shard."""


@dataclass(frozen=True)
class Plan:
    """Which piece of which document stands where: arrays of shape (pieces,), by row and offset."""

    document: Int64
    """Its number in corpus order."""
    start: Int64
    """The piece's first token, counted from the beginning of the document."""
    length: Int64
    """In tokens."""
    row: Int64
    """From `num_rows` on: the remainder."""
    offset: Int64
    """Of the piece in its row."""
    num_rows: int

    def rows(self, first: int, stop: int) -> slice:
        """The pieces of these rows."""
        low, high = np.searchsorted(self.row, (first, stop))
        return slice(int(low), int(high))


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
    tokens_padding: int = 0
    """End-of-text tokens that fill rows, and came from no document."""

    def check(self, max_seq_len: int) -> "Ledger":
        """Return the ledger if it balances. Raises LedgerError."""
        balanced = (
            self.tokens_in == self.tokens_in_rows + self.tokens_remainder
            and self.tokens_in_rows + self.tokens_padding == self.num_rows * max_seq_len
            and 0 <= self.tokens_remainder < max_seq_len
            and self.tokens_padding >= 0
        )
        if not balanced:
            raise LedgerError(
                f"the ledger does not balance for rows of {max_seq_len}: {asdict(self)}; nothing was committed"
            )
        return self


def token_dtype(vocab_size: int) -> "np.dtype[Any]":
    """The width of a stored token, little-endian."""
    return np.dtype("<u2" if vocab_size <= UINT16_TOKENS else "<u4")


def encode_documents(texts: Texts, encoder: Encoder) -> "tuple[TokenArray, Int64]":
    """All documents as one sequence, each followed by the end-of-text token, and how long each is, that included.

    Shapes (tokens,) and (documents,).
    """
    ids, lengths = encoder.encode(texts)
    begins = np.cumsum(lengths) - lengths
    tokens = np.full(len(ids) + len(lengths), encoder.eos_token_id, token_dtype(encoder.vocab_size))
    copy_pieces(ids, begins, lengths, tokens, begins + np.arange(len(lengths)))
    return tokens, lengths + 1


def plan(lengths: Int64, *, max_seq_len: int, strategy: Strategy) -> Plan:
    """How documents of these lengths (end-of-text tokens included, so none is 0) become rows.

    `lengths`: shape (documents,), in corpus order.
    """
    return (_concatenated if strategy == "concat" else _fitted)(lengths, max_seq_len)


def _concatenated(lengths: Int64, max_seq_len: int) -> Plan:
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.concatenate([ends, np.arange(max_seq_len, total, max_seq_len)])
    cuts.sort(kind="stable")  # timsort: it merges two sequences that are sorted already
    cuts = cuts[np.diff(cuts, prepend=0) > 0]
    sizes = np.diff(cuts, prepend=0)
    begins = cuts - sizes
    document = np.searchsorted(ends, begins, side="right")
    start = begins - (ends - lengths)[document]
    return Plan(document, start, sizes, begins // max_seq_len, begins % max_seq_len, total // max_seq_len)


def _fitted(lengths: Int64, max_seq_len: int) -> Plan:
    """Pieces of one length stand in for each other, so they are handed out in corpus order.

    Rows that are neighbours therefore hold neighbours in the corpus, and whoever writes some of them reads a part of
    the corpus, not all of it.
    """
    num_pieces = -(-lengths // max_seq_len)
    document = np.repeat(np.arange(len(lengths)), num_pieces)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    start = nth * max_seq_len
    length = np.minimum(lengths[document] - start, max_seq_len)
    places = slots(best_fit(np.bincount(length, minlength=max_seq_len + 1)))
    piece = np.empty_like(document)
    piece[_by_length(places.length, max_seq_len)] = _by_length(length, max_seq_len)
    before = np.cumsum(places.length) - places.length
    num_rows = int(places.row[-1]) + 1 if len(places.row) else 0
    first = np.searchsorted(places.row, np.arange(num_rows))
    offset = before - before[first][places.row]
    return Plan(document[piece], start[piece], places.length, places.row, offset, num_rows)


def _by_length(lengths: Int64, max_seq_len: int) -> Int64:
    narrow = lengths.astype(np.uint16 if max_seq_len < UINT16_TOKENS else np.uint64)  # 16 bits: a radix sort
    return np.argsort(narrow, kind="stable")


def copy_pieces(source: npt.NDArray[Any], begins: Int64, lengths: Int64, target: npt.NDArray[Any], at: Int64) -> None:
    """`target[at[i]:][:lengths[i]] = source[begins[i]:][:lengths[i]]` for all i; pieces that adjoin go as one."""
    if not len(at):
        return
    adjoins = (begins[1:] == begins[:-1] + lengths[:-1]) & (at[1:] == at[:-1] + lengths[:-1])
    first = np.flatnonzero(np.concatenate([[True], ~adjoins]))
    together = np.add.reduceat(lengths, first)
    for begin, size, place in zip(begins[first].tolist(), together.tolist(), at[first].tolist(), strict=True):
        target[place : place + size] = source[begin : begin + size]


def document_starts(row: Int64, offset: Int64, length: Int64, max_seq_len: int) -> npt.NDArray[Any]:
    """The starts (`codeparrot.boundaries`) of pieces, by row and offset, and of the padding behind them.

    `row`: counted from the first of the shard. Raises LedgerError if pieces overlap or reach beyond their row.
    """
    begins = row * max_seq_len + offset
    ends = begins + length
    if (begins[1:] < ends[:-1]).any() or (offset + length > max_seq_len).any():
        raise LedgerError(f"pieces of documents overlap in rows of {max_seq_len}; nothing was committed")
    last = np.append(row[1:] != row[:-1], len(row) > 0)[: len(row)]
    padding = ends[last & (ends % max_seq_len != 0)]
    starts = np.sort(np.concatenate([begins, padding]))
    return starts.astype("<u4" if not len(starts) or starts[-1] < 1 << 32 else "<u8")


def row_lengths(row: Int64, length: Int64, num_rows: int) -> npt.NDArray[np.uint32]:
    """How many tokens of each row are those of pieces, not padding: shape (num_rows,)."""
    lengths = np.zeros(num_rows, "<u4")
    np.add.at(lengths, row, length.astype("<u4"))
    return lengths


def to_npy(rows: npt.NDArray[Any]) -> bytes:
    """An array as the bytes of a NumPy file."""
    sink = io.BytesIO()
    np.save(sink, rows, allow_pickle=False)
    return sink.getvalue()
