"""Where the two back ends of the tokenizer are known to differ, and that it is all there is."""

import numpy as np
import pyarrow as pa
from gigatoken import pretokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from codeparrot.characters import DISPUTED, disputed_texts, foreign_places, text_buffers

NEW = "".join(chr(code) for first, last in DISPUTED for code in (first, last))
ALL_NEW = {code for first, last in DISPUTED for code in range(first, last + 1)}
TEXTS = st.lists(st.text(st.characters(codec="utf-8") | st.sampled_from(NEW), max_size=6), max_size=8)


def test_the_back_ends_take_no_other_characters_for_different_kinds() -> None:
    codes = [code for code in range(0x40000) if not 0xD800 <= code < 0xE000]  # no letters or digits beyond
    text = "".join(f"a{chr(code)}1" for code in codes)  # a letter joins the a, a digit the 1
    reference = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    theirs = {stop for _, (_, stop) in reference}
    place = np.concatenate([[0], np.cumsum([len(text.encode())])])
    sizes = np.cumsum([len(character.encode()) for character in text])
    ours = set(np.searchsorted(sizes, np.cumsum([len(word) for word in pretokenizer(text.encode())])) + 1)
    assert place[-1] == sizes[-1]
    assert {codes[(place - 1) // 3] for place in ours ^ theirs} == ALL_NEW


def test_they_are_found_in_texts_and_no_others() -> None:
    codes = [code for code in range(0x800, 0x40000) if not 0xD800 <= code < 0xE000]
    found = disputed_texts(*text_buffers(pa.array([chr(code) for code in codes], pa.large_string())))
    assert {codes[number] for number in found} == ALL_NEW


@given(TEXTS, st.integers(0, 3))
def test_texts_that_hold_one_are_found_wherever_it_stands(texts: list[str], skipped: int) -> None:
    column = pa.array(texts, pa.large_string())[skipped:]
    expected = [number for number, text in enumerate(texts[skipped:]) if ALL_NEW & {*map(ord, text)}]
    assert disputed_texts(*text_buffers(column)).tolist() == expected


@given(st.binary(max_size=40), st.integers(0, 9))
def test_all_bytes_beyond_ascii_are_found(data: bytes, skipped: int) -> None:
    view = np.frombuffer(data, np.uint8)[skipped:]
    assert foreign_places(view).tolist() == np.flatnonzero(view >= 0x80).tolist()
