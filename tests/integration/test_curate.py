"""Curation of a whole corpus by Ray: near duplicates in different shards, and a trail of what went."""

import io
import json
from typing import Any

import pyarrow.parquet as pq

from codeparrot.documents import from_parquet
from codeparrot.manifest import load_manifest
from codeparrot.storage import open_storage
from tests.integration.conftest import Machine

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
    for stage in ("collect", "curate"):
        machine.run(stage)
    storage = open_storage(machine.values["storage"]["uri"])
    manifest = load_manifest(storage, "curated")
    assert manifest is not None
    names = [file.name for file in manifest.files if "/part-" in file.name]
    kept = {row["path"] for name in names for row in from_parquet(manifest.read(storage, name), ["path"]).to_pylist()}
    audit = pq.read_table(io.BytesIO(manifest.read(storage, "near_duplicates.parquet"))).to_pylist()
    assert all(json.loads(line)["reason"] for line in manifest.read(storage, "rejected.jsonl").splitlines())
    found = [json.loads(line) for line in manifest.read(storage, "contaminated.jsonl").splitlines()]
    assert [(row["path"], list(row["shared"])) for row in found] == [("three/f.py", ["Asked/0"])]
    owed = [json.loads(line) for line in manifest.read(storage, "attribution.jsonl").splitlines()]
    assert [row["repository"] for row in owed] == ["one", "three", "two"]
    assert all(row["license"] == "MIT" and row["source"] == "directory" and row["num_documents"] == 1 for row in owed)
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
    again = curated(machine, 4_000)
    assert again[:2] == (kept, audit), "another division into shards"
