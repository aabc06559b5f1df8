import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.best_fit import best_fit, slots
from codeparrot.boundaries import positions, row_starts, segments
from codeparrot.errors import LedgerError
from codeparrot.packing import (
    Ledger,
    Plan,
    Strategy,
    copy_pieces,
    document_starts,
    encode_documents,
    plan,
    to_npy,
    token_dtype,
)
from codeparrot.tokenizer import Encoder, train_tokenizer

DOCUMENTS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30), max_size=12)
LENGTHS = st.lists(st.integers(1, 40), max_size=30)
ROW = st.integers(2, 12)
STRATEGIES: list[Strategy] = ["concat", "best_fit"]
STRATEGY = st.sampled_from(STRATEGIES)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(train_tokenizer([b"abab"], 258))


def planned(lengths: Sequence[int], max_seq_len: int, strategy: Strategy) -> Plan:
    return plan(np.array(lengths, dtype=np.int64), max_seq_len=max_seq_len, strategy=strategy)


def pieces(found: Plan) -> list[tuple[int, int, int, int, int]]:
    """(document, start, length, row, offset) of every piece."""
    columns = (found.document, found.start, found.length, found.row, found.offset)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def naive_rooms(lengths: Sequence[int], max_seq_len: int) -> list[int]:
    """What is left in each row after best-fit decreasing, piece by piece."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=rooms.__getitem__)] -= length
        else:
            rooms.append(max_seq_len - length)
    return sorted(rooms)


@given(LENGTHS, ROW, STRATEGY)
def test_every_token_stands_in_one_place(lengths: list[int], max_seq_len: int, strategy: Strategy) -> None:
    """No token is lost, none comes twice, and none lies beyond its row."""
    found = pieces(planned(lengths, max_seq_len, strategy))
    tokens = [(document, start + i) for document, start, length, _, _ in found for i in range(length)]
    places = [(row, offset + i) for _, _, length, row, offset in found for i in range(length)]
    assert sorted(tokens) == [(document, i) for document, length in enumerate(lengths) for i in range(length)]
    assert len(set(places)) == len(places)
    assert all(offset < max_seq_len for _, offset in places)
    assert places == sorted(places)


@given(LENGTHS, ROW)
def test_concatenated_rows_are_the_documents_one_after_the_other(lengths: list[int], max_seq_len: int) -> None:
    found = planned(lengths, max_seq_len, "concat")
    order = [(document, start) for document, start, *_ in pieces(found)]
    assert order == sorted(order)
    assert found.num_rows == sum(lengths) // max_seq_len
    places = [row * max_seq_len + offset for _, _, _, row, offset in pieces(found)]
    assert places == [0, *np.cumsum(found.length)[:-1].tolist()][: len(places)]


@given(LENGTHS, ROW)
def test_best_fit_cuts_no_document_that_fits_in_a_row(lengths: list[int], max_seq_len: int) -> None:
    found = pieces(planned(lengths, max_seq_len, "best_fit"))
    whole = {document for document, _, length, _, _ in found if length == lengths[document]}
    assert whole >= {document for document, length in enumerate(lengths) if length <= max_seq_len}
    for document, start, length, _, _ in found:
        assert start % max_seq_len == 0
        assert length == min(max_seq_len, lengths[document] - start)


@given(LENGTHS, ROW)
def test_best_fit_takes_as_many_rows_as_placing_piece_by_piece(lengths: list[int], max_seq_len: int) -> None:
    found = planned(lengths, max_seq_len, "best_fit")
    rooms = naive_rooms(found.length.tolist(), max_seq_len)
    filled = np.bincount(found.row, weights=found.length, minlength=found.num_rows)
    assert sorted((max_seq_len - filled).astype(int).tolist()) == rooms
    assert found.num_rows == len(rooms)


@given(st.dictionaries(st.integers(1, 20), st.integers(1, 400)), st.integers(20, 24))
def test_best_fit_places_as_many_pieces_of_each_length_as_there_are(counts: dict[int, int], max_seq_len: int) -> None:
    wanted = np.zeros(max_seq_len + 1, np.int64)
    wanted[list(counts)] = list(counts.values())
    patterns = best_fit(wanted)
    placed = slots(patterns)
    assert Counter(placed.length.tolist()) == Counter(counts)
    rows = np.bincount(placed.row, weights=placed.length)
    assert len(rows) == sum(number for _, number in patterns)
    assert all(0 < filled <= max_seq_len for filled in rows)
    lengths = [length for length, count in counts.items() for _ in range(count)]
    assert sorted((max_seq_len - rows).astype(int).tolist()) == naive_rooms(lengths, max_seq_len)


def test_best_fit_leaves_little_room_in_rows_of_many_documents() -> None:
    lengths = np.random.default_rng(1).lognormal(6, 1.5, 20_000).astype(np.int64) + 1
    found = plan(lengths, max_seq_len=1024, strategy="best_fit")
    assert lengths.sum() >= 0.997 * found.num_rows * 1024


def test_neighbouring_rows_of_best_fit_hold_neighbours_in_the_corpus() -> None:
    """So a task that writes a tenth of the rows reads about a tenth of the corpus, not all of it."""
    lengths = np.random.default_rng(1).lognormal(5, 1.5, 50_000).astype(np.int64) + 1
    found = plan(lengths, max_seq_len=256, strategy="best_fit")
    tenth = found.document[found.rows(found.num_rows // 2, found.num_rows * 6 // 10)] / len(lengths)
    assert np.quantile(tenth, 0.02) > 0.45
    assert np.quantile(tenth, 0.98) < 0.65


@given(LENGTHS, ROW, STRATEGY, st.integers(1, 5))
def test_the_pieces_of_consecutive_rows_are_a_slice(
    lengths: list[int], max_seq_len: int, strategy: Strategy, step: int
) -> None:
    found = planned(lengths, max_seq_len, strategy)
    last = int(found.row[-1]) if len(found.row) else -1
    slices = [found.rows(first, first + step) for first in range(0, last + 1, step)]
    assert [index for each in slices for index in range(len(found.row))[each]] == list(range(len(found.row)))
    assert all(
        first // step == row // step
        for first, each in zip(range(0, last + 1, step), slices, strict=True)
        for row in found.row[each].tolist()
    )


@given(LENGTHS, ROW, STRATEGY)
def test_boundaries_say_where_pieces_and_padding_begin(
    lengths: list[int], max_seq_len: int, strategy: Strategy
) -> None:
    found = planned(lengths, max_seq_len, strategy)
    here = found.rows(0, found.num_rows)
    starts = document_starts(found.row[here], found.offset[here], found.length[here], max_seq_len)
    expected: list[list[tuple[int, int]]] = [[] for _ in range(found.num_rows)]  # (segment, position) of each token
    for _, _, length, row, offset in pieces(found)[here]:
        assert len(expected[row]) == offset
        segment = expected[row][-1][0] + 1 if expected[row] else 0
        expected[row] += [(segment, position) for position in range(length)]
    for row, tokens in enumerate(expected):
        padding = range(max_seq_len - len(tokens))
        tokens += [(tokens[-1][0] + 1, position) for position in padding]
        mine = row_starts(starts, row, max_seq_len)
        assert segments(mine, max_seq_len).tolist() == [segment for segment, _ in tokens]
        assert positions(mine, max_seq_len).tolist() == [position for _, position in tokens]


@pytest.mark.parametrize(
    ("row", "offset", "length"),
    [([0, 0], [0, 2], [3, 2]), ([0], [2], [3]), ([0, 1], [0, 0], [5, 1]), ([1, 0], [0, 0], [4, 4])],
)
def test_pieces_that_overlap_or_reach_beyond_their_row_are_an_error(
    row: list[int], offset: list[int], length: list[int]
) -> None:
    with pytest.raises(LedgerError, match="overlap in rows of 4; nothing was committed"):
        document_starts(np.array(row), np.array(offset), np.array(length), 4)


@given(DOCUMENTS, ROW, STRATEGY)
def test_rows_of_text_hold_the_tokens_of_the_documents(
    encoder: Encoder, documents: list[str], max_seq_len: int, strategy: Strategy
) -> None:
    tokens, lengths = encode_documents(documents, encoder)
    found = plan(lengths, max_seq_len=max_seq_len, strategy=strategy)
    begins = (np.cumsum(lengths) - lengths)[found.document] + found.start
    rows = np.full((found.num_rows + 1) * max_seq_len, encoder.eos_token_id, tokens.dtype)
    copy_pieces(tokens, begins, found.length, rows, found.row * max_seq_len + found.offset)
    if strategy == "concat":
        assert rows[: len(tokens)].tolist() == tokens.tolist()
    parts: dict[int, dict[int, list[int]]] = {}
    for document, start, length, row, offset in pieces(found):
        place = row * max_seq_len + offset
        parts.setdefault(document, {})[start] = rows[place : place + length].tolist()
    for document, text in enumerate(documents):
        read = [token for start in sorted(parts[document]) for token in parts[document][start]]
        assert read == [*encoder.encode([text])[0].tolist(), encoder.eos_token_id]
    assert np.bincount(rows, minlength=258)[1:].tolist() == np.bincount(tokens, minlength=258)[1:].tolist()


@given(DOCUMENTS)
def test_a_document_ends_with_the_end_of_text_token_and_has_no_other(encoder: Encoder, documents: list[str]) -> None:
    tokens, lengths = encode_documents([*documents, "<|endoftext|>"], encoder)
    assert (np.flatnonzero(tokens == encoder.eos_token_id) + 1).tolist() == np.cumsum(lengths).tolist()


BALANCED = Ledger(tokens_in=11, tokens_in_rows=8, tokens_remainder=3, num_rows=2, num_documents=1, size_bytes=20)
PADDED = Ledger(6, 6, 0, num_rows=2, num_documents=1, size_bytes=20, tokens_padding=2)


@pytest.mark.parametrize(
    "ledger",
    [
        replace(BALANCED, tokens_in=12),
        replace(BALANCED, tokens_in=10),
        replace(BALANCED, num_rows=3),
        replace(BALANCED, tokens_in_rows=4, tokens_remainder=7, num_rows=1),
        replace(BALANCED, tokens_in_rows=12, tokens_remainder=-1, num_rows=3),
        replace(PADDED, tokens_padding=1),
        replace(PADDED, tokens_padding=3),
        replace(PADDED, tokens_in=8),
        replace(PADDED, tokens_in=9, tokens_in_rows=9, tokens_padding=-1),
    ],
)
def test_a_ledger_that_does_not_balance_is_an_error(ledger: Ledger) -> None:
    assert BALANCED.check(4) is BALANCED
    assert PADDED.check(4) is PADDED
    with pytest.raises(LedgerError, match=r"does not balance for rows of 4: .*nothing was committed"):
        ledger.check(4)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_tokens_are_as_narrow_as_the_vocabulary_allows(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size).str == dtype
    assert np.array([vocab_size - 1]).astype(token_dtype(vocab_size))[0] == vocab_size - 1


def test_encoded_documents_have_the_narrow_type(encoder: Encoder) -> None:
    assert encode_documents(["ab"], encoder)[0].dtype == np.dtype("<u2")
    assert encode_documents([], encoder)[0].shape == (0,)


def test_stored_rows_are_read_back_by_numpy(encoder: Encoder) -> None:
    rows = encode_documents(["abc"], encoder)[0].reshape(1, -1)
    loaded = np.load(io.BytesIO(to_npy(rows)), allow_pickle=False)
    assert loaded.dtype == rows.dtype
    assert loaded.tolist() == rows.tolist()
    assert to_npy(rows) == to_npy(rows.copy())
