"""Learning the merges of a tokenizer, against the trainer of `tokenizers`, on the same text with the same result.

Both count the words of the text on both cores and merge on one. The peer is given the lines that ours learns from
(`codeparrot.words`): all but a few dozen.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.code import described, documents
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from codeparrot.tokenizer import EOS, byte_alphabet, train_tokenizer
from codeparrot.words import SEPARATOR, learnable

NUM_CORES = 2
VOCAB_SIZE, TRIAL_VOCAB_SIZE = 32_768, 2_048
CORPUS_BYTES = 100_000_000


def _merges(tokenizer_json: str) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer_json)["model"]["merges"]]


class _Training(Comparison):
    def __init__(self, texts: Sequence[str], vocab_size: int) -> None:
        self._texts = texts
        self._vocab_size = vocab_size
        self._data = [text.encode() for text in texts]
        self._learnable = learnable(self._data).decode().split(SEPARATOR.decode())

    def _ours(self) -> str:
        return train_tokenizer(self._data, self._vocab_size)

    def _peer(self) -> str:
        import tokenizers
        from tokenizers import models, pre_tokenizers, trainers

        tokenizer: Any = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(byte_alphabet().values())
        trainer = trainers.BpeTrainer(
            vocab_size=self._vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(self._learnable, trainer)
        return str(tokenizer.to_str())

    def check(self) -> str:
        ours, theirs = _merges(self._ours()), _merges(self._peer())
        if ours != theirs:
            first = next(index for index, pair in enumerate(theirs) if index >= len(ours) or ours[index] != pair)
            raise Unequal(f"merge {first} of {len(theirs)}")
        return f"{len(ours):,} merges, in order, of {described(self._texts)}"

    def ours(self) -> float:
        began = time.perf_counter()
        self._ours()
        return time.perf_counter() - began

    def peer(self) -> float:
        began = time.perf_counter()
        self._peer()
        return time.perf_counter() - began


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    os.environ["RAYON_NUM_THREADS"] = str(NUM_CORES)
    size, vocab_size = (CORPUS_BYTES // 20, TRIAL_VOCAB_SIZE) if trial else (CORPUS_BYTES, VOCAB_SIZE)
    yield _Training([document.content for document in documents(size)], vocab_size)


BENCHMARK = Benchmark(
    title="learning 32,768 tokens, seconds, against BpeTrainer",
    unit="s",
    peer=installed("tokenizers"),
    ratio="peer / ours",
    target=Target(">=", 5, 10),
    comparison=_comparison,
)
