"""Which files a program may open: some to read, those of one folder to write (landlock(7), Linux 5.13 or newer).

Whatever is not named is refused, `/proc` and `/dev` too. In the folder that may be written to there are files only: no
folders, links or pipes, so that it is emptied in one pass. What a file is called, how large it is and that it exists
can still be seen.
"""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from codeparrot import libc

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = (1 << bit for bit in (1, 2, 3, 5, 8, 14))
_NET_RIGHTS = 0b11  # binding and connecting, from version 4
_SCOPES = 0b11  # abstract sockets, and signals, from version 6


class _Attributes(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("rights", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def version() -> int:
    """What this kernel knows of Landlock; 0: nothing, or it is turned off."""
    try:
        return libc.call("syscall", _CREATE_RULESET, None, 0, _ASK_VERSION)
    except OSError:
        return 0


class Ruleset:
    """What may be opened. Raises OSError if the kernel has no Landlock."""

    def __init__(self, readable: Iterable[str], listable: Iterable[str], writable: str) -> None:
        known = version()
        self._handled = (1 << _file_rights(known)) - 1
        attributes = _Attributes(self._handled, _NET_RIGHTS if known >= 4 else 0, _SCOPES if known >= 6 else 0)
        self._file = libc.call("syscall", _CREATE_RULESET, attributes, _attribute_bytes(known), 0)
        for path in readable:
            self._add(path, _READ_FILE | _READ_DIR)
        for path in listable:
            self._add(path, _READ_DIR)
        self._add(writable, _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _MAKE_REG | _REMOVE_FILE)

    def _add(self, path: str, rights: int) -> None:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        rights &= self._handled
        if not Path(path).is_dir():
            rights &= _READ_FILE
        try:
            libc.call("syscall", _ADD_RULE, self._file, _PATH_BENEATH, _PathBeneath(rights, place), 0)
        finally:
            os.close(place)

    def enforce(self) -> None:
        """For this process and whatever it starts, for good."""
        libc.call("syscall", _RESTRICT_SELF, self._file, 0)


def _file_rights(known: int) -> int:
    """By version: 13, 14 from the second, 15 from the third, 16 from the fifth on."""
    return 13 + (known >= 2) + (known >= 3) + (known >= 5)


def _attribute_bytes(known: int) -> int:
    """A kernel refuses fields that it does not know."""
    return 8 if known < 4 else 16 if known < 6 else 24
