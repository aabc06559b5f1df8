"""A stage that is killed at any task goes on in the same folder, does no task again, and makes the same bytes."""

import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from codeparrot.config import Recipe, load_recipe
from codeparrot.errors import ManifestError
from codeparrot.lease import Lease
from codeparrot.manifest import RESULTS, Attempt, File, Manifest, load_manifest
from codeparrot.storage import LocalStorage
from ray_jobs import collect, curate, kept, near_duplicates, pack, train_tokenizer
from ray_jobs.kept import Kept
from ray_jobs.pack_shard import Encoded
from ray_jobs.stage import Stage, run_stage
from ray_jobs.verdicts import Judged

STAGES = (collect.STAGE, curate.STAGE, train_tokenizer.STAGE, pack.STAGE)
NUM_FILES = 12


class Killed(BaseException):
    """A driver's end, as its process sees nothing of it."""


class Tasks:
    """Ray's tasks in this process. The driver is killed when so many are done, before or after the result is kept."""

    def __init__(self) -> None:
        self.left: float = np.inf
        self.last_is_kept = True
        self.done: Counter[tuple[str, int]] = Counter()

    def spread(
        self,
        stage: str,
        items: Sequence[Any],
        work: Callable[[Any], Any],
        unit: str = "shards",
        *,
        kept: Kept | None = None,
    ) -> list[Any]:
        """As `ray_jobs.cluster.spread`."""
        results = {} if kept is None else kept.read(stage)
        for index in set(range(len(items))) - set(results):
            results[index] = work(items[index])
            self.left -= 1
            if kept is not None and (self.left or self.last_is_kept):
                kept.write(stage, index, results[index])
                self.done[stage, index] += 1
            if not self.left:
                raise Killed
        return [results[index] for index in range(len(items))]


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    made = Tasks()
    for module in (collect, curate, near_duplicates, pack, train_tokenizer):
        monkeypatch.setattr(module, "spread", made.spread)
    monkeypatch.setattr(near_duplicates, "BATCH_DOCUMENTS", 1)
    return made


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Repositories of code, each file with a near duplicate in the next one."""
    for number in range(NUM_FILES):
        lines = [f"value_{line} = call_{line}({number // 2}, {line})" for line in range(60)]
        path = tmp_path / "code" / f"repository-{number % 4}" / f"file_{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["def first(value):", "    return value", *lines, f"last = {number}\n"]))
    return tmp_path / "code"


def recipe(storage: LocalStorage, code: Path) -> Recipe:
    """A file to a raw shard, few rows to a packed one, words counted by task."""
    source = f'{{"kind": "directory", "path": "{code}", "license": "MIT"}}'
    return load_recipe(
        "recipes/tiny.yaml",
        [
            f"storage.uri={storage.uri}",
            f"collect.sources=[{source}]",
            "collect.shard_bytes=2000",
            "curate.near_dedup={}",
            "curate.redact={}",
            "curate.validation_fraction=0.3",
            "tokenizer.vocab_size=300",
            "tokenizer.max_bytes_in_memory=1",
            "pack.max_seq_len=64",
            "generate.max_new_tokens=8",
            "pack.shard_bytes=1024",
        ],
    )


def prepare(storage: LocalStorage, settings: Recipe) -> Iterator[Manifest]:
    for stage in STAGES:
        yield run_stage(stage, settings, storage).manifest


def test_killed_at_any_task_a_stage_goes_on_and_does_none_again(tasks: Tasks, code: Path, tmp_path: Path) -> None:
    undisturbed = LocalStorage(str(tmp_path / "undisturbed"))
    expected = [manifest.files for manifest in prepare(undisturbed, recipe(undisturbed, code))]
    num_tasks, steps = tasks.done.total(), {step for step, _ in tasks.done}
    assert steps == {
        "collect",
        "curate: judge",
        "curate: link",
        "curate: near",
        "curate: write",
        "train_tokenizer: count",
        "train_tokenizer: learn",
        "train_tokenizer: report",
        "pack: encode",
        "pack: write",
    }
    for last_is_kept in (True, False):
        tasks.last_is_kept = last_is_kept
        storage = LocalStorage(str(tmp_path / f"killed-{last_is_kept}"))
        tasks.done.clear()
        num_kills = 0
        while True:  # killed at every third task
            tasks.left = 3
            try:
                made = [manifest.files for manifest in prepare(storage, recipe(storage, code))]
                break
            except Killed:
                num_kills += 1
                assert num_kills < num_tasks
        assert made == expected
        assert num_kills > 10
        assert set(tasks.done.values()) == {1}
        assert tasks.done.total() == num_tasks
        assert not [path for path, _ in storage.list() if f"/{RESULTS}/" in path]


def test_what_was_kept_of_files_that_are_gone_is_forgotten(tasks: Tasks, code: Path, storage: LocalStorage) -> None:
    settings = recipe(storage, code)
    tasks.left = 5
    with pytest.raises(Killed):
        run_stage(collect.STAGE, settings, storage)
    storage.delete([next(path for path, _ in storage.list("raw/data/") if path.endswith(".parquet"))])
    tasks.left = np.inf
    with pytest.raises(ManifestError, match="is gone or cut short"):
        run_stage(collect.STAGE, settings, storage)
    assert run_stage(collect.STAGE, settings, storage).manifest.counts["num_documents"] == NUM_FILES


def test_other_settings_and_other_code_begin_anew(tasks: Tasks, code: Path, storage: LocalStorage) -> None:
    def with_code(version: str) -> Stage:
        class Other(Stage):
            @property
            def code(self) -> str:
                return version

        stage = collect.STAGE
        return Other(stage.makes, stage.inputs, stage.settings, stage.run, stage.summary, stage.plan)

    first = recipe(storage, code)
    other = first.model_copy(update={"seed": first.seed + 1})
    tasks.left = 5
    with pytest.raises(Killed):
        run_stage(with_code("a"), first, storage)
    for stage, settings in ((with_code("a"), other), (with_code("b"), first)):
        tasks.left = 5
        before = tasks.done.total()
        with pytest.raises(Killed):
            run_stage(stage, settings, storage)
        assert tasks.done.total() - before == 5
        assert len({path.split("/")[2] for path, _ in storage.list("raw/data/")}) == 1  # what the other left is gone


def test_results_come_back_as_they_were() -> None:
    documents = pa.table({"path": ["a.py", "b.py"], "stars": pa.array([None, 3], pa.int64())})
    documents = documents.append_column("source", pa.array(["s", "s"]).dictionary_encode())
    judged = Judged(
        documents, np.array([None, "too_long"], object), b"keys", {1: {"Own/1": 2}}, {0: Counter(email=1)}, None
    )
    found = kept.load(kept.dump(judged))
    assert found.documents.equals(documents)
    assert found.reasons.tolist() == [None, "too_long"]
    for name in ("keys", "contamination", "redacted", "file"):
        assert getattr(found, name) == getattr(judged, name)
    encoded = Encoded("path", np.arange(3, dtype=np.int32), 5, 0, 3)
    lengths = kept.load(kept.dump(encoded)).lengths
    assert (lengths.dtype, lengths.tolist()) == (np.int32, [0, 1, 2])
    assert kept.load(kept.dump([File("a", 1, "f"), None, np.float64(0.5)])) == [File("a", 1, "f"), None, 0.5]


class Reduced:
    """Pickled as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        (os.system, ("true",)),
        (eval, ("1",)),
        (load_manifest, (None, "raw")),
        (LocalStorage, ("/tmp",)),
        (Lease, (None, "raw")),
        (pickle.loads, (b"",)),
    ],
)
def test_a_stored_result_can_run_nothing(call: tuple[Any, ...]) -> None:
    data = pickle.dumps(Reduced(*call))
    with pytest.raises(pickle.UnpicklingError, match="which no result is made of"):
        kept.load(data)


def test_a_stored_result_cannot_reach_into_a_module() -> None:
    data = pickle.dumps(Attempt.clear)  # getattr of a class of ours
    with pytest.raises(pickle.UnpicklingError):
        kept.load(data)
    dotted = b"\x80\x04\x8c\x13codeparrot.manifest\x8c\x0aFile.__eq__\x93."
    with pytest.raises(pickle.UnpicklingError):
        kept.load(dotted)
