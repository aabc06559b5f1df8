"""Several models on the same prompts and the same text, side by side on one page.

Bits per byte compare models of different tokenizers: the text is the same, each cuts it in its own way, and the unit is
the byte. Whether a difference is real is asked of documents drawn anew (`codeparrot.bootstrap`), the same ones for both
models; intervals are as wide as it takes for all of them together to hold with 95 %.

What a model writes shows what it has read: words that one writes and the others do not, modules that it imports, and,
where the corpus is known, the same of the corpus.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from codeparrot.bootstrap import CONFIDENCE, difference_interval, ratio_interval
from codeparrot.pages import html_page
from codeparrot.plots import FIRST, QUIET, SECOND, Bar, bar_plot
from codeparrot.settings import Settings
from codeparrot.wording import habits, modules_of, telling_words, top_modules, words_of

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

LN2 = math.log(2)
COLORS = (FIRST, SECOND, QUIET)
PROMPTS = (
    "When they came back",
    "import ",
    "def ",
    "class ",
    '"""',
    "from ",
    "async def ",
    "    return ",
)
"""The lecture's own prompt, and beginnings that leave it to the model what to write about."""


class CompareSettings(Settings):
    """How much is compared."""

    num_samples: PositiveInt = 8
    """Completions of each prompt."""
    max_new_tokens: PositiveInt = 64
    temperature: float = Field(default=0.8, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_bytes: PositiveInt = 200_000
    """Of each data set."""
    document_bytes: PositiveInt = 8_000
    """Of each document of it: its beginning."""
    batch_size: PositiveInt = 16
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class DataSet:
    """Text that all models are measured on."""

    name: str
    source: str
    num_bytes: Int64
    """Of each document."""
    units: Int64
    """The number of each document's repository, from 0: what is drawn anew, since texts of one tell of each other."""


@dataclass(frozen=True)
class Corpus:
    """A sample of what a model was trained on."""

    modules: Counter[str]
    num_documents: int


@dataclass(frozen=True)
class Contestant:
    """One model, and what was measured of it."""

    name: str
    source: str
    num_parameters: int
    vocab_size: int
    context: int
    nll: Sequence[Float64]
    """By data set, of each document."""
    num_tokens: Sequence[int]
    """By data set, in its own tokens."""
    completions: Sequence[Sequence[str]]
    """By prompt."""
    tokens_per_second: float
    bytes_per_second: float
    """Of completions: tokens of different vocabularies are not the same amount."""
    corpus: Corpus | None
    """None: not known."""
    pass_at_k: dict[str, Any] | None
    """If HumanEval was run."""


def comparison(
    models: Sequence[Contestant], data: Sequence[DataSet], prompts: Sequence[str], settings: CompareSettings
) -> dict[str, Any]:
    """All figures, as they stand in `comparison.json`."""
    written = [[text for texts in model.completions for text in texts] for model in models]
    modules = [modules_of(_with_prompts(model.completions, prompts)) for model in models]
    corpora = [model.corpus.modules for model in models if model.corpus]
    words = [words_of(texts) for texts in written]
    return {
        "settings": settings.model_dump(mode="json"),
        "prompts": list(prompts),
        "data": [
            {"name": each.name, "source": each.source, "num_documents": len(each.num_bytes)}
            | {"num_bytes": int(each.num_bytes.sum())}
            for each in data
        ],
        "models": [
            {
                "name": model.name,
                "source": model.source,
                "num_parameters": model.num_parameters,
                "vocab_size": model.vocab_size,
                "context": model.context,
                "tokens_per_second": model.tokens_per_second,
                "bytes_per_second": model.bytes_per_second,
                "pass_at_k": model.pass_at_k,
                "bits_per_byte": [_measured(model, index, each, settings.seed) for index, each in enumerate(data)],
                "completions": [list(texts) for texts in model.completions],
                "habits": habits(texts),
                "telling_words": [asdict(word) for word in telling_words(own, _others(words, place))],
                "modules": dict(modules[place].most_common()),
                "corpus_modules": dict(model.corpus.modules.most_common()) if model.corpus else None,
            }
            for place, (model, texts, own) in enumerate(zip(models, written, words, strict=True))
        ],
        "modules": top_modules([counts for counts in (*modules, *corpora) if counts]),
        "differences": differences(models, data, settings.seed),
    }


def differences(models: Sequence[Contestant], data: Sequence[DataSet], seed: int) -> list[dict[str, Any]]:
    """Every pair of models on every data set: bits per byte of the first less those of the second."""
    pairs = list(itertools.combinations(range(len(models)), 2))
    confidence = 1 - (1 - CONFIDENCE) / (len(pairs) * len(data))  # Bonferroni: all of them hold together
    found = []
    for index, each in enumerate(data):
        for one, other in pairs:
            first, second = models[one].nll[index] / LN2, models[other].nll[index] / LN2
            parts = [_by_unit(each, values) for values in (first, second, each.num_bytes)]
            interval = difference_interval(parts[0], parts[1], parts[2], seed, confidence)
            difference = (math.fsum(first.tolist()) - math.fsum(second.tolist())) / int(each.num_bytes.sum())
            better = one if difference < 0 else other
            found.append(
                {
                    "data": each.name,
                    "first": models[one].name,
                    "second": models[other].name,
                    "difference": difference,
                    "interval": asdict(interval) if interval else None,
                    "better": models[better].name if interval and interval.real else None,
                }
            )
    return found


def _by_unit(data: DataSet, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sums over the documents of each repository; the values themselves if there is only one."""
    return np.bincount(data.units, values) if data.units.any() else values


def _measured(model: Contestant, index: int, data: DataSet, seed: int) -> dict[str, Any]:
    bits = model.nll[index] / LN2
    num_bytes = int(data.num_bytes.sum())
    interval = ratio_interval(_by_unit(data, bits), _by_unit(data, data.num_bytes), seed)
    return {
        "data": data.name,
        "bits_per_byte": math.fsum(bits.tolist()) / num_bytes,
        "interval": asdict(interval) if interval else None,
        "bytes_per_token": num_bytes / model.num_tokens[index] if model.num_tokens[index] else None,
    }


def _with_prompts(completions: Sequence[Sequence[str]], prompts: Sequence[str]) -> list[str]:
    """Whole texts: what is imported may begin in the prompt."""
    return [prompt + text for prompt, texts in zip(prompts, completions, strict=True) for text in texts]


def _others(words: Sequence[Counter[str]], place: int) -> Counter[str]:
    total: Counter[str] = Counter()
    for index, counts in enumerate(words):
        if index != place:
            total += counts
    return total


def render(found: dict[str, Any], created: str) -> str:
    """The comparison as one self-contained HTML page."""
    from markupsafe import Markup

    known = [model["pass_at_k"] or {} for model in found["models"]]
    return html_page(
        "compare.html.j2",
        found=found,
        created=created,
        plot=Markup(bits_plot(found)),  # noqa: S704 - drawn and escaped by us
        winners=[winner(found, place) for place in range(len(found["data"]))],
        module_rows=module_rows(found),
        pass_at=sorted({k for each in known for k in each}, key=int),
    )


def winner(found: dict[str, Any], place: int) -> dict[str, Any]:
    """Which model needs fewest bits per byte on a data set, and the models that it is not told apart from."""
    name = min(found["models"], key=lambda model: model["bits_per_byte"][place]["bits_per_byte"])["name"]
    rows = [row for row in found["differences"] if row["data"] == found["data"][place]["name"]]
    unsure = [row for row in rows if name in (row["first"], row["second"]) and row["better"] is None]
    return {"name": name, "unsure": [row["second"] if row["first"] == name else row["first"] for row in unsure]}


def bits_plot(found: dict[str, Any]) -> str:
    """Bits per byte of every model, by data set."""
    colors = {model["name"]: COLORS[index % len(COLORS)] for index, model in enumerate(found["models"])}
    bars = [
        Bar(data["name"], colors[model["name"]], (model["bits_per_byte"][index]["bits_per_byte"],))
        for index, data in enumerate(found["data"])
        for model in found["models"]
    ]
    return bar_plot("bits", "Bits per byte", bars, [("bits per byte", lambda value: f"{value:.3f}")], colors)


def module_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Which share of its imports each model, and each known corpus, gives to a module."""
    return [
        {
            "name": name,
            "models": [_share(model["modules"], name) for model in found["models"]],
            "corpora": [_share(model["corpus_modules"], name) for model in found["models"] if model["corpus_modules"]],
        }
        for name in found["modules"]
    ]


def _share(counts: dict[str, int], name: str) -> float:
    total = sum(counts.values())
    return counts.get(name, 0) / total if total else 0.0
