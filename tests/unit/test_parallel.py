"""How ranks agree."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import distributed

from codeparrot.parallel import Agreement, World
from tests.unit.conftest import wait_until


@pytest.fixture
def process_group(free_port: int) -> Iterator[None]:
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{free_port}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def num_threads() -> int:
    """Of this process, those of C++ too."""
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.usefixtures("process_group")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="/proc of Linux tells the threads")
def test_a_closed_agreement_leaves_no_threads() -> None:
    """One that still lets go of a tensor while the interpreter is taken down aborts the process."""
    before = num_threads()
    agreement = Agreement(World(rank=0, world_size=2))
    assert agreement.exchange(True) == (False,)
    assert agreement.exchange(False) == (True,)
    assert agreement.all("value") == ["value"]
    assert num_threads() > before
    agreement.close()
    wait_until(lambda: num_threads() == before)
