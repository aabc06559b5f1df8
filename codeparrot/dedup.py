"""Duplicates: of documents that say the same, one stays.

Two documents are exact duplicates if they are equal but for blank lines and white space at the ends of lines.
Indentation counts, since in Python it is the program. Only documents that passed the filters take part, so a
rejected document never stands for its twins.
"""

import hashlib
from collections.abc import Sequence

WHITE_SPACE = " \t\f\v"


def content_key(content: str) -> bytes:
    """16 bytes that are equal for exact duplicates."""
    lines = (line.rstrip(WHITE_SPACE) for line in content.split("\n"))
    normalised = "\n".join(line for line in lines if line)
    return hashlib.blake2b(normalised.encode(), digest_size=16).digest()


def exact_duplicates(keys: Sequence[bytes], preference: Sequence[tuple[object, ...]]) -> list[int]:
    """Indices of the documents to drop: all but the most preferred (smallest `preference`) of every key.

    The result does not depend on the order of the documents as long as preferences differ.
    """
    seen: set[bytes] = set()
    dropped = []
    for index in sorted(range(len(keys)), key=lambda index: preference[index]):
        if keys[index] in seen:
            dropped.append(index)
        seen.add(keys[index])
    return sorted(dropped)
