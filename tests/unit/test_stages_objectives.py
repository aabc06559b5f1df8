"""Packing, measuring and generating with every objective: real rows, models that have learned nothing."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codeparrot.breakdown import breakdown
from codeparrot.config import Recipe
from codeparrot.dataloader import PackedRows
from codeparrot.draws import key
from codeparrot.loss import loss_of
from codeparrot.manifest import Manifest
from codeparrot.model import build_model, export_files, model_config
from codeparrot.objectives import HOLE, objective_of, special_tokens
from codeparrot.storage import LocalStorage
from codeparrot.tokenizer import tokenizer_files, train_tokenizer
from ray_jobs.evaluate_rows import SPLIT, Model, batch_costs, origins_of, together
from ray_jobs.generate import complete_prompts
from tests.unit.packed_store import Text, commit, curate, pack_all, recipe

CODE = "def add(a, b):\n    return a + b\n"
TRAIN: list[list[Text]] = [[("a", "one.py", CODE * 9)], [("b", "two.py", "x = 1\n" * 30)]]
HELD_OUT: list[Text] = [("c", "held.py", CODE * 4), ("d", "more.py", "return a\n" * 9), ("d", "less.py", "a = b\n")]
KINDS = {
    "fim": ["objective={kind: fim}", "generate.prompts=[{prompt: 'def add', suffix: ' + b'}, 'def ']"],
    "masked": [
        "objective={kind: masked, rate: 0.3, whole_words: true}",
        "model.architecture=modernbert",
        "evaluate.tasks=null",
        "generate.prompts=['def <|mask|>(a, b):']",
    ],
    "span": [
        "objective={kind: span, rate: 0.3}",
        "model.architecture=t5",
        "evaluate.tasks=null",
        "generate.prompts=['def <extra_id_0>(a, b):']",
    ],
}


class Made:
    """A store with packed rows and an export."""

    def __init__(self, folder: Path, kind: str, strategy: str) -> None:
        self.storage = LocalStorage(str(folder / "store"))
        size = ["model.n_layer=1", "model.n_head=2", "model.n_embd=16", "pack.max_seq_len=24"]
        self.recipe: Recipe = recipe(self.storage, *size, f"pack.strategy={strategy}", *KINDS[kind])
        special = special_tokens(self.recipe.objective, 24)
        self.tokenizer = train_tokenizer([CODE.encode() * 9], 270, special)
        curate(self.storage, TRAIN, HELD_OUT)
        files = tokenizer_files(self.tokenizer, 24)
        commit(self.storage, "train_tokenizer", "tokenizer", files, {})
        self.packed = pack_all(self.storage, self.recipe)
        config = model_config(self.recipe.model, vocab_size=270, max_seq_len=24, eos_token_id=0)
        self.model: Any = build_model(config, seed=0).eval()
        exported = {**export_files(self.model), **files}
        self.run: Manifest = commit(
            self.storage, "train", "runs/tiny", {f"export/{name}": data for name, data in exported.items()}, {}
        )


@pytest.mark.parametrize("strategy", ["concat", "best_fit"])
@pytest.mark.parametrize("kind", ["masked", "span"])
def test_evaluation_asks_what_the_validation_of_training_asks(tmp_path: Path, kind: str, strategy: str) -> None:
    made = Made(tmp_path, kind, strategy)
    rows = PackedRows(made.storage, made.packed, SPLIT)
    chosen = list(range(rows.num_rows))
    measure = partial(
        batch_costs,
        uri=made.storage.uri,
        packed=made.packed,
        tokenizer_json=made.tokenizer,
        model=Model(f"{made.storage.uri}/runs/tiny", None, any_kind=True),
        settings=made.recipe.objective,
        seed=made.recipe.seed,
    )
    costs, positions = together([measure(chosen[:2]), measure(chosen[2:])])
    objective = objective_of(made.recipe.objective, made.tokenizer, 24)
    lengths = rows.lengths(chosen)
    batch = objective.ask(
        rows.rows(chosen), lengths if rows.has_padding else None, key(made.recipe.seed, "validation"), chosen
    )
    with torch.no_grad():
        expected = float(loss_of(made.model)(*(torch.from_numpy(np.ascontiguousarray(array)) for array in batch)))
    assert math.fsum(costs.nll.tolist()) == pytest.approx(expected, rel=1e-5)
    assert costs.num_tokens.sum() == objective.num_predicted(lengths)
    assert 0 < costs.num_bytes.sum() < made.packed.counts["splits"][SPLIT]["size_bytes"]
    found = breakdown(costs, positions, origins_of(made.storage, made.packed, chosen), 0)
    assert {row["name"] for row in found["by_repository"]} == {"c", "d"}


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_written_to_as_the_objective_has_it(tmp_path: Path, kind: str) -> None:
    made = Made(tmp_path, kind, "best_fit")
    settings = made.recipe.generate
    written = complete_prompts(
        dict(enumerate(settings.prompts)),
        uri=made.storage.uri,
        trained=made.run,
        settings=settings,
        seed=1,
        objective=made.recipe.objective,
    )
    assert [each.prompt for each in written] == (["def add", "def "] if kind == "fim" else ["def "])
    assert written[0].suffix == (" + b" if kind == "fim" else "(a, b):")
    assert all(each.completion for each in written)
    assert not any(HOLE.search("".join(each)) for each in written)
