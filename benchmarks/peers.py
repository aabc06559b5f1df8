"""Plain ways to do what this project does, written anew from their descriptions.

`original_loop` and `ConstantLengthDataset` are the training of CodeParrot as chapter 10 of "Natural Language
Processing with Transformers" (Tunstall, von Werra, Wolf, 2022) describes it, on one process and without Accelerate,
which does nothing there: rows are cut while training from a buffer of documents that is tokenized when it is full
(its tail is lost), the loss is the model's own, every micro-batch waits for its loss, AdamW is the plain one over two
groups of parameters, and a scheduler of `transformers` sets the learning rate. Without activation checkpointing, which
the original needs for its 1.5 billion parameters.
"""

import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from codeparrot.optimizer import OptimizerSettings

if TYPE_CHECKING:
    import transformers

CHARACTERS_PER_TOKEN = 3.6
"""As the original estimates it."""


class ConstantLengthDataset(IterableDataset[torch.Tensor]):
    """Rows of constant length from texts, tokenized a buffer at a time."""

    def __init__(self, tokenizer: Any, texts: Iterable[str], max_seq_len: int, rows_in_buffer: int) -> None:
        self._tokenizer = tokenizer
        self._texts = texts
        self._max_seq_len = max_seq_len
        self._buffer_characters = rows_in_buffer * max_seq_len * CHARACTERS_PER_TOKEN

    def __iter__(self) -> Iterator[torch.Tensor]:
        for buffer in self._buffers():
            ids: list[int] = []
            for tokens in self._tokenizer(buffer, truncation=False)["input_ids"]:
                ids += [*tokens, self._tokenizer.eos_token_id]
            for start in range(0, len(ids), self._max_seq_len):
                row = ids[start : start + self._max_seq_len]
                if len(row) == self._max_seq_len:
                    yield torch.tensor(row)

    def _buffers(self) -> Iterator[list[str]]:
        buffer: list[str] = []
        size = 0
        for text in self._texts:
            buffer.append(text)
            size += len(text)
            if size >= self._buffer_characters:
                yield buffer
                buffer, size = [], 0
        if buffer:
            yield buffer


def fast_tokenizer(files: Mapping[str, bytes]) -> Any:
    """The tokenizer in these files, as `transformers` loads it."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def original_loader(dataset: "IterableDataset[torch.Tensor]", micro_batch_size: int) -> "DataLoader[torch.Tensor]":
    """Its DataLoader: in this process."""
    return DataLoader(dataset, batch_size=micro_batch_size)


def original_loop(
    model: "transformers.PreTrainedModel",
    batches: Iterable[torch.Tensor],
    settings: OptimizerSettings,
    *,
    num_steps: int,
    schedule_steps: int,
    num_accumulated: int,
) -> list[float]:
    """Train for `num_steps`; returns the loss of every micro-batch."""
    from transformers import get_scheduler

    optimizer = torch.optim.AdamW(
        _groups(model, settings.weight_decay),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
    )
    scheduler = get_scheduler(
        "cosine", optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=schedule_steps
    )
    losses: list[float] = []
    done = 0
    model.train()
    for number, batch in enumerate(batches, start=1):
        loss = model(batch, labels=batch).loss
        losses.append(loss.item())
        (loss / num_accumulated).backward()
        if number % num_accumulated == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm or float("inf"))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            done += 1
        if done == num_steps:
            return losses
    raise ValueError(f"the data ended after {done} of {num_steps} steps")


def _groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """No decay on biases and layer norms, told by their names: GPT-2 calls its norms ln_*, so only biases are found."""
    decays: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (others if "bias" in name or "LayerNorm.weight" in name else decays).append(parameter)
    return [{"params": decays, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def save_at_once(state: Mapping[str, Any], client: Any, bucket: str, key: str) -> None:
    """A checkpoint as one writes it first: pickled in memory, uploaded, and training waits for both."""
    data = io.BytesIO()
    torch.save(dict(state), data)
    data.seek(0)
    client.upload_fileobj(data, bucket, key)
