"""A model to measure decoding with: of the tiny recipe's size, with a tokenizer of real code, without any training.

Its weights are larger than those of a fresh model, so that the likeliest tokens are as far apart as those of a trained
one. It seldom ends a document or says a stop sequence: rows end at their limits.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.code import documents
from codeparrot.exported import Pretrained, load_folder
from codeparrot.model import ModelSettings, build_model, model_config
from codeparrot.tokenizer import tokenizer_files, train_tokenizer
from codeparrot.vocabulary import Vocabulary

TRAINING_BYTES = 10_000_000
VOCAB_SIZE, MAX_SEQ_LEN = 8192, 512
SIZE = ModelSettings(n_layer=4, n_head=4, n_embd=192)
SCALE = 2.0
NUM_THREADS = 2


@dataclass(frozen=True)
class Decoder:
    """The model and its vocabulary."""

    model: Any
    vocabulary: Vocabulary

    def generate(self, ids: torch.Tensor, mask: torch.Tensor, max_new_tokens: int, **how: Any) -> torch.Tensor:
        """The new tokens of `transformers`' own loop: (rows, new tokens)."""
        whole: torch.Tensor = self.model.generate(
            ids, attention_mask=mask, max_new_tokens=max_new_tokens, pad_token_id=0, **{"do_sample": False, **how}
        )
        return whole[:, ids.shape[1] :]


@lru_cache(maxsize=1)
def decoder() -> Decoder:
    """The same one every time."""
    torch.set_num_threads(NUM_THREADS)
    texts = [document.content.encode() for document in documents(TRAINING_BYTES)]
    model = build_model(model_config(SIZE, vocab_size=VOCAB_SIZE, max_seq_len=MAX_SEQ_LEN, eos_token_id=0), seed=0)
    for parameter in model.parameters():
        parameter.data *= SCALE
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for name, data in tokenizer_files(train_tokenizer(texts, VOCAB_SIZE), MAX_SEQ_LEN).items():
            (Path(folder) / name).write_bytes(data)
        loaded: Pretrained = load_folder(folder, "a fresh model", device="cpu", precision="fp32")
    return Decoder(loaded.model, Vocabulary(loaded.tokenizer))
