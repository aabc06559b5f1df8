"""Packing by Ray, where rows come from, and a repository that is forgotten: the commands on a real corpus."""

import io
import json
from typing import Any

import pyarrow.parquet as pq

from codeparrot.manifest import Manifest, require_manifest
from codeparrot.storage import open_storage
from tests.integration.conftest import BEFORE_TRAINING, Machine

FORGOTTEN = "rich"


def index(machine: Machine, manifest: Manifest) -> list[dict[str, Any]]:
    """Where all rows of the train split come from."""
    storage = open_storage(machine.values["storage"]["uri"])
    names = manifest.names("train/provenance-0")
    return [row for name in names for row in pq.read_table(io.BytesIO(manifest.read(storage, name))).to_pylist()]


def test_a_forgotten_repository_is_in_no_row_whatever_runs_again(machine: Machine) -> None:
    machine.values["storage"] = {"uri": str(machine.folder / "data")}
    machine.values["pack"]["strategy"] = "best_fit"
    storage = open_storage(machine.values["storage"]["uri"])
    machine.run_at_once(*BEFORE_TRAINING)
    packed = require_manifest(storage, "packed", "")
    pieces = index(machine, packed)
    assert FORGOTTEN in {piece["repository"] for piece in pieces}
    ledger, max_seq_len = packed.counts["splits"]["train"], packed.counts["max_seq_len"]
    assert sum(piece["num_tokens"] for piece in pieces) == ledger["tokens_in"] == ledger["tokens_in_rows"]
    assert ledger["tokens_in_rows"] >= 0.997 * ledger["num_rows"] * max_seq_len
    assert len(packed.names("train/rows-")) > 1

    asked = next(piece for piece in pieces if piece["repository"] == FORGOTTEN and piece["line"] > 1)
    answer = machine.run("provenance", f"{asked['row']}:{asked['offset']}", "--json").output
    assert json.loads(answer)["pieces"] == [asked]

    told = machine.run("forget", FORGOTTEN, "--yes").output
    rows = {piece["row"] for piece in pieces if piece["repository"] == FORGOTTEN}
    assert f"{FORGOTTEN}: in {len(rows):,} rows of train" in told
    for stage in ("collect", "curate"):
        machine.run(stage)
        assert FORGOTTEN not in {
            piece["repository"] for piece in index(machine, require_manifest(storage, "packed", ""))
        }
        machine.run("pack")
    for noun in ("raw", "curated"):
        manifest = require_manifest(storage, noun, "")
        assert FORGOTTEN not in manifest.counts["by_repository"]
        assert packed.counts["splits"]["train"]["num_documents"] > 0
