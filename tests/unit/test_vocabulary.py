"""Prompts to ids and ids to text, as they come."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.errors import GenerationError
from codeparrot.exported import Pretrained
from codeparrot.tokenizer import EOS
from codeparrot.vocabulary import TextStream, Vocabulary

WORDS = ("_the", "_caf", "<0xC3>", "<0xA9>", "_snow", "<0xE2>", "<0x98>", "<0x83>", "!")


@pytest.fixture(scope="module")
def vocabulary(tiny: Pretrained) -> Vocabulary:
    return Vocabulary(tiny.tokenizer)


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """A vocabulary as SentencePiece makes them: words with their spaces, and a token for each byte of what is rare."""
    import tokenizers
    from tokenizers import decoders, models
    from transformers import PreTrainedTokenizerFast

    words = {word.replace("_", "\u2581"): number for number, word in enumerate((*WORDS, "</s>"))}
    plain = tokenizers.Tokenizer(models.WordLevel(words, unk_token="!"))
    plain.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    plain.add_special_tokens(["</s>"])
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>"))


def pieces(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.push(token) for token in ids), stream.end()]


@given(ids=st.lists(st.integers(0, 599)))
def test_the_pieces_of_a_stream_are_the_text_of_all_its_tokens(vocabulary: Vocabulary, ids: list[int]) -> None:
    expected = vocabulary.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(pieces(vocabulary.stream(), ids)) == expected == vocabulary.decode(ids)


@given(text=st.text())
def test_no_piece_ends_in_half_a_character(vocabulary: Vocabulary, text: str) -> None:
    shown = pieces(vocabulary.stream(), vocabulary.encode(text))
    assert "".join(shown) == text
    assert all("\ufffd" not in piece for piece in shown) or "\ufffd" in text


def test_text_of_a_user_never_becomes_a_special_token(vocabulary: Vocabulary) -> None:
    begin, *rest = vocabulary.encode(f"a = '{EOS}'")
    assert begin == vocabulary.tokenizer.bos_token_id
    assert begin not in rest
    assert vocabulary.decode(rest) == f"a = '{EOS}'"


def test_other_vocabularies_are_streamed_by_their_own_decoder(fallback: Vocabulary) -> None:
    ids = [WORDS.index(word) for word in ("_caf", "<0xC3>", "<0xA9>", "_snow", "<0xE2>", "<0x98>", "<0x83>", "!")]
    shown = pieces(fallback.stream(), [*ids, len(WORDS)])
    assert "".join(shown) == " caf\u00e9 snow\u2603!"
    assert shown[1] == shown[5] == ""


def test_a_model_without_the_tokens_for_it_refuses_to_fill_in(vocabulary: Vocabulary) -> None:
    with pytest.raises(GenerationError, match="was not trained to fill in the middle"):
        vocabulary.encode_infill("def f(", "): pass")


def test_a_model_with_the_tokens_for_it_sees_prefix_then_suffix(tiny: Pretrained, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tiny.tokenizer.save_pretrained(tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    marks = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    vocabulary = Vocabulary(tokenizer)
    ids = vocabulary.encode_infill("def f(", "): pass")
    assert tokenizer.decode(ids) == f"{EOS}<fim_prefix>def f(<fim_suffix>): pass<fim_middle>"
    assert vocabulary.decode(ids) == "def f(): pass"
    assert json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]["type"] == "ByteLevel"
