"""A repository is forgotten: new rows without it, for good, and which runs had seen it."""

import json
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.data_order import DataOrder
from codeparrot.errors import ManifestError
from codeparrot.forgotten import FORGOTTEN, forget, forgotten
from codeparrot.manifest import Attempt, Manifest, require_manifest
from codeparrot.provenance import read_version, repositories_of
from codeparrot.sightings import seen, sightings
from codeparrot.storage import LocalStorage
from codeparrot.tokenizer import Encoder
from ray_jobs import collect, pack
from ray_jobs import forget as command
from tests.unit.packed_store import MAX_SEQ_LEN, TOKENIZER, backwards, curate, pack_all, recipe
from tests.unit.test_provenance import VALIDATION, index_of, named, tokens_of

DONE, FAILED, WRONG = 0, 1, 2
GLOBAL_BATCH_SIZE = 2
TEXTS = ["ab\nx" * 9, "abab x", "a", "xb" * 30, "x\n" * 25, "aab"]


@pytest.fixture
def packed(storage: LocalStorage) -> Manifest:
    curate(storage, named([TEXTS[:4], TEXTS[4:]]), VALIDATION)
    return pack_all(storage, recipe(storage))


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(storage: LocalStorage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setattr(pack, "spread", backwards)
    settings = [f"storage.uri={storage.uri}", "pack.max_seq_len=8", "pack.shard_bytes=48", "generate.max_new_tokens=4"]
    arguments = ["--config", "recipes/tiny.yaml", *(word for each in settings for word in ("--set", each))]

    def called(*more: str) -> tuple[int, str, str]:
        code = command.main([*arguments, *more])
        return code, *capsys.readouterr()

    return called


def trained(
    storage: LocalStorage, name: str, packed: str, num_steps: int, *, step: int | None = None, **train: Any
) -> None:
    """A run, or one of its checkpoints, as training commits it."""
    values = {"global_batch_size": GLOBAL_BATCH_SIZE, "shuffle_shards": 2, "mixture": None, "max_steps": 99} | train
    prefix = f"runs/{name}" if step is None else f"runs/{name}/checkpoints/step-{step:08d}"
    counts = {"num_steps": num_steps} if step is None else {"step": step}
    attempt = Attempt(storage, "train", prefix, {"seed": 5, "train": values}, {"packed": packed}, "")
    attempt.commit([attempt.write("weights", b"")], counts)


def rows_of(storage: LocalStorage, packed: Manifest, repository: str) -> set[int]:
    """The rows of the train split that hold it; the remainder is none."""
    found = {row["row"] for row in index_of(storage, packed, "train") if row["repository"] == repository}
    return found - {packed.counts["splits"]["train"]["num_rows"]}


def test_new_rows_hold_nothing_of_a_forgotten_repository(storage: LocalStorage, packed: Manifest, call: Call) -> None:
    before = [row["repository"] for split in packed.counts["splits"] for row in index_of(storage, packed, split)]
    assert {"repo0", "repo1", "repo2", "held-out"} == set(before)
    code, out, _ = call("repo1", "--yes")
    assert code == DONE
    assert f"forgotten: repo1 ({storage.uri}/forgotten.json)" in out
    after = require_manifest(storage, "packed", "")
    assert {row["repository"] for row in index_of(storage, after, "train")} == {"repo0", "repo2"}
    encoder = Encoder(TOKENIZER)
    kept = [text for number, text in enumerate(TEXTS) if number % 3 != 1]
    expected = [token for text in kept for token in [*encoder.encode([text])[0].tolist(), encoder.eos_token_id]]
    assert tokens_of(storage, after, "train") == expected
    assert after.counts["documents_forgotten"] == 2
    assert repositories_of(storage, "packed", after.digest) == ["held-out", "repo0", "repo2"]
    assert after.digest != packed.digest, "so training sees that it is out of date"


def test_packing_again_does_not_bring_it_back(storage: LocalStorage, packed: Manifest, call: Call) -> None:
    assert call("repo1", "--yes")[0] == DONE
    for strategy in ("concat", "best_fit"):
        again = pack_all(storage, recipe(storage, f"pack.strategy={strategy}"))
        assert {row["repository"] for row in index_of(storage, again, "train")} == {"repo0", "repo2"}


def test_what_is_forgotten_is_part_of_what_packing_depends_on(storage: LocalStorage) -> None:
    settings = recipe(storage)
    before = pack.plan_inputs(settings)
    assert before == ("", frozenset())
    forget(storage, ["one"])
    once = pack.plan_inputs(settings)
    assert once[1] == {"one"}
    forget(storage, ["one"])
    assert pack.plan_inputs(settings) == once
    forget(storage, ["two"])
    assert len({before[0], once[0], pack.plan_inputs(settings)[0]}) == 3


def test_files_of_a_forgotten_repository_are_not_collected_again(storage: LocalStorage, tmp_path: Any) -> None:
    for repository in ("one", "two"):
        (tmp_path / "code" / repository).mkdir(parents=True)
        (tmp_path / "code" / repository / "a.py").write_text("x = 1\n")
    source = f"[{{kind: directory, path: {tmp_path / 'code'}, license: MIT}}]"
    settings = recipe(storage, f"collect.sources={source}")
    digest, entries = collect.plan(settings)
    assert [entry.repository for entry in entries] == ["one", "two"]
    forget(storage, ["one"])
    another, entries = collect.plan(settings)
    assert [entry.repository for entry in entries] == ["two"]
    assert another != digest


def test_without_yes_nothing_changes(storage: LocalStorage, packed: Manifest, call: Call) -> None:
    before = sorted(storage.list())
    code, out, error = call("repo1", "held-out")
    assert code == WRONG
    rows = rows_of(storage, packed, "repo1")
    assert f"repo1: in {len(rows)} rows of train, 0 rows of validation" in out
    assert "held-out: in 0 rows of train" in out
    assert "nothing was changed: held-out, repo1 is forgotten only with --yes" in error
    assert sorted(storage.list()) == before


def test_a_name_that_the_store_does_not_know_is_refused(storage: LocalStorage, packed: Manifest, call: Call) -> None:
    code, _, error = call("repo7", "--yes")
    assert code == WRONG
    assert "has no repository 'repo7'; did you mean repo" in error
    assert "lists them" in call("something", "--yes")[2]
    assert forgotten(storage) == frozenset()


def test_rows_without_provenance_are_packed_anew_first(storage: LocalStorage, packed: Manifest, call: Call) -> None:
    storage.delete([path for path, _ in storage.list("packed/versions/")])
    code, _, error = call("repo1", "--yes")
    assert code == FAILED
    assert "packed was packed without provenance" in error


def test_the_list_is_not_lost_when_two_write_it(storage: LocalStorage) -> None:
    forget(storage, ["one"], clock=lambda: 0.0)
    original, written = storage.write, list[str]()

    def late(path: str, data: bytes, **options: Any) -> str:
        if not written:  # somebody else is faster, once
            written.append(path)
            forget(storage, ["two"], clock=lambda: 60.0)
        return original(path, data, **options)

    with patch.object(storage, "write", late):
        forget(storage, ["one", "three"], clock=lambda: 120.0)
    listed = json.loads(storage.read(FORGOTTEN))["repositories"]
    assert {name: when[14:16] for name, when in listed.items()} == {"one": "00", "two": "01", "three": "02"}


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"repositories": ["one"]}', b"\xff"])
def test_a_damaged_list_is_no_empty_one(storage: LocalStorage, content: bytes) -> None:
    storage.write(FORGOTTEN, content)
    with pytest.raises(ManifestError, match=r"forgotten\.json is damaged; restore it"):
        forgotten(storage)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 3), st.integers(0, 130), st.integers(0, 9), st.data())
def test_the_rows_that_a_run_has_seen_are_those_that_stood_at_its_positions(
    num_rows: int, rows_per_shard: int, window: int, num_positions: int, seed: int, data: st.DataObject
) -> None:
    order = DataOrder(seed, num_rows, rows_per_shard, window)
    wanted = data.draw(st.sets(st.integers(0, num_rows - 1)))
    stream = order.rows(np.arange(num_positions)).tolist()
    places = [place for place, row in enumerate(stream) if row in wanted]
    rows, first = seen(order, np.array(sorted(wanted), dtype=np.int64), num_positions)
    assert rows == tuple(sorted({stream[place] for place in places}))
    assert first == (places[0] if places else None)


def test_each_run_is_told_with_the_rows_that_it_has_seen(storage: LocalStorage, packed: Manifest) -> None:
    wanted, num_rows = rows_of(storage, packed, "repo1"), packed.counts["splits"]["train"]["num_rows"]
    stream = DataOrder(5, num_rows, packed.counts["rows_per_shard"], 2).rows(np.arange(num_rows)).tolist()
    first = next(place for place, row in enumerate(stream) if row in wanted) // GLOBAL_BATCH_SIZE + 1
    trained(storage, "whole", packed.digest, 90)
    for step in (0, first):
        trained(storage, "short", packed.digest, 0, step=step)
    trained(storage, "before", packed.digest, 0, step=first - 1)
    trained(storage, "unknown", "0" * 64, 3)
    trained(storage, "mixed", packed.digest, 3, mixture={"packed": 1, "docs/packed": 1})
    storage.write("runs/damaged/manifest.json", b"{")
    found = {sighting.training.run: sighting for sighting in sightings(storage, "packed", ["repo1"])}
    assert set(found) == {"whole", "short", "unknown", "mixed"}
    assert (found["whole"].rows, found["whole"].first_step) == (tuple(sorted(wanted)), first)
    assert found["short"].rows == tuple(sorted(set(stream[: first * GLOBAL_BATCH_SIZE]) & wanted))
    assert (found["unknown"].num_held, found["unknown"].rows) == (None, None)
    assert (found["mixed"].num_held, found["mixed"].rows) == (len(wanted), None)
    assert not [sighting for sighting in sightings(storage, "packed", ["held-out"]) if sighting.num_held]


def test_runs_are_told_even_after_the_rows_are_gone(storage: LocalStorage, packed: Manifest, call: Call) -> None:
    trained(storage, "early", packed.digest, 90)
    code, out, _ = call("repo1", "--yes")
    assert code == DONE
    line = next(line.split() for line in out.splitlines() if line.startswith("early"))
    assert line[:3] == ["early", "90", packed.digest[:12]]
    code, out, _ = call("repo2")
    line = next(line.split() for line in out.splitlines() if line.startswith("early"))
    version = read_version(storage, "packed", packed.digest, ["repo2"])
    assert version is not None
    rows = version.rows["train"]["repo2"]
    assert line[3:6] == [f"{len(rows)}", "of", f"{len(rows)}"]
    assert "no run in this store has seen them" in call("held-out")[1]


def test_the_rest_of_a_row_is_no_row_of_the_forgotten(storage: LocalStorage) -> None:
    """A repository that stands in the remainder alone was seen by no run, and goes all the same."""
    curate(storage, [[("big", "a.py", "x" * 3 * MAX_SEQ_LEN), ("small", "b.py", "ab")]], VALIDATION)
    packed = pack_all(storage, recipe(storage))
    names = {piece["repository"] for piece in index_of(storage, packed, "train") if piece["row"] == 3}
    assert names == {"big", "small"}
    trained(storage, "whole", packed.digest, 90)
    assert sightings(storage, "packed", ["small"]) == []
