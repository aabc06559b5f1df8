"""Documents told as beginning, end, middle, so that a causal model learns to fill what stands between two texts.

Bavarian et al., "Efficient Training of Language Models to Fill in the Middle" (2022), section 3. A document is cut at
two of its characters, each choice as likely as any other, and its parts are encoded by themselves:

    PSM    <|fim_prefix|> beginning <|fim_suffix|> end <|fim_middle|> middle <|endoftext|>
    SPM    <|fim_prefix|> <|fim_suffix|> end <|fim_middle|> beginning middle <|endoftext|>

A document longer than a row is first divided into sections that fit in one, each of which is told so by itself: a model
learns nothing from marks that it does not see together. It is done before packing, since parts that are encoded by
themselves have other numbers of tokens (docs/decisions/0015): so rows are full, none is cut off for it, and the bytes
of what is packed are counted against those of the documents. Whether a document is rearranged, and where it is cut, is
a function of the seed and its content.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from codeparrot.characters import text_buffers
from codeparrot.draws import key, uniform, uniforms
from codeparrot.errors import LedgerError
from codeparrot.objectives import InfillSettings
from codeparrot.packing import encode_documents
from codeparrot.tokenizer import FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, Encoder

if TYPE_CHECKING:
    import pyarrow as pa

    from codeparrot.packing import TokenArray

Int64 = npt.NDArray[np.int64]
Parts = tuple[str, str, str]
"""Beginning, middle and end."""

CONTINUES, CONTINUED = 0xC0, 0x80
"""The bits of a byte of UTF-8 that say that it does not begin a character."""
NUM_MARKS = 3
MARGIN = 16
"""Tokens by which a section is shorter than a row: its marks, and what more its parts take than the whole did."""


@dataclass(frozen=True)
class Infilling:
    """How the documents of a run are rearranged."""

    settings: InfillSettings
    seed: int
    max_seq_len: int

    def chooses(self, sha256: str) -> bool:
        """Whether the document with this content is rearranged."""
        return uniform(self.seed, "infilling", sha256) < self.settings.rate

    def cut(self, text: str, sha256: str, section: int) -> tuple[Parts, bool]:
        """(the parts of a section, whether its end comes first)."""
        first, second, order = uniforms(key(self.seed, "infilling", sha256, section), 3).tolist()
        low, high = sorted(int(draw * (len(text) + 1)) for draw in (first, second))
        return (text[:low], text[low:high], text[high:]), order < self.settings.spm_rate


@dataclass(frozen=True)
class Told:
    """Documents as they are told: one after the other, or in sections that were rearranged."""

    tokens: "TokenArray"
    lengths: Int64
    """Tokens of each document or section, its end-of-text token included: shape (told,)."""
    document: Int64
    """The number of its document: shape (told,)."""
    line: Int64
    """Of its document, from 1, that it begins in: shape (told,)."""
    num_rearranged: int
    """Documents."""
    num_marks: int
    """Special tokens that were added, those that end a section before its document's end included."""


def tell(texts: "pa.LargeStringArray", sha256: Sequence[str], encoder: Encoder, how: Infilling) -> Told:
    """The documents of a shard, encoded. Raises LedgerError if a byte of them is lost."""
    data, borders = text_buffers(texts)
    tokens, lengths = encode_documents(texts, encoder)
    sizes = encoder.token_bytes()
    ends = np.cumsum(lengths)
    chosen = [how.chooses(each) for each in sha256]
    cuts: list[tuple[Parts, bool]] = []
    document, line = [], []
    for number, rearranged in enumerate(chosen):
        begin, end = borders[number : number + 2].tolist()
        if not rearranged:
            document.append(number)
            line.append(1)
            continue
        own = tokens[ends[number] - lengths[number] : ends[number] - 1]
        first_line = 1
        for section, (low, high) in enumerate(_sections(data[begin:end], sizes[own], how.max_seq_len)):
            text = data[begin + low : begin + high].tobytes().decode()
            cuts.append(how.cut(text, sha256[number], section))
            document.append(number)
            line.append(first_line)
            first_line += text.count("\n")
    told = iter(_rearranged(cuts, encoder, tokens.dtype))
    pieces = [
        next(told) if chosen[number] else tokens[ends[number] - lengths[number] : ends[number]] for number in document
    ]
    joined = np.concatenate([tokens[:0], *pieces])
    if int(sizes[joined].sum()) != borders[-1] - borders[0]:
        raise LedgerError(f"{sizes[joined].sum():,} bytes of text are left of {borders[-1] - borders[0]:,}")
    num_marks = NUM_MARKS * len(cuts) + len(document) - len(chosen)
    of_each = np.array([len(piece) for piece in pieces], np.int64)
    return Told(joined, of_each, np.array(document, np.int64), np.array(line, np.int64), sum(chosen), num_marks)


def _sections(data: npt.NDArray[np.uint8], sizes: Int64, max_seq_len: int) -> Iterator[tuple[int, int]]:
    """(first byte, stop) of the sections of a document. `sizes`: bytes of its tokens, (T,)."""
    size = max(max_seq_len // 2, max_seq_len - MARGIN)
    reach = np.cumsum(sizes)
    stops = [*reach[size - 1 : -1 : size].tolist(), len(data)]
    low = 0
    for stop in stops:
        while stop < len(data) and data[stop] & CONTINUES == CONTINUED:  # a token may hold half a character
            stop -= 1
        if stop > low or stop == len(data):
            yield low, stop
            low = stop


def _rearranged(
    cuts: Sequence[tuple[Parts, bool]], encoder: Encoder, dtype: "np.dtype[np.uint16] | np.dtype[np.uint32]"
) -> "list[TokenArray]":
    """The tokens of each section."""
    ids, lengths = encoder.encode([part for parts, _ in cuts for part in parts])
    encoded = np.split(ids.astype(dtype), np.cumsum(lengths)[:-1]) if len(lengths) else []
    names = (FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE)
    prefix, suffix, middle, eos = (
        np.array([index], dtype) for index in (*(encoder.special[name] for name in names), encoder.eos_token_id)
    )
    found = []
    for number, (_, end_first) in enumerate(cuts):
        beginning, between, end = encoded[3 * number : 3 * number + 3]
        told = (
            (prefix, suffix, end, middle, beginning, between, eos)
            if end_first
            else (prefix, beginning, suffix, end, middle, between, eos)
        )
        found.append(np.concatenate(told))
    return found
