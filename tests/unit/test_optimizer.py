from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.errors import ConfigError
from codeparrot.optimizer import OptimizerSettings, build_optimizer, learning_rate
from codeparrot.settings import validate

SCHEDULES = st.tuples(st.integers(1, 300), st.integers(0, 100), st.floats(0, 1))


def settings(warmup_steps: int = 10, **values: Any) -> OptimizerSettings:
    return OptimizerSettings(learning_rate=0.01, warmup_steps=warmup_steps, **values)


def test_the_rate_rises_in_a_line_falls_in_half_a_cosine_and_ends_at_its_last_fraction() -> None:
    rates = [learning_rate(step, 111, settings(final_learning_rate_fraction=0.1)) for step in range(111)]
    assert rates[:10] == pytest.approx([0.001 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.01)
    assert rates[60] == pytest.approx(0.0055)
    assert rates[110] == pytest.approx(0.001)


def test_wsd_stays_at_its_peak_and_falls_only_at_the_end() -> None:
    wsd = settings(schedule="wsd", decay_fraction=0.25, final_learning_rate_fraction=0.0)
    rates = [learning_rate(step, 100, wsd) for step in range(100)]
    assert rates[9:75] == pytest.approx([0.01] * 66)
    assert rates[74 + 9] == pytest.approx(0.01 * (1 - (9 / 25) ** 0.5))
    assert rates[74:] == sorted(rates[74:], reverse=True)
    assert rates[99] == 0


def test_a_wsd_run_made_longer_has_the_same_rates_up_to_its_decay() -> None:
    wsd = settings(schedule="wsd", decay_fraction=0.2)
    short, long = ([learning_rate(step, steps, wsd) for step in range(steps)] for steps in (100, 200))
    assert short[:80] == long[:80]


@given(SCHEDULES)
def test_the_rate_is_positive_and_never_above_its_peak(schedule: tuple[int, int, float]) -> None:
    max_steps, warmup_steps, final = schedule
    values = settings(warmup_steps, final_learning_rate_fraction=final)
    rates = [learning_rate(step, max_steps, values) for step in range(max_steps)]
    assert all(0 <= rate <= 0.01 + 1e-12 for rate in rates)
    assert all(rate > 0 for rate in rates[:warmup_steps])


@given(SCHEDULES)
def test_the_rate_rises_through_the_warm_up_and_falls_after_it(schedule: tuple[int, int, float]) -> None:
    max_steps, warmup_steps, final = schedule
    values = settings(warmup_steps, final_learning_rate_fraction=final)
    rates = [learning_rate(step, max_steps, values) for step in range(max_steps)]
    warm, cool = rates[:warmup_steps], rates[warmup_steps:]
    assert warm == sorted(warm)
    assert cool == sorted(cool, reverse=True)


def test_a_rate_after_the_last_step_stays_at_the_last() -> None:
    assert learning_rate(1000, 100, settings()) == pytest.approx(0.001)


@pytest.fixture
def model() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    model[1].bias.requires_grad_(False)
    return model


def test_only_matrices_decay_and_only_what_learns_is_updated(model: torch.nn.Module) -> None:
    decayed, others = build_optimizer(model, settings(weight_decay=0.2)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.2, 0.0)
    assert [parameter.shape for parameter in decayed["params"]] == [(5, 4), (4, 4)]
    assert [parameter.shape for parameter in others["params"]] == [(4,), (4,)]


def test_a_tied_matrix_is_updated_once() -> None:
    model = torch.nn.Module()
    model.first = torch.nn.Linear(4, 4, bias=False)
    model.second = torch.nn.Linear(4, 4, bias=False)
    model.second.weight = model.first.weight
    assert [len(group["params"]) for group in build_optimizer(model, settings()).param_groups] == [1, 0]


def test_the_settings_reach_the_optimizer(model: torch.nn.Module) -> None:
    optimizer = build_optimizer(model, settings(beta1=0.8, beta2=0.9, epsilon=1e-7))
    defaults = optimizer.defaults
    assert (defaults["lr"], defaults["betas"], defaults["eps"], defaults["fused"]) == (0.01, (0.8, 0.9), 1e-7, True)


def test_a_step_moves_the_weights_against_the_gradient() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    optimizer = build_optimizer(model, settings(weight_decay=0.0))
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert model.weight.item() == pytest.approx(before - 0.01, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"learning_rate": 0}, "learning_rate: must be > 0, got 0"),
        ({"beta1": 1}, "beta1: must be < 1, got 1"),
        ({"max_grad_norm": 0}, "max_grad_norm: must be > 0, got 0"),
        ({"warmup_steps": -1}, "warmup_steps: must be >= 0, got -1"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        validate(OptimizerSettings, {"learning_rate": 1, "warmup_steps": 1} | values, "run.yaml")
