"""The measures of a language model, token-weighted, and plain yardsticks for them."""

import gzip
import lzma
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Measures:
    """What a model's predictions cost."""

    loss: float
    """Mean negative log-likelihood per predicted token, in nats."""
    perplexity: float
    bits_per_byte: float | None
    """Comparable across tokenizers, unlike the other two. None: the tokens stand for no text."""
    num_tokens: int
    """Predicted tokens: every token of a row but its first."""
    num_bytes: int
    """Text that the predicted tokens stand for."""


def measures(total_nll: float, num_tokens: int, num_bytes: int) -> Measures:
    """Measures from the summed negative log-likelihood (nats) of `num_tokens` tokens that stand for `num_bytes`.

    bits per byte = total_nll / ln 2 / num_bytes (Gao et al., The Pile, 2020, section 3.1).
    """
    loss = total_nll / num_tokens
    return Measures(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),  # math.exp overflows above 709
        bits_per_byte=total_nll / math.log(2) / num_bytes if num_bytes else None,
        num_tokens=num_tokens,
        num_bytes=num_bytes,
    )


def gzip_bits_per_byte(data: bytes) -> float:
    """Bits per byte of `gzip -9`."""
    return 8 * len(gzip.compress(data, compresslevel=9, mtime=0)) / len(data)


def xz_bits_per_byte(data: bytes) -> float:
    """Bits per byte of `xz -9`."""
    return 8 * len(lzma.compress(data, preset=9)) / len(data)
