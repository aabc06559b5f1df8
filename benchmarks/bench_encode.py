"""Text to token ids, against `tokenizers`, whose ids are the reference.

Ours encodes as the pack stage does: a shard of 64 MB per core, with an encoder that has seen nothing. The peer is
`encode_batch_fast` with its own threads, which take both cores too, and it keeps what it has cached. Ids are compared
over the whole of the code, in which there are letters that the back ends read differently; the samples are the first
128 MB.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.code import batches, described, documents, megabytes, parts
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from codeparrot.tokenizer import Encoder, train_tokenizer

NUM_CORES = 2
VOCAB_SIZE = 32_768
TRAINING_BYTES = 100_000_000
CORPUS_BYTES, SAMPLE_BYTES = 400_000_000, 128_000_000
BATCH = 1000


class _Encode(Comparison):
    def __init__(self, texts: Sequence[str], sample_bytes: int) -> None:
        import tokenizers

        self._texts = texts
        num_sampled = max(1, int(len(texts) * sample_bytes / 1e6 / megabytes(texts)))
        self._sample = texts[:num_sampled]
        self._sample_mb = megabytes(self._sample)
        few = max(1, int(len(texts) * TRAINING_BYTES / 1e6 / megabytes(texts)))
        self._json = train_tokenizer([text.encode() for text in texts[:few]], VOCAB_SIZE)
        plain = json.loads(self._json) | {"added_tokens": []}
        self._peer: Any = tokenizers.Tokenizer.from_str(json.dumps(plain))

    def _new_encoders(self) -> list[Encoder]:
        return [Encoder(self._json) for _ in range(NUM_CORES)]

    def check(self) -> str:
        encoder, num_tokens = Encoder(self._json), 0
        for batch in batches(self._texts, BATCH):
            ids, lengths = encoder.encode(batch)
            expected = [encoding.ids for encoding in self._peer.encode_batch_fast(batch, add_special_tokens=False)]
            if lengths.tolist() != [len(each) for each in expected] or not np.array_equal(
                ids, np.concatenate(expected)
            ):
                raise Unequal("the token ids")
            num_tokens += len(ids)
        return f"{num_tokens:,} token ids of {described(self._texts)}"

    def _rate(self, encoders: Sequence[Encoder]) -> float:
        began = time.perf_counter()
        with ThreadPoolExecutor(NUM_CORES) as pool:
            shares = parts(self._sample, NUM_CORES)
            list(pool.map(lambda encoder, share: encoder.encode(share), encoders, shares))
        return self._sample_mb / (time.perf_counter() - began)

    def ours(self) -> float:
        return self._rate(self._new_encoders())

    def peer(self) -> float:
        began = time.perf_counter()
        self._peer.encode_batch_fast(self._sample, add_special_tokens=False)
        return self._sample_mb / (time.perf_counter() - began)

    def notes(self) -> list[str]:
        encoders = self._new_encoders()
        self._rate(encoders)
        return [f"ours, encoders that have seen the text before: {self._rate(encoders):.4g} MB/s"]


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    os.environ["RAYON_NUM_THREADS"] = str(NUM_CORES)
    scale = 20 if trial else 1
    texts = [document.content for document in documents(CORPUS_BYTES // scale)]
    yield _Encode(texts, SAMPLE_BYTES // scale)


BENCHMARK = Benchmark(
    title="text to token ids, MB/s on two cores, against encode_batch_fast on two threads",
    unit="MB/s",
    peer=installed("tokenizers"),
    ratio="ours / peer",
    target=Target(">=", 25, 60),
    comparison=_comparison,
)
