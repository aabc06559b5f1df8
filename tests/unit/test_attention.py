"""Every kind of attention does what its naive reference does, trains, and is decoded as it was trained."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from codeparrot import train
from codeparrot.attention import (
    FILE,
    CodeParrotForCausalLM,
    Reach,
    StateCache,
    blocked_attention,
    features,
    linear_attention,
)
from codeparrot.dataloader import PackedRows
from codeparrot.errors import ConfigError, ManifestError
from codeparrot.evaluate import token_nll
from codeparrot.exported import Pretrained, load_folder
from codeparrot.loss import NextTokenLoss
from codeparrot.manifest import Attempt
from codeparrot.model import ModelSettings, build_model, export_files, load_model, model_config, num_parameters
from codeparrot.packing import to_npy
from codeparrot.parallel import World
from codeparrot.settings import validate
from codeparrot.storage import LocalStorage
from codeparrot.throughput import flops_per_token
from codeparrot.train import fit
from codeparrot.training_job import Unsupervised
from tests.unit.test_engine import assert_completes_as_generate_does
from tests.unit.test_train import Killed, Watching, job, learned, settle, weights

OURS = ["window", "sparse", "linear"]
CONTEXT = 48
SMALL = {"attention_window": 7, "attention_block": 4, "attention_num_blocks": 2, "attention_num_global": 3}


def model_of(kind: str, *, spread: float = 3.0, **sizes: Any) -> Any:
    """One whose logits are far apart."""
    values = {"n_layer": 2, "n_head": 2, "n_embd": 16, "attention": kind, **SMALL, **sizes}
    config = model_config(ModelSettings.model_validate(values), vocab_size=600, max_seq_len=CONTEXT, eos_token_id=0)
    model = build_model(config, seed=0).eval()
    for parameter in model.parameters():
        parameter.data *= spread
    return model


def softmax_reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sees: Any) -> torch.Tensor:
    """One query after the other, one key after the other; all of shape (B, H, T, D)."""
    out = torch.zeros_like(v)
    for i in range(q.shape[2]):
        places = [j for j in range(i + 1) if sees(i, j)]
        weights = torch.softmax((q[:, :, i, None] * k[:, :, places]).sum(-1) / q.shape[3] ** 0.5, -1)
        out[:, :, i] = (weights[..., None] * v[:, :, places]).sum(2)
    return out


def linear_reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Katharopoulos et al. (2020), eq. 10 to 12, token by token, in fp64."""
    q, k, v = features(q).double(), features(k).double(), v.double()
    s, z = torch.zeros(*k.shape[:2], k.shape[3], v.shape[3]).double(), torch.zeros(*k.shape[:2], k.shape[3]).double()
    out = torch.zeros_like(v)
    for i in range(q.shape[2]):
        s = s + k[:, :, i, :, None] * v[:, :, i, None, :]
        z = z + k[:, :, i]
        out[:, :, i] = (q[:, :, i, :, None] * s).sum(2) / (q[:, :, i] * z).sum(2, keepdim=True)
    return out.float()


def states(length: int, seed: int = 0, *, batch: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, 2, length, 8, generator=generator, requires_grad=True) for _ in range(3))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
@hypothesis_settings(max_examples=25, deadline=None)
def test_a_window_is_the_newest_tokens(length: int, window: int, seed: int) -> None:
    q, k, v = states(length, seed)
    out = blocked_attention(q, k, v, Reach(window, 2, 0, window))
    torch.testing.assert_close(out, softmax_reference(q, k, v, lambda i, j: i - j < window), atol=1e-5, rtol=1e-5)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 3), st.integers(0, 9))
@hypothesis_settings(max_examples=25, deadline=None)
def test_sparse_is_near_blocks_and_the_first_tokens(length: int, block: int, num: int, num_global: int) -> None:
    q, k, v = states(length)
    out = blocked_attention(q, k, v, Reach(block, num, num_global, None))
    expected = softmax_reference(q, k, v, lambda i, j: i // block - j // block < num or j < num_global)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@given(st.integers(1, 200), st.integers(0, 5))
@hypothesis_settings(max_examples=15, deadline=None)
def test_linear_is_the_recurrence(length: int, seed: int) -> None:
    q, k, v = states(length, seed)
    out, _ = linear_attention(q, k, v)
    torch.testing.assert_close(out, linear_reference(q, k, v), atol=1e-4, rtol=1e-4)


@given(st.integers(2, 150), st.data())
@hypothesis_settings(max_examples=15, deadline=None)
def test_the_state_of_linear_attention_stands_for_all_that_was_read(length: int, data: st.DataObject) -> None:
    q, k, v = states(length)
    cut = data.draw(st.integers(1, length - 1))
    whole, last = linear_attention(q, k, v)
    first, state = linear_attention(q[:, :, :cut], k[:, :, :cut], v[:, :, :cut])
    second, end = linear_attention(q[:, :, cut:], k[:, :, cut:], v[:, :, cut:], state=state)
    torch.testing.assert_close(torch.cat([first, second], 2), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(end, last, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", OURS)
def test_gradients_are_those_of_the_reference(kind: str) -> None:
    q, k, v = states(21)
    reach = {"window": Reach(5, 2, 0, 5), "sparse": Reach(4, 2, 3, None)}.get(kind)
    if reach is None:
        out, expected = linear_attention(q, k, v)[0], linear_reference(q, k, v)
    else:
        out = blocked_attention(q, k, v, reach)
        expected = softmax_reference(q, k, v, lambda i, j: bool(reach.sees(torch.tensor(i), torch.tensor(j))))
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    ours, theirs = (torch.autograd.grad((each * slope).sum(), (q, k, v)) for each in (out, expected))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", OURS)
def test_what_stands_after_a_token_does_not_act_on_it(kind: str) -> None:
    model = model_of(kind)
    ids = torch.randint(1, 600, (1, 40), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 25:] = 7
    torch.testing.assert_close(model(ids).logits[:, :25], model(other).logits[:, :25], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model(ids).logits[:, 25], model(other).logits[:, 25])


@pytest.mark.parametrize("kind", OURS)
def test_generate_writes_what_the_whole_forward_pass_would(kind: str) -> None:
    """With a cache, over the ends of blocks, and two prompts of which one is padded."""
    model = model_of(kind)
    prompts = [list(range(5, 16)), [9, 8, 7, 6]]
    padded = torch.tensor([[0] * (11 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (11 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    made = model.generate(
        padded, attention_mask=mask, max_new_tokens=30, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    for prompt, row in zip(prompts, made, strict=True):
        tokens = list(prompt)
        for _ in range(30):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        assert row[11:].tolist() == tokens[len(prompt) :]


def test_the_state_does_not_grow_while_linear_attention_generates() -> None:
    model = model_of("linear")
    cache = StateCache(model.config)
    ids = torch.arange(1, 11)[None]
    sizes = set()
    for step in range(30):
        out = model(ids if step == 0 else ids[:, -1:], past_key_values=cache, use_cache=True)
        sizes.add(sum(layer.state.numel() for layer in cache.layers))
        whole = model(ids, use_cache=False).logits[:, -1]
        torch.testing.assert_close(out.logits[:, -1], whole, atol=1e-3, rtol=1e-3)
        ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], 1)
    assert sizes == {2 * 2 * 8 * 9}


@pytest.mark.parametrize("kind", OURS)
def test_the_engine_completes_as_generate_does_whatever_the_batch(tiny: Pretrained, kind: str) -> None:
    assert_completes_as_generate_does(model_of(kind), tiny, shortest=3, num_tokens=14, which=2)


@pytest.mark.parametrize("kind", OURS)
def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, kind: str) -> None:
    sizes: dict[str, Any] = {"model": {"attention": kind, **SMALL}}
    undisturbed = fit(job(tmp_path, run="a", **sizes), World(), Unsupervised())

    def kill(event: Mapping[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(job(tmp_path, run="b", **sizes), World(), Watching(kill))
    settle()
    resumed = fit(job(tmp_path, run="b", **sizes), World(), Unsupervised())
    assert weights(resumed) == weights(undisturbed)
    assert learned(resumed) == learned(undisturbed)
    assert learned(undisturbed) != learned(fit(job(tmp_path, run="c"), World(), Unsupervised()))


@pytest.mark.parametrize("kind", OURS)
def test_an_export_loads_here_without_its_code(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    files = export_files(model)
    assert FILE in files
    loaded = load_model({**files, FILE: b"raise SystemExit('code of a folder was run')"})
    ids = torch.arange(1, 30)[None]
    assert isinstance(loaded, CodeParrotForCausalLM)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match=f"trained with {kind} attention"):
        loaded.set_attn_implementation("sdpa")


ELSEWHERE = """
import json, sys, torch
from transformers import AutoModelForCausalLM
ids = torch.arange(1, 30)[None]
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
except ValueError as error:
    refused = "trust_remote_code" in str(error)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0)
assert not any(name.split(".")[0] == "codeparrot" for name in sys.modules)
print(json.dumps({"refused": refused, "made": made[0].tolist(), "logits": model(ids).logits[0, -1].tolist()}))
"""


def test_an_export_loads_elsewhere_by_its_own_code_or_not_at_all(tmp_path: Path) -> None:
    model = model_of("linear")
    for name, data in export_files(model).items():
        (tmp_path / name).write_bytes(data)
    environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path)],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ids = torch.arange(1, 30)[None]
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert found["refused"]
    assert found["made"] == made[0].tolist()
    torch.testing.assert_close(torch.tensor(found["logits"]), model(ids).logits[0, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "nanochat"])
def test_within_documents_a_row_costs_what_its_documents_cost_alone(architecture: str) -> None:
    model = model_of("document", spread=8.0, architecture=architecture)
    documents = [[5, 6, 7, 8, 9], [11], [3, 2, 1, 9, 9, 9, 4], [8, 8]]
    row = torch.tensor([[token for document in documents for token in document]])
    positions = torch.tensor([[place for document in documents for place in range(len(document))]])
    begins = [sum(map(len, documents[:number])) - 1 for number in range(1, len(documents))]
    with torch.no_grad():
        apart = [token_nll(model, torch.tensor([document]))[0] for document in documents if len(document) > 1]
        together, mixed = token_nll(model, row, positions)[0], token_nll(model, row)[0]
        loss = NextTokenLoss(model)(row, torch.tensor([row.shape[1]]), positions)
    inside = [place for place in range(len(together)) if place not in begins]
    torch.testing.assert_close(together[inside], torch.cat(apart), atol=1e-3, rtol=1e-4)
    assert (together - mixed)[inside].abs().max() > 1e-2
    assert float(loss) == pytest.approx(float(together.sum()), rel=1e-4)


def test_training_within_documents_uses_the_boundaries_of_the_rows(tmp_path: Path) -> None:
    alone = job(tmp_path, model={"attention": "document"})
    with pytest.raises(ManifestError, match="was packed without document boundaries"):
        train.prepare(alone, World(), Unsupervised())
    storage = LocalStorage(str(tmp_path / "bounded"))
    attempt = Attempt(storage, "pack", "packed", {}, {}, "")
    rows = np.arange(1, 33, dtype="<u2").reshape(2, 16)
    starts = np.array([0, 5, 6, 16, 20], dtype="<u4")
    files = [
        attempt.write(f"train/{name}-00000.npy", to_npy(data)) for name, data in (("rows", rows), ("starts", starts))
    ]
    counts = {"num_rows": 2, "tokens_in": 32, "tokens_padding": 0}
    packed = attempt.commit(files, {"max_seq_len": 16, "rows_per_shard": 2, "splits": {"train": counts}})
    stored = PackedRows(storage, packed, "train", tmp_path / "c")
    tokens, lengths, positions = alone.batch(stored, [0, 1], "cpu", 0, [0, 1])
    assert tokens.tolist() == rows.tolist()
    assert lengths.tolist() == [16, 16]
    assert positions.tolist() == [[*range(5), 0, *range(10)], [*range(4), *range(12)]]


def test_an_export_says_that_its_rows_were_documents_alone() -> None:
    model = model_of("document")
    loaded = load_model(export_files(model))
    assert loaded.config.within_documents
    assert type(loaded).__name__ == "GPT2LMHeadModel"


def test_useful_work_is_that_of_the_tokens_seen() -> None:
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, **SMALL}
    flops = {}
    for kind in ("sdpa", *OURS):
        config = model_config(ModelSettings(**sizes, attention=kind), vocab_size=9, max_seq_len=4096, eos_token_id=0)
        flops[kind] = flops_per_token(config, num_parameters(config))
    pair = 12 * 2 * 32
    assert flops["sdpa"] - flops["window"] == pair * (4096 - 7)
    assert flops["sdpa"] - flops["sparse"] == pair * (4096 - 11)
    assert flops["sdpa"] - flops["linear"] == pair * (4096 - 64 - 16)


def test_an_attention_that_an_architecture_has_not_is_refused() -> None:
    values = {"n_layer": 1, "n_head": 1, "n_embd": 4, "architecture": "nanochat", "attention": "linear"}
    with pytest.raises(ConfigError, match="attention linear is one of architecture gpt2, not of nanochat"):
        validate(ModelSettings, values, "run.yaml")


def test_a_folder_with_an_export_is_loaded_for_all_stages(tiny: Pretrained, tmp_path: Path) -> None:
    for name, data in export_files(model_of("sparse")).items():
        (tmp_path / name).write_bytes(data)
    tiny.tokenizer.save_pretrained(tmp_path)
    loaded = load_folder(str(tmp_path), "here", device="cpu")
    assert loaded.model.config.attention_num_global == SMALL["attention_num_global"]
