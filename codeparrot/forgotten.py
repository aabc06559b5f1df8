"""The repositories that a store must not learn from any more.

`forgotten.json` at the base of the store names them. It is no output of a stage: nothing that runs again removes it.
`collect` passes over their files and `pack` over their documents, whatever the recipe says.
"""

import json
import time
from collections.abc import Callable, Iterable

from codeparrot.errors import ManifestError, ObjectNotFound, PreconditionFailed
from codeparrot.storage import Storage

FORGOTTEN = "forgotten.json"


def forgotten(storage: Storage) -> frozenset[str]:
    """Their names. Raises ManifestError if the list cannot be read: an empty one would bring them back."""
    return frozenset(_read(storage)[0])


def forget(storage: Storage, repositories: Iterable[str], clock: Callable[[], float] = time.time) -> None:
    """Put repositories on the list, with the time; those that stand there keep theirs."""
    names = sorted(repositories)
    while True:
        known, tag = _read(storage)
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(clock()))
        listed = dict.fromkeys(names, when) | known
        data = json.dumps({"repositories": listed}, indent=1, sort_keys=True).encode()
        try:
            storage.write(FORGOTTEN, data, only_if_absent=tag is None, if_match=tag)
        except PreconditionFailed:  # somebody else forgets too
            continue
        return


def _read(storage: Storage) -> tuple[dict[str, str], str | None]:
    """(when each was forgotten, the tag of the list if there is one)."""
    try:
        data, tag = storage.read_tagged(FORGOTTEN)
    except ObjectNotFound:
        return {}, None
    try:
        listed = json.loads(data)["repositories"]
        if not isinstance(listed, dict):
            raise TypeError("not a mapping")
    except (ValueError, TypeError, KeyError) as error:
        raise ManifestError(
            f"{storage.uri}/{FORGOTTEN} is damaged; restore it, or delete it and forget its repositories anew"
        ) from error
    return listed, tag
