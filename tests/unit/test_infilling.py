"""Documents told as beginning, end, middle: not a byte is lost, in the parts or in the rows."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.dataloader import PackedRows
from codeparrot.errors import LedgerError
from codeparrot.infilling import MARGIN, Infilling, Told, tell
from codeparrot.manifest import Manifest
from codeparrot.objectives import InfillSettings
from codeparrot.provenance import index_of
from codeparrot.storage import LocalStorage
from codeparrot.tokenizer import FIM_TOKENS, Encoder, tokenizer_files, train_tokenizer
from tests.unit.packed_store import Text, commit, curate, pack_all, recipe

TOKENIZER = train_tokenizer([b"def add(a, b):\n    return a + b\n" * 9], 270, FIM_TOKENS)
ENCODER = Encoder(TOKENIZER)
PREFIX, SUFFIX, MIDDLE = (ENCODER.special[name] for name in FIM_TOKENS)
EOS = ENCODER.eos_token_id
TEXTS = st.lists(st.text(st.sampled_from("def (a+b)\n\u00e9\U0001f40d<|"), max_size=200), max_size=5)
SEQ = 48


def told(texts: list[str], *, rate: float = 1.0, spm_rate: float = 0.5, seed: int = 0, max_seq_len: int = SEQ) -> Told:
    settings = InfillSettings(kind="fim", rate=rate, spm_rate=spm_rate)
    names = list(map(hash_of, texts))
    return tell(pa.array(texts, pa.large_string()), names, ENCODER, Infilling(settings, seed, max_seq_len))


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def entries(found: Told) -> list[list[int]]:
    ends = np.cumsum(found.lengths)
    return [found.tokens[end - size : end].tolist() for end, size in zip(ends, found.lengths, strict=True)]


def original(entry: list[int]) -> bytes:
    """The text of a document or section, whichever way it is told."""
    assert entry[-1] == EOS
    body = entry[:-1]
    assert EOS not in body
    if not set(body) & {PREFIX, SUFFIX, MIDDLE}:
        return ENCODER.decode_bytes(body)
    assert body[0] == PREFIX
    assert [body.count(mark) for mark in (PREFIX, SUFFIX, MIDDLE)] == [1, 1, 1]
    suffix, middle = body.index(SUFFIX), body.index(MIDDLE)
    parts = (body[1:suffix], body[middle + 1 :], body[suffix + 1 : middle])
    for part in parts:
        ENCODER.decode_bytes(part).decode()  # cut between characters
    return b"".join(map(ENCODER.decode_bytes, parts))


@given(TEXTS, st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 9), st.sampled_from([8, 48, 500]))
def test_every_document_comes_back_byte_for_byte(
    texts: list[str], rate: float, spm_rate: float, seed: int, max_seq_len: int
) -> None:
    found = told(texts, rate=rate, spm_rate=spm_rate, seed=seed, max_seq_len=max_seq_len)
    back = [b""] * len(texts)
    for number, line, entry in zip(found.document.tolist(), found.line.tolist(), entries(found), strict=True):
        assert line == 1 + back[number].count(b"\n")
        back[number] += original(entry)
    assert back == [text.encode() for text in texts]
    marks = int(np.isin(found.tokens, [PREFIX, SUFFIX, MIDDLE, EOS]).sum()) - len(texts)
    assert marks == found.num_marks
    assert found.num_rearranged <= len(texts)


@given(TEXTS, st.integers(0, 9))
def test_a_document_is_told_the_same_whatever_stands_beside_it(texts: list[str], seed: int) -> None:
    together = told(texts, rate=0.5, seed=seed)
    apart = [told([text], rate=0.5, seed=seed).tokens for text in texts]
    assert np.array_equal(together.tokens, np.concatenate([np.empty(0, np.uint16), *apart]))


def test_as_many_documents_are_rearranged_as_asked_for_and_half_of_those_with_the_end_first() -> None:
    texts = [f"def f{number}(a, b):" for number in range(1000)]
    found = told(texts, rate=0.3, max_seq_len=500)
    rearranged = [entry for entry in entries(found) if PREFIX in entry]
    assert len(rearranged) == found.num_rearranged == found.num_marks // 3
    assert found.num_rearranged == pytest.approx(300, abs=45)
    assert sum(entry[1] == SUFFIX for entry in rearranged) == pytest.approx(150, abs=40)
    starts = [len(ENCODER.decode_bytes(entry[1 : entry.index(SUFFIX)])) for entry in rearranged if entry[1] != SUFFIX]
    assert len(set(starts)) > 10  # cut anywhere


def test_sections_of_a_long_document_fit_in_a_row_with_their_marks() -> None:
    found = told(["".join(f"def add{number}(a, b):\n    return a\n" for number in range(90))], max_seq_len=100)
    assert len(found.lengths) > 20
    assert found.lengths.max() <= 100
    assert found.lengths[:-1].min() > 100 - 2 * MARGIN


def test_the_seed_says_what_is_rearranged_and_how() -> None:
    texts = ["def add(a, b):\n    return a + b\n" + "a" * number for number in range(20)]
    first, same, other = (told(texts, rate=0.5, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.tokens, same.tokens)
    assert not np.array_equal(first.tokens, other.tokens)


def test_a_byte_that_is_lost_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Infilling, "cut", lambda self, text, sha, section: ((text[:3], text[4:5], text[5:]), False))
    with pytest.raises(LedgerError, match="31 bytes of text are left of 32"):
        told(["def add(a, b):\n    return a + b\n"])


TRAIN: list[list[Text]] = [
    [("a", "one.py", "def add(a, b):\n    return a + b\n" * 7), ("a", "two.py", "x = 1\n")],
    [("b", "three.py", "\u00e9\n\n" * 40), ("b", "four.py", "return add(a, b)\n")],
]
HELD_OUT: list[Text] = [("c", "held.py", "def add(a):\n    return a\n" * 5)]


def packed(folder: Path, *overrides: str) -> tuple[LocalStorage, Manifest]:
    """Rows of 24 tokens."""
    storage = LocalStorage(str(folder))
    curate(storage, TRAIN, HELD_OUT)
    commit(storage, "train_tokenizer", "tokenizer", tokenizer_files(TOKENIZER, 24), {})
    settings = recipe(storage, "pack.max_seq_len=24", "generate.prompts=[x]", *overrides)
    return storage, pack_all(storage, settings)


def rows_of(storage: LocalStorage, manifest: Manifest, split: str) -> list[Any]:
    rows = PackedRows(storage, manifest, split)
    found: list[Any] = rows.rows(range(rows.num_rows)).tolist()
    return found


@pytest.mark.parametrize("strategy", ["concat", "best_fit"])
def test_the_ledger_of_packing_proves_that_no_text_is_lost(tmp_path: Path, strategy: str) -> None:
    objective = "objective={kind: fim, rate: 0.8}"
    storage, manifest = packed(tmp_path / "fim", objective, f"pack.strategy={strategy}")
    train, held_out = (manifest.counts["splits"][split] for split in ("train", "validation"))
    assert train["num_documents"] == 4
    assert 0 < train["documents_rearranged"] <= 4
    assert (held_out["documents_rearranged"], held_out["tokens_marks"]) == (0, 0)
    rows = np.array(rows_of(storage, manifest, "train")).flatten()
    rest = storage_remainder(storage, manifest)
    together = np.concatenate([rows, rest])
    assert int(ENCODER.token_bytes()[together].sum()) == train["size_bytes"]
    marks = int(np.isin(together, [PREFIX, SUFFIX, MIDDLE]).sum())
    ends = int((together == EOS).sum()) - train["tokens_padding"]
    assert marks + ends - train["num_documents"] == train["tokens_marks"]
    assert train["tokens_in"] == train["tokens_in_rows"] + train["tokens_remainder"]
    plain, causal = packed(tmp_path / "causal", f"pack.strategy={strategy}")
    assert rows_of(storage, manifest, "validation") == rows_of(plain, causal, "validation")
    assert "tokens_marks" not in causal.counts["splits"]["train"]
    lines = [piece["line"] for row in range(train["num_rows"]) for piece in index_of(storage, manifest, "train", row)]
    assert max(lines) > 40


def storage_remainder(storage: LocalStorage, manifest: Manifest) -> Any:
    if "train/remainder.npy" not in manifest.names():
        return np.empty(0, np.int64)
    return np.load(io.BytesIO(manifest.read(storage, "train/remainder.npy"))).astype(np.int64)
