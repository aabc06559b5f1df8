import random
import time
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.dedup import KEY_BYTES, content_key, content_keys, exact_duplicates, ranks
from codeparrot.documents import Document, make_document, to_table

BLANK = st.text(st.sampled_from(" \t\f\v"), max_size=3)
LINE = st.text(st.sampled_from("ab \t#=:'\u00a0"), min_size=1, max_size=8).filter(lambda line: line.strip(" \t") != "")
PROGRAM = st.lists(LINE, min_size=1, max_size=6)


@given(PROGRAM, st.data())
def test_blank_lines_and_trailing_space_do_not_matter(lines: list[str], data: st.DataObject) -> None:
    plain = "\n".join(line.rstrip(" \t") for line in lines)
    blanks = st.lists(BLANK, max_size=2)
    spaced = data.draw(blanks)
    for line in lines:
        spaced += [line + data.draw(BLANK), *data.draw(blanks)]
    assert content_key("\n".join(spaced)) == content_key(plain) == content_key(plain + "\n")


@given(PROGRAM, st.integers(0, 5), st.sampled_from([" ", "\t", "    "]))
def test_indentation_matters(lines: list[str], index: int, indentation: str) -> None:
    """The original hashed without white space, which merged programs that differ only by indentation."""
    deeper = list(lines)
    deeper[index % len(lines)] = indentation + deeper[index % len(lines)]
    assert content_key("\n".join(deeper)) != content_key("\n".join(lines))


@given(PROGRAM, PROGRAM)
def test_different_programs_have_different_keys(first: list[str], second: list[str]) -> None:
    same = [line.rstrip(" \t") for line in first] == [line.rstrip(" \t") for line in second]
    assert (content_key("\n".join(first)) == content_key("\n".join(second))) is same


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("if x:\n    a()\nb()\n", "if x:\n    a()\n    b()\n"),
        ("\n  x = 1\n", "x = 1\n"),
        ("\f  x = 1\n", "x = 1\n"),
        ("a b\n", "ab\n"),
        ("a\nb\n", "ab\n"),
        ("a\n b\n", "a\nb\n"),
    ],
)
def test_white_space_within_the_program_matters(first: str, second: str) -> None:
    assert content_key(first) != content_key(second)


def test_a_long_run_of_spaces_costs_no_more_than_its_length() -> None:
    start = time.process_time()
    content_key("x" + " " * 1_000_000 + "y")
    assert time.process_time() - start < 1  # a quadratic pass takes minutes


@given(st.text(st.sampled_from("ab \t\f\v\n\u00a0"), max_size=40))
def test_a_key_is_that_of_the_lines_that_are_left(text: str) -> None:
    lines = (line.rstrip(" \t\f\v") for line in text.split("\n"))
    plain = "\n".join(line for line in lines if line)
    assert content_key(text) == blake2b(plain.encode(), digest_size=KEY_BYTES).digest()


@given(st.lists(st.text(st.sampled_from("ab \t\f\v\n\u00a0"), max_size=12), max_size=6), st.integers(0, 6))
def test_keys_of_many_documents_are_those_of_each(texts: list[str], cut: int) -> None:
    expected = b"".join(map(content_key, texts))
    whole = pa.array(["before\n", *texts, " after"], pa.string())
    assert content_keys(pa.chunked_array([whole])[1:-1]) == expected
    assert (
        content_keys(pa.chunked_array([pa.array(texts[:cut], pa.string()), pa.array(texts[cut:], pa.string())]))
        == expected
    )


KEYS = st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=30)


def dropped_of(keys: list[bytes], preference: list[int]) -> tuple[list[int], list[int]]:
    numbers = np.array([[key[0] // 2, key[0] % 2] for key in keys], np.uint64).reshape(-1, 2)
    dropped, stays = exact_duplicates(numbers, np.array(preference, np.int64))
    return dropped.tolist(), stays.tolist()


@given(KEYS, st.randoms())
def test_the_documents_kept_do_not_depend_on_their_order(keys: list[bytes], order: random.Random) -> None:
    documents = list(enumerate(keys))
    order.shuffle(documents)
    dropped, stays = dropped_of([key for _, key in documents], [number for number, _ in documents])
    assert [documents[index][1] for index in dropped] == [documents[index][1] for index in stays]
    kept = {number for index, (number, _) in enumerate(documents) if index not in dropped}
    assert kept == {keys.index(key) for key in {*keys}}


@given(KEYS)
def test_one_document_of_every_key_is_kept(keys: list[bytes]) -> None:
    dropped, stays = dropped_of(keys, [*range(len(keys))])
    assert not {*dropped} & {*stays}
    kept = [key for index, key in enumerate(keys) if index not in dropped]
    assert sorted(kept) == sorted({*keys})
    assert dropped == sorted(dropped)


def test_the_preferred_of_the_duplicates_is_kept() -> None:
    assert dropped_of([b"a", b"a", b"a"], [3, 2, 1]) == ([0, 1], [2, 2])


def when(year: int) -> datetime:
    return datetime(year, 1, 1, tzinfo=UTC)


def document(
    path: str, license: str | None = "MIT", stars: int | None = None, updated: datetime | None = None, **where: str
) -> Document:
    made = make_document(
        b"x = 1\n", **{"source": "s", "repository": "r", **where}, path=path, revision=None, license=license
    )
    assert isinstance(made, Document)
    return replace(made, stars=stars, updated=updated)


ORDER = [
    document("d.py", stars=7),
    document("a.py", stars=5, updated=when(2024)),
    document("z.py", stars=5, updated=when(2020)),
    document("a.py", stars=5, repository="a"),
    document("b.py", stars=5, repository="a"),
    document("a.py", stars=0),
    document("c.py", updated=when(2025)),
    document("z.py", source="a"),
    document("e.py"),
    document("a.py", license=None, stars=100, updated=when(2025)),
    document("b.py", license=None),
]
"""As they are preferred: licence, stars, date, id."""


@given(st.permutations(range(len(ORDER))))
def test_licence_then_stars_then_date_then_id_decide_whatever_the_order(order: list[int]) -> None:
    table = to_table([ORDER[place] for place in order])
    assert ranks(table).tolist() == order
    names = table["repository"].dictionary_encode()
    assert ranks(table.set_column(0, "repository", names)).tolist() == order


def test_no_documents_have_no_duplicates() -> None:
    assert dropped_of([], []) == ([], [])
    assert ranks(to_table([])).tolist() == []
