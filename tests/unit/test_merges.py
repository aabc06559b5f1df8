"""Merges are those that the trainer of `tokenizers` learns, however the words were counted."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from codeparrot import merges
from codeparrot.errors import TokenizerError
from codeparrot.merges import fast_merges
from codeparrot.tokenizer import EOS, MIN_VOCAB_SIZE, byte_alphabet, train_on_words, train_tokenizer
from codeparrot.words import add_up, count_words

NEW = "\U00016ebb"
SEEN = f'    "{NEW}",\n    "a"\n'
TEXTS = st.lists(
    st.text(st.sampled_from("aab \n"), max_size=30) | st.text(st.sampled_from("abc\u00e9\U00016ebb,. "), max_size=30),
    max_size=6,
)


def reference(texts: Sequence[str], vocab_size: int) -> list[list[str]]:
    """The merges of `tokenizers`."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(byte_alphabet().values())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    found: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return found


def learned(tokenizer_json: str) -> list[list[str]]:
    found: list[list[str]] = json.loads(tokenizer_json)["model"]["merges"]
    return found


def encoded(texts: Sequence[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def without_new_letters(texts: Sequence[str]) -> list[str]:
    return ["".join(line for line in text.splitlines(keepends=True) if NEW not in line) for text in texts]


@given(TEXTS)
def test_merges_and_their_number_are_those_of_tokenizers(texts: list[str]) -> None:
    expected = reference(without_new_letters(texts), MIN_VOCAB_SIZE + 60)
    size = MIN_VOCAB_SIZE + len(expected)
    assert learned(train_tokenizer(encoded(texts), size)) == expected
    if size < MIN_VOCAB_SIZE + 60:
        with pytest.raises(TokenizerError, match=f"supports only {size};"):
            train_tokenizer(encoded(texts), size + 1)


@pytest.fixture(scope="module")
def code() -> list[str]:
    """Half a megabyte of Python, with letters that are new in Unicode."""
    paths = sorted(Path(torch.__file__).parent.glob("*.py"))
    return [*(path.read_text("utf-8") for path in paths), SEEN * 20][-20:]


def test_code_gives_the_merges_of_tokenizers_by_either_learner(
    code: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = reference(without_new_letters(code), 1500)
    assert learned(train_tokenizer(encoded(code), 1500)) == expected
    monkeypatch.setattr(merges, "SMALL_BYTES", 0)
    assert fast_merges(encoded(code), EOS, 1500) is not None
    assert learned(train_tokenizer(encoded(code), 1500)) == expected


def test_merges_of_pairs_that_occur_no_more_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merges, "SMALL_BYTES", 0)
    texts = ["def f(self, name): return self.name", "class Name(Base): pass"]
    possible = len(reference(texts, 1000))
    for num, taken in ((possible, True), (possible + 1, False)):
        assert (fast_merges(encoded(texts), EOS, MIN_VOCAB_SIZE + num) is not None) == taken


def test_counts_of_parts_add_up_to_those_of_the_whole(code: list[str]) -> None:
    whole = count_words(encoded(code))
    parts = [count_words(encoded(code[start::3])) for start in range(3)]
    for order in (parts, parts[::-1], [add_up(parts[:2]), parts[2]]):
        assert add_up(order).equals(whole)
    assert train_on_words(whole, 600) == train_tokenizer(encoded(code), 600)


def test_no_text_has_no_words() -> None:
    assert count_words([]).num_rows == count_words([b"", b""]).num_rows == 0
    assert add_up([count_words([]), count_words([b"a"])]).to_pylist() == [{"word": b"a", "count": 1}]
