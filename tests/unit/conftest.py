"""Fixtures of the unit tests: a store in a folder, and examples that are the same on every machine."""

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from codeparrot.storage import LocalStorage

if TYPE_CHECKING:
    from codeparrot.exported import Pretrained

NOBODY = 65534

hypothesis.settings.register_profile("unit", deadline=None, database=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("unit")


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path / "store"))


@pytest.fixture
def forbidden_folder() -> Iterator[Path]:
    """A folder holding `secret/code.py` that this process may enter, while `secret` may not even be listed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        secret = folder / "secret"
        secret.mkdir()
        (secret / "code.py").write_text("x = 1\n")
        folder.chmod(0o755)
        secret.chmod(0)
        users = os.getresuid()
        if os.geteuid() == 0:
            os.setresuid(NOBODY, NOBODY, 0)
        try:
            yield folder
        finally:
            os.setresuid(*users)
            secret.chmod(0o700)


@pytest.fixture
def free_port() -> int:
    """A port of loopback that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], bool]) -> None:
    """With a deadline."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "Pretrained":
    """A GPT-2 of two layers that has learned nothing, and a tokenizer that knows code; its logits are far apart."""
    from codeparrot.exported import load_folder
    from codeparrot.model import ModelSettings, build_model, model_config
    from codeparrot.tokenizer import tokenizer_files, train_tokenizer

    spec = find_spec("click")
    assert spec is not None
    assert spec.origin is not None
    texts = [path.read_bytes() for path in sorted(Path(spec.origin).parent.glob("*.py"))]
    settings = ModelSettings(n_layer=2, n_head=2, n_embd=32)
    model = build_model(model_config(settings, vocab_size=600, max_seq_len=128, eos_token_id=0), seed=0)
    for parameter in model.parameters():
        parameter.data *= 3
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    for name, data in tokenizer_files(train_tokenizer(texts, 600), 128).items():
        (folder / name).write_bytes(data)
    return load_folder(str(folder), "tiny")
