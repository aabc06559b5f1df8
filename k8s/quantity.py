"""Kubernetes' quantities as numbers: `500m` CPU, `1Gi` of memory."""

import re
from decimal import Decimal

from k8s.errors import Misuse

FORM = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([a-zA-Z]*)")
FACTORS = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15),
    "E": Decimal(10**18), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
    "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip


def parse(text: object) -> Decimal:
    """The number that a quantity means. Raises Misuse for what is none."""
    found = FORM.fullmatch(str(text))
    if found is None or found[2] not in FACTORS:
        raise Misuse(f"not a quantity: {str(text)!r}")
    return Decimal(found[1]) * FACTORS[found[2]]


def show(name: str, value: Decimal) -> str:
    """A quantity for a person: memory in GiB, everything else as a number."""
    if "memory" in name or "storage" in name:
        return f"{value / FACTORS['Gi']:.1f} GiB"
    return f"{value.normalize():f}"
