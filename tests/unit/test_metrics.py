import gzip
import lzma
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.metrics import gzip_bits_per_byte, measures, xz_bits_per_byte


def test_a_uniform_guess_costs_the_logarithm_of_the_vocabulary() -> None:
    found = measures(1000 * math.log(256), num_tokens=1000, num_bytes=1000)
    assert found.loss == pytest.approx(math.log(256))
    assert found.perplexity == pytest.approx(256)
    assert found.bits_per_byte == pytest.approx(8)
    assert (found.num_tokens, found.num_bytes) == (1000, 1000)


def test_bits_per_byte_do_not_depend_on_how_text_is_cut_into_tokens() -> None:
    long, short = (measures(500.0, num_tokens=number, num_bytes=1000) for number in (100, 400))
    assert long.bits_per_byte == short.bits_per_byte == pytest.approx(500 / math.log(2) / 1000)
    assert long.loss == 4 * short.loss


@given(st.floats(0, 1e9), st.integers(1, 10**6), st.integers(1, 10**6))
def test_measures_are_finite_however_bad_the_model(total_nll: float, num_tokens: int, num_bytes: int) -> None:
    found = measures(total_nll, num_tokens, num_bytes)
    assert math.isfinite(found.perplexity)
    assert found.perplexity >= 1
    assert found.bits_per_byte is not None
    assert math.isfinite(found.bits_per_byte)


def test_tokens_that_stand_for_no_text_have_no_bits_per_byte() -> None:
    assert measures(3.0, num_tokens=2, num_bytes=0).bits_per_byte is None


@pytest.mark.parametrize("data", [b"a", b"def f(x):\n    return x\n" * 20])
def test_yardsticks_are_the_compressed_size(data: bytes) -> None:
    assert gzip_bits_per_byte(data) == 8 * len(gzip.compress(data, 9)) / len(data)
    assert xz_bits_per_byte(data) == 8 * len(lzma.compress(data, preset=9)) / len(data)


def test_random_bytes_do_not_compress_and_repetition_does() -> None:
    noise = random.Random(0).randbytes(10_000)
    for bits_per_byte in (gzip_bits_per_byte, xz_bits_per_byte):
        assert bits_per_byte(noise) > 8
        assert bits_per_byte(noise[:100] * 100) < 1
