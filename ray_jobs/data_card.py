"""The data card of a curated corpus, from its counts and what else the driver of curation knows: sets of duplicates."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from codeparrot.data_card import HTML, MARKDOWN, CardData, render_html, render_markdown
from codeparrot.decontaminate import Problems
from codeparrot.documents import origin_of
from codeparrot.manifest import File
from ray_jobs.near_duplicates import Near
from ray_jobs.stage import Work

NUM_CLUSTERS = 20
NUM_MEMBERS = 20
"""Of a cluster that is shown; there may be thousands."""


class Clusters:
    """What stays, each with all that goes for it."""

    def __init__(self, removed: Iterable[Near], ids: Sequence[str]) -> None:
        """`ids` are those of all documents, by index."""
        members: dict[tuple[str, str | None], list[tuple[float, str]]] = defaultdict(list)
        for near in removed:
            members[near.kept, near.kept_in].append((-near.similarity, ids[near.index]))
        self._largest_first = sorted(members.items(), key=lambda item: (-len(item[1]), item[0][0], item[0][1] or ""))

    def counts(self) -> dict[str, Any]:
        """For a manifest: how many, and of how many documents, what stays included."""
        sizes = [len(members) + 1 for _, members in self._largest_first]
        at_most = Counter(str(1 << (size - 1).bit_length()) for size in sizes)
        return {"num_clusters": len(sizes), "largest_cluster": max(sizes, default=0), "clusters_by_size": dict(at_most)}

    def largest(self) -> list[dict[str, Any]]:
        """The largest, with the origins of what stays and of what is nearest to it."""
        return [
            {
                "num_documents": len(members) + 1,
                "kept": {**origin_of(kept), "store": store},
                "removed": [
                    {**origin_of(document), "similarity": -negative}
                    for negative, document in sorted(members)[:NUM_MEMBERS]
                ],
            }
            for (kept, store), members in self._largest_first[:NUM_CLUSTERS]
        ]


def contamination(shared: Iterable[Mapping[str, int]], problems: Problems) -> dict[str, dict[str, int]]:
    """By benchmark: documents that share text with it, how many of its problems they share it with, and all of them.

    `shared`: for each document that does, the problems.
    """
    benchmark_of = dict(zip(problems.names, problems.benchmarks, strict=True))
    num_documents: Counter[str] = Counter()
    found: set[str] = set()
    for names in shared:
        num_documents.update({benchmark_of[name] for name in names})
        found.update(names)
    touched, asked = Counter(benchmark_of[name] for name in found), Counter(problems.benchmarks)
    return {
        name: {"num_documents": num_documents[name], "num_problems_found": touched[name], "num_problems": asked[name]}
        for name in sorted(asked)
    }


def write_card(
    work: Work,
    files: Sequence[File],
    counts: Mapping[str, Any],
    samples: Mapping[str | None, list[dict[str, Any]]],
    clusters: Mapping[str, Clusters],
) -> list[File]:
    """The card as a page and as Markdown. `files` and `counts` are those of the output, `clusters` by reason."""
    raw, corpus = work.inputs["raw"], work.attempt.manifest(files, counts)
    data = CardData(
        run_name=work.recipe.run_name,
        seeds={"collect": raw.settings["seed"], "curate": corpus.settings["seed"]},
        collect=raw.settings["collect"],
        curate=corpus.settings["curate"],
        raw=raw.counts,
        curated=corpus.counts,
        kept=samples.get(None, []),
        rejected={reason: found for reason, found in samples.items() if reason is not None},
        clusters={reason: found.largest() for reason, found in clusters.items()},
        hashes={
            "code of the stage collect": raw.code,
            "code of the stage curate": corpus.code,
            "files collected, by name, size and version": raw.inputs["plan"],
            "documents collected": raw.digest,
            "benchmarks and earlier corpora": corpus.inputs.get("plan", ""),
            "this corpus": corpus.digest,
        },
    )
    return [
        work.attempt.write(HTML, render_html(data).encode()),
        work.attempt.write(MARKDOWN, render_markdown(data).encode()),
    ]
