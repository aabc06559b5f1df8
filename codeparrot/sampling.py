"""The next token: temperature, top-p, and draws that depend on nothing but their key.

Every token of the vocabulary has a clock that rings after a time with an exponential distribution, faster the likelier
the token is; the token whose clock rings first is taken. That draws from the softmax (Maddison et al., "A* Sampling"
(2014), section 2, in another form). How long a clock takes is a pure function of (seed of the request, position, token
id) and of the probability of its own token. So a logit that differs in its last bits changes the choice only if two
clocks ring at once but for rounding. A cumulated sum has no such property: each of its borders moves with all before.

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
LEAST_TEMPERATURE = 1e-5
"""Below it logits overflow in fp32; the draw is the likeliest token anyway."""
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
    kinds: dict[str, list[int]] = {}
    for row, draw in enumerate(draws):
        kind = "greedy" if draw.temperature < LEAST_TEMPERATURE else "full" if draw.top_p >= 1 else "nucleus"
        kinds.setdefault(kind, []).append(row)
    tokens = torch.empty(len(draws), dtype=torch.long, device=logits.device)
    unsure = torch.empty(len(draws), dtype=torch.bool, device=logits.device)
    for kind, rows in kinds.items():
        own = logits if len(rows) == len(draws) else logits[rows]
        tokens[rows], unsure[rows] = _CHOOSERS[kind](own, [draws[row] for row in rows], margin)
    return Choice(tokens, unsure)


def _greedy(logits: "torch.Tensor", _: Sequence[Draw], margin: float) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    (first, second), places = (each.unbind(1) for each in torch.topk(logits, 2))
    return places[0], first - second < 2 * _rounding(logits, margin)


def _full(logits: "torch.Tensor", draws: Sequence[Draw], margin: float) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    heat = _column(logits, [draw.temperature for draw in draws])
    ids = torch.arange(logits.shape[1], device=logits.device)[None]
    return _first(torch.softmax(logits / heat, 1), clocks(ids, draws), _rounding(logits, margin) / heat[:, 0])


def _nucleus(logits: "torch.Tensor", draws: Sequence[Draw], margin: float) -> "tuple[torch.Tensor, torch.Tensor]":
    """As `_full`, among the fewest likeliest tokens that have the mass; those of narrow nuclei need no long sorting."""
    import torch

    heat = _column(logits, [draw.temperature for draw in draws])
    top_p = _column(logits, [draw.top_p for draw in draws])
    probabilities = torch.softmax(logits / heat, 1)
    rounding = _rounding(logits, margin)[:, None] / heat
    width = min(NUM_CANDIDATES, logits.shape[1])
    mass, ids = torch.topk(probabilities, width)  # (rows, candidates), likeliest first
    narrow = (mass.sum(1, dtype=torch.float64, keepdim=True) > top_p + 2 * rounding)[:, 0]
    tokens, unsure = torch.empty_like(ids[:, 0]), torch.empty_like(narrow)
    for rows in (narrow.nonzero()[:, 0], (~narrow).nonzero()[:, 0]):
        if rows.numel():
            wide = width < logits.shape[1] and not narrow[rows[0]]
            candidates = torch.sort(probabilities[rows], descending=True) if wide else (mass[rows], ids[rows])
            own = [draws[row] for row in rows.tolist()]
            tokens[rows], unsure[rows] = _of_nucleus(*candidates, top_p[rows], rounding[rows], own)
    return tokens, unsure


def _of_nucleus(
    mass: "torch.Tensor", ids: "torch.Tensor", top_p: "torch.Tensor", rounding: "torch.Tensor", draws: Sequence[Draw]
) -> "tuple[torch.Tensor, torch.Tensor]":
    """The choice among sorted candidates. `mass`, `ids`: (rows, candidates); `top_p`, `rounding`: (rows, 1).

    Unsure is also a token that would be in the nucleus only after rounding, and one at the border of the nucleus if the
    border itself is not clear: the next token is as likely, or the sum is as good as reached without it.
    """
    import torch

    through = mass.cumsum(1, dtype=torch.float64)
    before = through - mass
    inside = before < top_p
    inside[:, 0] = True  # the likeliest always, also where top_p is 0 in fp32
    last = inside.sum(1, keepdim=True) - 1
    border, beyond = mass.gather(1, last), mass.gather(1, (last + 1).clamp(max=mass.shape[1] - 1))
    as_likely = border * torch.exp(-2 * rounding)
    beyond = beyond.masked_fill(last + 1 == mass.shape[1], 0)
    times = clocks(ids, draws)
    maybe = inside | (before < top_p + rounding) | (mass > as_likely)
    place, close = _first(mass.masked_fill(~maybe, 0), times, rounding[:, 0])
    chosen, _ = _first(mass.masked_fill(~inside, 0), times, rounding[:, 0])
    unclear = (beyond > as_likely) | (before.gather(1, last) > top_p - rounding)
    at_border = mass.gather(1, place[:, None]) < border * torch.exp(2 * rounding)
    unsure = close[:, None] | ~inside.gather(1, place[:, None]) | (at_border & unclear)
    return ids.gather(1, chosen[:, None])[:, 0], unsure[:, 0]


_CHOOSERS = {"greedy": _greedy, "full": _full, "nucleus": _nucleus}


def _first(
    probabilities: "torch.Tensor", times: "torch.Tensor", rounding: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """The place in each row whose clock rings first, and whether another one does at once but for rounding."""
    import torch

    speeds, places = torch.topk(probabilities / times, 2)
    return places[:, 0], speeds[:, 1] > speeds[:, 0] * torch.exp(-2 * rounding)


def _rounding(logits: "torch.Tensor", margin: float) -> "torch.Tensor":
    """What rounding may move a logit of each row by: (rows,)."""
    import torch

    least, most = torch.aminmax(logits, dim=1)
    largest = torch.maximum(most.abs(), least.abs())
    return margin * torch.where(largest.isfinite(), largest, most.abs())


def _column(like: "torch.Tensor", values: Sequence[float]) -> "torch.Tensor":
    import torch

    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]


def clocks(ids: "torch.Tensor", draws: Sequence[Draw]) -> "torch.Tensor":
    """The times of these token ids at probability 1, standard exponential: (rows, candidates).

    `ids`: (rows, candidates), or (1, candidates) for the same in all rows.
    """
    import torch

    keys = [_signed(_mix(_mix(draw.seed) + draw.position)) for draw in draws]
    bits = torch.tensor(keys, device=ids.device)[:, None] + ids * _signed(GOLDEN)
    for shift, factor in ((30, FIRST), (27, SECOND), (31, 1)):
        bits ^= (bits >> shift).bitwise_and_(2 ** (64 - shift) - 1)  # int64 shifts its sign in; this one, zeros
        bits *= _signed(factor)
    uniform = (bits >> 11).bitwise_and_(2**53 - 1).double().add_(0.5).mul_(2.0**-53)  # in (0, 1): neither end
    return uniform.log_().neg_().float()


# SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators" (2014), figure 16): a step of GOLDEN, and
# a mixing of bits that passes the usual tests. The same in Python's integers and in int64, which wraps around.
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
WORD = 2**64 - 1


def _mix(value: int) -> int:
    value = (value + GOLDEN) & WORD
    value = ((value ^ (value >> 30)) * FIRST) & WORD
    value = ((value ^ (value >> 27)) * SECOND) & WORD
    return value ^ (value >> 31)


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
