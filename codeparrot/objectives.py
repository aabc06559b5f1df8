"""What a model learns to do: say the next token, or fill in the middle, hidden tokens, or spans that were taken out.

    causal   The next token of every row.
    fim      The same, in rows of which some documents were rearranged before they were packed, so that what stood in
             the middle of a text comes last (`codeparrot.infilling`).
    masked   A few tokens of a row are hidden, and an encoder says which they were (Devlin et al., "BERT" (2019),
             section 3.1).
    span     Runs of tokens are taken out of a row, a sentinel in the place of each, and a decoder writes them, each
             after its sentinel (Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
             Transformer" (2020), section 3.1.4).

What is asked of a row is a pure function of the row, the seed and the row's position in training, which tells epochs
apart: not of the batch or the rank that it is in, so a run that is resumed asks the same. How many tokens are asked
depends on the length of the row alone, so every rank knows by how many the loss of the global batch is divided, and the
shapes are the same in all batches. No token is lost: inputs and targets together give the row back.

Not covered: mixtures of objectives; masks over documents that share a row.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from codeparrot.draws import key, uniforms
from codeparrot.errors import TokenizerError
from codeparrot.settings import Settings
from codeparrot.tokenizer import FIM_TOKENS, MASK, Encoder, sentinel

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Arrays = tuple[npt.NDArray[Any], ...]
Positions = Sequence[int] | Int64
HOLE = re.compile(f"({re.escape(MASK)}|<extra_id_[0-9]+>)")
"""What is to be filled in a prompt."""
Rate = Annotated[float, Field(gt=0, lt=1)]

HIDDEN, SWAPPED = 0.8, 0.9
"""Of the tokens that are asked, 80 % are hidden and 10 % become others; the rest stays (BERT, section 3.1)."""


class CausalSettings(Settings):
    """The next token."""

    kind: Literal["causal"] = "causal"


class InfillSettings(Settings):
    """The next token, where some documents are told as beginning, end, middle."""

    kind: Literal["fim"]
    rate: float = Field(default=0.5, gt=0, le=1)
    """Of the documents of the train split, that are rearranged. Up to 0.9 text from left to right is learned as
    well as without (Bavarian et al., 2022)."""
    spm_rate: float = Field(default=0.5, ge=0, le=1)
    """Of their parts, with the end before the beginning."""


class MaskedSettings(Settings):
    """Hidden tokens, of an encoder."""

    kind: Literal["masked"]
    rate: Rate = 0.15
    """Of the tokens of a row, that are asked."""
    whole_words: bool = False
    """Ask words, not tokens: runs of letters, digits and underscores as a whole, anything else by the token."""


class SpanSettings(Settings):
    """Spans that were taken out, of an encoder-decoder."""

    kind: Literal["span"]
    rate: Rate = 0.15
    """Of the tokens of a row, that are taken out."""
    mean_span_tokens: float = Field(default=3.0, ge=1)


ObjectiveSettings = Annotated[
    CausalSettings | InfillSettings | MaskedSettings | SpanSettings, Field(discriminator="kind")
]


def identity_of(settings: ObjectiveSettings) -> dict[str, Any]:
    """What it adds to the settings that shape a model: nothing, as long as it is causal."""
    return {} if settings.kind == "causal" else {"objective": settings.model_dump(mode="json")}


def fills_holes(settings: ObjectiveSettings) -> bool:
    """Whether its model fills holes in a text, and does not go on with it."""
    return settings.kind in ("masked", "span")


def special_tokens(settings: ObjectiveSettings, max_seq_len: int) -> tuple[str, ...]:
    """What its tokenizer has besides `<|endoftext|>`."""
    if isinstance(settings, InfillSettings):
        return FIM_TOKENS
    if isinstance(settings, MaskedSettings):
        return (MASK,)
    if isinstance(settings, SpanSettings):
        _, num_spans = span_sizes(np.array([max_seq_len]), settings)
        return tuple(sentinel(number) for number in range(int(num_spans[0]) + 1))
    return ()


def split_at_holes(prompt: str) -> tuple[list[str], list[str]]:
    """(the texts between the holes of a prompt, one more than there are holes; the holes, as they are written)."""
    parts = HOLE.split(prompt)
    return parts[::2], parts[1::2]


def require_holes(settings: ObjectiveSettings, prompt: str) -> None:
    """Raise ValueError unless a model of this objective can fill the prompt."""
    holes = split_at_holes(prompt)[1]
    if settings.kind == "masked" and set(holes) != {MASK}:
        raise ValueError(f"objective.kind masked fills {MASK}, and no other hole, in every prompt: {prompt!r}")
    if settings.kind == "span" and (not holes or holes != [sentinel(number) for number in range(len(holes))]):
        raise ValueError(f"objective.kind span fills {sentinel(0)}, {sentinel(1)}, ... in this order: {prompt!r}")


class Placed(NamedTuple):
    """What is asked of rows, and where."""

    batch: Arrays
    """What the loss is called with."""
    targets: Int64
    """Token ids: shape (B, K)."""
    places: Int64
    """The offsets in the rows that they belong to: shape (B, K)."""
    kept: Bool
    """Which of them count: shape (B, K)."""


class Causal:
    """The next token of every row."""

    kind = "causal"

    def num_predicted(self, lengths: Int64) -> int:
        """How many tokens are asked of rows of these lengths: all but the first of each."""
        return int((lengths - 1).sum())

    def sizes(self, length: int) -> tuple[int, int]:
        """(tokens that are read, tokens that are written) of a row of this length."""
        return length, length

    def ask(self, rows: Int64, lengths: Int64 | None, _seed: int, _positions: Positions) -> Arrays:
        """What the loss is called with: the rows, (B, T), and if some end in padding their lengths, (B,)."""
        return (rows,) if lengths is None else (rows, lengths)


@dataclass(frozen=True)
class Masked:
    """Hidden tokens of every row."""

    settings: MaskedSettings
    mask_id: int
    num_plain: int
    """Tokens that stand for bytes: those with ids from 1 to this number."""
    word_edges: Bool
    """Whether each token begins, and ends, with a letter, digit or underscore: shape (2, V)."""

    kind = "masked"

    def num_asked(self, lengths: npt.ArrayLike) -> Int64:
        """Of rows of these lengths: the shape of `lengths`."""
        return np.maximum(1, np.rint(self.settings.rate * np.asarray(lengths))).astype(np.int64)

    def num_predicted(self, lengths: Int64) -> int:
        """How many tokens are asked of rows of these lengths."""
        return int(self.num_asked(lengths).sum())

    def sizes(self, length: int) -> tuple[int, int]:
        """(tokens that are read, tokens that are written) of a row of this length."""
        return length, int(self.num_asked(length))

    def hide(self, row: Int64, key_of_row: int) -> tuple[Int64, Int64]:
        """(the row as it is shown, the offsets of the tokens that are asked). `row`: (T,) without padding."""
        num, size = int(self.num_asked(len(row))), len(row)
        draws = uniforms(key_of_row, size + 2 * num)
        places = self._words(row, num, draws[:size]) if self.settings.whole_words else _first(draws[:size], num)
        how, other = draws[size : size + num], draws[size + num :]
        shown = row.copy()
        shown[places[how < HIDDEN]] = self.mask_id
        swapped = (how >= HIDDEN) & (how < SWAPPED)
        shown[places[swapped]] = 1 + (other[swapped] * self.num_plain).astype(np.int64)
        return shown, places

    def _words(self, row: Int64, num: int, draws: npt.NDArray[np.float64]) -> Int64:
        """Of whole words in the order of their draws, the tokens of as many as there is room for.

        Where the next word is too long, single tokens take the rest; where there are none left, the word's beginning.
        """
        begins, ends = self.word_edges
        inside = np.concatenate([[False], begins[row[1:]] & ends[row[:-1]]])
        word = np.cumsum(~inside) - 1  # of each token
        sizes = np.bincount(word)
        order = np.argsort(draws[: len(sizes)], kind="stable")
        num_whole = int(np.searchsorted(np.cumsum(sizes[order]), num, side="right"))
        chosen, others = order[:num_whole], order[num_whole:]
        rest = num - int(sizes[chosen].sum())
        chosen = np.concatenate([chosen, others[sizes[others] == 1][:rest]])
        places = np.flatnonzero(np.isin(word, chosen))
        rest = num - len(places)
        if rest:
            places = np.sort(np.concatenate([places, np.flatnonzero(word == others[0])[:rest]]))
        return places

    def ask(self, rows: Int64, lengths: Int64 | None, seed: int, positions: Positions) -> Arrays:
        """Rows as they are shown, (B, T); the offsets that are asked, and the tokens there, (B, K).

        If some rows end in padding: also which of these count, (B, K), and the lengths of the rows, (B,).
        """
        return self.placed(rows, lengths, seed, positions).batch

    def placed(self, rows: Int64, lengths: Int64 | None, seed: int, positions: Positions) -> Placed:
        """The same, and where in the rows it is."""
        shown = rows.copy()
        places = np.zeros((len(rows), int(self.num_asked(rows.shape[1]))), np.int64)
        kept = np.zeros(places.shape, np.bool_)
        for index, (size, position) in enumerate(zip(_sizes(rows, lengths), positions, strict=True)):
            shown[index, :size], found = self.hide(rows[index, :size], key(seed, "objective", int(position)))
            places[index, : len(found)], kept[index, : len(found)] = found, True
        targets = np.take_along_axis(rows, places, 1)
        batch: Arrays = (shown, places, targets)
        return Placed(batch if lengths is None else (*batch, kept, lengths), targets, places, kept)


@dataclass(frozen=True)
class Spans:
    """Spans that were taken out of every row."""

    settings: SpanSettings
    sentinels: Int64
    """The ids of the sentinels, in order."""
    eos_token_id: int
    """Fills inputs and targets of rows that end in padding."""

    kind = "span"

    def num_predicted(self, lengths: Int64) -> int:
        """How many tokens are asked of rows of these lengths: what is taken out, and the sentinels."""
        return int(sum(sizes.sum() for sizes in span_sizes(lengths, self.settings)) + len(lengths))

    def sizes(self, length: int) -> tuple[int, int]:
        """(tokens that are read, tokens that are written) of a row of this length."""
        noise, num_spans = (int(each[0]) for each in span_sizes(np.array([length]), self.settings))
        return length - noise + num_spans, noise + num_spans + 1

    def take_out(self, row: Int64, key_of_row: int) -> tuple[Int64, Int64, Int64]:
        """(inputs, targets, the offset in the row that each target belongs to). `row`: (T,) without padding.

        The targets end with one sentinel more than there are spans. The number of tokens in the spans, and between
        them, is drawn from all that add up, each as likely as any other.
        """
        size = len(row)
        noise, num_spans = (int(each[0]) for each in span_sizes(np.array([size]), self.settings))
        draws = uniforms(key_of_row, size)
        spans = np.diff(_first(draws[: noise - 1], num_spans - 1) + 1, prepend=0, append=noise)
        free = size - noise - (num_spans - 1)  # between two spans is one token at least
        bars = _first(draws[noise - 1 : noise - 1 + free + num_spans], num_spans)
        gaps = np.diff(bars, prepend=-1)[:num_spans] - 1
        gaps[1:] += 1
        first = np.cumsum(gaps + spans) - spans  # of each span
        taken = np.zeros(size, np.bool_)
        taken[np.repeat(first, spans) + np.arange(noise) - np.repeat(np.cumsum(spans) - spans, spans)] = True
        begins = np.zeros(size, np.bool_)
        begins[first] = True
        inputs = row.copy()
        inputs[first] = self.sentinels[:num_spans]
        offsets = np.flatnonzero(taken)
        at = np.cumsum(spans) - spans  # of each span, among the tokens taken out
        targets = np.insert(row[taken], at, self.sentinels[:num_spans])
        places = np.insert(offsets, at, first)
        last = self.sentinels[num_spans : num_spans + 1]
        return inputs[~taken | begins], np.concatenate([targets, last]), np.append(places, offsets[-1])

    def ask(self, rows: Int64, lengths: Int64 | None, seed: int, positions: Positions) -> Arrays:
        """Inputs, (B, I), and targets, (B, O); if some rows end in padding also the lengths of both, (B,) each."""
        return self.placed(rows, lengths, seed, positions).batch

    def placed(self, rows: Int64, lengths: Int64 | None, seed: int, positions: Positions) -> Placed:
        """The same, and where in the rows it is: a sentinel is where its span begins, the last one at the end."""
        num_read, num_written = self.sizes(rows.shape[1])
        inputs = np.full((len(rows), num_read), self.eos_token_id, np.int64)
        targets = np.full((len(rows), num_written), self.eos_token_id, np.int64)
        places = np.zeros(targets.shape, np.int64)
        sizes = np.zeros((2, len(rows)), np.int64)
        for index, (size, position) in enumerate(zip(_sizes(rows, lengths), positions, strict=True)):
            given, asked, at = self.take_out(rows[index, :size], key(seed, "objective", int(position)))
            inputs[index, : len(given)], targets[index, : len(asked)] = given, asked
            places[index, : len(asked)], sizes[:, index] = at, (len(given), len(asked))
        kept = np.arange(num_written) < sizes[1][:, None]
        batch: Arrays = (inputs, targets)
        return Placed(batch if lengths is None else (*batch, *sizes), targets, places, kept)


Objective = Causal | Masked | Spans


def objective_of(settings: ObjectiveSettings, tokenizer_json: str, max_seq_len: int) -> Objective:
    """What is asked of rows of this tokenizer. Raises TokenizerError if it has no tokens for that."""
    if isinstance(settings, CausalSettings | InfillSettings):
        return Causal()
    encoder = Encoder(tokenizer_json)
    needed = special_tokens(settings, max_seq_len)
    lacks = [token for token in needed if token not in encoder.special]
    if lacks:
        raise TokenizerError(
            f"objective.kind: {settings.kind} needs the token {lacks[0]}, which the tokenizer does not have; run "
            "`python -m ray_jobs.train_tokenizer` again"
        )
    ids = np.array([encoder.special[token] for token in needed], np.int64)
    if isinstance(settings, MaskedSettings):
        return Masked(settings, int(ids[0]), encoder.num_plain, encoder.word_edges())
    return Spans(settings, ids, encoder.eos_token_id)


def span_sizes(lengths: Int64, settings: SpanSettings) -> tuple[Int64, Int64]:
    """(tokens that are taken out, spans they are taken out in) of rows of these lengths, neither ever less than 1."""
    noise = np.maximum(1, np.rint(lengths * settings.rate)).astype(np.int64)
    wanted = np.rint(noise / settings.mean_span_tokens).astype(np.int64)
    return noise, np.clip(wanted, 1, np.minimum(noise, lengths - noise + 1))


def _sizes(rows: Int64, lengths: Int64 | None) -> list[int]:
    return [rows.shape[1]] * len(rows) if lengths is None else lengths.tolist()


def _first(draws: npt.NDArray[np.float64], count: int) -> Int64:
    """The places of the smallest so many draws, in order: any choice of places is as likely as any other."""
    return np.sort(np.argsort(draws, kind="stable")[:count])
