"""System calls that Python has no function for, through the C library (Linux)."""

import ctypes
import os

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | ctypes.Structure | None) -> int:
    """Call a function of the C library: structures by address, numbers as C's long. Raises OSError if it fails."""
    passed = [
        ctypes.byref(each)
        if isinstance(each, ctypes.Structure)
        else ctypes.c_long(each)
        if isinstance(each, int)
        else each
        for each in arguments
    ]
    result = int(getattr(_libc, name)(*passed))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def prctl(option: int, value: int) -> None:
    """prctl(2)."""
    call("prctl", option, value, 0, 0, 0)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Capabilities(ctypes.Structure):
    _fields_ = [("sets", ctypes.c_uint32 * 6)]


def drop_capabilities() -> None:
    """Also of root, who is then an ordinary user that owns root's files (capset(2))."""
    call("capset", _CapabilityHeader(CAPABILITY_VERSION_3, 0), _Capabilities())
