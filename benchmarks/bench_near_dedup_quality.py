"""Near duplicates against the program of text-dedup: what is removed rightly, and how fast.

Both are commands of their own that read a data set from disk and write what is left of it, with shingles of five
words, 256 permutations, 25 bands of 10 and two processes. What a word is, each decides for itself, so each is judged
by brute force over its own shingles: a removal is right if a document that stays is as similar as was asked for, and
of two documents that are, one must go. Ours must be at least as good in both before speed is compared.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_near_dedup import BRUTE_FORCE_DOCUMENTS, NUM_CORES, SETTINGS, similar
from benchmarks.code import described, documents, megabytes
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from codeparrot.near_dedup import NUM_BINS
from codeparrot.shingles import distinct, shingles

SAMPLE_BYTES = 60_000_000
NOT_A_WORD = re.compile(r"\W")
PEER = {
    "--column": "text",
    "--num_perm": NUM_BINS,
    "--threshold": SETTINGS.threshold,
    "--b": SETTINGS.num_bands,
    "--r": SETTINGS.rows_per_band,
    "--ngram": SETTINGS.shingle_words,
    "--min_length": SETTINGS.min_words,
    "--num_proc": NUM_CORES,
}


def quality(pairs: Sequence[tuple[int, int]], kept: set[int], num_documents: int) -> tuple[float, float]:
    """(precision, recall): removals that a kept document justifies; pairs of which not both are left."""
    justified = {one for pair in pairs for one, other in (pair, pair[::-1]) if one not in kept and other in kept}
    both = sum(one in kept and other in kept for one, other in pairs)
    return len(justified) / max(1, num_documents - len(kept)), 1 - both / max(1, len(pairs))


def peers_sets(texts: Sequence[str]) -> list[Any]:
    """The peer's shingles: runs of five of the pieces between characters that no word has, in lower case."""
    sets = []
    for text in texts:
        words = NOT_A_WORD.split(text.lower())
        width = SETTINGS.shingle_words
        grams = {" ".join(words[start : start + width]) for start in range(len(words) - width + 1)}
        hashes = [hash(gram) for gram in grams] if len(words) >= SETTINGS.min_words else []
        sets.append(np.array(hashes, np.int64))
    return sets


class _Quality(Comparison):
    def __init__(self, folder: Path, texts: Sequence[str], checked: Sequence[str]) -> None:
        self._folder, self._texts, self._checked = folder, texts, checked
        self._mb = megabytes(texts)
        self._all = self._saved("all", texts)

    def _saved(self, name: str, texts: Sequence[str]) -> Path:
        import datasets

        datasets.disable_progress_bars()
        path = self._folder / name
        datasets.Dataset.from_dict({"text": texts, "number": range(len(texts))}).save_to_disk(path)
        return path

    def _left(self, module: str, *arguments: str) -> tuple[float, set[int]]:
        """(seconds, the numbers of the documents that are left)."""
        import datasets

        out = self._folder / "out"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HOME": str(self._folder / "cache")}
        began = time.perf_counter()
        command = [sys.executable, "-m", module, *(argument.replace("OUT", str(out)) for argument in arguments)]
        subprocess.run(command, env=environment, capture_output=True, check=True)
        seconds = time.perf_counter() - began
        left = {*datasets.load_from_disk(out)["number"]}
        shutil.rmtree(out)
        for path in self._folder.glob("*/cache-*.arrow"):  # which the peer leaves beside its input, to use again
            path.unlink()
        return seconds, left

    def _ours(self, data: Path) -> tuple[float, set[int]]:
        return self._left("benchmarks.near_dedup_worker", str(data), "OUT")

    def _peer(self, data: Path) -> tuple[float, set[int]]:
        options = [str(part) for option in PEER.items() for part in option]
        return self._left("text_dedup.minhash", "--path", str(data), "--local", "--output", "OUT", *options)

    def check(self) -> str:
        data = self._saved("checked", self._checked)
        own = distinct(*shingles(self._checked, SETTINGS.shingle_words, SETTINGS.min_words), len(self._checked))
        theirs = peers_sets(self._checked)
        long_enough = {index for index, each in enumerate(theirs) if len(each)}
        short = {*range(len(theirs))} - long_enough
        figures = {}
        for name, sets, left in (
            ("ours", own, self._ours(data)[1]),
            ("text-dedup", theirs, self._peer(data)[1] | short),  # which it drops: not counted against it
        ):
            precision, recall = quality(similar(sets), left, len(sets))
            figures[name] = (precision, recall, 2 * precision * recall / (precision + recall))
        said = ", ".join(
            f"{name}: precision {p:.4f}, recall {r:.4f}, F1 {f:.4f}" for name, (p, r, f) in figures.items()
        )
        if any(ours < peers for ours, peers in zip(figures["ours"], figures["text-dedup"], strict=True)):
            raise Unequal(f"ours is worse; {said}")
        ratio = figures["ours"][2] / figures["text-dedup"][2]
        return f"removals from {described(self._checked)}, by brute force: {said}; ratio of F1 {ratio:.4f}"

    def ours(self) -> float:
        return self._mb / self._ours(self._all)[0]

    def peer(self) -> float:
        return self._mb / self._peer(self._all)[0]


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    scale = 20 if trial else 1
    texts = [document.content for document in documents()]
    size, stop = 0, 0
    while size < SAMPLE_BYTES // scale:
        size, stop = size + len(texts[stop]), stop + 1
    checked = texts[:: max(1, len(texts) * scale // BRUTE_FORCE_DOCUMENTS)]
    with tempfile.TemporaryDirectory() as name:
        yield _Quality(Path(name), texts[:stop], checked)


BENCHMARK = Benchmark(
    title="near duplicates as a command, MB/s on two cores, against that of text-dedup, quality checked first",
    unit="MB/s",
    peer=installed("text-dedup"),
    ratio="ours / peer",
    target=Target(">=", 1),
    comparison=_comparison,
)
