"""The index of near duplicates: the band keys of every document that is kept, so that later corpora need not sign it.

Beside every shard of curated documents lies one of the index, as Parquet: the document's row in the shard, and its
keys. `curate.near_dedup.against` names stores whose curated documents stay: what is new and near to one of them goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codeparrot.documents import from_parquet, to_parquet
from codeparrot.errors import ConfigError
from codeparrot.manifest import Manifest, require_manifest
from codeparrot.near_dedup import NearDedupSettings
from codeparrot.redact import RedactSettings
from codeparrot.shingles import Hashes, Indices
from codeparrot.storage import Storage, open_storage, sha256_hex

PREFIX = "index/"


@dataclass(frozen=True)
class Corpus:
    """Shards of documents in a store."""

    uri: str
    manifest: Manifest
    redact: RedactSettings | None = None
    """For raw documents, what is redacted before anything else."""


@dataclass(frozen=True)
class Shard:
    """One of them."""

    corpus: int
    name: str


@dataclass(frozen=True)
class Places:
    """Where documents lie, and their keys: document i is row `rows[i]` of `shards[owners[i]]`."""

    shards: tuple[Shard, ...]
    owners: Indices
    rows: Indices
    keys: Hashes
    """Shape (documents, num_bands)."""


def to_index(rows: Sequence[int], keys: Sequence[bytes]) -> bytes:
    """The index of one shard."""
    import pyarrow as pa

    return to_parquet(
        pa.table({"row": pa.array(rows, pa.int32()), "keys": pa.array(keys, pa.binary(len(keys[0]) if keys else -1))})
    )


def earlier(settings: NearDedupSettings, storage: Storage) -> tuple[str, list[Corpus]]:
    """(digest of their content, the corpora that new documents are compared with).

    Raises ConfigError if one has no index of the same kind, ManifestError if nothing was curated there.
    """
    corpora = []
    for uri in settings.against:
        where = open_storage(uri)
        if where.uri == storage.uri:
            raise ConfigError(
                f"curate.near_dedup.against: {uri} is storage.uri itself; its documents are compared anyway"
            )
        manifest = require_manifest(where, "curated", "curate")
        found = manifest.counts.get("near_dedup", {}).get("keys_are_of")
        if found != settings.keys_are_of:
            raise ConfigError(
                f"curate.near_dedup.against: the corpus in {uri} has the index {found}, not {settings.keys_are_of}; "
                "curate it again with these settings of curate.near_dedup"
            )
        corpora.append(Corpus(uri, manifest))
    return sha256_hex("".join(corpus.manifest.digest for corpus in corpora).encode()), corpora


def places_of(corpora: Sequence[Corpus], num_bands: int) -> Places:
    """Every document in the indexes of these corpora, which are numbered from 1."""
    shards, owners, rows, keys = [], [], [], []
    for number, corpus in enumerate(corpora, 1):
        storage = open_storage(corpus.uri)
        for name in corpus.manifest.names(PREFIX):
            table = from_parquet(corpus.manifest.read(storage, name))
            shards.append(Shard(number, name.removeprefix(PREFIX)))
            owners.append(np.full(table.num_rows, len(shards) - 1))
            rows.append(table["row"].to_numpy().astype(np.int64))
            keys.append(np.frombuffer(b"".join(table["keys"].to_pylist()), np.uint64).reshape(-1, num_bands))
    none = np.empty(0, np.int64)
    return Places(
        tuple(shards),
        np.concatenate([none, *owners]),
        np.concatenate([none, *rows]),
        np.concatenate([np.empty((0, num_bands), np.uint64), *keys]),
    )
