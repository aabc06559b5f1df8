"""Completions: keyed, within the context, and exports that load again."""

from typing import Any

import pytest
import torch

from codeparrot.generate import GenerateSettings, complete
from codeparrot.model import ModelSettings, build_model, export_files, load_model, model_config
from codeparrot.tokenizer import Encoder, train_tokenizer

TEXT = b"def add_numbers(a, b):\n    return a + b\n" * 50
MAX_SEQ_LEN = 32


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(train_tokenizer([TEXT], 270))


@pytest.fixture(scope="module")
def model() -> Any:
    config = model_config(
        ModelSettings(n_layer=1, n_head=2, n_embd=8), vocab_size=270, max_seq_len=MAX_SEQ_LEN, eos_token_id=0
    )
    return build_model(config, seed=0).eval()


def test_a_completion_depends_on_its_key_alone(model: Any, encoder: Encoder) -> None:
    settings = GenerateSettings(prompts=("def ",), max_new_tokens=12, temperature=1.0)
    first = complete(model, encoder, "def ", settings, key=1)
    torch.manual_seed(99)
    assert complete(model, encoder, "def ", settings, key=1) == first
    assert complete(model, encoder, "def ", settings, key=2) != first


@pytest.mark.parametrize("prompt", ["", "x", "a b " * 100])
def test_a_prompt_of_any_length_is_completed_within_the_context(model: Any, encoder: Encoder, prompt: str) -> None:
    settings = GenerateSettings(prompts=(prompt or "x",), max_new_tokens=MAX_SEQ_LEN - 1)
    assert len(encoder.encode([complete(model, encoder, prompt, settings, key=0)])[0]) < 4 * MAX_SEQ_LEN


def test_temperature_zero_takes_the_likeliest_token(model: Any, encoder: Encoder) -> None:
    settings = GenerateSettings(prompts=("x",), max_new_tokens=4, temperature=0)
    assert complete(model, encoder, "x", settings, key=1) == complete(model, encoder, "x", settings, key=2)


def test_an_export_loads_as_the_same_model(model: Any) -> None:
    files = export_files(model)
    assert "model.safetensors" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    loaded = load_model(files)
    rows = torch.arange(10).unsqueeze(0)
    torch.testing.assert_close(loaded(input_ids=rows).logits, model(input_ids=rows).logits)
