"""Which system calls a program may make: those to compute, and to use files that Landlock lets it open.

Everything else is refused: other processes and threads, sockets, signals to anybody, changes of owners and modes,
mounts, tracing, and whatever kernels will learn to do. A filter is a small program that the kernel runs at every call
(seccomp(2), the kernel's Documentation/userspace-api/seccomp_filter.rst); once there, it cannot be taken away.
"""

import ctypes
import errno
import platform

from codeparrot import libc

SECCOMP_SET_MODE_FILTER = 1
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_NOT_LESS, _RETURN, _AND = 0x20, 0x15, 0x35, 0x06, 0x54
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _SECOND, _THIRD = 0, 4, 24, 32  # of struct seccomp_data; arguments

# Name of the machine: how the kernel calls it (linux/audit.h), the number of seccomp(2), the column in the table.
_MACHINES = {"x86_64": (0xC000003E, 317, 1), "aarch64": (0xC00000B7, 277, 2)}

# Name, number on x86_64, number on aarch64 (asm/unistd_64.h, asm-generic/unistd.h). truncate(2) is not among them:
# before its third version, Landlock does not know it.
_CALLS = """
    read 0 63, write 1 64, close 3 57, fstat 5 80, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215,
    brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132,
    pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, mremap 25 216, madvise 28 233, mincore 27 232,
    dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, socketpair 53 199, fcntl 72 25, fsync 74 82,
    fdatasync 75 83, ftruncate 77 46, select 23 -, pselect6 270 72, poll 7 -, ppoll 271 73, epoll_create 213 -,
    epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22, eventfd2 290 19, open 2 -,
    openat 257 56, creat 85 -, access 21 -, faccessat 269 48, stat 4 -, lstat 6 -, newfstatat 262 79,
    statx 332 291, fstatfs 138 44, statfs 137 43, readlink 89 -, readlinkat 267 78, getdents64 217 61,
    getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, renameat 264 38, renameat2 316 276, unlink 87 -,
    unlinkat 263 35, umask 95 166, nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113,
    clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153, getitimer 36 102, setitimer 38 103,
    alarm 37 -, restart_syscall 219 128, getpid 39 172, gettid 186 178, getppid 110 173, getuid 102 174,
    geteuid 107 175, getgid 104 176, getegid 108 177, getpgrp 111 -, getpgid 121 155, getsid 124 156,
    getrlimit 97 163, getrusage 98 165, sysinfo 99 179, uname 63 160, getcpu 309 168, sched_yield 24 124,
    sched_getaffinity 204 123, futex 202 98, set_robust_list 273 99, get_robust_list 274 100, rseq 334 293,
    membarrier 324 283, getrandom 318 278, exit 60 93, exit_group 231 94
"""
_IOCTL = {"x86_64": 16, "aarch64": 29}
_REQUESTS = (0x5421, 0x5450, 0x5451)  # of ioctl(2): FIONBIO, FIONCLEX, FIOCLEX; for others there is no such device
_COMMANDS = (*range(8), 1030)
"""Of fcntl(2): copies, flags and locks. F_SETOWN and F_SETSIG send any signal to any process of this user."""
_TRUNCATING = (0o1000, 0o1003)
"""O_TRUNC in a file that is not opened to write, which Landlock does not know before its third version."""

NEW_CALLS = 424
"""From here on numbers are the same everywhere, and libraries take an older call where the kernel has no such one."""


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction))]


class Filter:
    """The filter for this machine. Raises OSError if there is none for its kind."""

    def __init__(self) -> None:
        machine = platform.machine()
        if machine not in _MACHINES:
            raise OSError(errno.ENOSYS, f"no filter of system calls for {machine}")
        architecture, self._seccomp, column = _MACHINES[machine]
        rows = [row.split() for row in _CALLS.split(",")]
        numbers = {row[0]: int(row[column]) for row in rows if row[column] != "-"}
        self._instructions = _assemble(architecture, numbers, _IOCTL[machine])

    def install(self) -> None:
        """For this process, for good. Whoever may gain privileges by starting programs cannot have one."""
        program = _Program(len(self._instructions), ctypes.cast(self._instructions, ctypes.POINTER(_Instruction)))
        libc.call("syscall", self._seccomp, SECCOMP_SET_MODE_FILTER, 0, program)


def _assemble(architecture: int, allowed: dict[str, int], ioctl: int) -> "ctypes.Array[_Instruction]":
    """Comparisons jump forward, by a number of instructions, to one of the blocks that stand last."""
    tests = [(_JUMP_IF_NOT_LESS, NEW_CALLS, "missing"), (_JUMP_IF_EQUAL, ioctl, "ioctl")]
    tests += [
        (_JUMP_IF_EQUAL, number, name if name in ("fcntl", "open", "openat") else "allowed")
        for name, number in allowed.items()
    ]
    blocks = {
        "refused": [(_RETURN, 0, 0, _ERRNO | errno.EPERM)],
        "missing": [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)],
        "ioctl": [
            (_LOAD, 0, 0, _SECOND),
            *((_JUMP_IF_EQUAL, len(_REQUESTS) - place, 0, request) for place, request in enumerate(_REQUESTS)),
            (_RETURN, 0, 0, _ERRNO | errno.ENOTTY),
            (_RETURN, 0, 0, _ALLOW),
        ],
        "fcntl": [
            (_LOAD, 0, 0, _SECOND),
            *((_JUMP_IF_EQUAL, len(_COMMANDS) - place, 0, command) for place, command in enumerate(_COMMANDS)),
            (_RETURN, 0, 0, _ERRNO | errno.EPERM),
            (_RETURN, 0, 0, _ALLOW),
        ],
        "open": _opening(_SECOND),
        "openat": _opening(_THIRD),
        "allowed": [(_RETURN, 0, 0, _ALLOW)],
    }
    places, end = {}, len(tests)
    for name, block in blocks.items():
        places[name], end = end, end + len(block)
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        *((kind, places[name] - place - 1, 0, value) for place, (kind, value, name) in enumerate(tests)),
        *(instruction for block in blocks.values() for instruction in block),
    ]
    return (_Instruction * len(code))(*(_Instruction(*fields) for fields in code))


def _opening(flags: int) -> list[tuple[int, int, int, int]]:
    return [
        (_LOAD, 0, 0, flags),
        (_AND, 0, 0, 0o1003),
        *((_JUMP_IF_EQUAL, len(_TRUNCATING) - place, 0, each) for place, each in enumerate(_TRUNCATING)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
