"""The index of near duplicates: the band keys of documents, in the store, beside the shards that they are of.

A file of it holds the keys of all documents of one shard, band by band, 8 bytes each; 0 for documents that have
none. So a task reads one band of any number of shards, and nothing else. While a corpus is curated the files lie in
the folder of the attempt and end with it (`KEYS`). Those of documents that are kept stay (`PREFIX`), so that later
corpora need not sign them: `curate.near_dedup.against` names stores whose curated documents stay, and what is new and
near to one of them goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codeparrot.errors import ConfigError
from codeparrot.manifest import Manifest, require_manifest
from codeparrot.near_dedup import NearDedupSettings
from codeparrot.shingles import Hashes
from codeparrot.storage import Storage, open_storage, sha256_hex

PREFIX = "index/"
KEYS = "keys/"
PARQUET, SUFFIX = ".parquet", ".keys"
KEY_BYTES = 8


@dataclass(frozen=True)
class Corpus:
    """Shards of documents in a store."""

    uri: str
    manifest: Manifest


@dataclass(frozen=True)
class Shard:
    """One of them."""

    corpus: int
    name: str
    keys: str
    """Where its keys lie, relative to the base of its corpus' store."""
    num_documents: int

    def band(self, storage: Storage, band: int) -> Hashes:
        """The keys of its documents in one band."""
        size = KEY_BYTES * self.num_documents
        return np.frombuffer(storage.read(self.keys, band * size, (band + 1) * size), "<u8")

    def all_bands(self, storage: Storage) -> Hashes:
        """The keys of its documents: (num_documents, num_bands)."""
        return from_index(storage.read(self.keys), self.num_documents)


def index_of(name: str) -> str:
    """The name of the index of a shard of documents that are kept."""
    return f"{PREFIX}{name.removesuffix(PARQUET)}{SUFFIX}"


def to_index(keys: Hashes) -> bytes:
    """Keys, (num_documents, num_bands), as they are stored."""
    return keys.T.astype("<u8").tobytes()


def from_index(data: bytes, num_documents: int) -> Hashes:
    """Stored keys: (num_documents, num_bands)."""
    bands = len(data) // (KEY_BYTES * num_documents) if num_documents else 0
    return np.frombuffer(data, "<u8").reshape(bands, num_documents).T


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


def shards_of(corpora: Sequence[Corpus], num_bands: int) -> list[Shard]:
    """The shards of these corpora, which are numbered from 1. Raises ManifestError if an index is damaged."""
    shards = []
    for number, corpus in enumerate(corpora, 1):
        storage = open_storage(corpus.uri)
        for name in corpus.manifest.names(PREFIX):
            num_documents = len(corpus.manifest.read(storage, name)) // (KEY_BYTES * num_bands)
            shard = f"{name.removeprefix(PREFIX).removesuffix(SUFFIX)}{PARQUET}"
            shards.append(Shard(number, shard, corpus.manifest.path(name), num_documents))
    return shards
