"""Free ports of loopback, the same ones as last time if possible."""

import contextlib
import json
import socket
from collections.abc import Sequence
from pathlib import Path


def same_as_last_time(known: Path, names: Sequence[str], *, anew: bool = False, insist: bool = False) -> dict[str, int]:
    """A free port for each name, remembered in the file `known`.

    Those of last time are used if they are still free, so that an endpoint stays the same. `insist`: even if they are
    not free. `anew`: others.
    """
    with contextlib.suppress(OSError, ValueError):
        ports: dict[str, int] = json.loads(known.read_bytes())
        if sorted(ports) == sorted(names) and (insist or (not anew and all(map(is_free, ports.values())))):
            return ports
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    known.write_text(json.dumps(ports))
    return ports


def is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """So many different ports where nobody listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in sockets]
