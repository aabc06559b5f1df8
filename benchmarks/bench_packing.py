"""Packing alone, token ids to rows, against `trl.pack_dataset`: best fit against `bfd_split`, concat against `wrapped`.

Both have the same documents in memory, each with its end-of-text token, and all of them at once, since what is packed
batch by batch leaves more room. A sample packs them with the one strategy and then with the other. Ours makes the rows
and where documents begin in them; the peer's are lists, with the lengths of their documents for `bfd_split`.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.code import described, documents
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from codeparrot.packing import Strategy, copy_pieces, document_starts, encode_documents, plan
from codeparrot.tokenizer import Encoder, train_tokenizer

MAX_SEQ_LEN = 1024
VOCAB_SIZE = 32_768
TRAINING_BYTES = 20_000_000
CORPUS_BYTES = 200_000_000
PEERS: dict[Strategy, str] = {"best_fit": "bfd_split", "concat": "wrapped"}
MIN_UTILISATION = 0.997


class _Packing(Comparison):
    def __init__(self, texts: list[str]) -> None:
        import pyarrow as pa
        from datasets import Dataset

        few = max(1, len(texts) * TRAINING_BYTES // CORPUS_BYTES)
        encoder = Encoder(train_tokenizer([text.encode() for text in texts[:few]], VOCAB_SIZE))
        self._tokens, self._lengths = encode_documents(texts, encoder)
        self._eos = encoder.eos_token_id
        self._about = described(texts)
        offsets = pa.array(np.concatenate([[0], np.cumsum(self._lengths)]).astype(np.int32))
        lists = pa.ListArray.from_arrays(offsets, pa.array(self._tokens.astype(np.int32)))
        self._dataset: Any = Dataset(pa.table({"input_ids": lists}))
        self._seconds: dict[str, list[float]] = {}

    def _pack(self, strategy: Strategy) -> tuple[npt.NDArray[Any], npt.NDArray[Any], int]:
        """(rows, where documents begin in them, tokens of documents in them), the remainder being a row."""
        planned = plan(self._lengths, max_seq_len=MAX_SEQ_LEN, strategy=strategy)
        num_rows = int(planned.row[-1]) + 1
        rows = np.full(num_rows * MAX_SEQ_LEN, self._eos, self._tokens.dtype)
        begins = (np.cumsum(self._lengths) - self._lengths)[planned.document] + planned.start
        copy_pieces(self._tokens, begins, planned.length, rows, planned.row * MAX_SEQ_LEN + planned.offset)
        starts = document_starts(planned.row, planned.offset, planned.length, MAX_SEQ_LEN)
        return rows.reshape(-1, MAX_SEQ_LEN), starts, int(planned.length.sum())

    def _pack_by_peer(self, strategy: Strategy) -> Any:
        from trl import pack_dataset

        options = {"batch_size": len(self._dataset), "keep_in_memory": True, "load_from_cache_file": False}
        return pack_dataset(self._dataset, MAX_SEQ_LEN, PEERS[strategy], map_kwargs=options)

    def check(self) -> str:
        from datasets import disable_progress_bars

        disable_progress_bars()
        total = len(self._tokens)
        rows, _, _ = self._pack("concat")
        theirs = _flat(self._pack_by_peer("concat"))
        if not np.array_equal(rows.flatten()[:total], theirs):
            raise Unequal("the tokens of concatenated rows")
        rows, _, num_tokens = self._pack("best_fit")
        packed = self._pack_by_peer("best_fit")
        counts = np.bincount(rows.flatten(), minlength=VOCAB_SIZE)
        counts[self._eos] -= rows.size - num_tokens
        same = np.array_equal(counts, np.bincount(_flat(packed), minlength=VOCAB_SIZE))
        if not same or num_tokens != total:
            raise Unequal("the tokens of best-fit rows: some are lost")
        used, theirs_used = total / rows.size, total / (len(packed) * MAX_SEQ_LEN)
        if used < max(theirs_used, MIN_UTILISATION):
            raise Unequal(f"rows are {used:.4%} full, the peer's {theirs_used:.4%}")
        return (
            f"tokens of concatenated rows, one by one, and of best-fit rows, as often; {total:,} tokens of "
            f"{self._about}; best-fit rows are {used:.4%} full, the peer's {theirs_used:.4%}"
        )

    def _rate(self, side: str, pack: Any) -> float:
        seconds = 0.0
        for strategy in PEERS:
            began = time.perf_counter()
            pack(strategy)
            taken = time.perf_counter() - began
            self._seconds.setdefault(f"{side} {strategy}", []).append(taken)
            seconds += taken
        return len(PEERS) * len(self._tokens) / 1e6 / seconds

    def ours(self) -> float:
        return self._rate("ours", self._pack)

    def peer(self) -> float:
        return self._rate("peer", self._pack_by_peer)

    def notes(self) -> list[str]:
        median = {name: float(np.median(seconds)) for name, seconds in self._seconds.items()}
        return [
            f"{strategy}: ours {median[f'ours {strategy}']:.3g} s, {peer} {median[f'peer {strategy}']:.3g} s, "
            f"peer / ours = {median[f'peer {strategy}'] / median[f'ours {strategy}']:.3g} (medians)"
            for strategy, peer in PEERS.items()
        ]


def _flat(packed: Any) -> npt.NDArray[Any]:
    column = packed.data.column("input_ids").combine_chunks()
    return np.asarray(column.flatten())


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    yield _Packing([document.content for document in documents(CORPUS_BYTES // (10 if trial else 1))])


BENCHMARK = Benchmark(
    title="token ids to rows, both strategies, million tokens/s in one process, against trl.pack_dataset",
    unit="million tokens/s",
    peer=installed("trl"),
    ratio="ours / peer",
    target=Target(">=", 1, 2),
    comparison=_comparison,
)
