"""Lines are counted and measured as `str.splitlines` has them."""

from hypothesis import given
from hypothesis import strategies as st

from codeparrot.lines import first_lines, has_longer, num_lines, plain

TEXT = st.text(st.sampled_from("abcd \t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\u00e9"), max_size=40)


@given(TEXT)
def test_a_plain_text_has_the_same_lines_and_only_line_feeds_end_them(text: str) -> None:
    lines = plain(text)
    assert lines.splitlines() == text.splitlines() == lines.removesuffix("\n").split("\n")[: num_lines(lines)]
    assert (len(lines) - lines.count("\n")) == sum(map(len, text.splitlines()))


def test_a_text_that_is_plain_is_taken_as_it_is() -> None:
    text = "a = 1\n\n# \u00e9"
    assert plain(text) is text


@given(TEXT)
def test_lines_are_counted(text: str) -> None:
    assert num_lines(plain(text)) == len(text.splitlines())


@given(TEXT, st.integers(1, 12))
def test_the_first_lines_are_those_of_the_text(text: str, number: int) -> None:
    assert first_lines(plain(text), number) == text.splitlines()[:number]


@given(TEXT, st.integers(0, 12))
def test_a_line_is_too_long_if_one_is(text: str, limit: int) -> None:
    assert has_longer(plain(text), limit) is (max(map(len, text.splitlines()), default=0) > limit)
