"""Real code to measure with: the Python files of the installed packages, chosen and read as the first stage does."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from codeparrot.documents import Document
from codeparrot.sources import PackagesSettings, choose, open_source, read

MAX_FILE_BYTES = 1_000_000
SEED = 0


@lru_cache(maxsize=1)
def documents(max_bytes: int | None = None) -> list[Document]:
    """Files of at most 1 MB, up to `max_bytes` of them, in the order of their names."""
    entries = open_source(PackagesSettings(kind="packages")).entries()
    chosen = choose(entries, seed=SEED, max_bytes=max_bytes, max_file_bytes=MAX_FILE_BYTES)
    return read(chosen, MAX_FILE_BYTES).documents


def described(texts: Sequence[str]) -> str:
    """How much it is."""
    return f"{len(texts):,} files, {megabytes(texts):.0f} MB"


def megabytes(texts: Sequence[str]) -> float:
    """The size of texts in UTF-8."""
    return sum(len(text.encode()) for text in texts) / 1e6


def parts(texts: Sequence[str], num_parts: int) -> list[Sequence[str]]:
    """Every `num_parts`-th text, `num_parts` times: about equal loads."""
    return [texts[start::num_parts] for start in range(num_parts)]


def batches(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Consecutive texts, `size` at a time."""
    for start in range(0, len(texts), size):
        yield texts[start : start + size]
