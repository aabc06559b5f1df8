"""Near duplicates of a whole corpus, however it is divided and in whatever order things come and are done."""

import logging
import random
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from codeparrot.documents import Document, make_document, to_parquet, to_table
from codeparrot.errors import ManifestError
from codeparrot.manifest import Attempt
from codeparrot.near_dedup import NearDedupSettings, band_keys, components, groups
from codeparrot.shingles import Hashes
from codeparrot.storage import LocalStorage
from ray_jobs import near_duplicates
from ray_jobs.near_index import KEYS, Corpus, Shard, from_index, index_of, shards_of, to_index

SETTINGS = NearDedupSettings(min_words=6)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> random.Random:
    """The tasks of Ray run in this process, in an order that is other every time."""
    chance = random.Random(1)

    def spread(stage: str, items: Sequence[Any], work: Callable[[Any], Any], unit: str = "", **_: Any) -> list[Any]:
        order = list(range(len(items)))
        chance.shuffle(order)
        done = {place: work(items[place]) for place in order}
        return [done[place] for place in range(len(items))]

    monkeypatch.setattr(near_duplicates, "spread", spread)
    return chance


def text(*changed: int, start: int = 0) -> str:
    """A hundred statements, some of them other ones."""
    return "\n".join(f"value_{n} = other(argument)" if n in changed else f"value_{n} = {n + start}" for n in range(100))


def corpus() -> list[Document]:
    """Families of near duplicates, a chain whose ends differ, copies, and one of everything that is hard to read."""
    texts = [text(*range(change), start=start) for start in range(0, 5000, 1000) for change in range(4)]
    texts += ["\n".join(f"link_{n} = {n}" for n in range(start, start + 100)) for start in range(0, 60, 4)]
    texts += ["short = 1", "a\0b = '\u200f\u202e' # 漢字\r\n" * 50, "copy = 'the same words again and again'\n" * 3]
    texts += [texts[-1], f"data = '{'0123456789abcdef' * 1000}'", *(f"number_{n} = {n}\n" * 9 for n in range(20))]
    made = [
        make_document(each, source="s", repository="r", path=f"{number:03d}.py", revision=None, license=None)
        for number, each in enumerate(texts)
    ]
    return [document for document in made if isinstance(document, Document)]


def stored(storage: LocalStorage, documents: Sequence[Document], size: int, prefix: str) -> tuple[Attempt, Corpus]:
    """The documents as shards of so many, with an index of each."""
    attempt, files = Attempt(storage, "stage", prefix, {}, {}, "code"), []
    for number, start in enumerate(range(0, len(documents), size)):
        name, shard = f"part-{number:05d}.parquet", documents[start : start + size]
        files.append(attempt.write(name, to_parquet(to_table(shard))))
        keys = to_index(band_keys([document.content for document in shard], SETTINGS))
        files.append(attempt.write(index_of(name), keys))
        attempt.write(f"{KEYS}{name}", keys)
    return attempt, Corpus(storage.uri, attempt.manifest(files, {}))


def found(
    storage: LocalStorage, documents: Sequence[Document], size: int, settings: NearDedupSettings = SETTINGS
) -> tuple[bytes, dict[str, Any]]:
    """(what went, and for what; counts)."""
    attempt, where = stored(storage, documents, size, f"raw-{size}")
    names = where.manifest.names("part-")
    shards = [
        Shard(0, name, f"{attempt.folder}/{KEYS}{name}", min(size, len(documents) - number * size))
        for number, name in enumerate(names)
    ]
    ids = [document.id for document in documents]
    near, counts = near_duplicates.find(
        shards,
        np.arange(len(documents)),
        np.argsort(np.argsort(ids)),
        ids,
        corpus=where,
        against=[],
        settings=settings,
        folder=attempt.folder,
    )
    return near_duplicates.audit(sorted(near, key=lambda each: ids[each.index]), ids), counts


def test_the_same_bytes_whatever_the_order_of_documents_shards_keys_and_tasks(
    storage: LocalStorage, here: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = corpus()
    expected, counts = found(storage, documents, len(documents))
    assert counts["num_crowded"] == 0
    assert counts["num_compared"] > 30
    monkeypatch.setattr(near_duplicates, "BATCH_DOCUMENTS", 10)
    for size, part_keys in ((1, 10), (7, 30), (7, 200)):
        here.shuffle(documents)
        monkeypatch.setattr(near_duplicates, "PART_KEYS", part_keys)
        assert found(storage, documents, size) == (expected, counts)


@pytest.mark.parametrize("part_keys", [1, 10, 64, 65, 130, 10_000])
def test_every_key_is_looked_at_in_one_part(part_keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "PART_KEYS", part_keys)
    parts = near_duplicates._parts(64, 25)
    places = [(band, part.range) for part in parts for band in part.bands]
    num_ranges = parts[0].num_ranges
    assert sorted(places) == [(band, number) for band in range(25) for number in range(num_ranges)]
    assert [part.number for part in parts] == list(range(len(parts)))
    for part in parts:
        assert len(part.bands) * 64 / num_ranges <= max(part_keys, 1)


def signed(storage: LocalStorage, keys: Hashes, size: int) -> near_duplicates.Documents:
    shards = []
    for number, start in enumerate(range(0, len(keys), size)):
        part = keys[start : start + size]
        storage.write(f"{KEYS}{number}", to_index(part))
        shards.append(Shard(0, str(number), f"{KEYS}{number}", len(part)))
    return near_duplicates.Documents(shards)


def test_the_forest_connects_what_equal_keys_connect(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = np.random.default_rng(1).integers(0, 2**64, (3000, 3), np.uint64) // np.uint64(2**50) * np.uint64(2**50)
    expected = [group.tolist() for group in components(keys)]
    assert len(expected) > 10
    _, where = stored(storage, [], 1, "raw")
    for size, part_keys in ((3000, 10**6), (400, 900), (7, 5000)):
        monkeypatch.setattr(near_duplicates, "PART_KEYS", part_keys)
        forest = near_duplicates._forest(signed(storage, keys, size), [where], SETTINGS_OF_THREE, "attempt", None)
        assert [group.tolist() for group in groups(forest)] == expected


SETTINGS_OF_THREE = NearDedupSettings(num_bands=3, rows_per_band=1)


def test_the_index_takes_at_most_200_bytes_per_document_and_the_driver_holds_a_fraction_of_it(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a hundredth of all documents in groups."""
    num_documents = 100_000
    chance = np.random.default_rng(2)
    keys = chance.integers(1, 2**64, (num_documents, 25), np.uint64)
    twins = chance.permutation(num_documents)[:1000]
    keys[twins[:500]] = keys[twins[500:]]
    documents = signed(storage, keys, 10_000)
    assert sum(size for _, size in storage.list(KEYS)) <= 200 * num_documents
    monkeypatch.setattr(near_duplicates, "PART_KEYS", 10_000)
    _, where = stored(storage, [], 1, "raw")

    parts = near_duplicates._parts(num_documents, 25)
    monkeypatch.setattr(near_duplicates, "spread", lambda *_, **__: None)  # the tasks have memory of their own
    for part in parts:
        near_duplicates._link(part, documents=documents, uris=[storage.uri], folder="attempt")
    tracemalloc.start()
    try:
        connected = groups(near_duplicates._forest(documents, [where], NearDedupSettings(), "attempt", None))
        peak = tracemalloc.get_traced_memory()[1] / num_documents
    finally:
        tracemalloc.stop()
    assert sorted(index for group in connected for index in group.tolist()) == sorted(twins.tolist())
    assert peak < 20, f"{peak:.1f} bytes per document"
    print(f"{peak:.1f} bytes per document in the driver, 200 in the store")


def test_a_crowd_is_said_and_so_is_a_giant_group_which_is_compared_in_parts(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(near_duplicates, "GIANT_GROUP", 8)
    monkeypatch.setattr(near_duplicates, "MAX_GROUP", 12)
    documents = corpus()
    settings = SETTINGS.model_copy(update={"max_rivals": 1})
    with caplog.at_level(logging.INFO, logger="codeparrot"), caplog.at_level(logging.INFO, logger="ray_jobs"):
        _, counts = found(storage, documents, 20, settings)
    assert counts["largest_group"] == 15
    assert counts["num_crowded"] > 0
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "100.0 % at 0.95" in said
    assert "a group of 15 documents may be near duplicates of each other, for example s/r/020.py and s/r/021.py" in said
    assert "comparing them (in parts of 12) takes long" in said
    assert f"{counts['num_crowded']} documents share bands with so many that are kept" in said


def test_a_damaged_index_of_an_earlier_corpus_is_refused(storage: LocalStorage) -> None:
    documents = corpus()
    _, where = stored(storage, documents, 20, "curated")
    shards = shards_of([where], 25)
    assert [shard.num_documents for shard in shards] == [20, 20, len(documents) - 40]
    assert [shard.name for shard in shards] == where.manifest.names("part-")
    storage.write(where.manifest.path(index_of("part-00001.parquet")), bytes(20 * 200))
    with pytest.raises(ManifestError, match="damaged"):
        shards_of([where], 25)


def test_an_index_gives_its_keys_back() -> None:
    for num_documents in (0, 1, 5):
        keys = np.random.default_rng(3).integers(0, 2**64, (num_documents, 4), np.uint64)
        assert np.array_equal(from_index(to_index(keys), num_documents), keys[:, : 4 if num_documents else 0])
