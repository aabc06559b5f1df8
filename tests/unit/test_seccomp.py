"""The numbers of system calls, against the kernel's own headers where they are installed."""

import errno
import fcntl
import os
import platform
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


def verdict(call: str, *arguments: int) -> int:
    """What the filter answers: a kernel's errno, or 0."""
    column = seccomp._MACHINES[platform.machine()][2]
    number = next(int(row[column]) for row in ROWS if row[0] == call)
    data = {0: number, 4: seccomp._MACHINES[platform.machine()][0], **{16 + 8 * n: v for n, v in enumerate(arguments)}}
    code, place, value = seccomp.Filter()._instructions, 0, 0
    while (step := code[place]).code != seccomp._RETURN:
        place += 1
        if step.code == seccomp._LOAD:
            value = data[step.k]
        elif step.code == seccomp._AND:
            value &= step.k
        else:
            right = value == step.k if step.code == seccomp._JUMP_IF_EQUAL else value >= step.k
            place += step.jt if right else step.jf
    return 0 if step.k == seccomp._ALLOW else step.k & 0xFFFF


def test_calls_that_reach_others_by_their_arguments_are_refused() -> None:
    assert [verdict("fcntl", 1, command) for command in (fcntl.F_DUPFD_CLOEXEC, fcntl.F_SETFL, fcntl.F_SETLK)] == [
        0
    ] * 3
    assert [verdict("fcntl", 1, command) for command in (fcntl.F_SETOWN, 10, 15, 1026)] == [errno.EPERM] * 4
    shortening = [os.O_RDONLY | os.O_TRUNC, os.O_ACCMODE | os.O_TRUNC, os.O_TRUNC | os.O_CREAT]
    assert [verdict("openat", 0, 0, flags) for flags in shortening] == [errno.EPERM] * 3
    assert [verdict("openat", 0, 0, flags) for flags in (os.O_RDONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR)] == [0] * 3
    assert verdict("read", 0) == verdict("exit_group", 0) == 0


def test_nothing_that_reaches_others_is_allowed() -> None:
    allowed = {row[0] for row in ROWS}
    assert len(allowed) == len(ROWS)
    processes = {"clone", "fork", "vfork", "execve", "kill", "tkill", "tgkill", "ptrace", "process_vm_writev", "setsid"}
    network = {"socket", "connect", "bind", "sendto", "recvmsg"}
    files = {"chmod", "chown", "mount", "truncate", "link", "symlink", "mknod", "mkdir", "setxattr", "memfd_create"}
    limits = {"prctl", "setrlimit", "prlimit64", "seccomp", "unshare", "setns", "bpf", "shmget", "perf_event_open"}
    assert not allowed & (processes | network | files | limits)
