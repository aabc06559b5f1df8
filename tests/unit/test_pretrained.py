"""A model from wherever it is named."""

from pathlib import Path
from typing import Any

import pytest
import torch

from codeparrot.errors import CheckpointError, ManifestError
from codeparrot.pretrained import load_pretrained
from codeparrot.storage import LocalStorage
from tests.unit.test_runs import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """With a run that is complete, and one that is not."""
    store = Store(tmp_path_factory.mktemp("store"))
    store.complete("done")
    store.train("open", 10, 20)
    return store


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def weights(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_run_is_its_export_or_else_its_newest_checkpoint_or_that_of_a_step(store: Store) -> None:
    done, newest, first = (load_pretrained(name, store.storage) for name in ("done", "open", "open@10"))
    assert done.source == f"{store.storage.uri}/runs/done"
    assert newest.source == f"{store.storage.uri}/runs/open, step 20"
    assert first.source == f"{store.storage.uri}/runs/open, step 10"
    assert torch.equal(weights(first.model), weights(load_pretrained("done@10", store.storage).model))
    assert torch.equal(weights(done.model), weights(load_pretrained("done@30", store.storage).model))
    assert not torch.equal(weights(newest.model), weights(first.model))
    assert done.tokenizer.encode("def f(a, b)") == newest.tokenizer.encode("def f(a, b)")
    assert not newest.model.training


@pytest.mark.parametrize("scheme", ["file://", ""])
@pytest.mark.parametrize(("path", "name"), [("", "open@20"), ("/checkpoints/step-00000010", "open@10")])
def test_an_address_names_the_same_as_a_run_of_the_store(store: Store, scheme: str, path: str, name: str) -> None:
    where = f"{scheme}{store.storage.root}/runs/open{path}"
    assert torch.equal(weights(load_pretrained(where).model), weights(load_pretrained(name, store.storage).model))


def test_an_exported_folder_is_loaded_as_it_is(store: Store, tmp_path: Path) -> None:
    assert store.call("export", "open", "--to", str(tmp_path / "export")) == 0
    loaded = load_pretrained(str(tmp_path / "export"), store.storage)
    assert torch.equal(weights(loaded.model), weights(load_pretrained("open", store.storage).model))
    assert loaded.source == str(tmp_path / "export")


def test_a_model_of_another_architecture_is_exported_and_loaded_by_transformers_alone(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, NanoChatForCausalLM

    store = Store(tmp_path, architecture="nanochat")
    trained = store.train("open", 10)
    assert store.call("export", "open", "--to", str(tmp_path / "export")) == 0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert isinstance(plain, NanoChatForCausalLM)
    assert plain.config.max_position_embeddings == trained.config.max_position_embeddings
    ids = torch.arange(12)[None]
    assert torch.equal(plain(ids).logits, trained.eval()(ids).logits)
    assert torch.equal(weights(load_pretrained("open", store.storage).model), weights(plain))
    assert "NanoChat architecture" in (tmp_path / "export/README.md").read_text()


def test_what_is_not_there_is_told_with_what_is(store: Store, tmp_path: Path) -> None:
    for where, storage, message in (
        (
            "absent",
            store.storage,
            rf"no model 'absent': neither a folder nor a run of {store.storage.uri} \(it has: done, ",
        ),
        (
            "some/thing",
            None,
            "no model 'some/thing': neither a folder nor a run of a store that no recipe names; one of ",
        ),
        ("open@15", store.storage, "no checkpoint of step 15; there are: 10, 20"),
        (str(tmp_path), None, "is a folder without config.json"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_pretrained(where, storage)


def test_damage_is_told(store: Store, tmp_path: Path) -> None:
    damaged = LocalStorage(str(tmp_path))
    for path, _ in store.storage.list():
        damaged.write(path, store.storage.read(path))
    path = next(path for path, _ in damaged.list("runs/done/data/") if path.endswith("model.safetensors"))
    damaged.write(path, damaged.read(path)[:-1])
    with pytest.raises(ManifestError, match="is damaged"):
        load_pretrained("done", damaged)


@pytest.mark.parametrize("strange", ["pickled weights", "code of its own", "no tokenizer"])
def test_nothing_that_could_act_is_loaded(store: Store, tmp_path: Path, strange: str) -> None:
    assert store.call("export", "open", "--to", str(tmp_path / "export")) == 0
    folder = tmp_path / "export"
    if strange == "pickled weights":
        torch.save(load_pretrained(str(folder)).model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif strange == "code of its own":
        (folder / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "own.Model"}}')
        (folder / "own.py").write_text(f"open({str(tmp_path / 'acted')!r}, 'w')")
    else:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(
        CheckpointError, match=f"{folder} (cannot be loaded as a causal language model|has no tokenizer)"
    ):
        load_pretrained(str(folder))
    assert not (tmp_path / "acted").exists()
