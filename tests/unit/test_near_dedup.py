"""Near duplicates against sets of Python, which are slow and obviously right."""

import itertools
import random
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.errors import ConfigError
from codeparrot.near_dedup import (
    EMPTY,
    NearDedupSettings,
    Removal,
    band_keys,
    components,
    jaccard,
    near_duplicates,
    signatures,
)
from codeparrot.settings import validate
from codeparrot.shingles import CHUNK_BYTES, Hashes, Indices, distinct, shingles

SMALL = NearDedupSettings(shingle_words=2, min_words=3)
DEFAULT = NearDedupSettings()
WORD = re.compile(r"[A-Za-z0-9_\u0080-\U0010ffff]+")
TEXT = st.lists(
    st.sampled_from(["a", "b", "ab", "ß", "x_1", "=", "(", "\n", " ", "\0", "\u200f", "漢字"]), max_size=30
).map("".join)


def reference(text: str, settings: NearDedupSettings) -> set[tuple[str, ...]]:
    """The set of shingles."""
    words = WORD.findall(text)
    if len(words) < settings.min_words:
        return set()
    width = settings.shingle_words
    return {tuple(words[place : place + width]) for place in range(len(words) - width + 1)}


def hashed(texts: Sequence[str], settings: NearDedupSettings) -> tuple[Hashes, Indices]:
    return shingles(texts, settings.shingle_words, settings.min_words)


def sets_of(texts: Sequence[str], settings: NearDedupSettings) -> list[Hashes]:
    return distinct(*hashed(texts, settings), len(texts))


def program(words: Sequence[int]) -> str:
    return " ".join(f"name_{word}" for word in words)


def removals(texts: Sequence[str], settings: NearDedupSettings = DEFAULT) -> list[Removal]:
    """The near duplicates, preferring what comes first."""
    keys, sets = band_keys(texts, settings), sets_of(texts, settings)
    found: list[Removal] = []
    for group in components(keys):
        found += near_duplicates(group.tolist(), keys, sets.__getitem__, settings)[0]
    return sorted(found, key=lambda removal: removal.index)


@given(st.lists(TEXT, max_size=8))
def test_shingles_are_those_of_the_words_wherever_a_document_stands(texts: list[str]) -> None:
    sets, expected = sets_of(texts, SMALL), [reference(text, SMALL) for text in texts]
    assert [len(hashes) for hashes in sets] == [len(shingled) for shingled in expected]
    for index, text in enumerate(texts):
        assert np.array_equal(sets[index], sets_of([text], SMALL)[0])


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 24, 25, 1000])
def test_a_word_counts_to_its_last_byte(length: int) -> None:
    word = "".join(random.Random(length).choices("abcdef", k=length))
    others = [word[:place] + "_" + word[place + 1 :] for place in range(length)] + [word[:-1], word + "a", word * 2]
    hashes, _ = shingles([word, *others], width=1)
    assert len({*hashes.tolist()}) == len({word, *others} - {""})


def test_a_word_counts_in_the_order_of_its_parts() -> None:
    """Parts of eight bytes in any order, and of any number, make other words."""
    parts = ["a" * 8, "b" * 8, "c" * 8]
    words = {"".join(chosen) for size in range(1, 6) for chosen in itertools.product(parts, repeat=size)}
    hashes, _ = shingles(sorted(words), width=1)
    assert len({*hashes.tolist()}) == len(words) == 363


def test_bytes_are_utf_8() -> None:
    texts = ["x = 'ß 漢字 word'", "", "y"]
    for ours, theirs in zip(shingles(texts, 2), shingles([text.encode() for text in texts], 2), strict=True):
        assert np.array_equal(ours, theirs)


def test_words_that_collide_in_every_polynomial_modulo_a_power_of_two_are_told_apart() -> None:
    """Those of Thue and Morse, of 2,048 letters and of 128: what differs has equal sums of even and odd places."""
    for doublings in (7, 11):
        first, second = "a", "b"
        for _ in range(doublings):
            first, second = first + second, second + first
        assert len({*shingles([first, second], width=1)[0].tolist()}) == 2


def test_hashes_are_the_same_on_every_machine() -> None:
    hashes, _ = shingles(["def mean(values): return sum(values)"], width=5)
    assert hashes.tolist() == [8146399410626608145, 9331095417476790146]


@given(TEXT, TEXT)
def test_the_similarity_is_that_of_the_sets(first: str, second: str) -> None:
    a, b = sets_of([first, second], SMALL)
    one, two = reference(first, SMALL), reference(second, SMALL)
    assert jaccard(a, b) == (len(one & two) / len(one | two) if one | two else 0)


def test_documents_beyond_one_chunk_have_the_same_shingles() -> None:
    chance = random.Random(1)
    texts = [program([chance.randrange(50) for _ in range(chance.randrange(18_000))]) for _ in range(12)]
    assert sum(map(len, texts)) > 2 * CHUNK_BYTES
    texts.append(program(range(CHUNK_BYTES // 4)))
    together = sets_of(texts, DEFAULT)
    for text, hashes in zip(texts, together, strict=True):
        assert np.array_equal(hashes, sets_of([text], DEFAULT)[0])


def test_a_document_without_enough_words_has_no_signature_and_no_candidates() -> None:
    texts = ["a b c"] * 3 + ["", "a b c d e f g h i"]
    assert (signatures(*hashed(texts, DEFAULT), len(texts)) == EMPTY).all()
    keys = band_keys(texts, DEFAULT)
    assert not keys.any()
    assert components(keys) == []


@given(st.integers(1, 400), st.integers(0, 2**32))
def test_every_signature_is_full_whatever_the_number_of_shingles(num_words: int, seed: int) -> None:
    settings = NearDedupSettings(shingle_words=1, min_words=1)
    text = program(np.random.default_rng(seed).integers(0, 2**40, num_words).tolist())
    signature = signatures(*hashed([text], settings), 1)[0]
    hashes = hashed([text], settings)[0]
    assert {*signature.tolist()} <= {*hashes.tolist()}
    for value in hashes.tolist():  # the smallest of each bin stands in it
        assert signature[value >> 56] <= value
        assert signature[value >> 56] >> np.uint64(56) == value >> 56


def test_equal_values_of_signatures_estimate_the_similarity() -> None:
    chance = np.random.default_rng(3)
    settings = NearDedupSettings(shingle_words=1, min_words=1)
    for num_words in (30, 300, 3000):
        for similarity in (0.3, 0.6, 0.9):
            errors = []
            for _ in range(30):
                words = chance.permutation(2**20)[:num_words].tolist()
                shared = round(2 * num_words * similarity / (1 + similarity) / 2)
                other = words[:shared] + chance.integers(2**21, 2**40, num_words - shared).tolist()
                a, b = signatures(*hashed([program(words), program(other)], settings), 2)
                true = jaccard(*sets_of([program(words), program(other)], settings))
                errors.append((a == b).mean() - true)
            assert abs(np.mean(errors)) < 0.05, (num_words, similarity)


def test_pairs_are_caught_as_often_as_the_curve_says() -> None:
    assert DEFAULT.catch_probability(0.85) > 0.99
    assert DEFAULT.catch_probability(0.5) < 0.03
    chance = np.random.default_rng(5)
    settings = NearDedupSettings(shingle_words=1, min_words=1)
    caught, expected = 0, 0.0
    for _ in range(200):
        words = chance.integers(0, 2**40, 600).tolist()
        shared = int(chance.integers(450, 580))
        pair = [program(words), program(words[:shared] + chance.integers(2**41, 2**42, 600 - shared).tolist())]
        keys = band_keys(pair, settings)
        caught += bool((keys[0] == keys[1]).any())
        expected += settings.catch_probability(jaccard(*sets_of(pair, settings)))
    assert caught == pytest.approx(expected, abs=15)


def near_copies(chance: random.Random, num_families: int) -> list[str]:
    """Families of programs that differ in some words."""
    texts = []
    for family in range(num_families):
        words = [family * 1000 + number for number in range(chance.randrange(20, 300))]
        for _ in range(chance.randrange(1, 6)):
            changed = list(words)
            for _ in range(chance.randrange(6)):
                changed[chance.randrange(len(changed))] = chance.randrange(10**6, 10**7)
            texts.append(program(changed))
    return texts


@pytest.mark.parametrize("seed", range(5))
def test_whatever_goes_has_a_kept_document_that_is_similar_enough_and_no_others_do(seed: int) -> None:
    texts = near_copies(random.Random(seed), 40)
    found = removals(texts)
    gone = {removal.index for removal in found}
    expected = [reference(text, DEFAULT) for text in texts]
    assert gone
    for removal in found:
        one, two = expected[removal.index], expected[removal.kept]
        assert removal.kept not in gone
        assert removal.kept < removal.index
        assert removal.similarity == len(one & two) / len(one | two) >= DEFAULT.threshold
    missed = [
        (a, b)
        for a in range(len(texts))
        for b in range(a)
        if not {a, b} & gone and len(expected[a] & expected[b]) >= 0.9 * len(expected[a] | expected[b])
    ]
    assert missed == [], "the curve catches 99.98 % of pairs at 0.9"


@given(st.randoms(use_true_random=False))
def test_the_result_does_not_depend_on_the_order_of_documents(chance: random.Random) -> None:
    texts = near_copies(random.Random(7), 12)
    order = list(range(len(texts)))
    chance.shuffle(order)
    keys, sets = band_keys([texts[place] for place in order], DEFAULT), sets_of([texts[p] for p in order], DEFAULT)
    found: list[Removal] = []
    for group in components(keys):
        by_preference = sorted(group.tolist(), key=lambda index: order[index])
        found += near_duplicates(by_preference, keys, sets.__getitem__, DEFAULT)[0]
    renamed = [Removal(order[removal.index], order[removal.kept], removal.similarity) for removal in found]
    assert sorted(renamed, key=lambda removal: removal.index) == removals(texts)


def test_in_a_chain_only_what_is_like_a_kept_document_goes() -> None:
    """A~B~C~D..., each by one word in fifty: the ends have nothing in common, so both stay."""
    chain = [program(range(start * 10, start * 10 + 500)) for start in range(60)]
    assert jaccard(*sets_of([chain[0], chain[1]], DEFAULT)) > DEFAULT.threshold
    assert jaccard(*sets_of([chain[0], chain[-1]], DEFAULT)) == 0
    kept = sorted({*range(len(chain))} - {removal.index for removal in removals(chain)})
    assert kept[0] == 0
    assert len(kept) > 5
    for removal in removals(chain):
        assert removal.similarity >= DEFAULT.threshold


def test_a_thousand_copies_leave_one_and_cost_one_comparison_each(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [program(range(100))] * 1000
    keys, sets = band_keys(texts, DEFAULT), sets_of(texts, DEFAULT)
    compared = []

    def counted(first: Hashes, second: Hashes) -> float:
        compared.append(1)
        return jaccard(first, second)

    monkeypatch.setattr("codeparrot.near_dedup.jaccard", counted)
    found, num_crowded = near_duplicates(range(1000), keys, sets.__getitem__, DEFAULT)
    assert num_crowded == 0
    assert [removal.index for removal in found] == list(range(1, 1000))
    assert {removal.kept for removal in found} == {0}
    assert len(compared) == 999


def alike(num_documents: int) -> tuple[Hashes, list[Hashes]]:
    """(keys, shingles) of documents that share a band, but nothing else."""
    keys = np.arange(1, 2 * num_documents + 1, dtype=np.uint64).reshape(num_documents, 2)
    keys[:, 0] = 7
    return keys, [np.arange(50 * index, 50 * index + 50, dtype=np.uint64) for index in range(num_documents)]


def test_a_crowd_that_is_alike_but_not_alike_enough_costs_a_bounded_number_of_comparisons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = NearDedupSettings(max_rivals=10)
    keys, sets = alike(500)
    compared = []

    def counted(first: Hashes, second: Hashes) -> float:
        compared.append(1)
        return jaccard(first, second)

    monkeypatch.setattr("codeparrot.near_dedup.jaccard", counted)
    assert near_duplicates(range(500), keys, sets.__getitem__, settings) == ([], 489)
    assert len(compared) == 45 + 490 * 10


def test_in_a_crowd_those_that_share_most_bands_are_compared_first() -> None:
    """A copy of the last document, which was not among those that are remembered for the band of all."""
    keys, sets = alike(50)
    keys, sets = np.concatenate([keys, keys[-1:]]), [*sets, sets[-1]]
    settings = NearDedupSettings(max_rivals=3)
    assert near_duplicates(range(51), keys, sets.__getitem__, settings) == ([Removal(50, 49, 1.0)], 47)


def test_a_document_that_no_band_remembers_stands_for_nothing() -> None:
    keys, sets = alike(50)
    keys[:, 1] = 0
    settings = NearDedupSettings(max_rivals=3)
    found, num_crowded = near_duplicates([*range(50), 49], keys, sets.__getitem__, settings)
    assert (found, num_crowded) == ([], 47)


def test_of_equally_similar_documents_the_preferred_one_is_named() -> None:
    keys, sets = np.full((3, 1), 7, np.uint64), [np.arange(n, 20 + n, dtype=np.uint64) for n in (0, 2, 1)]
    settings = NearDedupSettings(threshold=0.9)
    for order in ([0, 1, 2], [1, 0, 2]):
        assert near_duplicates(order, keys, sets.__getitem__, settings)[0] == [Removal(2, order[0], 19 / 21)]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_components_are_those_of_the_graph_of_equal_keys(rows: list[tuple[int, int, int]]) -> None:
    groups: list[set[int]] = []
    for index, row in enumerate(rows):
        linked = [
            group
            for group in groups
            if any(key and key == rows[other][band] for other in group for band, key in enumerate(row))
        ]
        groups = [group for group in groups if group not in linked] + [{index}.union(*linked)]
    keys = np.array(rows, np.uint64).reshape(len(rows), 3)
    expected = sorted(sorted(group) for group in groups if len(group) > 1)
    assert sorted(group.tolist() for group in components(keys)) == expected


def test_bands_that_miss_most_pairs_are_refused_such_as_those_of_the_original() -> None:
    with pytest.raises(ConfigError, match=r"only 45\.5% of pairs at threshold 0\.85 would be compared"):
        validate(NearDedupSettings, {"num_bands": 13, "rows_per_band": 19}, "recipe")
    with pytest.raises(ConfigError, match=r"only 2\.4% of pairs at threshold 0\.5"):
        validate(NearDedupSettings, {"threshold": 0.5}, "recipe")


def test_short_documents_are_caught_as_often_as_long_ones() -> None:
    chance, caught = random.Random(11), 0
    for _ in range(200):
        words = [chance.randrange(10**9) for _ in range(DEFAULT.min_words + 1)]
        keys = band_keys([program(words), program(words[:-1])], DEFAULT)
        caught += bool((keys[0] == keys[1]).any())
    assert caught >= 195


def test_more_bands_than_a_signature_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_bands x rows_per_band must be <= 256.*got 26 x 10"):
        validate(NearDedupSettings, {"num_bands": 26}, "recipe")
