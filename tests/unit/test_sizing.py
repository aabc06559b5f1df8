"""What training takes on paper is what it takes."""

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from codeparrot.config import load_recipe
from codeparrot.launch import leave
from codeparrot.model import ModelSettings
from codeparrot.parallel import World
from codeparrot.sizing import ACCELERATORS, Layout, Memory, layout_of, memory, size_of
from codeparrot.train import prepare, train_step
from codeparrot.training_job import Trainer, TrainSettings, Unsupervised
from ray_jobs import train as stage
from tests.unit import test_train

TINY = ModelSettings(n_layer=4, n_head=4, n_embd=192)
XL = ModelSettings(n_layer=48, n_head=25, n_embd=1600)


def settings(**values: Any) -> TrainSettings:
    return TrainSettings(**{**test_train.SETTINGS, "num_workers": 1, **values})


def layout(model: ModelSettings, vocab_size: int, max_seq_len: int, precision: str = "fp32", **values: Any) -> Layout:
    device = "cpu" if precision == "fp32" else "cuda"
    return layout_of(
        model, settings(**values), vocab_size=vocab_size, max_seq_len=max_seq_len, precision=precision, device=device
    )


def peak_bytes(action: Callable[[], object]) -> int:
    """The most bytes of tensors at a time that the action allocates."""
    gc.collect()  # or tensors of before would be let go of in it
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = action()
    assert kept is not None
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "vocab_size", "max_seq_len", "values"),
    [
        (TINY, 8192, 128, {"global_batch_size": 2}),
        (TINY, 2048, 128, {"global_batch_size": 4}),
        (TINY, 1024, 128, {"global_batch_size": 8, "micro_batch_size": 8, "activation_checkpointing": True}),
        (ModelSettings(n_layer=8, n_head=2, n_embd=64), 512, 64, {"global_batch_size": 16, "micro_batch_size": 16}),
    ],
    ids=["tiny", "accumulation", "activation checkpointing", "deep"],
)
def test_memory_is_within_a_tenth_of_what_tensors_take(
    model: ModelSettings,
    vocab_size: int,
    max_seq_len: int,
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(test_train, "VOCAB_SIZE", vocab_size)
    monkeypatch.setattr(test_train, "MAX_SEQ_LEN", max_seq_len)
    job = replace(test_train.job(tmp_path, num_workers=1, **values), model=model, vocab_size=vocab_size)

    def two_steps() -> Trainer:
        trainer = prepare(job, World(), Unsupervised())
        train_step(trainer)
        train_step(trainer)
        return trainer

    measured = peak_bytes(two_steps)
    assert memory(layout(model, vocab_size, max_seq_len, **values)).total == pytest.approx(measured, rel=0.1)


def _rank_measured(rank: int, folder: str, port: int, values: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    test_train.VOCAB_SIZE, test_train.MAX_SEQ_LEN = 1024, 128
    job = replace(test_train.job(Path(folder), **values), model=TINY, vocab_size=1024)

    def two_steps() -> Trainer:
        trainer = prepare(job, World(rank, 2), Unsupervised())
        train_step(trainer)
        train_step(trainer)
        return trainer

    peaks = [peak_bytes(two_steps) for _ in range(3)]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(peaks))
    torch.distributed.barrier()
    leave(0)


@pytest.mark.parametrize(("parallel", "rows"), [("ddp", 4), ("fsdp", 2), ("fsdp", 4)])
def test_memory_of_ranks_is_within_a_tenth_of_what_their_tensors_take(
    parallel: str, rows: int, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {
        "num_workers": 2,
        "parallel": parallel,
        "global_batch_size": 2 * rows,
        "micro_batch_size": 2,
    }
    monkeypatch.setattr(test_train, "VOCAB_SIZE", 1024)
    monkeypatch.setattr(test_train, "MAX_SEQ_LEN", 128)
    test_train.job(tmp_path, **values)  # the rows, before there are two that would make them
    test_train.run_ranks(_rank_measured, str(tmp_path), free_port, values, seconds=500)
    peaks = [peak for rank in range(2) for peak in json.loads((tmp_path / f"{rank}.json").read_text())]
    measured = min(peaks)  # a gather that runs ahead holds parameters of a block for longer, as it happens
    assert memory(layout(TINY, 1024, 128, **values)).total == pytest.approx(measured, rel=0.1)


def test_gpt2_xl_with_the_slides_vocabulary_has_1529_6_million_parameters() -> None:
    found = size_of(XL, settings(max_steps=50_000, global_batch_size=512), vocab_size=32_768, max_seq_len=1024)
    assert found.num_parameters == 1_529_628_800 == layout(XL, 32_768, 1024).num_parameters
    assert found.tokens == 50_000 * 512 * 1024
    assert found.flops == found.tokens * found.flops_per_token
    # 8 devices of 100 TFLOP/s at 50 %
    assert found.hours(8e14, 0.5) == pytest.approx(found.flops / 4e14 / 3600)


def of_xl(**values: Any) -> Memory:
    values = {"num_workers": 16, "global_batch_size": 512, "micro_batch_size": 32, **values}
    return memory(layout(XL, 32_768, 1024, "bf16", **values))


def test_checkpointing_saves_activations_and_sharding_saves_states() -> None:
    plain, again = of_xl(), of_xl(activation_checkpointing=True)
    assert again.activations < 0.2 * plain.activations
    assert again.weights == pytest.approx(plain.weights, rel=0.5)
    sharded = of_xl(activation_checkpointing=True, parallel="fsdp")
    assert sharded.optimizer == again.optimizer / 16
    assert sharded.total < 0.5 * again.total


def test_sharded_gradients_are_whole_between_micro_batches() -> None:
    once, twice = (
        of_xl(parallel="fsdp", activation_checkpointing=True, micro_batch_size=rows).gradients for rows in (32, 16)
    )
    assert once < 2e9
    assert twice > 4 * 1.5e9


def test_the_four_sizes_of_gpt2_train_on_the_same_rows() -> None:
    recipes = [load_recipe(f"recipes/{name}.yaml") for name in ("small", "medium", "large", "xl")]
    shared = ("seed", "storage", "collect", "curate", "tokenizer", "pack", "evaluate", "generate", "humaneval")
    for recipe in recipes[1:]:
        for part in shared:
            assert getattr(recipe, part) == getattr(recipes[0], part), part
    assert len({recipe.run_name for recipe in recipes}) == 4


def test_each_of_the_four_sizes_fits_on_its_devices() -> None:
    for name in ("small", "medium", "large", "xl"):
        recipe = load_recipe(f"recipes/{name}.yaml")
        found = memory(
            layout_of(
                recipe.model,
                recipe.train,
                vocab_size=recipe.tokenizer.vocab_size,
                max_seq_len=recipe.pack.max_seq_len,
                precision="bf16",
                device="cuda",
            )
        )
        assert found.total < 0.8 * ACCELERATORS["h100"].memory_bytes, name


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert stage.dry_run(stage.parse(stage.NAME, ["--dry-run", *arguments])) == 0
    return capsys.readouterr().out


def test_a_dry_run_prints_a_recipe_that_loads_and_the_estimate_as_comments(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "--config", "recipes/xl.yaml", "--price", "2.5", "--mfu", "0.5")
    assert yaml.safe_load(out)["model"]["n_layer"] == 48
    assert "# parameters         1529.6M (1,529,628,800)\n" in out
    assert "16 x NVIDIA H100 SXM" in out
    assert "at an MFU of 50%" in out
    assert "at 2.5 an hour" in out
    assert [line.split()[-1] for line in out.splitlines() if "fsdp, activation checkpointing" in line] == ["recipe"]


def test_a_dry_run_without_a_device_asks_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "--config", "recipes/tiny.yaml")
    assert "in fp32" in out
    assert "# hours and cost: name a device by --accelerator\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mfu", "0.5"], "--mfu: only with --dry-run"),
        (["--dry-run", "--mfu", "1.5"], "must be > 0 and <= 1, got 1.5"),
        (["--dry-run", "--price", "-1"], "must be > 0, got -1"),
        (["--dry-run", "--accelerator", "abacus"], "invalid choice: 'abacus'"),
    ],
)
def test_options_of_an_estimate_are_checked(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        stage.parse(stage.NAME, ["--config", "recipes/tiny.yaml", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
