"""The next token: temperature, top-p, and draws that depend on nothing but their key.

A token is the maximum of score = logit / temperature + noise over the candidates, where the noise of a candidate is a
pure function of (seed of the request, position, token id) with a standard Gumbel distribution. That draws from the
softmax (Maddison et al., "A* Sampling" (2014), section 2), and it is robust: a logit that differs in its last bits
changes the token only if two scores were as close as that. A cumulated sum has no such property: each of its boundaries
moves with all logits before it.

Logits do differ in their last bits, with the number of rows in a batch and the length of its longest. So a choice also
says whether rounding could have changed it (`Choice.unsure`); the engine then computes that one row again by itself, in
one way that knows of no batch. What is left to chance is rounding larger than MARGIN.

Top-p keeps the fewest likeliest tokens whose probabilities add up to it (Holtzman et al., "The Curious Case of Neural
Text Degeneration" (2020), section 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MARGIN = 2.0**-15
"""Of a logit, relative to the largest of its row: what rounding in fp32 may move it by, with room to spare."""
NUM_CANDIDATES = 256
"""Likeliest tokens that are looked at first; only if top-p asks for more are all of them sorted."""


@dataclass(frozen=True)
class Draw:
    """How one row chooses."""

    seed: int
    """Keys its noise."""
    position: int
    """The number of the token in its completion."""
    temperature: float
    """0: the likeliest token."""
    top_p: float


@dataclass(frozen=True)
class Choice:
    """The tokens of a batch."""

    tokens: "torch.Tensor"
    """(rows,)"""
    unsure: "torch.Tensor"
    """(rows,), bool: rounding could have made it another."""


def choose(logits: "torch.Tensor", draws: Sequence[Draw], margin: float = MARGIN) -> Choice:
    """The next token of each row. `logits`: (rows, vocabulary)."""
    import torch

    logits = logits.float()
    tokens = torch.empty(len(draws), dtype=torch.long, device=logits.device)
    unsure = torch.zeros(len(draws), dtype=torch.bool, device=logits.device)
    kinds: dict[str, list[int]] = {}
    for row, draw in enumerate(draws):
        kind = "greedy" if draw.temperature == 0 else "full" if draw.top_p >= 1 else "nucleus"
        kinds.setdefault(kind, []).append(row)
    for kind, rows in kinds.items():
        index = torch.tensor(rows, device=logits.device)
        own = logits if len(rows) == len(draws) else logits[index]
        chosen, close = _CHOOSERS[kind](own, [draws[row] for row in rows], margin)
        tokens[index], unsure[index] = chosen, close
    return Choice(tokens, unsure)


def _greedy(logits: "torch.Tensor", _: Sequence[Draw], margin: float) -> "tuple[torch.Tensor, torch.Tensor]":
    return _best(logits, _rounding(logits, margin))


def _full(logits: "torch.Tensor", draws: Sequence[Draw], margin: float) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    ids = torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
    heat = _column(logits, [draw.temperature for draw in draws])
    return _best(logits / heat + gumbel(ids, draws), _rounding(logits, margin) / heat[:, 0])


def _nucleus(logits: "torch.Tensor", draws: Sequence[Draw], margin: float) -> "tuple[torch.Tensor, torch.Tensor]":
    """As `_full`, among the tokens of the nucleus.

    A token is unsure if another one is as good within rounding, if it would only be in the nucleus after rounding, or
    if it stands at the border of it and the border is not clear.
    """
    import torch

    heat, top_p = (_column(logits, [getattr(draw, name) for draw in draws]) for name in ("temperature", "top_p"))
    rounding = (_rounding(logits, margin) / heat[:, 0])[:, None]  # (rows, 1)
    scaled = logits / heat
    total = torch.logsumexp(scaled, 1, keepdim=True)
    num_candidates = min(NUM_CANDIDATES, logits.shape[1])
    while True:
        values, ids = torch.topk(scaled, num_candidates)  # (rows, candidates), likeliest first
        mass = torch.exp(values - total).double()
        through = mass.cumsum(1)
        if num_candidates == logits.shape[1] or bool((through[:, -1:] > top_p + 2 * rounding).all()):
            break
        num_candidates = logits.shape[1]
    before = through - mass
    inside = before < top_p
    last = inside.sum(1, keepdim=True) - 1  # the border: the least likely token that is inside
    border = values.gather(1, last)
    beyond = values.gather(1, (last + 1).clamp(max=num_candidates - 1)).where(
        last + 1 < num_candidates, torch.full_like(border, -torch.inf)
    )
    maybe = inside | (before < top_p + rounding) | (values > border - rounding)
    scores = (values + gumbel(ids, draws)).masked_fill(~maybe, -torch.inf)
    place, close = _best(scores, rounding[:, 0])
    place = place[:, None]
    unclear = (beyond > border - rounding) | (before.gather(1, last) > top_p - rounding)
    at_border = values.gather(1, place) < border + rounding
    unsure = close[:, None] | ~inside.gather(1, place) | (at_border & unclear)
    strict, _ = _best(scores.masked_fill(~inside, -torch.inf), rounding[:, 0])
    return ids.gather(1, strict[:, None])[:, 0], unsure[:, 0]


_CHOOSERS = {"greedy": _greedy, "full": _full, "nucleus": _nucleus}


def _best(scores: "torch.Tensor", rounding: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """The place of the best score of each row, and whether the second is as good within rounding."""
    import torch

    values, places = torch.topk(scores, min(2, scores.shape[1]))
    close = values[:, 0] - values[:, -1] < 2 * rounding if scores.shape[1] > 1 else rounding < 0
    return places[:, 0], close


def _rounding(logits: "torch.Tensor", margin: float) -> "torch.Tensor":
    """What rounding may move a logit of each row by: (rows,)."""
    finite = logits.masked_fill(logits.isinf(), 0)
    return finite.abs().amax(1) * margin


def _column(like: "torch.Tensor", values: Sequence[float]) -> "torch.Tensor":
    import torch

    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]


def gumbel(ids: "torch.Tensor", draws: Sequence[Draw]) -> "torch.Tensor":
    """Standard Gumbel noise of these token ids, one row for each draw: (rows, candidates), float64."""
    import torch

    keys = [_mix(_mix(draw.seed) + draw.position) for draw in draws]
    key = torch.tensor([_signed(value) for value in keys], device=ids.device)[:, None]
    bits = _mix_tensor(key + ids * _signed(GOLDEN))
    uniform = (_shifted(bits, 11).double() + 0.5) * 2.0**-53  # in (0, 1): neither end
    return -torch.log(-torch.log(uniform))


# SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators" (2014), figure 16): a step of GOLDEN, and
# a mixing of bits that passes the usual tests. The same in Python's integers and in int64, which wraps around.
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
WORD = 2**64 - 1


def _mix(value: int) -> int:
    value = (value + GOLDEN) & WORD
    value = ((value ^ (value >> 30)) * FIRST) & WORD
    value = ((value ^ (value >> 27)) * SECOND) & WORD
    return value ^ (value >> 31)


def _mix_tensor(value: "torch.Tensor") -> "torch.Tensor":
    value = (value ^ _shifted(value, 30)) * _signed(FIRST)
    value = (value ^ _shifted(value, 27)) * _signed(SECOND)
    return value ^ _shifted(value, 31)


def _shifted(value: "torch.Tensor", bits: int) -> "torch.Tensor":
    """To the right, filled with zeros; int64 knows only the shift that keeps the sign."""
    return (value >> bits) & (2 ** (64 - bits) - 1)


def _signed(value: int) -> int:
    value &= WORD
    return value - 2**64 if value >= 2**63 else value


def penalised(logits: "torch.Tensor", seen: "torch.Tensor", penalty: "torch.Tensor") -> "torch.Tensor":
    """Logits with those of tokens seen before made less likely.

    Keskar et al., "CTRL" (2019), section 4.1, divides; a negative logit is multiplied, else it would become likelier.
    `seen`: (rows, vocabulary), bool; `penalty`: (rows, 1), 1 for none.
    """
    import torch

    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
