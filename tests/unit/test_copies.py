"""What stands word for word in the rows, against looking at every place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot import copies
from codeparrot.copies import NGRAM, Match, Texts, best, ngrams

Corpus = list[int]


def naive(text: list[int], corpus: list[int], row_tokens: int | None) -> tuple[int, int, list[bool]]:
    """Every pair of places."""
    longest, place, covered = 0, -1, [False] * len(text)
    for ours in range(len(text)):
        for theirs in range(len(corpus)):
            end = len(corpus) if row_tokens is None else min(len(corpus), theirs - theirs % row_tokens + row_tokens)
            size = 0
            while ours + size < len(text) and theirs + size < end and text[ours + size] == corpus[theirs + size]:
                size += 1
            if size >= NGRAM:
                covered[ours : ours + size] = [True] * size
                if size > longest or (size == longest and theirs < place):
                    longest, place = size, theirs
    return longest, place, covered


few = st.integers(0, 2)
texts_and_corpus = st.tuples(
    st.lists(st.lists(few, max_size=24), min_size=1, max_size=4), st.lists(few, max_size=90), st.none() | st.just(15)
)


@pytest.mark.parametrize(("chunk", "dense"), [(1 << 18, 1 << 14), (17, 5)])
@given(texts_and_corpus)
def test_matches_are_those_that_looking_everywhere_finds(
    chunk: int, dense: int, example: tuple[list[Corpus], Corpus, int | None]
) -> None:
    texts, corpus, row_tokens = example
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "CHUNK", chunk)
        patch.setattr(copies, "DENSE", dense)
        found = Texts([np.array(text, np.int32) for text in texts]).find(np.array(corpus, np.uint16), row_tokens)
    for text, match in zip(texts, found, strict=True):
        assert (match.longest, match.place, match.covered.tolist()) == naive(text, corpus, row_tokens)


def test_a_match_may_lie_across_rows_only_where_rows_continue_each_other() -> None:
    corpus, text = np.arange(40, dtype=np.uint16), np.arange(15, 25)
    assert Texts([text]).find(corpus)[0].longest == 10
    assert Texts([text]).find(corpus, row_tokens=20)[0].longest == 0


def test_equal_hashes_do_not_make_a_match(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "ngrams", lambda tokens: np.zeros(max(0, len(tokens) - NGRAM + 1), np.uint64))
    corpus = np.arange(30, dtype=np.uint16)
    found = Texts([np.arange(100, 112), np.arange(5, 15)]).find(corpus)
    assert [match.longest for match in found] == [0, 10]


def test_what_is_shorter_than_a_run_is_found_nowhere() -> None:
    corpus = np.arange(30, dtype=np.uint16)
    for text in ([], [1], list(range(NGRAM - 1))):
        match = Texts([np.array(text, np.int64)]).find(corpus)[0]
        assert (match.longest, match.place) == (0, -1)
    assert Texts([]).find(corpus) == []
    assert ngrams(np.arange(NGRAM - 1)).shape == (0,)


def test_shards_that_were_searched_apart_are_put_together() -> None:
    found = best(
        [
            Match(8, 100, np.array([True, False, True])),
            Match(9, 700, np.array([False, False, True])),
            Match(9, 900, np.array([False, False, False])),
        ]
    )
    assert (found.longest, found.place, found.covered.tolist()) == (9, 700, [True, False, True])


def test_what_repeats_itself_meets_itself_everywhere_and_is_found() -> None:
    """A line of equal tokens in text and corpus meets itself everywhere."""
    corpus, text = np.zeros(6_000, np.uint16), np.zeros(96, np.int64)
    match = Texts([text, text])
    assert match.find(corpus)[1].longest == 96
