"""The numbers of system calls, against the kernel's own headers where they are installed."""

import re
from pathlib import Path

import pytest

from codeparrot import seccomp

HEADERS = {
    1: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    2: Path("/usr/include/asm-generic/unistd.h"),  # what aarch64 takes as it is
}
OTHERWISE_NAMED = {"newfstatat": "fstatat"}
ROWS = [row.split() for row in seccomp._CALLS.split(",")]


@pytest.mark.parametrize(("column", "machine"), [(1, "x86_64"), (2, "aarch64")])
def test_every_number_is_the_kernels(column: int, machine: str) -> None:
    if not HEADERS[column].exists():
        pytest.skip(f"{HEADERS[column]} is not installed")
    text = HEADERS[column].read_text()
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    for row in ROWS:
        if row[column] != "-":
            name = row[0] if row[0] in known else OTHERWISE_NAMED[row[0]]
            assert int(row[column]) == known[name], row
    assert known["ioctl"] == seccomp._IOCTL[machine]
    assert known["seccomp"] == seccomp._MACHINES[machine][1]


def test_nothing_that_reaches_others_is_allowed() -> None:
    allowed = {row[0] for row in ROWS}
    assert len(allowed) == len(ROWS)
    processes = {"clone", "fork", "vfork", "execve", "kill", "tkill", "tgkill", "ptrace", "process_vm_writev", "setsid"}
    network = {"socket", "connect", "bind", "sendto", "recvmsg"}
    files = {"chmod", "chown", "mount", "truncate", "link", "symlink", "mknod", "mkdir", "setxattr", "memfd_create"}
    limits = {"prctl", "setrlimit", "prlimit64", "seccomp", "unshare", "setns", "bpf", "shmget", "perf_event_open"}
    assert not allowed & (processes | network | files | limits)
