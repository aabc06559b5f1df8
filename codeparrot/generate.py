"""Completions: what a model writes after a prompt.

Random numbers are keyed by (seed, prompt number), so a completion depends on nothing else.
"""

from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from codeparrot.settings import Settings
from codeparrot.tokenizer import Encoder

if TYPE_CHECKING:
    import transformers


class GenerateSettings(Settings):
    """What to complete, and how."""

    prompts: tuple[str, ...] = Field(min_length=1)
    max_new_tokens: PositiveInt = 96
    temperature: float = Field(default=0.6, ge=0)
    """0: always the likeliest token."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    repetition_penalty: float = Field(default=1.1, gt=0)
    """Above 1: tokens seen before become less likely."""


def complete(
    model: "transformers.PreTrainedModel", encoder: Encoder, prompt: str, settings: GenerateSettings, key: int
) -> str:
    """The completion of one prompt, without the prompt. The context is the model's last `n_positions` tokens."""
    import torch

    ids = [encoder.eos_token_id, *encoder.encode([prompt])[0].tolist()]
    room = max(1, int(model.config.n_positions) - settings.max_new_tokens)
    inputs = torch.tensor([ids[-room:]])
    torch.manual_seed(key)
    sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
    with torch.inference_mode():
        out = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=min(settings.max_new_tokens, int(model.config.n_positions) - inputs.shape[1]),
            repetition_penalty=settings.repetition_penalty,
            pad_token_id=encoder.eos_token_id,
            **(sampling if settings.temperature > 0 else {"do_sample": False}),
        )
    new = out[0, inputs.shape[1] :].tolist()
    if encoder.eos_token_id in new:
        new = new[: new.index(encoder.eos_token_id)]
    return encoder.decode(new)
