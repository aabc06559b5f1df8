"""Holes that are filled, by models of transformers that load as everywhere else."""

from pathlib import Path
from typing import Any

import pytest
import transformers

from codeparrot.errors import CheckpointError, GenerationError
from codeparrot.exported import Pretrained, load_folder
from codeparrot.fill import fill
from codeparrot.generate import GenerateSettings, Written
from codeparrot.model import ARCHITECTURES, ModelSettings, build_model, model_config
from codeparrot.objectives import HOLE, MaskedSettings, ObjectiveSettings, SpanSettings, special_tokens
from codeparrot.pretrained import load_pretrained
from codeparrot.tokenizer import tokenizer_files, train_tokenizer

CONTEXT = 64
OBJECTIVES: dict[str, ObjectiveSettings] = {
    "modernbert": MaskedSettings(kind="masked"),
    "t5": SpanSettings(kind="span"),
}
PROMPTS = {
    "modernbert": "def add(a, b):\n    return <|mask|> +<|mask|>\n",
    "t5": "def add(a, b):\n    return <extra_id_0> + <extra_id_1>\n",
}
TEXT = b"def add_numbers(a, b):\n    return a + b\n" * 9


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports of models that have learned nothing."""
    found = {}
    for architecture, objective in OBJECTIVES.items():
        folder = found[architecture] = tmp_path_factory.mktemp(architecture)
        settings = ModelSettings.model_validate({"architecture": architecture, "n_layer": 1, "n_head": 2, "n_embd": 16})
        config = model_config(settings, vocab_size=270, max_seq_len=CONTEXT, eos_token_id=0)
        build_model(config, seed=0).save_pretrained(folder)
        tokenizer = train_tokenizer([TEXT], 270, special_tokens(objective, CONTEXT))
        for name, data in tokenizer_files(tokenizer, CONTEXT).items():
            (folder / name).write_bytes(data)
    return found


def filled(folder: Path, prompts: dict[int, str], seed: int = 1, **settings: Any) -> list[Written]:
    return fill(load_folder(str(folder), "test"), prompts, GenerateSettings(prompts=("x",), **settings), seed)


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_only_the_holes_are_filled_and_with_text(folders: dict[str, Path], architecture: str) -> None:
    (written,) = filled(folders[architecture], {0: PROMPTS[architecture]}, temperature=1.0, max_new_tokens=5)
    assert written.prompt == "def add(a, b):\n    return "
    assert " +" in written.completion
    assert written.suffix == "\n"
    assert not HOLE.search("".join(written))


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_a_filling_depends_on_its_prompt_its_number_and_the_seed_alone(
    folders: dict[str, Path], architecture: str
) -> None:
    prompt, folder = PROMPTS[architecture], folders[architecture]
    together = filled(folder, dict.fromkeys(range(4), prompt), temperature=1.0)
    assert len(set(together)) > 1
    assert filled(folder, {2: prompt}, temperature=1.0) == [together[2]]
    assert filled(folder, {2: prompt}, seed=2, temperature=1.0) != [together[2]]
    assert len(set(filled(folder, dict.fromkeys(range(3), prompt), temperature=0))) == 1


def test_the_likeliest_token_is_what_the_pipeline_of_transformers_says(folders: dict[str, Path]) -> None:
    folder = folders["modernbert"]
    prompt = "def add(a, b):\n    return <|mask|> + b\n"
    (written,) = filled(folder, {0: prompt}, temperature=0)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(f"{tokenizer.bos_token}{prompt}", return_tensors="pt").input_ids
    assert (ids == tokenizer.mask_token_id).sum() == 1
    logits = model(input_ids=ids).logits[ids == tokenizer.mask_token_id][0]
    plain = [index for index in range(270) if index not in (0, tokenizer.mask_token_id)]
    assert written.completion == tokenizer.decode([plain[int(logits[plain].argmax())]])


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_an_export_loads_with_the_auto_class_of_its_kind(folders: dict[str, Path], architecture: str) -> None:
    loader = getattr(transformers, ARCHITECTURES[architecture].loader)
    model = loader.from_pretrained(folders[architecture])
    assert model.config.max_position_embeddings == CONTEXT
    loaded: Pretrained = load_pretrained(str(folders[architecture]), any_kind=True)
    assert type(loaded.model) is type(model)
    with pytest.raises(CheckpointError, match=r"is a (masked|sequence).* model; this is for a causal"):
        load_pretrained(str(folders[architecture]))


def test_a_prompt_that_is_too_long_or_has_unknown_holes_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(GenerationError, match=r"a prompt of \d+ tokens does not fit in the model's context of 64"):
        filled(folders["modernbert"], {0: "a\n" * 99 + "<|mask|>"})
    with pytest.raises(GenerationError, match="not trained to fill <extra_id_99>"):
        filled(folders["t5"], {0: "<extra_id_99>"})
