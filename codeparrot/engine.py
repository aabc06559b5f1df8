"""Many completions at once: rows of a batch that come and go, one token of each in every step.

    engine = Engine(model, vocabulary)
    request_id = engine.add(Request(vocabulary.encode("def add("), max_new_tokens=64, stop=("\\ndef",)))
    while not engine.idle:
        for event in engine.step():
            print(event.text, end="")

A request joins between two steps, as soon as a slot is free, and leaves with its last token; nobody waits for the
longest of a batch. Equal prompts are computed once for all samples of them. The engine belongs to one thread and knows
nothing of who drives it: a loop, a Ray task or a server.

What is promised: the tokens of a request are a function of the model, the request and the machine alone, not of the
number of slots or of what else runs. Draws are keyed (`codeparrot.sampling`). Logits differ in their last bits with the
shape of a batch, so a row for which that could matter is computed again by itself. In bf16 rounding is too coarse for
that: there, a token may differ where two were all but equally good.

Not covered: models whose layers do not keep all that stands before (sliding windows, recurrent states), beams, prompts
shared in part. Those of `codeparrot.attention` are run with all their keys kept.
"""

import inspect
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from codeparrot.completion import Completion, Event, Request, Row, TokenScore, completion
from codeparrot.errors import GenerationError
from codeparrot.sampling import MARGIN, choose, penalised
from codeparrot.settings import Settings
from codeparrot.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch
    import transformers

logger = logging.getLogger(__name__)

FP32_BYTES = 4


class EngineSettings(Settings):
    """The room of an engine."""

    max_batch_size: PositiveInt = 32
    """Rows that run at once; more wait."""
    max_prompt_tokens: PositiveInt = 4096
    """Tokens of prompts that one step takes in, or one prompt: while it does, those that run wait."""


class Engine:
    """Decodes the requests that are added to it, a token of each at a step."""

    def __init__(
        self,
        model: "transformers.PreTrainedModel",
        vocabulary: Vocabulary,
        settings: EngineSettings = EngineSettings(),  # noqa: B008 - frozen
    ) -> None:
        """The model is used as it is, on its device and in its precision. Raises GenerationError if it cannot be."""
        require_decoder(model)
        from codeparrot.slots import Slots

        config = model.config.get_text_config()
        self.context: int = config.max_position_embeddings
        """Tokens of prompt and completion together, at most."""
        self.settings = settings
        self._model = model.eval()
        self.vocabulary = vocabulary
        self._vocab_size: int = config.vocab_size
        self._ends = vocabulary.eos_ids | _eos_ids(model)
        self._margin = MARGIN if model.dtype.itemsize >= FP32_BYTES else 0.0
        self._ids = count()
        self._told = False
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []
        """Those that run; each has the slot of its index."""
        self._slots = Slots(config.num_hidden_layers, settings.max_batch_size, self.context)

    @property
    def num_waiting(self) -> int:
        """Requests that no step has begun."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return len(self._rows)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._rows

    def add(self, request: Request) -> int:
        """Let a request wait for a slot; returns its number. Raises GenerationError if it cannot be served."""
        prompt = request.prompt_for(self.context, self._vocab_size)
        if len(prompt) < len(request.prompt_ids) and not self._told:
            self._told = True
            logger.warning(
                "prompts longer than the model's context of %d tokens, less max_new_tokens, lose their beginning",
                self.context,
            )
        row = Row(next(self._ids), request, prompt, self.vocabulary)
        self._waiting.append(row)
        return row.request_id

    def cancel(self, request_id: int) -> bool:
        """Forget a request, wherever it is; False if it had ended already. No event of it comes any more."""
        for row in self._waiting:
            if row.request_id == request_id:
                self._waiting.remove(row)
                return True
        for row in self._rows:
            if row.request_id == request_id:
                self._leave(row)
                return True
        return False

    def step(self) -> list[Event]:
        """What comes next: those that wait join as far as there is room, then every row gets a token."""
        import torch

        with torch.inference_mode():
            joined = self._join()
            events = self._emit(joined, torch.stack([_given(row.after_prompt) for row in joined])) if joined else []
            return events + (self._emit(list(self._rows), self._next_logits()) if self._rows else [])

    def complete(self, requests: Iterable[Request]) -> list[Completion]:
        """All of them to their ends, in the order given. They run longest prompt first: little is padded then."""
        asked = list(requests)
        place = {self.add(asked[index]): index for index in sorted(range(len(asked)), key=lambda i: _order(asked[i]))}
        events: list[list[Event]] = [[] for _ in asked]
        while not self.idle:
            for event in self.step():
                events[place[event.request_id]].append(event)
        return [completion(each) for each in events]

    def _join(self) -> list[Row]:
        """Take in those that wait; prompts that no row holds yet are computed, others copied."""
        taken = self._admitted()
        holders = {row.prompt: row for row in reversed(self._rows)}
        fresh = []
        for row in taken:
            if row.prompt not in holders or row.request.prompt_logprobs:
                holders[row.prompt] = row
                fresh.append(row)
        if fresh:
            self._compute(fresh)
        for row in taken:
            if row not in fresh:
                holder = holders[row.prompt]
                self._slots.make_room(len(self._rows) + 1)
                self._slots.copy(self._rows.index(holder), len(self._rows), len(row.prompt))
                self._rows.append(row)
                row.after_prompt = holder.after_prompt
        return taken

    def _admitted(self) -> list[Row]:
        """First come, first served. One that asks for the log-probabilities of its prompt is taken by itself."""
        known = {row.prompt for row in self._rows}
        taken: list[Row] = []
        lengths: list[int] = []
        while self._waiting and len(self._rows) + len(taken) < self.settings.max_batch_size:
            row = self._waiting[0]
            alone = row.request.prompt_logprobs
            if alone or row.prompt not in known:
                lengths.append(len(row.prompt))
                if taken and (alone or max(lengths) * len(lengths) > self.settings.max_prompt_tokens):
                    break
                known.add(row.prompt)
            taken.append(self._waiting.popleft())
            if alone:
                break
        return taken

    def _compute(self, rows: Sequence[Row]) -> None:
        """The keys, values and last logits of these prompts, in the next slots."""
        import torch

        ids = self._tensor(_padded([row.prompt for row in rows]))  # (rows, longest), filled at the right
        self._slots.for_prompts(len(self._rows), *ids.shape)
        self._rows += rows
        kept = sorted({len(row.prompt) - 1 for row in rows})
        scored = rows[0].request.prompt_logprobs
        logits = self._model(
            input_ids=ids,
            position_ids=torch.arange(ids.shape[1], device=ids.device)[None].expand_as(ids),
            past_key_values=self._slots,
            use_cache=True,
            logits_to_keep=0 if scored else self._tensor(kept),
        ).logits
        if scored:
            rows[0].prompt_scores = tuple(
                _scores(logits[0, :-1], rows[0].prompt[1:], rows[0].request.top_logprobs or 0)
            )
        for index, row in enumerate(rows):
            row.after_prompt = logits[index, -1 if scored else kept.index(len(row.prompt) - 1)].clone()

    def _next_logits(self) -> "torch.Tensor":
        """Of all rows, after their newest tokens: (rows, vocabulary)."""
        import torch

        lengths = self._tensor([row.num_stored for row in self._rows])
        longest = max(row.num_stored for row in self._rows)
        self._slots.for_tokens(lengths, longest)
        visible = torch.arange(longest + 1, device=lengths.device) <= lengths[:, None]  # (rows, columns)
        if self._model.config._attn_implementation == "eager":
            dtype = self._model.dtype
            visible = torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
        logits: torch.Tensor = self._model(
            input_ids=self._tensor([row.tokens[-1] for row in self._rows])[:, None],
            position_ids=lengths[:, None],
            attention_mask=visible[:, None, None],
            past_key_values=self._slots,
            use_cache=True,
        ).logits[:, -1]
        return logits

    def _emit(self, rows: Sequence[Row], logits: "torch.Tensor") -> list[Event]:
        """The next token of each row; rows that end leave."""
        tokens = self._chosen(rows, logits)
        scores: list[TokenScore | None] = [None] * len(rows)
        for index, row in enumerate(rows):
            if row.request.top_logprobs is not None:
                (scores[index],) = _scores(
                    logits[index : index + 1], tokens[index : index + 1], row.request.top_logprobs
                )
        events = []
        for row, token, score in zip(rows, tokens, scores, strict=True):
            events.append(row.advance(token, token in self._ends, score))
        for row, event in zip(rows, events, strict=True):
            if event.finish_reason:
                self._leave(row)
        return events

    def _chosen(self, rows: Sequence[Row], logits: "torch.Tensor") -> list[int]:
        draws = [row.draw for row in rows]
        choice = choose(self._penalised(rows, logits), draws, self._margin)
        tokens: list[int] = choice.tokens.tolist()
        for index in choice.unsure.nonzero()[:, 0].tolist():
            alone = self._penalised([rows[index]], self._logits_alone(rows[index]))
            tokens[index] = int(choose(alone, [draws[index]], margin=0).tokens)
        return tokens

    def _penalised(self, rows: Sequence[Row], logits: "torch.Tensor") -> "torch.Tensor":
        import torch

        penalties = [row.request.repetition_penalty for row in rows]
        if all(penalty == 1 for penalty in penalties):
            return logits
        seen = torch.zeros(logits.shape, dtype=torch.bool)
        for index, row in enumerate(rows):
            seen[index, [*row.prompt, *row.tokens]] = True
        return penalised(logits, seen.to(logits.device), self._tensor(penalties)[:, None])

    def _logits_alone(self, row: Row) -> "torch.Tensor":
        """The same as in the batch but for rounding, in the one way that does not depend on it: (1, vocabulary)."""
        ids = self._tensor([[*row.prompt, *row.tokens]])
        logits: torch.Tensor = self._model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        return logits

    def _leave(self, row: Row) -> None:
        """Free a slot; the last row moves into it."""
        import torch

        slot, last = self._rows.index(row), self._rows.pop()
        if last is not row:
            with torch.inference_mode():
                self._slots.copy(len(self._rows), slot, last.num_stored)
            self._rows[slot] = last

    def _tensor(self, values: Sequence[object]) -> "torch.Tensor":
        import torch

        return torch.tensor(values, device=self._model.device)


def require_decoder(model: "transformers.PreTrainedModel") -> None:
    """Raise GenerationError unless every layer of the model attends to all tokens before, by their positions."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    takes = inspect.signature(model.forward).parameters
    missing = [name for name in ("past_key_values", "position_ids", "logits_to_keep") if name not in takes]
    kinds = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers}
    if missing or kinds != {DynamicLayer.__name__}:
        why = f"its forward pass takes no {missing[0]}" if missing else f"its layers keep {', '.join(sorted(kinds))}"
        raise GenerationError(
            f"{type(model).__name__} is not a decoder that the engine can run: {why}; take one whose layers attend to "
            "all tokens before, such as GPT-2, GPT-NeoX or Llama"
        )
    if model.config._attn_implementation not in ("sdpa", "eager") and model.config.model_type != "codeparrot":
        model.set_attn_implementation("sdpa")


def _eos_ids(model: "transformers.PreTrainedModel") -> frozenset[int]:
    """The tokens with which the model itself says that a completion ends."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    return frozenset([] if ids is None else [ids] if isinstance(ids, int) else ids)


def _order(request: Request) -> tuple[int, tuple[int, ...]]:
    """Longest prompts first, equal ones together."""
    return (-len(request.prompt_ids), tuple(request.prompt_ids))


def _padded(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    longest = max(map(len, prompts))
    return [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]


def _given(logits: "torch.Tensor | None") -> "torch.Tensor":
    assert logits is not None
    return logits


def _scores(logits: "torch.Tensor", tokens: Sequence[int], num_top: int) -> list[TokenScore]:
    """Log-probabilities at these places. `logits`: (places, vocabulary)."""
    import torch

    logprobs = torch.log_softmax(logits.float(), 1)
    top = torch.topk(logprobs, num_top, 1)
    own = logprobs.gather(1, torch.tensor(list(tokens), device=logits.device)[:, None])[:, 0].tolist()
    likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        TokenScore(token, logprob, tuple(zip(ids, values, strict=True)))
        for token, logprob, (ids, values) in zip(tokens, own, likeliest, strict=True)
    ]
