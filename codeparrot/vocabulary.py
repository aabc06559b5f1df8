"""A model's own vocabulary: prompts to token ids, and token ids to text as they come.

Text that is shown while it is made must not end in half a character: a byte-level token may hold only some of the bytes
of one. So a stream holds such bytes back until they are whole, or can no longer become whole; then they are U+FFFD, as
in any decoding. What a stream gives, joined, is the decoding of all its tokens at once.

Text of a user never becomes a special token: a prompt that holds `<|endoftext|>` is about tokenizers.
"""

import codecs
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from codeparrot.errors import GenerationError
from codeparrot.tokenizer import byte_alphabet

if TYPE_CHECKING:
    import transformers

INFILL = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
)
"""Special tokens of fill-in-the-middle, as models in use spell them."""


class Vocabulary:
    """The tokens of one model."""

    def __init__(self, tokenizer: "transformers.PreTrainedTokenizerFast") -> None:
        self.tokenizer = tokenizer
        self.eos_ids = frozenset([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])
        self._special = frozenset(tokenizer.all_special_ids)
        self.special_ids = self._special | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        """Tokens that stand for no text."""
        self._bytes = _token_bytes(tokenizer)

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, after the token with which a document begins, if the model has one."""
        begin = self.tokenizer.bos_token_id
        return [*([begin] if begin is not None else []), *self._plain(text)]

    def encode_infill(self, prefix: str, suffix: str) -> list[int]:
        """The ids of a prompt for what stands between: prefix, suffix, middle. Raises GenerationError if untrained.

        Bavarian et al., "Efficient Training of Language Models to Fill in the Middle" (2022), section 3: PSM.
        """
        known = self.tokenizer.get_vocab()
        for before, after, middle in INFILL:
            if {before, after, middle} <= known.keys():
                marked = [known[before], *self._plain(prefix), known[after], *self._plain(suffix), known[middle]]
                begin = self.tokenizer.bos_token_id
                return [*([begin] if begin is not None else []), *marked]
        raise GenerationError("suffix: this model was not trained to fill in the middle (it has no tokens for it)")

    def encode_with_holes(self, texts: Sequence[str], holes: Sequence[str]) -> list[int]:
        """The ids of texts with special tokens, the holes, between them. Raises GenerationError if they are unknown."""
        known = self.tokenizer.get_vocab()
        unknown = [hole for hole in holes if hole not in known]
        if unknown:
            raise GenerationError(f"this model was not trained to fill {unknown[0]} (it has no token for it)")
        ids = self.encode(texts[0])
        for hole, text in zip(holes, texts[1:], strict=True):
            ids += [known[hole], *self._plain(text)]
        return ids

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return ids

    def stream(self) -> "TextStream":
        """A decoder for the tokens of one completion."""
        return ByteStream(self._bytes) if self._bytes is not None else TokenStream(self.tokenizer, self._special)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these tokens, without special ones."""
        stream = self.stream()
        return "".join([*(stream.push(token) for token in ids), stream.end()])

    def token_text(self, token_id: int) -> str:
        """One token as text by itself, also a special one; bytes that are not UTF-8 become U+FFFD."""
        return str(self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False))


class TextStream:
    """Tokens of one completion to text, as they come."""

    def push(self, token_id: int) -> str:
        """What the next token adds to the text that is certain."""
        raise NotImplementedError

    def end(self) -> str:
        """What was held back: no token follows."""
        raise NotImplementedError


class ByteStream(TextStream):
    """Of a byte-level vocabulary: exact."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._table[token_id] if token_id < len(self._table) else b"")

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


class TokenStream(TextStream):
    """Of any other vocabulary, by its own decoder."""

    def __init__(self, tokenizer: "transformers.PreTrainedTokenizerFast", special: frozenset[int]) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._special = tokenizer, special
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given = ""

    def push(self, token_id: int) -> str:
        if token_id in self._special:
            return ""
        self._ids.append(token_id)
        text = self._decoder.step(self._tokenizer.backend_tokenizer, token_id) or ""
        self._given += text
        return text

    def end(self) -> str:
        whole = str(self._tokenizer.backend_tokenizer.decode(self._ids, skip_special_tokens=True))
        return whole[len(self._given) :] if whole.startswith(self._given) else ""


def _token_bytes(tokenizer: "transformers.PreTrainedTokenizerFast") -> list[bytes] | None:
    """The bytes of every token, none of special ones; None if the vocabulary is not byte-level."""
    plain: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    if (plain.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    byte_of = {character: byte for byte, character in byte_alphabet().items()}
    added = {token["id"]: b"" if token["special"] else token["content"].encode() for token in plain["added_tokens"]}
    vocab: dict[str, int] = tokenizer.get_vocab()
    table = [b""] * (max(vocab.values(), default=0) + 1)
    for token, index in vocab.items():
        table[index] = added[index] if index in added else bytes(byte_of[character] for character in token)
    return table
