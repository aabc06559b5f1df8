import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.dedup import content_key, exact_duplicates

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


KEYS = st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=30)


@given(KEYS, st.randoms())
def test_the_documents_kept_do_not_depend_on_their_order(keys: list[bytes], order: random.Random) -> None:
    documents = list(enumerate(keys))
    order.shuffle(documents)
    dropped = exact_duplicates([key for _, key in documents], [(number,) for number, _ in documents])
    kept = {number for index, (number, _) in enumerate(documents) if index not in dropped}
    assert kept == {keys.index(key) for key in {*keys}}


@given(KEYS)
def test_one_document_of_every_key_is_kept(keys: list[bytes]) -> None:
    dropped = exact_duplicates(keys, [(index,) for index in range(len(keys))])
    kept = [key for index, key in enumerate(keys) if index not in dropped]
    assert sorted(kept) == sorted({*keys})
    assert dropped == sorted(dropped)


def test_the_preferred_of_the_duplicates_is_kept() -> None:
    assert exact_duplicates([b"a", b"a", b"a"], [("z", 1), ("a", 2), ("a", 1)]) == [0, 1]
