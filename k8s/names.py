"""Names of RayJobs.

The operator makes names of clusters, services and pods from a RayJob's name, and so allows 47 characters of DNS-1035
(it begins with a letter). A run's name may begin with a digit and be as long as 40; a suffix makes each submission's
name its own, since a RayJob that has ended keeps its name as long as it exists.
"""

import re
import secrets
from collections.abc import Callable

from k8s.errors import Misuse

MAX_LENGTH = 47
SUFFIX_LENGTH = 5
ALPHABET = "bcdfghjkmnpqrstvwxz2456789"
"""No vowels, so that no suffix is a word, and nothing that looks like another character."""
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def unique(run_name: str, choose: Callable[[str], str] = secrets.choice) -> str:
    """A name for one submission of a run: `tiny-x7k2p`."""
    stem = run_name if run_name[:1].isalpha() else f"run-{run_name}"
    stem = stem[: MAX_LENGTH - SUFFIX_LENGTH - 1].rstrip("-")
    return f"{stem}-{''.join(choose(ALPHABET) for _ in range(SUFFIX_LENGTH))}"


def checked(name: str) -> str:
    """A name that a person chose. Raises Misuse if the operator would refuse it."""
    if len(name) > MAX_LENGTH:
        raise Misuse(f"--name {name}: {len(name)} characters; a RayJob's name has at most {MAX_LENGTH}")
    if not DNS_1035.fullmatch(name):
        raise Misuse(
            f"--name {name}: lower-case letters, digits and '-', beginning with a letter and not ending with '-'"
        )
    return name
