"""Floating-point operations, counted and measured."""

import pytest

from codeparrot.model import ModelSettings, model_config, num_parameters
from codeparrot.throughput import flops_per_token, peak_flops


def test_gpt2_small_needs_about_0_8_gigaflops_for_a_token() -> None:
    """nanoGPT's estimate for GPT-2 (124M, 1024 tokens) is the same formula: 8.6e8 with all its position embeddings."""
    settings = ModelSettings(n_layer=12, n_head=12, n_embd=768)
    config = model_config(settings, vocab_size=50_257, max_seq_len=1024, eos_token_id=0)
    assert num_parameters(config) == 124_439_808
    assert flops_per_token(config, num_parameters(config)) == pytest.approx(8.55e8, rel=0.01)


def test_of_nanochat_only_products_of_matrices_count() -> None:
    settings = ModelSettings(architecture="nanochat", n_layer=2, n_head=2, n_embd=32)
    config = model_config(settings, vocab_size=300, max_seq_len=16, eos_token_id=0)
    matrices = 300 * 32 + 2 * 12 * 32 * 32
    expected = 6 * matrices + 12 * 2 * 16 * 32
    assert num_parameters(config) == matrices
    assert flops_per_token(config, matrices) == expected
    config.tie_word_embeddings = False
    assert flops_per_token(config, num_parameters(config)) == expected


def test_the_peak_is_measured_and_plausible() -> None:
    assert 1e9 < peak_flops("cpu", "fp32") < 1e14
