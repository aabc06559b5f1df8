"""Lines and bodies of functions that a model is asked to write, and what of its answers stands in the training rows.

Tasks are chosen, completed and looked for in the packed shards by tasks of Ray side by side.
"""

import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from codeparrot.bootstrap import ratio_interval
from codeparrot.completion import Request
from codeparrot.copies import NGRAM, Match, Texts, best
from codeparrot.documents import document_id, from_parquet
from codeparrot.engine import Engine
from codeparrot.manifest import Manifest
from codeparrot.provenance import index_of
from codeparrot.settings import Resources
from codeparrot.storage import Storage, open_storage
from codeparrot.tasks import Answer, Origin, Task, TaskSettings, answer, chosen, complete_answer, tasks_of
from codeparrot.tokenizer import Encoder
from codeparrot.vocabulary import Vocabulary
from ray_jobs.cluster import spread
from ray_jobs.evaluate_rows import SPLIT, Model

TASKS_AT_ONCE = 64
NUM_TRACED = 20
"""Answers of which it is said where they are copied from: those with the longest matches."""
SHOWN_CHARACTERS = 1000
"""Of a prompt that are kept: its end."""


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
    tasks: Sequence[Task], model: Model, settings: TaskSettings, workers: int, resources: Resources
) -> list[str]:
    """What the model writes after each prompt: always the likeliest token."""
    parts = [tasks[start : start + TASKS_AT_ONCE] for start in range(0, len(tasks), TASKS_AT_ONCE)]
    write = partial(complete_part, model=model, max_new_tokens=settings.max_new_tokens)
    done = spread("evaluate: write", parts, write, "batches", workers=workers, resources=resources)
    return [completion for part in done for completion in part]


def complete_part(tasks: Sequence[Task], *, model: Model, max_new_tokens: int) -> list[str]:
    """The completions of some tasks, each of which ends as soon as the answer is there."""
    loaded = model.load()
    vocabulary = Vocabulary(loaded.tokenizer)
    engine = Engine(loaded.model, vocabulary)
    texts: dict[int, str] = {}
    asked = {}
    for task in tasks:
        most = min(max_new_tokens, engine.context // 2)
        request = Request(vocabulary.encode(task.prompt), most, temperature=0, cut_prompt=True)
        number = engine.add(request)
        texts[number], asked[number] = "", task
    while not engine.idle:
        for event in engine.step():
            texts[event.request_id] += event.text
            if event.finish_reason is None and complete_answer(asked[event.request_id], texts[event.request_id]):
                engine.cancel(event.request_id)
    return [*texts.values()]


def find_copies(storage: Storage, packed: Manifest, tokenizer_json: str, texts: Sequence[str]) -> list[Match]:
    """What of each text is in the training rows."""
    if not texts:
        return []
    ids, lengths = Encoder(tokenizer_json).encode(texts)
    parts = [part.astype(np.int32) for part in np.split(ids, np.cumsum(lengths)[:-1])]
    search = partial(search_shard, uri=storage.uri, packed=packed, texts=parts)
    num_shards = len(packed.names("train/rows-"))
    found = spread("evaluate: search", range(num_shards), search)
    return [best([matches[index] for matches in found]) for index in range(len(texts))]


def search_shard(shard: int, *, uri: str, packed: Manifest, texts: Sequence[Any]) -> list[Match]:
    """What of each text is in one packed shard."""
    # Read once, so it has no place in the cache that training needs.
    data = packed.read(open_storage(uri), packed.names("train/rows-")[shard])
    rows = np.load(io.BytesIO(data), allow_pickle=False)
    first = shard * packed.counts["rows_per_shard"] * packed.counts["max_seq_len"]
    apart = packed.counts["strategy"] != "concat"
    found = Texts(texts).find(rows.reshape(-1), packed.counts["max_seq_len"] if apart else None)
    return [Match(match.longest, first + match.place if match.longest else -1, match.covered) for match in found]


def judge(
    tasks: Sequence[Task], completions: Sequence[str], copies: Callable[[Sequence[str]], list[Match]]
) -> list[Judged]:
    """Every answer, and what of it and of the author's own text is in the training rows."""
    answers = [answer(task, completion) for task, completion in zip(tasks, completions, strict=True)]
    found = copies([*(each.text for each in answers), *(task.expected for task in tasks)])
    ours, authors = found[: len(tasks)], found[len(tasks) :]
    return [Judged(*each) for each in zip(tasks, answers, ours, authors, strict=True)]


def summary(judged: Sequence[Judged], seed: int) -> dict[str, Any]:
    """The figures of all answers, by kind, and how much is copied by the model and by people."""
    kinds = {kind: [each for each in judged if each.task.kind == kind] for kind in ("line", "body")}
    return {
        **{kind: _figures(of_kind, seed) for kind, of_kind in kinds.items() if of_kind},
        "ngram": NGRAM,
        "copied": {
            "model": _copied([each.copied for each in judged]),
            "author": _copied([each.author_copied for each in judged]),
        },
    }


def _figures(judged: Sequence[Judged], seed: int) -> dict[str, Any]:
    similarities = [each.answer.similarity for each in judged]
    interval = ratio_interval(similarities, np.ones(len(judged)), seed)
    figures = {
        "num_tasks": len(judged),
        "exact_match": fmean(each.answer.exact for each in judged),
        "edit_similarity": fmean(similarities),
        "edit_similarity_interval": asdict(interval) if interval else None,
    }
    if judged[0].answer.parses is not None:
        figures["parses"] = fmean(bool(each.answer.parses) for each in judged)
        figures["parsed_fraction"] = fmean(each.answer.parsed_fraction or 0.0 for each in judged)
    return figures


def _copied(matches: Sequence[Match]) -> dict[str, Any]:
    num_tokens = sum(len(match.covered) for match in matches)
    return {
        "num_tokens": num_tokens,
        "fraction": sum(int(match.covered.sum()) for match in matches) / num_tokens if num_tokens else 0.0,
        "longest": max((match.longest for match in matches), default=0),
        "longest_mean": fmean(match.longest for match in matches) if matches else 0.0,
    }


def lines_of(judged: Sequence[Judged], storage: Storage, packed: Manifest) -> list[dict[str, Any]]:
    """Every answer as a line of `answers.jsonl`; of those copied most, where from."""
    ranked = sorted(range(len(judged)), key=lambda index: (-judged[index].copied.longest, index))
    traced = {index for index in ranked[:NUM_TRACED] if judged[index].copied.longest}
    return [
        {
            "kind": each.task.kind,
            "repository": each.task.repository,
            "path": each.task.path,
            "line": each.task.line,
            "prompt": each.task.prompt[-SHOWN_CHARACTERS:],
            "expected": each.task.expected,
            **asdict(each.answer),
            "num_tokens": len(each.copied.covered),
            "longest_copy": each.copied.longest,
            "author_longest_copy": each.author_copied.longest,
            "copied_from": _origin(storage, packed, each.copied.place) if index in traced else None,
        }
        for index, each in enumerate(judged)
    ]


def _origin(storage: Storage, packed: Manifest, place: int) -> dict[str, Any] | None:
    row, offset = divmod(place, packed.counts["max_seq_len"])
    for piece in index_of(storage, packed, "train", row):
        if 0 <= offset - piece["offset"] < piece["num_tokens"]:
            return {**{name: piece[name] for name in ("repository", "path", "license")}, "row": row, "offset": offset}
    return None
