"""What texts show of a corpus, by hand."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.wording import habits, modules_of, telling_words, top_modules, words_of

WEB = "from fastapi import FastAPI\n\nasync def index(request):\n    return await request.json()\n"
SCIENCE = "import numpy as np\nimport numpy\n# a mean\nmean = np.mean(values)\n"


def test_words_are_identifiers_of_two_characters_or_more() -> None:
    assert words_of(["x = foo_1 + foo_1", "é2 3.5 _a"]) == {"foo_1": 2, "_a": 1}


def test_modules_are_those_that_statements_import() -> None:
    text = "import numpy.linalg as la\n    from os import path\nfrom . import here\nfrom .x import y\nimportant = 1\n"
    assert modules_of([text, "import numpy"]) == {"numpy": 2, "os": 1}


def test_the_words_that_tell_are_those_of_one_alone() -> None:
    own, others = words_of([WEB] * 9), words_of([SCIENCE] * 9)
    found = [word.word for word in telling_words(own, others)]
    assert found[0] == "request"  # the one that occurs most
    assert {"fastapi", "async"} <= set(found)
    assert not {"import", "numpy", "np"} & set(found)
    assert "numpy" in [word.word for word in telling_words(others, own)]


@given(st.dictionaries(st.sampled_from("abcdefg"), st.integers(1, 50), min_size=1))
def test_nothing_tells_equals_apart(words: dict[str, int]) -> None:
    assert telling_words(words, words) == []


def test_a_word_that_occurs_once_is_no_habit() -> None:
    own = Counter({"common": 500, "once": 1, "often": 60})
    others = Counter({"common": 500})
    assert [word.word for word in telling_words(own, others)] == ["often"]


def test_z_is_that_of_the_paper() -> None:
    """Both write a thousand words, `a` 600 times against 200; the prior has 80 of it among 200."""
    (word,) = [each for each in telling_words({"a": 600, "b": 400}, {"a": 200, "b": 800}) if each.word == "a"]
    odds = math.log((600 + 80) / (1000 + 200 - 600 - 80)) - math.log((200 + 80) / (1000 + 200 - 200 - 80))
    assert word.z == pytest.approx(odds / math.sqrt(1 / 680 + 1 / 280))
    assert (word.count, word.others) == (600, 200)


def test_habits_by_hand() -> None:
    found = habits(["ab\n\n    cdef\n", "async def f(): # x"])
    assert found["num_characters"] == 31
    assert found["line_characters"] == pytest.approx((2 + 8 + 18) / 3)
    assert found["empty_lines"] == pytest.approx(2 / 5)
    assert found["indentation"] == 4
    assert found["different_words"] == 1
    assert found["async_words"] == pytest.approx(1 / 4)
    assert found["comments"] == pytest.approx(3 / 31)


def test_of_nothing_nothing_is_told() -> None:
    assert set(habits([]).values()) == {0, None}
    assert top_modules([]) == []


def test_modules_of_small_and_large_counts_weigh_the_same() -> None:
    assert top_modules([{"a": 2}, {"b": 60, "c": 40}], number=2) == ["a", "b"]
    assert top_modules([{"a": 1}, {"b": 60, "c": 40}], number=2) == ["b", "c"]
