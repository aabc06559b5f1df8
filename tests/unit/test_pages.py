"""Text of strangers on pages and cards: shown, and never obeyed."""

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from codeparrot.pages import block, cell, code, fenced, share
from codeparrot.plots import visible

HOSTILE = st.text(st.one_of(st.sampled_from("`|<>&*_~[]()\\!#-+.\n\t :'\"{}%$"), st.characters()), max_size=40)


def parsed(text: str) -> list[tuple[str, str]]:
    """(type, content) of everything that a Markdown parser finds, tables included."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return [(each.type, each.content) for token in tokens for each in (token, *(token.children or []))]


def one_line(text: str) -> str:
    return " ".join(visible(text).split())


@given(HOSTILE)
def test_a_cell_of_a_table_holds_the_text_and_nothing_else(text: str) -> None:
    for form in (cell, code):
        found = parsed(f"| a | b |\n|---|---|\n| {form(text)} | x |\n")
        assert [kind for kind, _ in found].count("td_open") == 2
        assert {kind for kind, _ in found if not kind.startswith(("t", "inline", "code_inline"))} <= {"softbreak"}
        words = [content for kind, content in found if kind in ("text", "code_inline", "text_special")]
        assert " ".join("".join(words[2:-1]).split()) == (one_line(text) or ("(empty)" if form is code else ""))


@given(HOSTILE)
def test_a_block_of_code_holds_the_text_and_nothing_else(text: str) -> None:
    found = parsed(f"before\n\n{fenced(text, 'python')}\n\nafter\n")
    assert [kind for kind, _ in found if kind in ("fence", "html_block", "html_inline", "heading_open")] == ["fence"]
    assert dict(found)["fence"] == visible(text).removesuffix("\n") + "\n"
    assert ("text", "after") in found


def test_markup_is_spelled_out() -> None:
    assert cell("a|b\n<b>`x`\x1b") == "a&#124;b &#60;b&#62;&#96;x&#96;&#92;x1b"
    assert html.unescape(cell("__init__.py ~x~ $y$")) == "__init__.py ~x~ $y$"
    assert code("a_b\u202e") == "`a_b\\u202e`"
    assert code("a|b") == cell("a|b")
    assert fenced("````\n") == "`````\n````\n`````"
    assert block("a\n\n# b") == "    a\n\n    # b"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0.0 %"), (0.0001, "< 0.1 %"), (0.0006, "0.1 %"), (0.5, "50.0 %"), (1, "100.0 %")]
)
def test_a_share_that_is_not_nothing_never_looks_like_nothing(value: float, text: str) -> None:
    assert share(value) == text
