"""Fixtures of the unit tests: a store in a folder, and examples that are the same on every machine."""

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from codeparrot.storage import LocalStorage

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
