"""What models that are no decoders put into the holes of a prompt: tokens for `<|mask|>`, text for `<extra_id_0>`.

Holes are filled from the first to the last, each one in view of those before it. Draws are keyed by (seed, prompt
number, place), and special tokens are never drawn into a text.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from codeparrot.draws import key
from codeparrot.errors import GenerationError
from codeparrot.exported import Pretrained
from codeparrot.generate import GenerateSettings, Written
from codeparrot.objectives import split_at_holes
from codeparrot.sampling import Draw, choose
from codeparrot.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch


def fill(loaded: Pretrained, prompts: Mapping[int, str], settings: GenerateSettings, seed: int) -> list[Written]:
    """These numbered prompts with their holes filled. Raises GenerationError for one that the model cannot take in."""
    import torch

    vocabulary = Vocabulary(loaded.tokenizer)
    fill_one = _Spans if loaded.model.config.is_encoder_decoder else _Masks
    written = []
    for number, prompt in prompts.items():
        texts, holes = split_at_holes(prompt)
        with torch.inference_mode():
            fills = fill_one(loaded.model, vocabulary, settings, key(seed, "completion", number)).fill(texts, holes)
        completion = fills[0] + "".join(text + more for text, more in zip(texts[1:-1], fills[1:], strict=True))
        written.append(Written(texts[0], completion, texts[-1]))
    return written


class _Filling:
    """One prompt that is being filled."""

    def __init__(self, model: Any, vocabulary: Vocabulary, settings: GenerateSettings, seed: int) -> None:
        import torch

        self.model, self.vocabulary, self._settings, self._seed = model, vocabulary, settings, seed
        self.special = vocabulary.special_ids
        self._barred = torch.tensor(sorted(self.special), device=model.device)
        self._num_drawn = 0

    def fill(self, texts: Sequence[str], holes: Sequence[str]) -> list[str]:
        """What goes into the holes, which stand between the texts."""
        raise NotImplementedError

    def draw(self, logits: "torch.Tensor", *, may_end: bool) -> int:
        """The next token of these logits, (V,): special ones only if it may end."""
        logits = logits if may_end else logits.index_fill(0, self._barred, float("-inf"))
        draw = Draw(self._seed, self._num_drawn, self._settings.temperature, self._settings.top_p)
        self._num_drawn += 1
        return int(choose(logits[None], [draw], margin=0).tokens)

    def tensor(self, ids: Sequence[int]) -> "torch.Tensor":
        import torch

        return torch.tensor([ids], device=self.model.device)


class _Masks(_Filling):
    """A token for each hole, of an encoder."""

    def fill(self, texts: Sequence[str], holes: Sequence[str]) -> list[str]:
        ids = self.vocabulary.encode_with_holes(texts, holes)
        context = self.model.config.max_position_embeddings
        if len(ids) > context:
            raise GenerationError(f"a prompt of {len(ids)} tokens does not fit in the model's context of {context}")
        fills = []
        for place in [place for place, token in enumerate(ids) if token == self.vocabulary.tokenizer.mask_token_id]:
            ids[place] = self.draw(self.model(input_ids=self.tensor(ids)).logits[0, place], may_end=False)
            fills.append(self.vocabulary.decode([ids[place]]))
        return fills


class _Spans(_Filling):
    """A few tokens for each hole, of a decoder that has been told which hole it is at."""

    def fill(self, texts: Sequence[str], holes: Sequence[str]) -> list[str]:
        ids = self.tensor(self.vocabulary.encode_with_holes(texts, holes))
        read = self.model.get_encoder()(input_ids=ids).last_hidden_state
        said = [self.model.config.decoder_start_token_id]
        room = self._settings.max_new_tokens
        fills = []
        for hole in holes:
            said.append(self.vocabulary.tokenizer.get_vocab()[hole])
            own: list[int] = []
            while room > 0:
                room -= 1
                logits = self.model(encoder_outputs=(read,), decoder_input_ids=self.tensor(said)).logits[0, -1]
                token = self.draw(logits, may_end=bool(own))
                if token in self.special:
                    break
                own.append(token)
                said.append(token)
            fills.append(self.vocabulary.decode(own))
        return fills
