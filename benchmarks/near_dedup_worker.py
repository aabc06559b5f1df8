"""`python -m benchmarks.near_dedup_worker IN OUT`: near duplicates leave a data set on disk, as a program of its own.

What `bench_near_dedup_quality` compares with a program that does the same: it starts, reads, signs on two processes,
decides and writes.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import datasets

from benchmarks.bench_near_dedup import NUM_CORES, remove


def main() -> None:
    """Write to the second folder what is left of the first."""
    datasets.disable_progress_bars()
    corpus = datasets.load_from_disk(sys.argv[1])
    (data,) = corpus.cache_files
    with ProcessPoolExecutor(NUM_CORES, get_context("forkserver")) as pool:
        removed = remove(Path(data["filename"]), pool)
    corpus.select([index for index in range(len(corpus)) if index not in removed]).save_to_disk(sys.argv[2])


if __name__ == "__main__":
    main()
