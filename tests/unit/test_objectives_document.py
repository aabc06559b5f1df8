"""The example of docs/objectives.md, through all objectives: `python -m tests.unit.test_objectives_document`."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from codeparrot.infilling import Infilling, tell
from codeparrot.objectives import (
    Causal,
    CausalSettings,
    InfillSettings,
    Masked,
    MaskedSettings,
    ObjectiveSettings,
    Spans,
    SpanSettings,
    objective_of,
    special_tokens,
)
from codeparrot.tokenizer import Encoder, train_tokenizer

DOCUMENT = Path(__file__).parents[2] / "docs/objectives.md"
EXAMPLE = 'def add_numbers(a, b): "add two numbers" return a + b'
CORPUS = [f"{EXAMPLE}\nimport numpy as np\n".encode() * 20]
VOCAB_SIZE, MAX_SEQ_LEN, SEED = 285, 64, 9


def tokenizer_of(settings: ObjectiveSettings) -> str:
    return train_tokenizer(CORPUS, VOCAB_SIZE, special_tokens(settings, MAX_SEQ_LEN))


def told(settings: ObjectiveSettings) -> dict[str, str]:
    """What a model is shown and what it is asked, of a row that is the example between two ends of documents."""
    tokenizer = tokenizer_of(settings)
    encoder = Encoder(tokenizer)
    if isinstance(settings, InfillSettings):
        texts = pa.array([EXAMPLE], pa.large_string())
        tokens = tell(texts, ["example"], encoder, Infilling(settings, SEED, MAX_SEQ_LEN)).tokens
    else:
        tokens = np.append(encoder.encode([EXAMPLE])[0], encoder.eos_token_id)
    row = np.append(encoder.eos_token_id, tokens).astype(np.int64)
    objective = objective_of(settings, tokenizer, MAX_SEQ_LEN)
    if isinstance(objective, Causal):
        return {"reads": encoder.decode(row[:-1].tolist()), "says": encoder.decode(row[1:].tolist())}
    batch = [array[0].tolist() for array in objective.ask(row[None], None, SEED, [0])]
    if isinstance(objective, Spans):
        return {"reads": encoder.decode(batch[0]), "says": encoder.decode(batch[1])}
    assert isinstance(objective, Masked)
    asked = [encoder.decode([token]) for token in batch[2]]
    return {"reads": encoder.decode(batch[0]), "says": "  ".join(f"{token!r}" for token in asked)}


BLOCKS: dict[str, ObjectiveSettings] = {
    "causal": CausalSettings(),
    "fim, PSM": InfillSettings(kind="fim", rate=1, spm_rate=0),
    "fim, SPM": InfillSettings(kind="fim", rate=1, spm_rate=1),
    "masked": MaskedSettings(kind="masked", rate=0.3),
    "masked, whole_words": MaskedSettings(kind="masked", rate=0.3, whole_words=True),
    "span": SpanSettings(kind="span", rate=0.3),
}


def block(name: str) -> str:
    lines = [name, *(f"  {verb:<6} {text}" for verb, text in told(BLOCKS[name]).items())]
    return "\n".join(lines)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_document_shows_what_becomes_of_the_example(name: str) -> None:
    assert block(name) in DOCUMENT.read_text()


if __name__ == "__main__":
    print("\n".join(map(block, BLOCKS)))
