"""What curation counts for its manifest and card: documents by what they are, clusters of duplicates, benchmarks."""

import random
from collections import defaultdict

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.decontaminate import Problems
from codeparrot.documents import Document, document_id, make_document, to_parquet, to_table
from codeparrot.manifest import ABOUT, Attempt
from codeparrot.splits import CurateSettings
from codeparrot.storage import LocalStorage
from ray_jobs.curate_shard import EXCERPT_CHARACTERS, Placement, Sample, smallest, write_shard
from ray_jobs.data_card import NUM_CLUSTERS, NUM_MEMBERS, Clusters, contamination
from ray_jobs.near_duplicates import Near
from ray_jobs.tally import COLUMNS, Tally

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "source": st.sampled_from(["packages", "team"]),
            "repository": st.sampled_from(["a", "b", "c"]),
            "license": st.sampled_from([None, "MIT", "0BSD"]),
            "language": st.sampled_from([None, "Python"]),
            "size_bytes": st.integers(1, 3_000_000),
        }
    ),
    max_size=30,
)

COUNTED = pa.schema([*((name, pa.string()) for name in COLUMNS), ("size_bytes", pa.int64())])


@given(ROWS, st.integers(0, 30))
def test_every_way_of_counting_counts_all_documents_and_bytes(rows: list[dict[str, object]], cut: int) -> None:
    tally, first, second = Tally(), Tally(), Tally()
    for counted, part in ((tally, rows), (first, rows[:cut]), (second, rows[cut:])):
        counted.keep(pa.Table.from_pylist(part, COUNTED))
    first.add(second)
    counts = tally.counts()
    assert first.counts() == counts
    assert tally.repositories == sorted({str(row["repository"]) for row in rows})
    for name in ("source", "repository", "license", "language", "size"):
        amounts = counts[f"by_{name}"].values()
        assert sum(amount["num_documents"] for amount in amounts) == counts["num_documents"] == len(rows)
        assert sum(amount["size_bytes"] for amount in amounts) == counts["size_bytes"]
    for bound, amount in counts["by_size"].items():
        assert bound.rstrip("0") in {"1", "2", "5"}
        assert amount["size_bytes"] <= int(bound) * amount["num_documents"]
        assert int(bound) == 100 or amount["size_bytes"] > int(bound) // 2.5 * amount["num_documents"]


def test_what_is_rejected_is_counted_in_documents_and_bytes() -> None:
    tally = Tally()
    tally.reject(["empty", "long_line"], [0, 70])
    tally.reject(["long_line"], [30])
    assert tally.counts()["rejected"] == {
        "empty": {"num_documents": 1, "size_bytes": 0},
        "long_line": {"num_documents": 2, "size_bytes": 100},
    }
    assert tally.num_documents == 0


def ids(number: int) -> list[str]:
    return [document_id("packages", "repository", f"{place:04d}.py") for place in range(number)]


def test_clusters_are_what_stays_with_all_that_goes_for_it_whatever_the_order() -> None:
    names = ids(100)
    removed = [Near(place, names[place // 10 * 10], None, 0.9) for place in range(100) if place % 10]
    removed += [Near(50, names[0], "s3://elsewhere", 0.95)]
    shuffled = random.Random(1).sample(removed, len(removed))
    clusters = Clusters(removed, names)
    assert clusters.counts() == {"num_clusters": 11, "largest_cluster": 10, "clusters_by_size": {"16": 10, "2": 1}}
    assert Clusters(shuffled, names).counts() == clusters.counts()
    largest = clusters.largest()
    assert Clusters(shuffled, names).largest() == largest
    assert [each["kept"]["path"] for each in largest] == [f"{place:03d}0.py" for place in range(10)] + ["0000.py"]
    assert largest[-1]["kept"]["store"] == "s3://elsewhere"
    assert largest[-1]["removed"] == [
        {"source": "packages", "repository": "repository", "path": "0050.py", "similarity": 0.95}
    ]
    assert Clusters([], []).counts() == {"num_clusters": 0, "largest_cluster": 0, "clusters_by_size": {}}


def test_of_many_and_large_clusters_some_are_shown() -> None:
    names = ids(3000)
    removed = [Near(place, names[place % 50], None, place / 3000) for place in range(50, 3000)]
    largest = Clusters(removed, names).largest()
    assert len(largest) == NUM_CLUSTERS
    assert {each["num_documents"] for each in largest} == {60}
    for each in largest:
        similar = [member["similarity"] for member in each["removed"]]
        assert len(similar) == NUM_MEMBERS
        assert similar == sorted(similar, reverse=True)


def test_contamination_is_counted_by_benchmark() -> None:
    nothing = np.array([], np.uint64)
    problems = Problems(("a/0", "a/1", "b/0"), ("a.jsonl", "a.jsonl", "b.jsonl"), nothing, nothing.astype(np.int64), 13)

    assert contamination([{"a/0": 3, "a/1": 1}, {"a/0": 1}], problems) == {
        "a.jsonl": {"num_documents": 2, "num_problems_found": 2, "num_problems": 2},
        "b.jsonl": {"num_documents": 0, "num_problems_found": 0, "num_problems": 1},
    }


def test_other_words_on_a_card_make_nothing_downstream_anew(storage: LocalStorage) -> None:
    attempt = Attempt(storage, "curate", "curated", {}, {}, "code")
    documents = attempt.write("train/part-00000.parquet", b"documents")
    digests = {
        attempt.manifest([documents, *(attempt.write(name, text) for name in ABOUT)], {}).digest
        for text in (b"a card", b"another")
    }
    assert digests == {attempt.manifest([documents], {}).digest}
    assert attempt.manifest([attempt.write("train/part-00000.parquet", b"others")], {}).digest not in digests


def chosen(storage: LocalStorage, shard_documents: int, **values: object) -> dict[str | None, list[dict[str, object]]]:
    """The samples of a corpus that is curated in shards of so many documents: every third is rejected."""
    settings = CurateSettings.model_validate({"licenses": {"allow": None}, "num_kept_samples": 7, **values})
    documents = [
        make_document(
            f"mail_{number} = 'someone@company{number}.com'\n".encode() * 100,
            source="packages",
            repository="a",
            path=f"{number}.py",
            revision=None,
            license=None,
        )
        for number in range(60)
    ]
    attempt = Attempt(storage, "collect", f"raw-{shard_documents}", {}, {}, "code")
    shards = [documents[start : start + shard_documents] for start in range(0, 60, shard_documents)]
    files = [
        attempt.write(
            f"part-{index:05d}.parquet", to_parquet(to_table([each for each in shard if isinstance(each, Document)]))
        )
        for index, shard in enumerate(shards)
    ]
    raw = attempt.manifest(files, {})
    pooled: dict[str | None, list[Sample]] = defaultdict(list)
    for index, (file, shard) in enumerate(zip(files, shards, strict=True)):
        start = index * shard_documents
        reasons = ["long_line" if number % 3 == 0 else None for number in range(start, start + len(shard))]
        placement = Placement(file.name, index, np.array(reasons, object), np.zeros(len(shard), np.bool_))
        written = write_shard(placement, uri=storage.uri, folder="curated", documents=raw, settings=settings, seed=1)
        assert written.kept["train"].num_documents == reasons.count(None)
        assert written.rejected.rejected["num_documents"].total() == len(shard) - reasons.count(None)
        for reason, samples in written.samples.items():
            pooled[reason] += samples
    return {
        reason: [sample for _, sample in smallest(samples, reason, settings)]
        for reason, samples in sorted(pooled.items(), key=lambda item: item[0] or "")
    }


def test_the_same_documents_are_shown_however_they_are_divided(storage: LocalStorage) -> None:
    whole = chosen(storage, 60, num_rejected_samples=5)
    assert {reason: len(samples) for reason, samples in whole.items()} == {None: 7, "long_line": 5}
    assert [sample["path"] for sample in whole[None]] != [f"{number}.py" for number in (1, 2, 4, 5, 7, 8, 10)]
    for shard_documents in (7, 20):
        assert chosen(storage, shard_documents, num_rejected_samples=5) == whole
    assert len(chosen(storage, 60)["long_line"]) == 20
    assert chosen(storage, 60, num_rejected_samples=0)["long_line"] == []


def test_what_a_person_is_shown_is_redacted_even_if_the_corpus_is_not(storage: LocalStorage) -> None:
    for sample in chosen(storage, 60)[None]:
        assert "email1@example.com" in str(sample["excerpt"])
        assert "company" not in str(sample["excerpt"])
        assert len(str(sample["excerpt"])) == EXCERPT_CHARACTERS
    wanted = chosen(storage, 60, redact={"keep_patterns": [".*company.*"]})[None]
    assert all("company" in str(sample["excerpt"]) for sample in wanted), "the first pass has redacted what must go"
