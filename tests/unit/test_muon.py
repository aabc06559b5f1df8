"""Muon and AdamW as one optimizer."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codeparrot.errors import ConfigError
from codeparrot.model import ModelSettings, build_model, model_config
from codeparrot.muon import ADAMW_RMS, orthogonalised
from codeparrot.optimizer import OptimizerSettings, build_optimizer, set_learning_rates
from codeparrot.settings import validate
from codeparrot.training_job import TrainSettings

MUON = OptimizerSettings(learning_rate=0.01, warmup_steps=0, optimizer="muon", muon_learning_rate=0.03)


def model_of(architecture: str) -> Any:
    sizes = ModelSettings.model_validate({"architecture": architecture, "n_layer": 2, "n_head": 2, "n_embd": 8})
    return build_model(model_config(sizes, vocab_size=30, max_seq_len=6, eos_token_id=0), seed=1)


def backward(model: Any) -> None:
    rows = torch.arange(12).view(2, 6)
    model(input_ids=rows, labels=rows).loss.backward()


@given(st.integers(1, 5), st.integers(1, 24), st.integers(1, 24), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_all_singular_values_of_an_update_are_nearly_one_times_its_size(
    num: int, rows: int, columns: int, seed: int
) -> None:
    matrices = torch.randn(num, rows, columns, generator=torch.Generator().manual_seed(seed))
    values = torch.linalg.svdvals(matrices)
    kept = values > 0.02 * values[:, :1]  # smaller ones grow, but not all the way
    found = torch.linalg.svdvals(orthogonalised(matrices)) / (ADAMW_RMS * max(rows, columns) ** 0.5)
    assert found[kept].min() > 0.5
    assert found.max() < 1.3


def test_the_update_points_where_the_polar_factor_does() -> None:
    matrix = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    update = orthogonalised(matrix[None])[0]
    cosine = torch.nn.functional.cosine_similarity(update.flatten(), (u @ vh).flatten(), 0)
    assert cosine > 0.97


def test_matrices_side_by_side_are_each_their_own() -> None:
    parts = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    together = orthogonalised(torch.cat(list(parts), 1)[None], 3)[0]
    torch.testing.assert_close(together, torch.cat(list(orthogonalised(parts)), 1))


def test_it_does_what_the_muon_of_torch_does() -> None:
    """But for the precision of its iterations, which is bf16 there."""
    torch.manual_seed(0)
    ours = torch.nn.Linear(12, 20, bias=False)
    theirs = copy.deepcopy(ours)
    optimizer = build_optimizer(ours, MUON)
    peer = torch.optim.Muon(theirs.parameters(), lr=0.03, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    set_learning_rates(optimizer, 0, 10, MUON)
    before = ours.weight.detach().clone()
    for step in range(4):
        gradient = torch.randn(20, 12, generator=torch.Generator().manual_seed(step))
        ours.weight.grad, theirs.weight.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        peer.step()  # type: ignore[no-untyped-call]
    distance = (ours.weight - theirs.weight).norm() / (theirs.weight - before).norm()
    assert distance < 0.02


@pytest.mark.parametrize("architecture", ["gpt2", "nanochat"])
def test_the_matrices_of_the_layers_are_muons_and_all_else_is_adamws(architecture: str) -> None:
    model = model_of(architecture)
    optimizer = build_optimizer(model, MUON)
    backward(model)
    optimizer.step()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept = {names[id(parameter)]: set(state) for parameter, state in optimizer.state.items()}
    assert kept.keys() == dict(model.named_parameters()).keys()
    of_muon = {name for name, state in kept.items() if state == {"momentum"}}
    layers = {name for name, parameter in model.named_parameters() if ".h." in name or ".layers." in name}
    assert of_muon == {name for name in layers if name.endswith("weight") and "ln_" not in name}
    assert all(kept[name] == {"step", "exp_avg", "exp_avg_sq"} for name in kept.keys() - of_muon)


def test_queries_keys_and_values_of_gpt2_are_moved_apart() -> None:
    groups = build_optimizer(model_of("gpt2"), MUON).param_groups
    assert {group.get("parts"): len(group["params"]) for group in groups} == {None: 18, 1: 6, 3: 2}


def test_both_rates_follow_one_schedule() -> None:
    optimizer = build_optimizer(model_of("gpt2"), MUON)
    set_learning_rates(optimizer, 50, 100, MUON)
    rates = {"parts" in group: group["lr"] for group in optimizer.param_groups}
    assert rates[True] == pytest.approx(3 * rates[False])
    assert 0 < rates[False] < 0.01
    same = MUON.model_copy(update={"muon_learning_rate": None})
    set_learning_rates(optimizer, 50, 100, same)
    assert len({group["lr"] for group in optimizer.param_groups}) == 1


def test_a_gradient_that_is_not_finite_turns_it_off() -> None:
    model = model_of("nanochat")
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, MUON)
    backward(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_muon_with_sharded_matrices_is_refused() -> None:
    values = {"max_steps": 1, "global_batch_size": 4, "micro_batch_size": 1, "learning_rate": 1, "warmup_steps": 0}
    with pytest.raises(ConfigError, match="optimizer muon needs whole matrices on every rank: set parallel to ddp"):
        validate(TrainSettings, {**values, "optimizer": "muon", "parallel": "fsdp"}, "run.yaml")


def test_a_run_that_names_none_of_its_settings_keeps_its_identity() -> None:
    values: dict[str, Any] = {"learning_rate": 0.1, "warmup_steps": 1}
    assert not {"optimizer", "muon_learning_rate", "muon_momentum"} & {*OptimizerSettings(**values).model_dump()}
    assert OptimizerSettings(**values, optimizer="muon").model_dump()["optimizer"] == "muon"
    sizes: dict[str, Any] = {"n_layer": 1, "n_head": 1, "n_embd": 4}
    assert {*ModelSettings(**sizes).model_dump()} == {*sizes, "dropout", "attention"}
    modern = ModelSettings(**sizes, architecture="nanochat")
    assert ModelSettings.model_validate(modern.model_dump()) == modern
