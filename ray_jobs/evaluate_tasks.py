"""Lines and bodies of functions that a model is asked to write, and what of its answers stands in the training rows.

Tasks are chosen, completed and looked for in the packed shards by tasks of Ray side by side.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from codeparrot.bootstrap import ratio_interval
from codeparrot.copies import NGRAM, Match, Texts, best
from codeparrot.dataloader import PackedRows
from codeparrot.documents import document_id, from_parquet
from codeparrot.manifest import Manifest
from codeparrot.provenance import index_of
from codeparrot.storage import Storage, open_storage
from codeparrot.tasks import Answer, Origin, Task, TaskSettings, answer, chosen, tasks_of
from codeparrot.tokenizer import Encoder
from ray_jobs.cluster import spread
from ray_jobs.evaluate_rows import SPLIT, once

if TYPE_CHECKING:
    from codeparrot.loading import Loaded

TASKS_AT_ONCE = 64
NUM_SHOWN = 8
"""Answers of each kind, and copies, that are kept to be read."""


@dataclass(frozen=True)
class Judged:
    """A task, what the model wrote, and what of it and of the author's text is in the training rows."""

    task: Task
    answer: Answer
    copied: Match
    author_copied: Match


def choose_tasks(
    storage: Storage, curated: Manifest, settings: TaskSettings, seed: int, forgotten: Collection[str]
) -> list[Task]:
    """The tasks of the validation split."""
    find = partial(tasks_in, uri=storage.uri, curated=curated, settings=settings, seed=seed, forgotten=forgotten)
    found = spread("evaluate: choose", curated.names(f"{SPLIT}/"), find)
    return chosen([task for part in found for task in part], settings)


def tasks_in(
    name: str, *, uri: str, curated: Manifest, settings: TaskSettings, seed: int, forgotten: Collection[str]
) -> list[Task]:
    """Those of the tasks in one curated shard that may be chosen."""
    table = from_parquet(curated.read(open_storage(uri), name), ["source", "repository", "path", "language", "content"])
    found: list[Task] = []
    for row in table.to_pylist():
        if row["language"] == "Python" and row["repository"] not in forgotten:
            origin = Origin(document_id(row["source"], row["repository"], row["path"]), row["repository"], row["path"])
            found += tasks_of(row["content"], origin, settings, seed)
    return chosen(found, settings)


def complete(
    tasks: Sequence[Task], load: "Callable[[], Loaded]", settings: TaskSettings, workers: int, resources: Any
) -> list[str]:
    """What the model writes after each prompt: always the likeliest token."""
    parts = [tasks[start : start + TASKS_AT_ONCE] for start in range(0, len(tasks), TASKS_AT_ONCE)]
    write = partial(complete_part, load=load, max_new_tokens=settings.max_new_tokens)
    done = spread("evaluate: write", parts, write, "batches", workers=workers, resources=resources)
    return [completion for part in done for completion in part]


def find_copies(
    storage: Storage, packed: Manifest, tokenizer_json: str, texts: Sequence[str]
) -> list[Match]:
    """What of each text is in the training rows."""
    ids, lengths = Encoder(tokenizer_json).encode(texts)
    parts = [part.astype(np.int32) for part in np.split(ids, np.cumsum(lengths)[:-1])]
    search = partial(search_shard, uri=storage.uri, packed=packed, texts=parts)
    num_shards = len(packed.names("train/rows-"))
    found = spread("evaluate: search", range(num_shards), search)
    return [best([matches[index] for matches in found]) for index in range(len(texts))]


def search_shard(shard: int, *, uri: str, packed: Manifest, texts: Sequence[Any]) -> list[Match]:
    """What of each text is in one packed shard."""
    storage = open_storage(uri)
    rows = once("train", (uri, packed.folder), lambda: PackedRows(storage, packed, "train"))
    apart = packed.counts["strategy"] != "concat"
    first = shard * rows.rows_per_shard * rows.max_seq_len
    found = Texts(texts).find(rows.shard(shard).reshape(-1), rows.max_seq_len if apart else None)
    return [Match(match.longest, first + match.place if match.longest else -1, match.covered) for match in found]
