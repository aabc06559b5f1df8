"""Runs as a person finds them in a store, with real checkpoints of a tiny GPT-2."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from codeparrot import lease as leases
from codeparrot import local_store
from codeparrot import runs as library
from codeparrot.checkpoint import CheckpointStore, Identity
from codeparrot.config import Recipe, load_recipe
from codeparrot.errors import StoreUnreachable
from codeparrot.lease import holding
from codeparrot.manifest import Attempt, Manifest, canonical, json_lines, load_manifest
from codeparrot.model import build_model, export_files, model_config
from codeparrot.optimizer import build_optimizer
from codeparrot.parallel import World
from codeparrot.run_record import METRICS
from codeparrot.runs import find_runs
from codeparrot.storage import LocalStorage, sha256_hex
from codeparrot.tokenizer import tokenizer_files, train_tokenizer
from codeparrot.train_state import snapshot, state_json
from ray_jobs import local, runs
from tests.unit.doubles import DyingStorage, Killed

ROOT = Path(__file__).parents[2]
VOCAB_SIZE, MAX_SEQ_LEN, WORLD_SIZE = 300, 16, 2
DONE, FAILED, WRONG = 0, 1, 2
SPLITS = {
    split: {"num_rows": rows, "tokens_in": rows * MAX_SEQ_LEN, "tokens_in_rows": rows * MAX_SEQ_LEN}
    for split, rows in {"train": 40, "validation": 5}.items()
}
CURATED = {
    split: {"num_documents": documents, "size_bytes": 1000 * documents, "num_repositories": 2}
    for split, documents in {"train": 90, "validation": 10}.items()
}
EVALUATION = {
    "num_rows": 5,
    "loss": 4.25,
    "perplexity": 70.1,
    "bits_per_byte": 2.345,
    "gzip_bits_per_byte": 1.8,
    "xz_bits_per_byte": 1.5,
    "intervals": {"unit": "repository", "bits_per_byte": {"low": 2.2, "high": 2.5}},
    "tasks": {
        "line": {"num_tasks": 40, "exact_match": 0.25, "edit_similarity": 0.5},
        "body": {"num_tasks": 30, "exact_match": 0.0, "edit_similarity": 0.3, "parses": 0.9},
        "ngram": 16,
        "copied": {"model": {"fraction": 0.125}, "author": {"fraction": 0.02}},
    },
}
HUMANEVAL = {
    "num_problems": 164,
    "num_samples": 20,
    "temperature": 0.8,
    "pass_at_k": {"1": {"value": 0.03, "low": 0.01, "high": 0.05}},
}


DATA_CARD = {"card.md": b"# Data card\n", "card.html": b"<h1>Data card</h1>"}
EXPORTED_CARD = {f"data-{name}": data for name, data in DATA_CARD.items()}


class Store:
    """A store with a corpus and a tokenizer, in which runs are made as training makes them."""

    def __init__(self, folder: Path, **model: Any) -> None:
        self.storage = LocalStorage(str(folder / "store"))
        self.recipe_file = folder / "recipe.yaml"
        values = yaml.safe_load((ROOT / "recipes/tiny.yaml").read_text())
        values["storage"] = {"uri": str(folder / "store")}
        values["model"] = {"n_layer": 1, "n_head": 2, "n_embd": 8, **model}
        values["train"] |= {"max_steps": 30, "checkpoint": {"every_steps": 10, "keep_every_steps": 20}}
        self.recipe_file.write_text(yaml.safe_dump(values))
        text = "".join(f"def f{number}(a, b):\n    return a + {number} * b\n" for number in range(60))
        tokenizer = train_tokenizer([text.encode()], VOCAB_SIZE)
        self.raw = self.output("collect", "raw", {}, {"num_documents": 120, "size_bytes": 130_000})
        licenses = {"MIT": {"num_documents": 100, "size_bytes": 100_000}, "A|B": {"num_documents": 0, "size_bytes": 0}}
        counts = {"num_documents": 100, "size_bytes": 100_000, "splits": CURATED, "by_license": licenses}
        self.curated = self.output("curate", "curated", {"raw": self.raw.digest}, counts, DATA_CARD)
        self.tokenizer = self.output(
            "train_tokenizer",
            "tokenizer",
            {"curated": self.curated.digest},
            {"characters_per_token": 3.5},
            tokenizer_files(tokenizer, MAX_SEQ_LEN),
        )
        inputs = {"curated": self.curated.digest, "tokenizer": self.tokenizer.digest}
        self.packed = self.output("pack", "packed", inputs, {"splits": SPLITS})
        self.mixed: dict[str, str] = {}
        """Digests of corpora that are mixed in, by prefix."""

    @property
    def inputs(self) -> dict[str, str]:
        return {"packed": self.packed.digest, "tokenizer": self.tokenizer.digest, **self.mixed}

    def recipe(self, name: str) -> Recipe:
        return load_recipe(self.recipe_file, [f"run_name={name}"])

    def output(
        self,
        stage: str,
        prefix: str,
        inputs: dict[str, str],
        counts: dict[str, Any],
        files: dict[str, bytes] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> Manifest:
        attempt = Attempt(self.storage, stage, prefix, settings or {}, inputs, "c0de" * 16)
        return attempt.commit([attempt.write(name, data) for name, data in (files or {}).items()], counts)

    def settings(self, name: str) -> dict[str, Any]:
        recipe = self.recipe(name)
        train, model = recipe.train.identity(), recipe.model.model_dump(mode="json")
        return {"seed": recipe.seed, "model": model, "train": train}

    def train(self, name: str, *steps: int, token: str = "00000001") -> Any:
        """Checkpoints of these steps, each with other weights; returns the last model."""
        recipe = self.recipe(name)
        identity = Identity(self.settings(name), self.inputs, "abcdef0123456789")
        checkpoints = CheckpointStore(self.storage, f"runs/{name}", identity, num_to_keep=9, token=token)
        config = model_config(recipe.model, vocab_size=VOCAB_SIZE, max_seq_len=MAX_SEQ_LEN, eos_token_id=0)
        model = build_model(config, seed=1)
        optimizer = build_optimizer(model, recipe.train)
        history: list[dict[str, Any]] = []
        for step in steps:
            model(input_ids=torch.arange(MAX_SEQ_LEN)[None] + step).logits.square().mean().backward()
            optimizer.step()
            history.append({"kind": "evaluation", "step": step, "validation_loss": 6 - step / 10})
            state = {"step": step, "position": 8 * step, "tokens_seen": 8 * step * MAX_SEQ_LEN}
            others = {"train_state.json": state_json(state), METRICS: json_lines(history)}
            for rank in range(WORLD_SIZE):
                checkpoints.write_part(step, rank, snapshot(model, optimizer, World(rank, WORLD_SIZE), others, {})())
            parts = checkpoints.parts(step, WORLD_SIZE)
            assert parts is not None
            checkpoints.commit(step, parts)
        return model

    def complete(self, name: str) -> dict[str, bytes]:
        """A complete run of 30 steps, evaluated; returns its export."""
        export = export_files(self.train(name, 10, 20, 30))
        files = {f"export/{file}": data for file, data in export.items()}
        files |= {f"export/{file}": self.tokenizer.read(self.storage, file) for file in self.tokenizer.names()}
        counts: dict[str, Any] = {"num_steps": 30, "best_step": None, "validation_loss": 2.5}
        counts |= {"precision": "fp32", "device": "cpu", "world_size": WORLD_SIZE}
        inputs = {key: self.inputs[key] for key in ("packed", "tokenizer")}
        inputs["plan"] = sha256_hex(canonical(self.mixed))
        run = self.output("train", f"runs/{name}", inputs, counts, files, {"run_name": name, **self.settings(name)})
        self.output("evaluate", f"runs/{name}/evaluation", {"run": run.digest}, EVALUATION)
        pairs = json.dumps([{"prompt": "def ", "completion": "f():\n```\x1b[31m<script>"}]).encode()
        self.output("generate", f"runs/{name}/completions", {"run": run.digest}, {}, {"completions.json": pairs})
        self.output("humaneval", f"runs/{name}/humaneval", {"run": run.digest}, HUMANEVAL)
        return export

    def call(self, *arguments: str) -> int:
        """The command, in this process; its exit code."""
        return runs.main(["--config", str(self.recipe_file), *arguments])

    def checkpoint(self, name: str, step: int) -> Manifest:
        manifest = load_manifest(self.storage, f"runs/{name}/checkpoints/step-{step:08d}")
        assert manifest is not None
        return manifest

    def damage(self, name: str, step: int, file: str) -> None:
        path = self.checkpoint(name, step).path(file)
        data = self.storage.read(path)
        self.storage.write(path, bytes([data[0] ^ 1]) + data[1:])

    def paths(self, prefix: str = "runs/") -> list[str]:
        return [path for path, _ in self.storage.list(prefix)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on leases are taken as if on another machine."""
    monkeypatch.setattr(leases, "_machine", lambda: "another boot")


PARTS = [f"{kind}-{rank:05d}-of-00002.safetensors" for kind in ("model", "optimizer") for rank in range(WORLD_SIZE)]


def test_a_store_without_runs_says_so(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert store.call("list") == DONE
    assert capsys.readouterr().out == f"{store.storage.uri} has no runs\n"


def test_every_run_is_one_aligned_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.complete("tiny")
    store.train("half", 10)
    assert store.call("list") == DONE
    titles, *lines = capsys.readouterr().out.splitlines()
    assert titles.split() == ["run", "state", "steps", "checkpoint", "validation", "loss", "size", "committed"]
    assert [line.split()[:5] for line in lines] == [
        ["half", "interrupted", "10/30", "10", "5.0000"],
        ["tiny", "complete", "30/30", "30", "2.5000"],
    ]
    assert len({line.index(state) for line, state in zip(lines, ("interrupted", "complete"), strict=True)}) == 1


def test_the_list_as_json_is_one_document_with_exact_figures(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.complete("tiny")
    assert store.call("list", "--json") == DONE
    document = json.loads(capsys.readouterr().out)
    (run,) = document["runs"]
    assert document["storage_uri"] == store.storage.uri
    assert run["size_bytes"] == sum(size for _, size in store.storage.list("runs/"))
    manifest = load_manifest(store.storage, "runs/tiny")
    assert manifest is not None
    assert run["created"] == manifest.created


def test_on_a_terminal_the_list_is_a_table(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.train("half", 10)
    screen = io.StringIO()
    monkeypatch.setattr(runs, "console", Console(file=screen, force_terminal=True, width=120))
    assert store.call("list") == DONE
    assert "\u2502 half" in screen.getvalue()


def test_a_run_whose_lease_a_living_process_holds_is_training(store: Store) -> None:
    store.train("half", 10)
    with holding(store.storage, "runs/half"):
        assert [run.state for run in find_runs(store.storage)] == ["training"]
    assert [run.state for run in find_runs(store.storage)] == ["interrupted"]


def test_a_run_that_has_only_just_begun_is_listed_while_it_lives(store: Store) -> None:
    with holding(store.storage, "runs/new"):
        (run,) = find_runs(store.storage)
        assert (run.state, run.steps, run.max_steps, run.created) == ("training", 0, None, None)
    assert find_runs(store.storage) == [], "nothing is left of it but its lease"


@pytest.mark.parametrize(("renewing", "state"), [(True, "training"), (False, "interrupted")])
def test_a_lease_of_another_machine_is_watched_for_a_renewal(
    store: Store, monkeypatch: pytest.MonkeyPatch, renewing: bool, state: str
) -> None:
    store.train("half", 10)
    with monkeypatch.context() as patch:
        elsewhere(patch)
        lease = leases.Lease(store.storage, "runs/half", 0.4)
        lease.acquire()
        owner = json.loads(store.storage.read("runs/half/lease.json"))["owner"]
    assert owner["machine"] == "another boot"
    looks = 0

    def look(storage: LocalStorage, prefix: str) -> Any:
        nonlocal looks
        looks += 1
        if renewing and looks == 3:
            lease.renew()
        return found(storage, prefix)

    found = leases._look
    monkeypatch.setattr(leases, "_look", look)
    assert [run.state for run in find_runs(store.storage)] == [state]
    assert looks >= 3


def test_the_newest_checkpoint_is_that_of_the_latest_attempt(store: Store) -> None:
    """A training that was replaced by another has left a checkpoint of a higher step."""
    store.train("half", 20, token="00000001")
    store.train("half", 10, token="00000002")
    (run,) = find_runs(store.storage)
    assert (run.steps, run.newest_checkpoint) == (10, 10)
    assert library.choose_checkpoint(store.storage, "half").step == 10


def test_damaged_manifests_hide_no_run(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.complete("tiny")
    store.storage.write("runs/tiny/manifest.json", b"{")
    store.storage.write("runs/tiny/checkpoints/step-00000030/manifest.json", b"{")
    (run,) = find_runs(store.storage)
    assert (run.state, run.newest_checkpoint) == ("damaged", 20)
    assert store.call("show") == DONE
    assert "its manifest is damaged" in capsys.readouterr().out
    assert store.call("verify") == FAILED


def test_a_run_is_shown_with_all_its_checkpoints(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.complete("tiny")
    assert store.call("show") == DONE
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    manifest = store.checkpoint("tiny", 20)
    assert lines[1][:2] == ["tiny", "complete"]
    assert [line[0] for line in lines[4:]] == ["10", "20", "30"]
    assert lines[5][3:] == ["6", "abcdef012345", manifest.created, "yes"]
    assert [line[-1] for line in lines[4:]] == ["no", "yes", "no"]


def test_another_run_is_shown_by_its_name_and_as_json(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.train("half", 10)
    assert store.call("show", "half", "--json") == DONE
    document = json.loads(capsys.readouterr().out)
    (row,) = document["checkpoints"]
    manifest = store.checkpoint("half", 10)
    assert document["name"] == "half"
    assert row == {
        "step": 10,
        "size_bytes": sum(file.size_bytes for file in manifest.files),
        "num_files": 6,
        "code": "abcdef0123456789",
        "created": manifest.created,
        "permanent": False,
    }


@pytest.mark.parametrize("action", ["show", "verify", "export", "delete"])
def test_a_run_that_is_not_there_is_told_in_one_line(
    store: Store, action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"export": ["--to", str(tmp_path / "out")], "delete": ["--yes"]}.get(action, [])
    assert store.call(action, "absent", *more) == FAILED
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "has no run 'absent'" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["../raw", "", "a/b", "A"])
def test_what_can_be_no_name_of_a_run_deletes_nothing(
    store: Store, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store.complete("tiny")
    before = store.paths("")
    assert store.call("delete", name, "--yes") == WRONG
    assert "run_name" in capsys.readouterr().err
    assert store.paths("") == before


def test_settings_may_also_follow_the_action(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.train("half", 10)
    assert store.call("show", "--set", "run_name=half", "--json") == DONE
    assert json.loads(capsys.readouterr().out)["name"] == "half"
    assert store.call("--set", "run_name=a", "list", "--dry-run", "--set", "run_name=b") == DONE
    assert yaml.safe_load(capsys.readouterr().out)["run_name"] == "b"


def test_an_intact_run_is_verified_as_such(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.complete("tiny")
    assert store.call("verify") == DONE
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:-4] for line in lines] == [
        ["step", "10", "ok"],
        ["step", "20", "ok"],
        ["step", "30", "ok"],
        ["run", "ok"],
    ]


@pytest.mark.parametrize("file", [*PARTS, "train_state.json", METRICS])
@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_any_bad_file_of_a_checkpoint_is_found(
    store: Store, file: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store.train("tiny", 10, 20)
    if how == "damaged":
        store.damage("tiny", 10, file)
    else:
        store.storage.delete([store.checkpoint("tiny", 10).path(file)])
    assert store.call("verify") == FAILED
    captured = capsys.readouterr()
    first, second = captured.out.splitlines()
    assert first.split() == ["step", "10", "damaged", file]
    assert second.split()[:3] == ["step", "20", "ok"]
    assert captured.err.startswith("error: 1 of 2 outputs of tiny are damaged or incomplete: step 10; ")
    assert store.call("verify", "--step", "20") == DONE
    assert store.call("verify", "--step", "10") == FAILED


def test_a_bad_file_of_the_runs_own_output_is_found(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.complete("tiny")
    manifest = load_manifest(store.storage, "runs/tiny")
    assert manifest is not None
    store.storage.delete([manifest.path("export/config.json")])
    assert store.call("verify") == FAILED
    assert capsys.readouterr().out.splitlines()[-1].split() == ["run", "damaged", "export/config.json"]


def test_what_training_removes_while_it_is_verified_is_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.train("tiny", 10, 20)
    checkpoints = CheckpointStore(store.storage, "runs/tiny", Identity({}, {}))
    original = library._bad_files

    def prune_first(storage: LocalStorage, manifest: Manifest) -> list[str]:
        checkpoints._remove(10)
        return original(storage, manifest)

    monkeypatch.setattr(library, "_bad_files", prune_first)
    assert [finding.step for finding in library.verify(store.storage, "tiny")] == [20]


def test_a_step_without_a_checkpoint_is_told_with_those_there_are(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.train("tiny", 10, 20)
    for action in (["verify"], ["export", "--to", str(tmp_path / "out")]):
        assert store.call(*action, "--step", "15") == FAILED
        assert "has no checkpoint of step 15; there are: 10, 20" in capsys.readouterr().err


def test_the_export_of_the_last_step_is_that_of_the_run(store: Store, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    expected = store.complete("tiny")
    folder = tmp_path / "out"
    assert store.call("export", "--to", str(folder)) == DONE
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert written.keys() == {*expected, "tokenizer.json", "tokenizer_config.json", "README.md", *EXPORTED_CARD}
    assert {name: written[name] for name in EXPORTED_CARD} == EXPORTED_CARD
    assert "[data-card.md](data-card.md)" in written["README.md"].decode()
    assert json.loads(written["generation_config.json"])["eos_token_id"] == 0
    assert {name: written[name] for name in expected} == expected
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    code = "def f(a, b):\n    return a"
    assert tokenizer.decode(tokenizer(code)["input_ids"]) == code
    out = model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert out.shape == (1, 4)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_any_step_can_be_exported_to_a_prefix_of_a_store(store: Store, tmp_path: Path) -> None:
    from safetensors.torch import load

    store.complete("tiny")
    target = LocalStorage(str(tmp_path / "other/place"))
    assert store.call("export", "tiny", "--step", "10", "--to", target.uri) == DONE
    weights = load(target.read("model.safetensors"))
    parts = [load(store.checkpoint("tiny", 10).read(store.storage, name)) for name in PARTS[:2]]
    expected = {name: tensor for part in parts for name, tensor in part.items()}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_the_newest_intact_checkpoint_is_exported(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.train("tiny", 10, 20, 30)
    store.damage("tiny", 30, "optimizer-00000-of-00002.safetensors")
    assert store.call("export", "--to", str(tmp_path / "newest")) == DONE
    assert capsys.readouterr().out.startswith("step 20 of tiny: ")
    assert store.call("export", "--step", "30", "--to", str(tmp_path / "rescued")) == DONE, "its weights are intact"
    store.damage("tiny", 30, "model-00001-of-00002.safetensors")
    assert store.call("export", "--step", "30", "--to", str(tmp_path / "no")) == FAILED
    assert not (tmp_path / "no").exists()


def test_without_an_intact_checkpoint_there_is_nothing_to_export(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.train("tiny", 10)
    store.damage("tiny", 10, METRICS)
    assert store.call("export", "--to", str(tmp_path / "out")) == FAILED
    assert "has no intact checkpoint" in capsys.readouterr().err


def test_what_is_there_is_never_overwritten(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.train("tiny", 10)
    folder = tmp_path / "mine"
    folder.mkdir()
    assert store.call("export", "--to", str(folder)) == DONE, "an empty folder will do"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for where in (str(folder), folder.as_uri(), str(folder / "config.json")):
        assert store.call("export", "--to", where) == WRONG
        assert "there is something already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert store.call("export", "--to", "gopher://x") == WRONG
    assert "--to: cannot use 'gopher://x'" in capsys.readouterr().err


def test_the_tokenizer_of_the_training_is_exported_or_none(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tokenizer was made anew since: the run's own export still has the old one."""
    store.complete("tiny")
    store.train("half", 10)
    mine = store.tokenizer.read(store.storage, "tokenizer.json")
    store.output("train_tokenizer", "tokenizer", {}, {}, {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}"})
    assert store.call("export", "--to", str(tmp_path / "a")) == DONE
    assert (tmp_path / "a/tokenizer.json").read_bytes() == mine
    assert store.call("export", "half", "--to", str(tmp_path / "b")) == FAILED
    assert "the tokenizer it was trained with is not in" in capsys.readouterr().err


def test_the_card_has_the_figures_of_the_manifests(store: Store, tmp_path: Path) -> None:
    store.complete("tiny")
    assert store.call("export", "--to", str(tmp_path / "out")) == DONE
    card = (tmp_path / "out/README.md").read_text()
    batch = store.recipe("tiny").train.global_batch_size
    for line in (
        "| context | 16 tokens |",
        "| tokenizer | byte-level BPE, 300 tokens, trained on the same corpus, 3.50 characters/token",
        f"| training | step 30 of 30, {batch} rows each: {30 * batch * MAX_SEQ_LEN:,} tokens |",
        "| bits per byte | 2.345 |",
        "| the same text with xz -9 | 1.500 bits per byte |",
        "other held-out repositories these would lie, at 95 %, between 2.200 and 2.500.",
        "\n\n| asked to write, of held-out code |",
        "| the next line | 40 | 25.0 % | 0.500 |  |\n| the body of a function | 30 | 0.0 % | 0.300 | 90.0 % |\n\n",
        "12.5 % of the tokens stand in runs of 16 or more",
        "\n\n| HumanEval | value | at 95 % between |\n|---|---|---|\n| pass@1 | 3.0 % | 1.0 % and 5.0 % |\n\n",
        "Collected: 120 documents, 130 kB. After curation: 100 documents, 100 kB.",
        "| train | 90 | 90.0 kB | 2 | 640 | 40 |",
        "| MIT | 100 | 100 kB |",
        "| A&#124;B | 0 | 0 B |",
        "| `train.learning_rate` | 0.002 |",
        "    def f():\n    ```\\x1b[31m<script>",
    ):
        assert line in card
    assert "\x1b" not in card
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers"
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 2.345


def test_the_card_of_an_earlier_step_has_its_own_loss_and_not_the_evaluation(store: Store, tmp_path: Path) -> None:
    store.complete("tiny")
    assert store.call("export", "--step", "20", "--to", str(tmp_path / "out")) == DONE
    card = (tmp_path / "out/README.md").read_text()
    assert "4.0000 nats per token, at step 20" in card
    assert "bits per byte |" not in card
    assert "What it writes" not in card


def test_the_card_says_nothing_of_a_corpus_that_was_made_anew(store: Store, tmp_path: Path) -> None:
    store.train("tiny", 10)
    store.output("curate", "curated", {}, {"num_documents": 1})
    assert store.call("export", "--to", str(tmp_path / "a")) == DONE
    card = (tmp_path / "a/README.md").read_text()
    assert "| train | 640 | 40 |" in card
    assert "is not in the store any more" in card
    assert "Collected" not in card
    store.output("pack", "packed", {}, {"splits": {}})
    assert store.call("export", "--to", str(tmp_path / "b")) == DONE
    assert "has been made anew since" in (tmp_path / "b/README.md").read_text()


def test_the_card_of_a_mixture_names_its_corpora(store: Store, tmp_path: Path) -> None:
    values = yaml.safe_load(store.recipe_file.read_text())
    values["train"]["mixture"] = {"packed": 3, "docs/packed": 1}
    store.recipe_file.write_text(yaml.safe_dump(values))
    store.mixed = {"docs/packed": store.output("pack", "docs/packed", {}, {"splits": SPLITS}).digest}
    store.complete("tiny")
    assert store.call("export", "--to", str(tmp_path / "a")) == DONE
    card = (tmp_path / "a/README.md").read_text()
    assert "| docs/packed | 1 | 640 |\n| packed | 3 | 640 |\n\nData card" in card
    assert "| bits per byte | 2.345 |" in card
    store.mixed = {"docs/packed": store.output("pack", "docs/packed", {}, {"splits": {}}).digest}
    store.train("tiny", 30, token="00000002")
    store.output("pack", "docs/packed", {}, {})
    assert store.call("export", "--to", str(tmp_path / "b")) == DONE
    card = (tmp_path / "b/README.md").read_text()
    assert "| docs/packed | 1 | `<...>` |" in card
    assert "bits per byte |" not in card, "the evaluation is of a model with another mixture"


def test_without_yes_it_is_said_what_would_go(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.complete("tiny")
    before = store.paths("")
    capsys.readouterr()
    assert store.call("delete") == WRONG
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].startswith("runs/tiny/manifest.json  ")
    assert len(captured.out.splitlines()) == len(store.paths())
    assert captured.err.startswith(f"error: nothing was deleted: {store.storage.uri}/runs/tiny (")
    assert store.paths("") == before


def test_a_deleted_run_is_gone_and_others_stay(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.complete("tiny")
    store.train("tiny-2", 10)
    others = [path for path in store.paths("") if not path.startswith("runs/tiny/")]
    assert store.call("delete", "tiny", "--yes") == DONE
    assert capsys.readouterr().out.startswith(f"deleted {store.storage.uri}/runs/tiny (")
    assert set(store.paths("")) == {*others, "runs/tiny/lease.json"}
    assert [run.name for run in find_runs(store.storage)] == ["tiny-2"]
    assert store.call("delete", "tiny", "--yes") == FAILED


def test_the_lease_of_a_deleted_run_goes_on_counting(store: Store) -> None:
    """Its sequence names what attempts write; a process that slept through the deletion must not meet its own again."""
    store.train("tiny", 10)
    with holding(store.storage, "runs/tiny") as lease:
        first = lease.sequence
    assert store.call("delete", "--yes") == DONE
    with holding(store.storage, "runs/tiny") as lease:
        assert lease.sequence == first + 2


def test_one_checkpoint_can_be_deleted(store: Store) -> None:
    store.complete("tiny")
    gone = [path for path in store.paths() if "/step-00000020/" in path]
    kept = [path for path in store.paths() if "/step-00000020/" not in path]
    assert store.call("delete", "--step", "20", "--yes") == DONE
    assert gone
    assert set(store.paths()) == {*kept, "runs/tiny/lease.json"}
    assert store.call("delete", "--step", "20", "--yes") == FAILED


@pytest.mark.parametrize("prefix", ["runs/tiny", "runs/tiny/evaluation"])
def test_what_a_living_process_writes_is_not_deleted(
    store: Store, prefix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.complete("tiny")
    monkeypatch.setattr(leases, "WATCH_SECONDS", 0.01)
    with holding(store.storage, prefix, length_seconds=0.3):
        before = set(store.paths())
        assert store.call("delete", "--yes") == FAILED
        assert "error: another run (process " in capsys.readouterr().err
        assert before <= set(store.paths())
    assert store.call("delete", "--yes") == DONE


def test_killed_before_any_change_of_a_deletion_nothing_half_deleted_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_has_ended", lambda owner: True)  # whoever is killed below
    original = Store(tmp_path)
    original.complete("tiny")
    objects = {path: original.storage.read(path) for path in original.paths("")}
    for num_changes in range(100):
        storage = LocalStorage(str(tmp_path / str(num_changes)))
        for path, data in objects.items():
            storage.write(path, data)
        try:
            library.delete(DyingStorage(str(storage.root), num_changes), "tiny")
        except Killed:
            killed = True
        else:
            killed = False
        assert not [finding for finding in library.verify(storage, "tiny") if finding.bad]
        library.delete(storage, "tiny")
        assert find_runs(storage) == []
        if not killed:
            break
    assert num_changes > len([path for path in objects if path.startswith("runs/")])


def test_the_command_needs_no_ray_and_keeps_json_alone_on_standard_output(store: Store) -> None:
    store.train("half", 10)
    code = "import sys; from ray_jobs import runs; assert runs.main() == 0; assert 'ray' not in sys.modules"
    command = [sys.executable, "-c", code, "--config", str(store.recipe_file), "list", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [run["name"] for run in json.loads(done.stdout)["runs"]] == ["half"]


def test_on_a_laptop_runs_can_be_asked_for_beside_a_run(store: Store, tmp_path: Path) -> None:
    store.train("half", 10)
    state = tmp_path / "state"
    command = [sys.executable, "-m", "ray_jobs.local", "runs", "--config", str(store.recipe_file), "show", "half"]
    environment = {**os.environ, "CODEPARROT_STATE": str(state)}
    with local._only_one(state):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:2] == ["half", "interrupted"]


def test_an_embedded_store_that_does_not_answer_is_left_alone(tmp_path: Path) -> None:
    """It belongs to a run that is just starting or ending."""
    with pytest.raises(StoreUnreachable, match="does not answer; try again"):
        local_store.join(tmp_path)
    assert list(tmp_path.iterdir()) == []
