"""API keys from a file: one a line, read again when the file changes.

Empty lines and lines that begin with `#` are none. Only hashes are kept, and a key is compared with all of them in a
time that does not tell how much of it is right. If the file goes, or has no key any more, nobody gets in: taking keys
away must not open the door.
"""

import hashlib
import hmac
import logging
from pathlib import Path

from codeparrot.errors import ConfigError

logger = logging.getLogger(__name__)

MIN_LENGTH = 16
NAME_LENGTH = 8


class ApiKeys:
    """The keys in a file."""

    def __init__(self, path: str | Path) -> None:
        """Raises ConfigError if the file cannot be read, has no key, or one that is too short or not ASCII."""
        self._path = Path(path)
        self._seen = self._version()
        self._hashes = self._read()

    def name_of(self, key: str) -> str | None:
        """What a key is called in logs, the beginning of its hash; None if it is none of the file's."""
        self._refresh()
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._hashes]  # all of them, always
        return digest.hex()[:NAME_LENGTH] if any(matches) else None

    def _refresh(self) -> None:
        version = self._version()
        if version == self._seen:
            return
        self._seen = version
        try:
            self._hashes = self._read()
            logger.info("%s has changed: %d API keys", self._path, len(self._hashes))
        except ConfigError as error:
            self._hashes = ()
            logger.error("%s; until it is corrected every request is refused", error)

    def _version(self) -> tuple[int, ...] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read(self) -> tuple[bytes, ...]:
        try:
            lines = [line.strip() for line in self._path.read_text("utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"cannot read the API keys in {self._path}: {reason}") from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"{self._path} has no API key; write one a line")
        if any(len(key) < MIN_LENGTH for key in keys):
            raise ConfigError(f"{self._path}: an API key has at least {MIN_LENGTH} characters; make longer ones")
        if not all(key.isascii() for key in keys):
            raise ConfigError(f"{self._path}: an API key has ASCII characters only; a header carries no others")
        return tuple(_digest(key) for key in keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
