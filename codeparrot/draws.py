"""Keyed randomness: every random choice is a pure function of the recipe's seed and of what it is for.

So no random state has to be kept, and a choice never depends on the order in which choices are made.
"""

import hashlib

import numpy as np
import numpy.typing as npt


def key(seed: int, *purpose: str | int, num_bits: int = 63) -> int:
    """A number from 0 up to 2**num_bits: what `torch.manual_seed` takes, by default."""
    text = "\0".join(map(str, (seed, *purpose))).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> (64 - num_bits)


def uniform(seed: int, *purpose: str | int) -> float:
    """A number from 0 up to 1."""
    return key(seed, *purpose, num_bits=53) / 2**53


def uniforms(of: int, count: int) -> npt.NDArray[np.float64]:
    """So many numbers from 0 up to 1, of a `key`: shape (count,).

    The bits of Philox (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011)), which NumPy keeps the same
    in all its versions, unlike what its generators make of them.
    """
    bits = np.random.Philox(key=of).random_raw(count) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
