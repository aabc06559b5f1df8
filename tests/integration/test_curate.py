"""Curation of a whole corpus by Ray: near duplicates in different shards, a trail of what went, and no secrets."""

import io
import json
import random
from typing import Any

import pyarrow.parquet as pq

from codeparrot.documents import from_parquet
from codeparrot.manifest import load_manifest
from codeparrot.storage import open_storage, sha256_hex
from tests.integration.conftest import Machine
from tests.unit.redaction_set import TOKENS, email, framed, private_key, public_ip

ASKED = "given a list of numbers return the sum of those that are both prime and palindromes in base seven"


def program(*changed: int, start: int = 0) -> str:
    """A hundred statements, some of them other ones."""
    lines = [f"value_{start + number} = compute_{start + number}(argument_{start + number})" for number in range(100)]
    for number in changed:
        lines[number] = f"changed_{number} = other_{number}(thing)"
    return "\n".join(lines) + "\nwhile value: pass\n"


def curated(machine: Machine, shard_bytes: int) -> tuple[set[str], list[dict[str, Any]], dict[str, Any]]:
    """The documents that are kept, the audit rows, and the counts."""
    machine.values["storage"] = {"uri": str(machine.folder / f"data-{shard_bytes}")}
    machine.values["collect"]["shard_bytes"] = shard_bytes
    machine.run_at_once("collect", "curate")
    storage = open_storage(machine.values["storage"]["uri"])
    manifest = load_manifest(storage, "curated")
    assert manifest is not None
    names = [*manifest.names("train/"), *manifest.names("validation/")]
    kept = {row["path"] for name in names for row in from_parquet(manifest.read(storage, name), ["path"]).to_pylist()}
    audit = pq.read_table(io.BytesIO(manifest.read(storage, "near_duplicates.parquet"))).to_pylist()
    assert all(json.loads(line)["reason"] for line in manifest.read(storage, "rejected.jsonl").splitlines())
    found = [json.loads(line) for line in manifest.read(storage, "contaminated.jsonl").splitlines()]
    assert [(row["path"], list(row["shared"])) for row in found] == [("three/f.py", ["Asked/0"])]
    owed = [json.loads(line) for line in manifest.read(storage, "attribution.jsonl").splitlines()]
    assert [row["repository"] for row in owed] == ["one", "three", "two"]
    assert all(row["license"] == "MIT" and row["source"] == "directory" and row["num_documents"] == 1 for row in owed)
    card = manifest.read(storage, "card.md").decode()
    for row in (*audit, *found):
        assert row.get("removed_path", row.get("path")) in card
    assert "| `near_duplicate` | it is nearly the same as one that stays | 3 |" in card
    assert manifest.digest in card
    assert manifest.digest in manifest.read(storage, "card.html").decode()
    return kept, audit, dict(manifest.counts)


def test_of_near_duplicates_one_stays_whatever_the_shards_and_the_others_leave_a_trail(machine: Machine) -> None:
    code = machine.folder / "code"
    texts = {
        "one/a.py": program(),
        "one/b.py": program(3),
        "two/a.py": program(50),
        "two/c.py": program(*range(0, 100, 3)),  # another program by now
        "three/d.py": program(start=1000),
        "three/e.py": program(7, start=1000),
        "three/f.py": program(start=5000) + "# " + ASKED,
    }
    for path, text in texts.items():
        (code / path).parent.mkdir(parents=True, exist_ok=True)
        (code / path).write_text(text)
    benchmark = machine.folder / "benchmark.jsonl"
    benchmark.write_text(json.dumps({"task_id": "Asked/0", "prompt": f"def answer():\n    {ASKED}"}))
    machine.values["collect"] = {"sources": [{"kind": "directory", "path": str(code), "license": "MIT"}]}
    machine.values["curate"] = {
        "licenses": {"allow": ["MIT"]},
        "filters": {"config_or_test_drop_probability": None},
        "near_dedup": {},
        "decontaminate": {"files": [str(benchmark)]},
        "validation_fraction": 0.3,
    }
    kept, audit, counts = curated(machine, 1_000_000)
    assert kept == {"one/a.py", "two/c.py", "three/d.py"}
    pairs = {(row["removed_path"], row["kept_path"]) for row in audit}
    assert pairs == {("one/b.py", "one/a.py"), ("two/a.py", "one/a.py"), ("three/e.py", "three/d.py")}
    assert all(0.85 <= row["jaccard"] < 1 for row in audit)
    assert counts["near_dedup"]["largest_group"] >= 3
    assert counts["near_dedup"]["clusters_by_size"] == {"2": 1, "4": 1}
    assert next(iter(counts["contaminated"].values())) == {
        "num_documents": 1,
        "num_problems_found": 1,
        "num_problems": 1,
    }
    again = curated(machine, 4_000)
    assert again[:2] == (kept, audit), "another division into shards"
    assert again[2] == counts


def secretive(chance: random.Random, number: int) -> tuple[str, list[str]]:
    """A program full of secrets, which are other ones at every call, and the secrets."""
    tokens = [TOKENS["github_token"][0](chance) for _ in range(60)]
    name, key = private_key(chance)
    others = [email(chance), public_ip(chance, 4), public_ip(chance, 6)]
    lines = [f"token_{index} = call_{number}('{token}')" for index, token in enumerate(tokens)]
    lines += [f"thing_{number} = '{other}'" for other in others]
    text = framed(name, key, "triple") + "\n".join(lines) + "\nwhile thing: pass\n"
    return text.replace(name, "PRIVATE KEY"), [*tokens, *others, *key]


def test_what_is_redacted_is_in_nothing_that_curation_writes_or_says(machine: Machine) -> None:
    chance = random.Random(1)
    planted: list[str] = []

    def text(number: int, after: str = "") -> str:
        found, secrets = secretive(random.Random(chance.random()), number)
        planted.extend(secrets)
        rest = found.partition('"""\ntoken_0')[2]
        return f"KEY_{number} = 1\ntoken_0{rest}{after}"

    texts = {
        "one/a.py": text(1),
        "one/twin.py": text(1),
        "two/a.py": text(2),
        "two/near.py": text(2, "one_more = 1\n"),
        "three/key.py": text(3),
        "three/rejected.py": f"wide = '{'a ' * 600}'\n" + text(4),
        "four/clean.py": program(start=7000),
    }
    name, key = private_key(chance)
    planted.extend(key)
    texts["three/key.py"] += framed(name, key, "triple")
    for path, content in texts.items():
        (machine.folder / "code" / path).parent.mkdir(parents=True, exist_ok=True)
        (machine.folder / "code" / path).write_text(content)
    planted = [secret for secret in planted if any(secret in content for content in texts.values())]
    assert len(planted) > 300
    source = {"kind": "directory", "path": str(machine.folder / "code"), "license": "MIT"}
    machine.values["storage"] = {"uri": str(machine.folder / "data")}
    machine.values["collect"] = {"sources": [source], "shard_bytes": 5_000}
    filters = {"config_or_test_drop_probability": None, "min_characters_per_token": None}
    machine.values["curate"] = {"licenses": {"allow": ["MIT"]}, "redact": {}, "near_dedup": {}, "filters": filters}
    said = "\n".join(machine.run(stage).output for stage in ("collect", "curate"))
    storage = open_storage(machine.values["storage"]["uri"])
    manifest = load_manifest(storage, "curated")
    assert manifest is not None
    written = [said]
    rows = []
    for file in (machine.folder / "data" / "curated").rglob("*"):
        if file.suffix == ".parquet":
            rows += pq.read_table(file).to_pylist()
        elif file.is_file():
            written.append(file.read_text(errors="replace"))
    assert not [secret for secret in planted for part in [*written, str(rows)] if secret in part]
    assert "3 documents: " in said
    kept = {row["path"]: row for row in rows if "content" in row}
    assert {*kept} == {"one/a.py", "two/a.py", "three/key.py", "four/clean.py"}
    for path, row in kept.items():
        data = row["content"].encode()
        assert (row["size_bytes"], row["sha256"]) == (len(data), sha256_hex(data)), path
    assert kept["four/clean.py"]["content"] == texts["four/clean.py"]
    assert kept["three/key.py"]["content"].count("PRIVATE_KEY_1") == len(key)
    samples = [json.loads(line) for line in manifest.read(storage, "rejected.jsonl").splitlines()]
    assert {sample["reason"] for sample in samples} == {"exact_duplicate", "near_duplicate", "long_line"}
    assert all("GITHUB_TOKEN_1" in sample["excerpt"] for sample in samples)
    counts: Any = manifest.counts["redacted"]
    assert counts["num_documents"] == 3
    assert counts["by_kind"]["github_token"] == {"num_documents": 3, "num_values": 180}
    assert counts["by_kind"]["private_key"] == {"num_documents": 1, "num_values": 1}


def test_what_is_near_to_an_earlier_corpus_goes_and_that_corpus_stays(machine: Machine) -> None:
    def corpus(name: str, texts: dict[str, str], near_dedup: dict[str, Any]) -> None:
        for path, text in texts.items():
            (machine.folder / name / path).parent.mkdir(parents=True, exist_ok=True)
            (machine.folder / name / path).write_text(text)
        source = {"kind": "directory", "path": str(machine.folder / name), "license": "MIT"}
        machine.values["storage"] = {"uri": str(machine.folder / f"{name}-data")}
        machine.values["collect"] = {"sources": [source], "shard_bytes": 4_000}
        machine.values["curate"] = {
            "licenses": {"allow": ["MIT"]},
            "filters": {"config_or_test_drop_probability": None},
            "near_dedup": near_dedup,
        }

    corpus("old", {"one/a.py": program(), "two/b.py": program(start=1000)}, {})
    machine.run_at_once("collect", "curate")
    earlier = machine.values["storage"]["uri"]
    texts = {
        "a/near.py": program(3),
        "a/nearer.py": program(3, 5),
        "b/new.py": program(start=2000),
        "c/twin.py": program(start=2000) + "one_more = 1\n",
        "c/other.py": program(start=3000),
    }
    corpus("new", texts, {"against": [earlier]})
    machine.run("collect")
    machine.run("curate")
    storage = open_storage(machine.values["storage"]["uri"])
    manifest = load_manifest(storage, "curated")
    assert manifest is not None
    names = [*manifest.names("train/"), *manifest.names("validation/")]
    kept = {row["path"] for name in names for row in from_parquet(manifest.read(storage, name), ["path"]).to_pylist()}
    assert kept == {"b/new.py", "c/other.py"}
    rows = pq.read_table(io.BytesIO(manifest.read(storage, "near_duplicates.parquet"))).to_pylist()
    assert {(row["removed_path"], row["kept_path"], row["kept_in"]) for row in rows} == {
        ("a/near.py", "one/a.py", earlier),
        ("a/nearer.py", "one/a.py", earlier),
        ("c/twin.py", "b/new.py", None),
    }
    assert manifest.counts["near_dedup"]["num_compared_with"] == 2

    for against, values, message in (
        (machine.values["storage"]["uri"], {}, "is storage.uri itself"),
        (earlier, {"shingle_words": 4}, "'shingle_words': 5, 'version': 2}, not {"),
        (str(machine.folder / "nothing"), {}, "run `python -m ray_jobs.curate`"),
    ):
        machine.values["curate"]["near_dedup"] = {"against": [against], **values}
        failed = machine.start("curate")
        assert failed.wait() != 0
        assert message in failed.output
