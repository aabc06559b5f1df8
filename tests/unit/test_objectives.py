"""What is asked of rows: nothing is lost, as much as the lengths say, and the same wherever a row stands."""

from collections import Counter
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.config import load_recipe
from codeparrot.errors import ConfigError, TokenizerError
from codeparrot.objectives import (
    Causal,
    CausalSettings,
    Masked,
    MaskedSettings,
    Spans,
    SpanSettings,
    identity_of,
    objective_of,
    span_sizes,
    special_tokens,
)
from codeparrot.tokenizer import Encoder, train_tokenizer
from ray_jobs import pack
from ray_jobs import train as train_stage
from ray_jobs import train_tokenizer as train_tokenizer_stage

Int64 = npt.NDArray[np.int64]
TEXT = b"def add_numbers(a, b):\n    return a + b\n" * 9
NUM_PLAIN, MASK_ID, EOS_ID = 60, 61, 0
SENTINELS = np.arange(100, 200)
WORDS = np.zeros((2, NUM_PLAIN + 2), np.bool_)
WORDS[:, 1:40] = True  # as letters are; the others stand by themselves
WORDS[0, 40:45] = True  # begins as a word does, ends otherwise

LENGTHS = st.integers(1, 90)
RATES = st.floats(0.01, 0.99)
KEYS = st.integers(0, 2**63 - 1)


def row_of(length: int, key_of_row: int) -> Int64:
    """A row of plain tokens and ends of documents."""
    return np.random.default_rng(key_of_row).integers(0, NUM_PLAIN + 1, length)


def masked(rate: float = 0.15, *, whole_words: bool = False) -> Masked:
    settings = MaskedSettings(kind="masked", rate=rate, whole_words=whole_words)
    return Masked(settings, MASK_ID, NUM_PLAIN, WORDS)


def spans(rate: float = 0.15, mean: float = 3.0) -> Spans:
    return Spans(SpanSettings(kind="span", rate=rate, mean_span_tokens=mean), SENTINELS, EOS_ID)


def put_back(inputs: Int64, targets: Int64) -> Int64:
    """The row whose spans were taken out."""
    found: list[int] = []
    borders = np.flatnonzero(targets >= SENTINELS[0])
    pieces = {int(targets[start]): targets[start + 1 : stop].tolist() for start, stop in pairwise(borders.tolist())}
    for token in inputs.tolist():
        found += pieces.pop(token) if token in pieces else [token]
    assert not pieces
    return np.array(found)


@given(LENGTHS, RATES, KEYS, st.booleans())
def test_what_was_masked_and_where_gives_the_row_back(length: int, rate: float, key: int, words: bool) -> None:
    row, asks = row_of(length, key), masked(rate, whole_words=words)
    shown, places = asks.hide(row, key)
    assert len(places) == asks.num_predicted(np.array([length]))
    assert np.all(np.diff(places) > 0)
    untouched = np.ones(length, bool)
    untouched[places] = False
    assert np.array_equal(shown[untouched], row[untouched])
    assert np.all(shown <= MASK_ID)
    assert np.all((shown[places] > 0) | (row[places] == 0))


@given(LENGTHS, RATES, st.floats(1, 9), KEYS)
def test_spans_put_back_in_the_place_of_their_sentinels_are_the_row(
    length: int, rate: float, mean: float, key: int
) -> None:
    row, asks = row_of(length, key), spans(rate, mean)
    inputs, targets, places = asks.take_out(row, key)
    assert np.array_equal(put_back(inputs, targets), row)
    noise, num_spans = (int(each[0]) for each in span_sizes(np.array([length]), asks.settings))
    assert (len(inputs), len(targets)) == (length - noise + num_spans, noise + num_spans + 1)
    assert len(targets) == len(places) == asks.num_predicted(np.array([length]))
    plain = targets < SENTINELS[0]
    assert np.array_equal(row[places[plain]], targets[plain])
    assert targets[-1] == SENTINELS[num_spans]
    assert not np.any(np.diff(np.flatnonzero(inputs >= SENTINELS[0])) == 1)  # two spans never touch


@given(st.integers(2, 60), st.lists(KEYS, min_size=1, max_size=6, unique=True), st.booleans())
def test_a_row_is_asked_the_same_in_every_batch(length: int, positions: list[int], padded: bool) -> None:
    rows = np.stack([row_of(length, position) for position in positions])
    lengths = 1 + np.arange(len(rows)) % length if padded else None
    for asks in (masked(), masked(whole_words=True), spans(), Causal()):
        together = asks.ask(rows, lengths, 7, positions)
        for index, position in enumerate(positions):
            here = slice(index, index + 1)
            alone = asks.ask(rows[here], lengths if lengths is None else lengths[here], 7, [position])
            assert all(np.array_equal(one[0], all_[index]) for one, all_ in zip(alone, together, strict=True))
        given_ = np.full(len(rows), length) if lengths is None else lengths
        if padded and not isinstance(asks, Causal):
            counted = together[3] if isinstance(asks, Masked) else together[3][:, None]
            assert counted.sum() == asks.num_predicted(given_)


def test_other_seeds_and_other_positions_ask_otherwise() -> None:
    rows = np.stack([row_of(60, 0)] * 2)
    for asks in (masked(), spans()):
        first, second, other = (asks.ask(rows, None, seed, [3, at])[0] for seed, at in ((1, 3), (1, 4), (2, 3)))
        assert np.array_equal(first[0], first[1])
        assert not np.array_equal(second[0], second[1])
        assert not np.array_equal(first, other)


def test_padding_is_neither_shown_nor_asked() -> None:
    rows = np.stack([row_of(40, 1), row_of(40, 2)])
    lengths = np.array([40, 9])
    shown, places, targets, kept, _ = masked(0.5).ask(rows, lengths, 0, [0, 1])
    assert kept.sum(1).tolist() == [20, 4]
    assert np.all(places[1][kept[1]] < 9)
    assert np.array_equal(np.take_along_axis(rows, places, 1), targets)
    assert np.array_equal(shown[1, 9:], rows[1, 9:])
    inputs, targets, num_given, num_asked = spans(0.5).ask(rows, lengths, 0, [0, 1])
    assert np.array_equal(put_back(inputs[1, : num_given[1]], targets[1, : num_asked[1]]), rows[1, :9])
    assert np.all(inputs[1, num_given[1] :] == EOS_ID)
    assert np.all(targets[1, num_asked[1] :] == EOS_ID)


def test_of_the_tokens_that_are_asked_four_fifths_are_hidden_and_a_tenth_becomes_others() -> None:
    row = np.full(200_000, 7)
    shown, places = masked().hide(row, 5)
    assert len(places) == 30_000
    counts = Counter(shown[places].tolist())
    assert counts.pop(MASK_ID) / len(places) == pytest.approx(0.8, abs=0.01)
    assert counts.pop(7) / len(places) == pytest.approx(0.1 + 0.1 / NUM_PLAIN, abs=0.01)
    assert set(counts) == {*range(1, NUM_PLAIN + 1)} - {7}
    assert min(counts.values()) > 15
    assert max(counts.values()) < 100


def test_every_place_is_as_likely_to_be_asked() -> None:
    counts = np.zeros(20)
    for key in range(2000):
        counts[masked(0.25).hide(row_of(20, 0), key)[1]] += 1
    assert counts.min() > 0.8 * 500
    assert counts.max() < 1.2 * 500
    taken = np.zeros(20)
    for key in range(2000):
        taken[np.unique(spans(0.25, 1.0).take_out(row_of(20, 0), key)[2])] += 1
    assert taken.min() > 0.8 * 500
    assert taken.max() < 1.5 * 500  # at the ends, where no other span stands on one side


def test_a_word_is_asked_as_a_whole() -> None:
    words = [[1, 2, 3], [50], [4, 5], [51], [52], [6], [53], [54], [7, 8, 9, 10, 41], [11]]
    row = np.array([token for word in words for token in word])
    seen = set()
    for key in range(300):
        _, places = masked(0.42, whole_words=True).hide(row, key)
        asked = set(row[places].tolist())
        assert len(asked) == 7
        assert all(set(word) <= asked or not set(word) & asked for word in words)
        seen |= asked
    assert seen == set(row.tolist())


def test_of_a_word_longer_than_what_may_be_asked_its_beginning_is() -> None:
    row = np.arange(1, 31)
    _, places = masked(0.2, whole_words=True).hide(row, 0)
    assert places.tolist() == [0, 1, 2, 3, 4, 5]


def test_causal_hands_rows_on_as_they_are() -> None:
    rows, lengths = np.stack([row_of(9, 0)]), np.array([4])
    assert Causal().ask(rows, None, 0, [0])[0] is rows
    assert [each is other for each, other in zip(Causal().ask(rows, lengths, 0, [0]), (rows, lengths), strict=True)]
    assert Causal().num_predicted(np.array([9, 4])) == 11
    assert identity_of(CausalSettings()) == {}
    assert special_tokens(CausalSettings(), 256) == ()


def test_the_tokens_of_an_objective_come_from_its_tokenizer() -> None:
    for settings in (MaskedSettings(kind="masked", whole_words=True), SpanSettings(kind="span")):
        needed = special_tokens(settings, 40)
        text = train_tokenizer([TEXT], 270, needed)
        encoder = Encoder(text)
        asks = objective_of(settings, text, 40)
        if isinstance(asks, Masked):
            assert asks.mask_id == 269
            assert asks.num_plain == 268
            row, _ = encoder.encode(["add_numbers(a)"])
            begins, ends = asks.word_edges[:, row]
            joined = begins[1:] & ends[:-1]
            assert encoder.decode(row[1:][~joined][:1].tolist()) == "("
        else:
            assert isinstance(asks, Spans)
            assert asks.sentinels.tolist() == [267, 268, 269]
            assert needed == ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
        with pytest.raises(TokenizerError, match=r"needs the token <\S+>, which the tokenizer does not have"):
            objective_of(settings, train_tokenizer([TEXT], 260), 40)


TINY = "recipes/tiny.yaml"
ENCODER = ["objective={kind: masked}", "model.architecture=modernbert", "evaluate.tasks=null"]
SPANS = ["objective={kind: span}", "model.architecture=t5", "evaluate.tasks=null"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["objective={kind: masked}"],
            "model.architecture gpt2 cannot be trained with objective.kind masked: set it to m",
        ),
        (
            ["objective={kind: span}"],
            "model.architecture gpt2 cannot be trained with objective.kind span: set it to t5",
        ),
        (
            ["model.architecture=t5"],
            "model.architecture t5 cannot be trained with objective.kind causal: set it to gpt2",
        ),
        (ENCODER[:2], "evaluate.tasks is for models that go on with a text: set it to null with masked"),
        (ENCODER, "objective.kind masked fills <|mask|>, and no other hole, in every prompt: 'fit random forest"),
        (
            [
                "objective={kind: span}",
                "model.architecture=t5",
                "evaluate.tasks=null",
                "generate.prompts=[<extra_id_1>]",
            ],
            "objective.kind span fills <extra_id_0>, <extra_id_1>, ... in this order: '<extra_id_1>'",
        ),
        (
            ["generate.prompts=[{prompt: a, suffix: b}]"],
            "generate.prompts: a suffix is for objective.kind fim, not for c",
        ),
        (["objective={kind: fim, rate: 0}"], "objective.fim.rate: must be > 0, got 0"),
        (["objective={kind: bert}"], "objective: "),
    ],
)
def test_what_does_not_go_together_is_refused_with_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(TINY, overrides)
    first, problem = str(caught.value).splitlines()
    assert "1 problem" in first
    assert message in problem


def test_a_causal_recipe_is_what_it_was_before_there_were_objectives() -> None:
    recipe = load_recipe(TINY)
    assert recipe == load_recipe(TINY, ["objective={kind: causal}"])
    assert "objective" not in recipe.model_dump(mode="json")
    assert set(pack.STAGE.settings(recipe)) == {"pack"}
    assert set(train_tokenizer_stage.STAGE.settings(recipe)) == {"seed", "tokenizer", "max_seq_len"}
    assert set(train_stage.STAGE.settings(recipe)) == {"seed", "model", "run_name", "train"}
    assert "architecture" not in train_stage.STAGE.settings(recipe)["model"]


def test_an_objective_makes_only_what_depends_on_it_anew() -> None:
    fim, other = (load_recipe(TINY, [f"objective={{kind: fim, rate: {rate}}}"]) for rate in (0.5, 0.7))
    assert pack.STAGE.settings(fim) != pack.STAGE.settings(other)
    assert train_tokenizer_stage.STAGE.settings(fim) == train_tokenizer_stage.STAGE.settings(other)
    holes = [*ENCODER, "generate.prompts=[<|mask|>]"]
    masked_, other = (load_recipe(TINY, [*holes, f"objective.rate={rate}"]) for rate in (0.1, 0.2))
    assert pack.STAGE.settings(masked_) == pack.STAGE.settings(other) == pack.STAGE.settings(load_recipe(TINY))
    assert train_tokenizer_stage.STAGE.settings(masked_)["special_tokens"] == ["<|mask|>"]
    assert train_stage.STAGE.settings(masked_) != train_stage.STAGE.settings(other)
