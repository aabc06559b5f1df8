"""Decontamination: what a benchmark asks must not have been learned by heart.

A document goes if it shares a run of `shared_words` consecutive words with a problem of a benchmark (Brown et al. 2020,
appendix C: 13 words), in whatever case. Benchmarks are files of JSON lines such as HumanEval's: one problem a line, all
its texts count. Runs of which more than half are numbers are not looked for: `0, 0, 0, ...` and `1, 2, 3, ...` stand
everywhere.
"""

import gzip
import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from codeparrot.errors import SourceError
from codeparrot.settings import Settings
from codeparrot.shingles import WORD, Hashes, Indices, shingles
from codeparrot.storage import sha256_hex

logger = logging.getLogger(__name__)

GZIP = b"\x1f\x8b"


class DecontaminateSettings(Settings):
    """What a model must not have seen."""

    files: tuple[Path, ...] = Field(min_length=1)
    """Benchmarks as JSON lines, also compressed by gzip: one problem a line, named by its `task_id`."""
    shared_words: PositiveInt = 13
    """Consecutive words that no document may share with a problem."""


@dataclass(frozen=True)
class Problems:
    """The runs of words of all problems."""

    names: tuple[str, ...]
    benchmarks: tuple[str, ...]
    """The file that each problem is from, as in the settings."""
    hashes: Hashes
    """Sorted; (hash, owner) pairs are distinct."""
    owners: Indices
    """The problem of each hash."""
    shared_words: int

    def shared(self, texts: Sequence[str]) -> list[dict[str, int]]:
        """For each text, how many distinct runs of words it shares with each problem, by the problem's name."""
        found: list[dict[str, int]] = [{} for _ in texts]
        hashes, owners = shingles([text.lower() for text in texts], self.shared_words)
        known = np.isin(hashes, self.hashes)
        pairs = set(zip(owners[known].tolist(), hashes[known].tolist(), strict=True))
        for text, value in sorted(pairs):
            wanted = np.uint64(value)
            begin, end = (int(np.searchsorted(self.hashes, wanted, side)) for side in ("left", "right"))
            for owner in self.owners[begin:end].tolist():
                name = self.names[owner]
                found[text][name] = found[text].get(name, 0) + 1
        return found


def read_benchmarks(settings: DecontaminateSettings) -> tuple[str, Problems]:
    """(digest of the files, their problems). Raises SourceError if one cannot be read or has nothing to compare."""
    names: list[str] = []
    benchmarks: list[str] = []
    digests, found = [], []
    for path in settings.files:
        data = _read(path)
        digests.append(sha256_hex(data))
        lines = [(number, line) for number, line in enumerate(data.splitlines(), 1) if line.strip()]
        if not lines:
            raise SourceError(f"benchmark {path} holds no problem")
        problems = [_parse(path, number, line) for number, line in lines]
        hashes, owners = _runs(path, ["\n".join(_texts(problem)) for problem in problems], settings.shared_words)
        found.append(np.stack([hashes, owners.astype(np.uint64) + np.uint64(len(names))], axis=1))
        for (number, _), problem in zip(lines, problems, strict=True):
            name = str(problem.get("task_id", f"{path.name}:{number}"))
            names.append(f"{path.name}:{name}" if name in names else name)
            benchmarks.append(str(path))
    pairs = np.unique(np.concatenate(found), axis=0)
    known = Problems(
        tuple(names), tuple(benchmarks), pairs[:, 0].copy(), pairs[:, 1].astype(np.int64), settings.shared_words
    )
    return sha256_hex(json.dumps(digests).encode()), known


def _runs(path: Path, texts: Sequence[str], width: int) -> tuple[Hashes, Indices]:
    """The runs of words of a benchmark's problems that are worth looking for, and the problem of each."""
    texts = [text.lower() for text in texts]
    hashes, owners = shingles(texts, width)
    telling = np.array([tells for text in texts for tells in _telling(text, width)], np.bool_)
    hashes, owners = hashes[telling], owners[telling]
    num_without = len(texts) - len(np.unique(owners))
    if num_without == len(texts):
        raise SourceError(f"no problem of benchmark {path} has {width} words; lower shared_words")
    if num_without:
        logger.warning(
            "benchmark %s: %d of %d problems have no run of %d words and are not looked for; lower shared_words",
            *(path, num_without, len(texts), width),
        )
    return hashes, owners


def _telling(text: str, width: int) -> list[bool]:
    """For every run of `width` words, whether at most half of them are numbers."""
    numbers = [word.isdigit() for word in WORD.findall(text.encode())]
    return [2 * sum(numbers[place : place + width]) <= width for place in range(len(numbers) - width + 1)]


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data.startswith(GZIP) else data
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SourceError(f"cannot read benchmark {path}: {reason}") from error


def _parse(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        problem = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"benchmark {path}, line {number}: not JSON") from error
    if not isinstance(problem, dict):
        raise SourceError(f"benchmark {path}, line {number}: not an object")
    return problem


def _texts(value: Any) -> list[str]:
    """All texts in a JSON value but names of problems."""
    if isinstance(value, str):
        return [value.encode("utf-8", "replace").decode()]  # lone surrogates have no place in UTF-8
    if isinstance(value, dict):
        return [text for key, part in value.items() if key != "task_id" for text in _texts(part)]
    return [text for part in value for text in _texts(part)] if isinstance(value, list) else []
