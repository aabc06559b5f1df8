"""Completions of prompts: keyed, within the context, and exports that load again."""

from typing import Any

import pytest
import torch

from codeparrot.engine import Engine, EngineSettings
from codeparrot.exported import Pretrained
from codeparrot.generate import GenerateSettings, complete
from codeparrot.model import export_files, load_model
from codeparrot.vocabulary import Vocabulary

CONTEXT = 128


@pytest.fixture
def engine(tiny: Pretrained) -> Engine:
    return Engine(tiny.model, Vocabulary(tiny.tokenizer), EngineSettings(max_batch_size=3))


def texts(engine: Engine, prompts: dict[int, str], **changed: Any) -> list[str]:
    settings = GenerateSettings(prompts=("x",), **changed)
    return [made.text for made in complete(engine, prompts, settings, seed=1)]


def test_a_completion_depends_on_its_prompt_and_its_number_alone(engine: Engine) -> None:
    prompts = dict.fromkeys(range(5), "def ")
    together = texts(engine, prompts, max_new_tokens=12, temperature=1.0)
    assert len(set(together)) == 5
    assert texts(engine, {3: "def "}, max_new_tokens=12, temperature=1.0) == [together[3]]


@pytest.mark.parametrize("prompt", ["", "x", "a b " * 100])
def test_a_prompt_of_any_length_is_completed_within_the_context(engine: Engine, prompt: str) -> None:
    assert texts(engine, {0: prompt}, max_new_tokens=CONTEXT - 1) != [""]
    assert texts(engine, {0: prompt}, max_new_tokens=10 * CONTEXT) != [""]


def test_temperature_zero_takes_the_likeliest_token(engine: Engine) -> None:
    assert len(set(texts(engine, {0: "x", 1: "x"}, max_new_tokens=4, temperature=0))) == 1


def test_an_export_loads_as_the_same_model(tiny: Pretrained) -> None:
    files = export_files(tiny.model)
    assert "model.safetensors" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    loaded: Any = load_model(files)
    rows = torch.arange(10).unsqueeze(0)
    torch.testing.assert_close(loaded(input_ids=rows).logits, tiny.model(input_ids=rows).logits)
