"""Packed rows and documents of a real store, predicted by a real model, against the plain way to do it."""

import math
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codeparrot.breakdown import breakdown
from codeparrot.copies import NGRAM
from codeparrot.dataloader import PackedRows
from codeparrot.manifest import Manifest, require_manifest
from codeparrot.model import ModelSettings, build_model, export_files, model_config
from codeparrot.provenance import index_of
from codeparrot.storage import LocalStorage
from codeparrot.tasks import TaskSettings
from codeparrot.tokenizer import Encoder, tokenizer_files
from ray_jobs import evaluate_tasks
from ray_jobs.evaluate_rows import SPLIT, Model, batch_costs, origins_of, together
from ray_jobs.evaluate_texts import sampled_texts, texts_cost
from tests.unit.packed_store import MAX_SEQ_LEN, TOKENIZER, backwards, curate, pack_all, recipe

TRAIN = [[("a", "one.py", "ab" * 20), ("a", "two.py", "ba" * 9)], [("b", "three.py", "a\n\nb" * 12)]]
HELD_OUT = [
    ("c", "long.py", "abab\n" * 9),
    ("c", "short.py", "ba"),
    ("d", "middle.py", "b\n" * 14),
    ("d", "exact.py", "aabbaab"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    encoder = Encoder(TOKENIZER)
    settings = ModelSettings(n_layer=1, n_head=2, n_embd=16)
    config = model_config(
        settings, vocab_size=encoder.vocab_size, max_seq_len=MAX_SEQ_LEN, eos_token_id=encoder.eos_token_id
    )
    files = {**export_files(build_model(config, seed=1)), **tokenizer_files(TOKENIZER, MAX_SEQ_LEN)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return Model(str(folder), None)


def packed_by(strategy: str, storage: LocalStorage) -> Manifest:
    curate(storage, TRAIN, HELD_OUT)
    return pack_all(storage, recipe(storage, f"pack.strategy={strategy}"))


def plainly(model: Model, storage: LocalStorage, packed: Manifest) -> dict[tuple[str, str], list[float]]:
    """(nats, tokens, bytes) of each document, token by token."""
    import torch

    rows = PackedRows(storage, packed, SPLIT)
    sizes = Encoder(TOKENIZER).token_bytes()
    found: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0, 0])
    for row in range(rows.num_rows):
        tokens = rows.tensor([row])
        with torch.inference_mode():
            scores = model.load().model(input_ids=tokens).logits[0].double().log_softmax(-1)
        for piece in index_of(storage, packed, SPLIT, row):
            for place in range(max(1, piece["offset"]), piece["offset"] + piece["num_tokens"]):
                token = int(tokens[0, place])
                total = found[piece["repository"], piece["path"]]
                total[0] -= float(scores[place - 1, token])
                total[1] += 1
                total[2] += int(sizes[token])
    return found


@pytest.mark.parametrize("strategy", ["concat", "best_fit"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_documents_cost_what_their_tokens_do_however_rows_are_batched(
    strategy: str, batch_size: int, storage: LocalStorage, model: Model
) -> None:
    packed = packed_by(strategy, storage)
    chosen = list(range(packed.counts["splits"][SPLIT]["num_rows"]))
    work = partial(batch_costs, uri=storage.uri, packed=packed, tokenizer_json=TOKENIZER, model=model)
    batches = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
    costs, positions = together([work(batch) for batch in batches])
    origins = origins_of(storage, packed, chosen)
    expected = plainly(model, storage, packed)
    found = {row["name"]: row for row in breakdown(costs, positions, origins, seed=0)["by_repository"]}
    for repository in ("c", "d"):
        nll, num_tokens, num_bytes = (
            sum(values[place] for (name, _), values in expected.items() if name == repository) for place in range(3)
        )
        assert found[repository]["num_tokens"] == num_tokens
        assert found[repository]["num_bytes"] == num_bytes
        assert found[repository]["loss"] == pytest.approx(nll / num_tokens, rel=1e-6)
        assert found[repository]["num_documents"] == 2
    assert positions.nll.sum() == pytest.approx(sum(values[0] for values in expected.values()), rel=1e-6)
    tokens = packed.counts["splits"][SPLIT]
    first = sum(1 for row in chosen if index_of(storage, packed, SPLIT, row))
    assert costs.num_tokens.sum() == positions.num_tokens.sum() == tokens["tokens_in_rows"] - first


def test_the_length_of_a_document_is_that_of_all_its_pieces(storage: LocalStorage) -> None:
    packed = packed_by("concat", storage)
    origins = origins_of(storage, packed, [0])
    (piece,) = index_of(storage, packed, SPLIT, 0)
    assert origins.repository == ["c"]
    assert origins.document_tokens[0] == len(Encoder(TOKENIZER).encode([HELD_OUT[0][2]])[0]) + 1 > piece["num_tokens"]


def test_whole_documents_cost_the_same_in_any_batch_and_their_bytes_are_those_of_the_text(
    storage: LocalStorage, model: Model
) -> None:
    packed_by("concat", storage)
    curated = require_manifest(storage, "curated", "curate")
    texts = sampled_texts(storage, curated, seed=1, max_bytes=10_000)
    assert sorted(text.content for text in texts) == sorted(content for _, _, content in HELD_OUT)
    one, many = (texts_cost(texts, model=model, batch_size=size).pieces for size in (1, 9))
    assert one.nll == pytest.approx(many.nll, rel=1e-6)
    assert one.num_bytes.tolist() == [len(text.content) for text in texts]
    ids, lengths = Encoder(TOKENIZER).encode([text.content for text in texts])
    assert one.num_tokens.tolist() == lengths.tolist()
    assert len(ids) == one.num_tokens.sum()
    assert one.nll / one.num_tokens == pytest.approx(np.full(4, math.log(262)), rel=0.2)


def test_documents_are_chosen_by_seed_and_name_until_there_is_enough(storage: LocalStorage) -> None:
    packed_by("concat", storage)
    curated = require_manifest(storage, "curated", "curate")
    few = sampled_texts(storage, curated, seed=1, max_bytes=20, document_bytes=12)
    all_of_them = sampled_texts(storage, curated, seed=1, max_bytes=10_000, document_bytes=12)
    assert [text.id for text in few] == [text.id for text in all_of_them][: len(few)]
    assert sum(text.num_bytes for text in few) >= 20 > sum(text.num_bytes for text in few[:-1])
    assert max(text.num_bytes for text in all_of_them) == 12
    storage.write("forgotten.json", b'{"repositories": {"c": "now"}}')
    assert {text.repository for text in sampled_texts(storage, curated, seed=1, max_bytes=10_000)} == {"d"}


@pytest.mark.parametrize("strategy", ["concat", "best_fit"])
def test_what_is_copied_is_found_in_any_shard_and_its_origin_told(
    strategy: str, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_tasks, "spread", backwards)
    packed = packed_by(strategy, storage)
    assert len(packed.names("train/rows-")) > 1
    rows, encoder = PackedRows(storage, packed, "train"), Encoder(TOKENIZER)
    learned = [rows.rows([row])[0] for row in range(rows.num_rows)]
    whole = [row for row in learned if encoder.eos_token_id not in row]
    texts = [encoder.decode(whole[-1].tolist()), "no such thing"]
    assert encoder.encode(texts[:1])[0].tolist() == whole[-1].tolist()
    found = evaluate_tasks.find_copies(storage, packed, TOKENIZER, texts)
    assert found[0].longest == MAX_SEQ_LEN == NGRAM
    assert np.concatenate(learned)[found[0].place :][:NGRAM].tolist() == whole[-1].tolist()
    assert found[0].covered.all()
    assert (found[1].longest, found[1].place) == (0, -1)


def test_tasks_are_written_until_the_answer_is_there(model: Model) -> None:
    from codeparrot.tasks import Task

    settings = TaskSettings(max_new_tokens=5)
    tasks = [
        Task("line", "a\n" * 30, "b", "", "", "r", "p", 31, 0),
        Task("body", "ab\n", " a", "ab", "", "r", "p", 2, 0),
    ]
    written = evaluate_tasks.complete_part(tasks, model=model, max_new_tokens=settings.max_new_tokens)
    assert len(written) == 2
    again = evaluate_tasks.complete_part(tasks[::-1], model=model, max_new_tokens=settings.max_new_tokens)
    assert again == written[::-1]


def test_figures_of_answers_by_hand() -> None:
    from codeparrot.copies import Match
    from codeparrot.tasks import Answer, Task

    def judged(kind: Any, similarity: float, longest: int, parses: bool | None) -> evaluate_tasks.Judged:
        fraction = None if parses is None else 0.5
        covered = np.arange(20) < longest
        return evaluate_tasks.Judged(
            Task(kind, "", "", "", "", "r", "p", 1, 0),
            Answer("", similarity == 1, similarity, parses, fraction),
            Match(longest, 0 if longest else -1, covered),
            Match(0, -1, np.zeros(10, bool)),
        )

    found = evaluate_tasks.summary([judged("line", 1.0, 10, None), judged("line", 0.5, 0, None)], seed=0)
    assert found["line"]["exact_match"] == 0.5
    assert found["line"]["edit_similarity"] == 0.75
    assert found["line"]["edit_similarity_interval"]["low"] == 0.5
    assert "parses" not in found["line"]
    assert "body" not in found
    assert found["copied"]["model"] == {"num_tokens": 40, "fraction": 0.25, "longest": 10, "longest_mean": 5}
    assert found["copied"]["author"]["fraction"] == 0
    both = evaluate_tasks.summary([judged("body", 0.0, 0, True), judged("body", 0.0, 0, False)], seed=0)
    assert (both["body"]["parses"], both["body"]["parsed_fraction"]) == (0.5, 0.5)
    assert evaluate_tasks.summary([], seed=0)["copied"]["model"]["longest"] == 0


def test_the_folder_of_a_model_is_read_once(model: Model, tmp_path: Path) -> None:
    assert model.load() is model.load()
