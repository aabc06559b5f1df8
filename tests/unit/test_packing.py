import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.errors import LedgerError
from codeparrot.packing import Ledger, PackedShard, Piece, encode_documents, plan, to_npy, token_dtype
from codeparrot.tokenizer import Encoder, train_tokenizer

DOCUMENTS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30), max_size=12)
LENGTHS = st.lists(st.integers(0, 30), max_size=8)
ROW = st.integers(2, 9)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(train_tokenizer([b"abab"], 258))


def cut(documents: Sequence[str], borders: Sequence[int]) -> list[list[str]]:
    """The documents as curated shards, which may be empty."""
    places = sorted(border % (len(documents) + 1) for border in borders)
    return [list(documents[low:high]) for low, high in zip([0, *places], [*places, len(documents)], strict=True)]


def pack(
    shards: Sequence[Sequence[str]], encoder: Encoder, *, max_seq_len: int, rows_per_shard: int
) -> tuple[npt.NDArray[np.int64], list[int], list[PackedShard]]:
    """All packed rows, the remainder, and the packed shards, as the pack stage makes them."""
    encoded = [encode_documents(shard, encoder) for shard in shards]
    packed, rest = plan([len(tokens) for tokens in encoded], max_seq_len=max_seq_len, rows_per_shard=rows_per_shard)

    def tokens(pieces: Sequence[Piece]) -> list[int]:
        return [int(token) for piece in pieces for token in encoded[piece.shard][piece.start : piece.stop]]

    rows = [token for shard in packed for token in tokens(shard.pieces)]
    return np.array(rows, dtype=np.int64).reshape(-1, max_seq_len), tokens(rest), packed


def plain(documents: Sequence[str], encoder: Encoder) -> list[int]:
    """All documents, each followed by the end-of-text token."""
    tokens: list[int] = []
    for document in documents:
        tokens += [*encoder.encode([document])[0].tolist(), encoder.eos_token_id]
    return tokens


@given(DOCUMENTS, st.lists(st.integers(0, 99), max_size=4), ROW, st.integers(1, 5))
def test_rows_and_remainder_are_the_documents_one_after_the_other(
    encoder: Encoder, documents: list[str], borders: list[int], max_seq_len: int, rows_per_shard: int
) -> None:
    """Whichever way the documents are cut into shards, and whatever the size of a packed shard."""
    rows, rest, _ = pack(cut(documents, borders), encoder, max_seq_len=max_seq_len, rows_per_shard=rows_per_shard)
    assert [*rows.flatten().tolist(), *rest] == plain(documents, encoder)
    assert len(rest) < max_seq_len


@given(DOCUMENTS, st.lists(st.integers(0, 99), max_size=4), ROW, st.integers(1, 5))
def test_the_ledger_balances(
    encoder: Encoder, documents: list[str], borders: list[int], max_seq_len: int, rows_per_shard: int
) -> None:
    rows, rest, packed = pack(cut(documents, borders), encoder, max_seq_len=max_seq_len, rows_per_shard=rows_per_shard)
    ledger = Ledger(
        tokens_in=len(plain(documents, encoder)),
        tokens_in_rows=rows.size,
        tokens_remainder=len(rest),
        num_rows=sum(shard.num_rows for shard in packed),
        num_documents=len(documents),
        size_bytes=0,
    )
    assert ledger.check(max_seq_len) is ledger


@given(DOCUMENTS, ROW)
def test_the_end_of_text_token_comes_once_per_document(
    encoder: Encoder, documents: list[str], max_seq_len: int
) -> None:
    rows, rest, _ = pack([documents], encoder, max_seq_len=max_seq_len, rows_per_shard=3)
    assert [*rows.flatten().tolist(), *rest].count(encoder.eos_token_id) == len(documents)


@given(LENGTHS, ROW, st.integers(1, 5))
def test_a_plan_covers_every_token_once_and_in_order(lengths: list[int], max_seq_len: int, rows_per_shard: int) -> None:
    packed, rest = plan(lengths, max_seq_len=max_seq_len, rows_per_shard=rows_per_shard)
    pieces = [*(piece for shard in packed for piece in shard.pieces), *rest]
    tokens = [(piece.shard, token) for piece in pieces for token in range(piece.start, piece.stop)]
    assert tokens == [(shard, token) for shard, length in enumerate(lengths) for token in range(length)]
    assert all(piece.start < piece.stop for piece in pieces)


@given(LENGTHS, ROW, st.integers(1, 5))
def test_every_packed_shard_but_the_last_is_full(lengths: list[int], max_seq_len: int, rows_per_shard: int) -> None:
    packed, _ = plan(lengths, max_seq_len=max_seq_len, rows_per_shard=rows_per_shard)
    assert [shard.index for shard in packed] == list(range(len(packed)))
    assert all(shard.num_rows == rows_per_shard for shard in packed[:-1])
    for shard in packed:
        assert 1 <= shard.num_rows <= rows_per_shard
        assert sum(piece.stop - piece.start for piece in shard.pieces) == shard.num_rows * max_seq_len


BALANCED = Ledger(tokens_in=11, tokens_in_rows=8, tokens_remainder=3, num_rows=2, num_documents=1, size_bytes=20)


@pytest.mark.parametrize(
    "ledger",
    [
        replace(BALANCED, tokens_in=12),
        replace(BALANCED, tokens_in=10),
        replace(BALANCED, num_rows=3),
        replace(BALANCED, tokens_in_rows=4, tokens_remainder=7, num_rows=1),
        replace(BALANCED, tokens_in_rows=12, tokens_remainder=-1, num_rows=3),
    ],
)
def test_a_ledger_that_does_not_balance_is_an_error(ledger: Ledger) -> None:
    assert BALANCED.check(4) is BALANCED
    with pytest.raises(LedgerError, match=r"does not balance for rows of 4: .*nothing was committed"):
        ledger.check(4)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_tokens_are_as_narrow_as_the_vocabulary_allows(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size).str == dtype
    assert np.array([vocab_size - 1]).astype(token_dtype(vocab_size))[0] == vocab_size - 1


def test_encoded_documents_have_the_narrow_type(encoder: Encoder) -> None:
    assert encode_documents(["ab"], encoder).dtype == np.dtype("<u2")
    assert encode_documents([], encoder).shape == (0,)


def test_stored_rows_are_read_back_by_numpy(encoder: Encoder) -> None:
    rows = encode_documents(["abc"], encoder).reshape(1, -1)
    loaded = np.load(io.BytesIO(to_npy(rows)), allow_pickle=False)
    assert loaded.dtype == rows.dtype
    assert loaded.tolist() == rows.tolist()
    assert to_npy(rows) == to_npy(rows.copy())
