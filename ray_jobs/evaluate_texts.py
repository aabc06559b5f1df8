"""Whole documents of the validation split, which any model can predict by its own tokens.

What `ray_jobs.evaluate` runs for models of another tokenizer, and `ray_jobs.compare` for all.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from codeparrot.documents import document_id, from_parquet
from codeparrot.draws import key
from codeparrot.evaluate import text_costs
from codeparrot.forgotten import forgotten
from codeparrot.manifest import Manifest
from codeparrot.storage import Storage
from codeparrot.vocabulary import Vocabulary
from ray_jobs.evaluate_rows import SPLIT, Batch, Model

COLUMNS = ("source", "repository", "path", "license", "content")


@dataclass(frozen=True)
class Text:
    """A document to be predicted."""

    id: str
    repository: str
    license: str | None
    content: str

    @property
    def num_bytes(self) -> int:
        """Of its content in UTF-8."""
        return len(self.content.encode())


def sampled_texts(
    storage: Storage,
    curated: Manifest,
    seed: int,
    max_bytes: int,
    document_bytes: int | None = None,
    split: str = SPLIT,
) -> list[Text]:
    """Documents of a curated split, chosen by keyed draws until there are `max_bytes` of them, by their draws.

    `document_bytes`: how much of each is taken, about.
    """
    gone = forgotten(storage)
    heap: list[tuple[int, str, Text]] = []  # the largest draw first, so that it can be dropped
    total = 0
    for name in curated.names(f"{split}/"):
        for row in from_parquet(curated.read(storage, name), COLUMNS).to_pylist():
            name_of = document_id(row["source"], row["repository"], row["path"])
            if row["repository"] in gone:
                continue
            content = row["content"][:document_bytes]
            text = Text(name_of, row["repository"], row["license"], content)
            heapq.heappush(heap, (-key(seed, "evaluate", name_of), name_of, text))
            total += text.num_bytes
            while total - heap[0][2].num_bytes >= max_bytes:
                total -= heapq.heappop(heap)[2].num_bytes
    return [text for _, _, text in sorted(heap, reverse=True)]


def texts_cost(texts: Sequence[Text], *, model: Model, batch_size: int) -> Batch:
    """What these documents cost, each of them one piece."""
    import torch

    loaded = model.load()
    vocabulary = Vocabulary(loaded.tokenizer)
    with torch.inference_mode():
        costs, positions = text_costs(loaded.model, vocabulary, [text.content for text in texts], batch_size)
    return Batch(costs, positions)
