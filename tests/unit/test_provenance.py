"""Rows, their boundaries and their provenance, as the pack stage writes them, against the documents they came from."""

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeparrot.dataloader import PackedRows
from codeparrot.errors import EmptyCorpusError, ManifestError
from codeparrot.manifest import Manifest
from codeparrot.packing import Strategy
from codeparrot.provenance import GAP_TOKENS, parts, read_version, repositories_of
from codeparrot.storage import LocalStorage, Storage
from codeparrot.tokenizer import Encoder
from ray_jobs import provenance
from tests.unit.packed_store import MAX_SEQ_LEN, TOKENIZER, Text, curate, pack_all, recipe
from tests.unit.test_packing import STRATEGIES

DONE, FAILED, WRONG = 0, 1, 2
CODE = st.text("ab \nx\u00e9", min_size=1, max_size=40).filter(str.strip)
VALIDATION = [("held-out", "v.py", "abx\nab x" * 5)]


def named(shards: list[list[str]]) -> list[list[Text]]:
    """Documents of three repositories in turn."""
    numbers = iter(range(1000))
    return [[(f"repo{(n := next(numbers)) % 3}", f"f{n}.py", text) for text in shard] for shard in shards]


def packed(folder: str, shards: list[list[Text]], strategy: Strategy) -> tuple[Storage, Manifest]:
    storage = LocalStorage(folder)
    curate(storage, shards, VALIDATION)
    return storage, pack_all(storage, recipe(storage, f"pack.strategy={strategy}"))


def index_of(storage: Storage, manifest: Manifest, split: str) -> list[dict[str, Any]]:
    """The whole index of a split, that of the remainder last."""
    names = manifest.names(f"{split}/provenance-")
    return [row for name in names for row in pq.read_table(io.BytesIO(manifest.read(storage, name))).to_pylist()]


def tokens_of(storage: Storage, manifest: Manifest, split: str) -> list[int]:
    """All rows, one after the other, then the remainder."""
    names = [*manifest.names(f"{split}/rows-"), *manifest.names(f"{split}/remainder")]
    arrays = [np.load(io.BytesIO(manifest.read(storage, name))) for name in names]
    return [int(token) for array in arrays for token in array.flatten()]


@settings(max_examples=20)
@given(st.lists(st.lists(CODE, max_size=6), min_size=1, max_size=4), st.sampled_from(STRATEGIES))
def test_the_index_says_which_part_of_which_document_every_token_is(
    shards: list[list[str]], strategy: Strategy
) -> None:
    documents = named([["x" * 2 * MAX_SEQ_LEN, *shards[0]], *shards[1:]])
    encoder = Encoder(TOKENIZER)
    with tempfile.TemporaryDirectory() as folder:
        storage, manifest = packed(folder, documents, strategy)
        tokens = tokens_of(storage, manifest, "train")
        index = index_of(storage, manifest, "train")
        seen: dict[str, list[tuple[int, list[int]]]] = {}
        covered = [False] * len(tokens)
        contents = {path: (repository, text) for shard in documents for repository, path, text in shard}
        for piece in index:
            start = piece["row"] * MAX_SEQ_LEN + piece["offset"]
            stop = start + piece["num_tokens"]
            assert not any(covered[start:stop])
            covered[start:stop] = [True] * piece["num_tokens"]
            seen.setdefault(piece["path"], []).append((piece["document_offset"], tokens[start:stop]))
            repository, text = contents[piece["path"]]
            before = encoder.decode_bytes(encoder.encode([text])[0].tolist()[: piece["document_offset"]])
            assert piece["line"] == 1 + before.count(b"\n")
            origin = (piece["source"], piece["repository"], piece["revision"], piece["license"])
            assert origin == ("test", repository, "r1", "MIT")
        assert all(
            token == encoder.eos_token_id for token, from_one in zip(tokens, covered, strict=True) if not from_one
        )
        assert set(seen) == set(contents)
        for path, found in seen.items():
            whole = [token for _, part in sorted(found) for token in part]
            assert whole == [*encoder.encode([contents[path][1]])[0].tolist(), encoder.eos_token_id]
            if strategy == "best_fit" and len(whole) <= MAX_SEQ_LEN:
                assert len(found) == 1
        ledger = manifest.counts["splits"]["train"]
        assert ledger["tokens_padding"] == covered.count(False)
        assert ledger["tokens_in"] == covered.count(True)
        check_boundaries(storage, manifest, index)


def check_boundaries(storage: Storage, manifest: Manifest, index: list[dict[str, Any]]) -> None:
    """Stored boundaries are those of the index, and of the padding that it leaves."""
    rows = PackedRows(storage, manifest, "train")
    for row in range(rows.num_rows):
        pieces = [piece for piece in index if piece["row"] == row]
        expected = [piece["offset"] for piece in pieces]
        end = pieces[-1]["offset"] + pieces[-1]["num_tokens"]
        expected += [end] if end < MAX_SEQ_LEN else []
        assert rows.starts(row).tolist() == expected
        assert rows.lengths([row]).tolist() == [end]
        assert rows.positions([row])[0, expected].tolist() == [0] * len(expected)
        assert rows.segments([row])[0, expected].tolist() == list(range(len(expected)))


@settings(max_examples=15)
@given(st.lists(CODE, min_size=4, max_size=12), st.data())
def test_the_division_into_shards_changes_no_byte(texts: list[str], data: st.DataObject) -> None:
    documents = named([["x" * 2 * MAX_SEQ_LEN, *texts]])[0]
    border = data.draw(st.integers(0, len(documents)))
    strategy = data.draw(st.sampled_from(STRATEGIES))
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        _, whole = packed(one, [documents], strategy)
        _, cut = packed(other, [documents[:border], documents[border:]], strategy)
        assert whole.files == cut.files
        assert whole.counts == cut.counts


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_record_of_a_version_says_which_rows_hold_a_repository(storage: LocalStorage, strategy: Strategy) -> None:
    documents = named([["ab\nx" * 9, "abab x", "a", "xb" * 30], ["x\n" * 25, "aab"]])
    _, manifest = packed(str(storage.root), documents, strategy)
    names = ["held-out", "repo0", "repo1", "repo2"]
    assert repositories_of(storage, "packed", manifest.digest) == names
    version = read_version(storage, "packed", manifest.digest, [*names, "other"])
    assert version is not None
    assert (version.num_rows, version.rows_per_shard) == (manifest.counts["splits"]["train"]["num_rows"], 3)
    for split in ("train", "validation"):
        index = index_of(storage, manifest, split)
        for name in names:
            rows = {piece["row"] for piece in index if piece["repository"] == name}
            found = version.rows[split].get(name, np.empty(0))
            assert found.tolist() == sorted(rows - {manifest.counts["splits"][split]["num_rows"]})
    assert read_version(storage, "packed", "0" * 64, names) is None
    pack_all(storage, recipe(storage, "pack.shard_bytes=96", f"pack.strategy={strategy}"))
    assert read_version(storage, "packed", manifest.digest, names) is not None, "records outlive the rows"


def test_what_is_read_for_pieces_begins_with_their_documents_and_leaves_long_gaps_out() -> None:
    far = 10 + GAP_TOKENS
    shard, begin = np.array([1, 0, 1, 1]), np.array([5, 7, far + 1, 9])
    found = parts(shard, begin, np.array([1, 2, 0, 0]), np.array([3, 4, 2, 1]))
    read = [(part.shard, part.low, part.high, part.pieces.tolist()) for part in found]
    assert read == [(0, 7, 13, [1]), (1, 5, 10, [0, 3]), (1, far + 1, far + 3, [2])]
    assert parts(*(np.empty(0, np.int64),) * 4) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_split_with_less_than_a_row_is_an_error(storage: LocalStorage, strategy: Strategy) -> None:
    curate(storage, [[("one", "a.py", "ab")]], VALIDATION)
    with pytest.raises(EmptyCorpusError, match="the train split has 2 tokens, less than one row of 8"):
        pack_all(storage, recipe(storage, f"pack.strategy={strategy}"))


def test_rows_without_boundaries_are_read_and_say_so(storage: LocalStorage) -> None:
    _, manifest = packed(str(storage.root), named([["abx" * 20]]), "concat")
    old = Manifest(**{**vars(manifest), "files": tuple(file for file in manifest.files if "/rows-" in file.name)})
    rows = PackedRows(storage, old, "train")
    assert rows.rows([0]).shape == (1, MAX_SEQ_LEN)
    with pytest.raises(ManifestError, match="was packed without document boundaries; run"):
        rows.starts(0)
    assert rows.lengths([1, 0]).tolist() == [MAX_SEQ_LEN] * 2, "what has no padding needs no lengths"
    rows.has_padding = True
    with pytest.raises(ManifestError, match="was packed without the lengths of its rows; run"):
        rows.lengths([0])


class Asking:
    """The command on a store with packed rows."""

    def __init__(self, storage: LocalStorage, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        documents = named([["ab\nx\na" * 9, "abab\n\nx", "a"]])
        _, self.manifest = packed(str(storage.root), documents, "best_fit")
        self.storage = storage
        self.texts = {path: text for _, path, text in documents[0]}
        self._arguments = ["--config", "recipes/tiny.yaml", "--set", f"storage.uri={storage.uri}"]
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = provenance.main([*self._arguments, *arguments])
        return code, *self._capsys.readouterr()


@pytest.fixture
def ask(storage: LocalStorage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Asking:
    return Asking(storage, tmp_path, capsys)


def test_a_row_is_asked_for_its_pieces(ask: Asking) -> None:
    index = index_of(ask.storage, ask.manifest, "train")
    code, out, _ = ask("2", "--json")
    assert code == DONE
    answer = json.loads(out)
    assert answer["pieces"] == [piece for piece in index if piece["row"] == 2]
    code, out, _ = ask("2")
    assert code == DONE
    assert out.splitlines()[0].split() == ["offset", "tokens", "repository", "path", "line", "revision", "licence"]
    for line, piece in zip(out.splitlines()[1:], answer["pieces"], strict=True):
        words = (piece["offset"], piece["num_tokens"], piece["repository"], piece["path"], piece["line"], "r1", "MIT")
        assert line.split() == list(map(str, words))


def test_a_token_is_asked_for_its_own_line(ask: Asking) -> None:
    encoder = Encoder(TOKENIZER)
    for piece in index_of(ask.storage, ask.manifest, "train")[:6]:
        last = piece["num_tokens"] - 1
        code, out, _ = ask(f"{piece['row']}:{piece['offset'] + last}", "--json")
        assert code == DONE
        (found,) = json.loads(out)["pieces"]
        ids = encoder.encode([ask.texts[piece["path"]]])[0].tolist()[: piece["document_offset"] + last]
        assert found == piece | {"line": 1 + encoder.decode_bytes(ids).count(b"\n")}


def test_padding_comes_from_no_document(ask: Asking) -> None:
    index = index_of(ask.storage, ask.manifest, "train")
    ends = {piece["row"]: piece["offset"] + piece["num_tokens"] for piece in index}
    row = next(row for row, end in ends.items() if end < MAX_SEQ_LEN)
    code, out, _ = ask(f"{row}:{MAX_SEQ_LEN - 1}")
    assert (code, out) == (DONE, f"token 7 of row {row} is padding: it comes from no document\n")


@pytest.mark.parametrize(
    ("where", "code", "message"),
    [
        ("one", WRONG, "one: write ROW or ROW:OFFSET, for example 17:200"),
        ("1:8", WRONG, "1:8: a row has 8 tokens, numbered from 0"),
        ("99", FAILED, "the train split has no row 99; its"),
    ],
)
def test_a_question_that_has_no_answer_says_why(ask: Asking, where: str, code: int, message: str) -> None:
    found, _, error = ask(where)
    assert found == code
    assert message in error


def test_rows_without_an_index_say_so(ask: Asking) -> None:
    files = [file for file in ask.manifest.files if "/provenance-" not in file.name]
    manifest = Manifest(**{**vars(ask.manifest), "files": tuple(files)})
    ask.storage.write("packed/manifest.json", manifest.to_json())
    code, _, error = ask("0")
    assert code == FAILED
    assert "packed was packed without provenance; run `python -m ray_jobs.pack` again" in error
