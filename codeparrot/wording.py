"""What texts show of the corpus that a model has learned from: its words, what it imports, how it lays out code.

A word is telling if one model writes it more often than the others do by more than chance: the log-odds ratio with an
informative Dirichlet prior, in standard deviations (Monroe et al., "Fightin' Words" (2008), section 3.5). The prior is
a share of the words of all, which keeps a word that occurs once from being taken for a habit.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codeparrot.filters import comment_fraction

WORD = re.compile(r"[A-Za-z_]\w+")
IMPORT = re.compile(r"^[ \t]*(?:import|from)[ \t]+([A-Za-z_]\w*)", re.MULTILINE)
NUM_WORDS = 15
NUM_MODULES = 12
MIN_IMPORTS = 2
"""Of a module, by one of those compared: what is imported once may be a slip of the pen."""
PRIOR = 0.1
"""The weight of the words of all, as a share of them."""
MIN_Z = 1.96
"""Standard deviations from which on a word is telling."""


@dataclass(frozen=True)
class TellingWord:
    """A word that one writes more often than the others."""

    word: str
    z: float
    """By how many standard deviations."""
    count: int
    others: int
    """How often the others write it."""


def words_of(texts: Sequence[str]) -> Counter[str]:
    """Identifiers, keywords and words of prose of two characters or more."""
    return Counter(word for text in texts for word in WORD.findall(text))


def modules_of(texts: Sequence[str]) -> Counter[str]:
    """Top-level modules that are imported; relative imports name none."""
    return Counter(name for text in texts for name in IMPORT.findall(text))


def telling_words(own: Mapping[str, int], others: Mapping[str, int], number: int = NUM_WORDS) -> list[TellingWord]:
    """Words that tell the one from the others, the most telling first."""
    prior = {word: PRIOR * (own.get(word, 0) + others.get(word, 0)) for word in {*own, *others}}
    all_of_prior, all_own, all_others = sum(prior.values()), sum(own.values()), sum(others.values())
    found = []
    for word, weight in prior.items():
        ours, theirs = own.get(word, 0), others.get(word, 0)
        odds = math.log((ours + weight) / max(all_own + all_of_prior - ours - weight, PRIOR))
        odds -= math.log((theirs + weight) / max(all_others + all_of_prior - theirs - weight, PRIOR))
        z = odds / math.sqrt(1 / (ours + weight) + 1 / (theirs + weight))
        if z > MIN_Z:
            found.append(TellingWord(word, z, ours, theirs))
    return sorted(found, key=lambda each: (-each.z, each.word))[:number]


def habits(texts: Sequence[str]) -> dict[str, Any]:
    """How code is laid out, and how varied its words are; None where there is nothing to tell it by."""
    lines = [line for text in texts for line in text.split("\n")]
    written = [line for line in lines if line.strip()]
    indented = [len(line) - len(line.lstrip(" ")) for line in written if line.startswith(" ")]
    words = words_of(texts)
    prose = sum(comment_fraction(text) * len(text) for text in texts)
    num_words, num_characters = words.total(), sum(map(len, texts))
    return {
        "num_characters": num_characters,
        "line_characters": sum(map(len, written)) / len(written) if written else None,
        "empty_lines": 1 - len(written) / len(lines) if lines else None,
        "comments": prose / num_characters if num_characters else None,
        "indentation": sum(indented) / len(indented) if indented else None,
        "different_words": len(words) / num_words if num_words else None,
        "async_words": (words["async"] + words["await"]) / num_words if num_words else None,
    }


def top_modules(counts: Sequence[Mapping[str, int]], number: int = NUM_MODULES) -> list[str]:
    """The modules that are imported most by any, each weighing the same."""
    shares: dict[str, float] = {}
    for each in counts:
        total = sum(each.values())
        for name, times in each.items():
            if times < MIN_IMPORTS:
                continue
            shares[name] = max(shares.get(name, 0.0), times / total)
    return [name for name, _ in sorted(shares.items(), key=lambda item: (-item[1], item[0]))][:number]
