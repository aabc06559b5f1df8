"""Several models on the same prompts and the same text, side by side on one page.

    python -m ray_jobs.compare MODEL MODEL... [--config RECIPE] [--prompts FILE] [--data WHERE]... [--to FOLDER]

A MODEL is a recipe (its run), a run of the store that --config names (RUN, RUN@STEP), the address of a run, a folder as
`transformers` has them, or a model of the hub. The text is the validation split of every corpus that the models are
known to come from, unless --data names others: a recipe, the address of a store, a folder or a file.

No stage: it writes `comparison.html` and `comparison.json` into a folder of this machine.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from codeparrot.compare import PROMPTS, CompareSettings, Contestant, Corpus, DataSet, comparison, render
from codeparrot.config import load_recipe
from codeparrot.documents import ReadReason, decode
from codeparrot.draws import key
from codeparrot.errors import ConfigError
from codeparrot.manifest import load_manifest
from codeparrot.pretrained import CONFIG, NAMED, OF_A_RUN
from codeparrot.runs import find_runs, prefix_of
from codeparrot.settings import validate
from codeparrot.storage import LocalStorage, Storage, open_storage
from codeparrot.wording import modules_of
from ray_jobs.cluster import ray_session, spread
from ray_jobs.compare_model import Measured, measure
from ray_jobs.evaluate_rows import Model
from ray_jobs.evaluate_texts import Text, sampled_texts
from ray_jobs.interrupt import interruptible
from ray_jobs.progress import configure_logging
from ray_jobs.runs import print_table
from ray_jobs.stage import add_overrides, reported, state_folder

NAME = "ray_jobs.compare"
PAGE, FIGURES = "comparison.html", "comparison.json"
RECIPES = (".yaml", ".yml")
"""How names of recipes end."""
CORPUS_BYTES = 2_000_000
"""Of a training split that are looked at for what it imports."""


@dataclass(frozen=True)
class Named:
    """A model as it was named on the command line."""

    name: str
    """Short, and another one for each."""
    where: str
    store: str | None
    """The base of the store of its run."""
    run: str | None = None
    """If it is what this run has exported."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer the command line; returns the exit code."""
    options = parse(NAME, arguments)
    configure_logging(options.debug)
    return reported(lambda: compare(options), debug=options.debug)


def parse(name: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description="Compare models.", allow_abbrev=False)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a recipe, a run, an address, a folder, OWNER/NAME")
    parser.add_argument(
        "--config", metavar="FILE", help="the recipe whose store knows the runs, and whose prompts are taken"
    )
    add_overrides(parser)
    parser.add_argument("--prompts", metavar="FILE", help="a prompt on each line (\\n: a line feed), or JSON lines")
    parser.add_argument("--data", action="append", default=[], metavar="WHERE", help="text to predict; repeatable")
    parser.add_argument("--to", metavar="FOLDER", help="where the page goes")
    for setting, field in CompareSettings.model_fields.items():
        kind: Any = field.annotation if isinstance(field.annotation, type) else int
        parser.add_argument(
            f"--{setting.replace('_', '-')}", type=kind, default=field.default, metavar="N", help=field.description
        )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)
    options.dry_run = False
    if options.config is None:
        options.config = next((model for model in options.models if model.endswith(RECIPES)), None)
    return options


def store_of(options: argparse.Namespace) -> str:
    """The address of a store that holds one of the models, or of none, where no recipe says it."""
    found = (OF_A_RUN.fullmatch(model) for model in options.models)
    return next((each["base"] for each in found if each and "://" in each["base"]), "file:///")


def compare(options: argparse.Namespace) -> int:
    """Measure all models, and write the page."""
    values = {name: getattr(options, name) for name in CompareSettings.model_fields}
    settings = validate(CompareSettings, values, "the command line")
    recipe = load_recipe(options.config, options.overrides) if options.config else None
    models = named_models(options.models, recipe.storage.uri if recipe else None, options.overrides)
    prompts = read_prompts(Path(options.prompts)) if options.prompts else list(PROMPTS)
    with interruptible(), ray_session():
        data = data_sets(options.data or [model.store for model in models if model.store], settings)
        contents = [[text.content for text in each.texts] for each in data]
        work = partial(measure, data=contents, prompts=prompts, settings=settings)
        # One after the other: speeds are compared too.
        measured = spread("compare", [Model(model.where, model.store) for model in models], work, "models", workers=1)
        contestants = [contestant(*each, settings.seed) for each in zip(models, measured, strict=True)]
        found = comparison(contestants, [each.measured for each in data], prompts, settings)
    folder = Path(options.to) if options.to else state_folder() / "comparisons" / "-".join(each.name for each in models)
    target = LocalStorage(str(folder))
    target.write(FIGURES, json.dumps(found, indent=1).encode())
    target.write(PAGE, render(found, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())).encode())
    show(found)
    print(f"page     {folder / PAGE}\nfigures  {folder / FIGURES}")
    return 0


def named_models(wanted: Sequence[str], store: str | None, overrides: Sequence[str] = ()) -> list[Named]:
    """The models, each with a short name of its own. Raises ConfigError."""
    if len(wanted) < 2:
        raise ConfigError(f"compare: name two models or more, got only {wanted[0]}")
    twice = [where for where, times in Counter(wanted).items() if times > 1]
    if twice:
        raise ConfigError(f"compare: {twice[0]} is named twice; a model does not differ from itself")
    found = [_named(where, store, overrides) for where in wanted]
    times = Counter(model.name for model in found)
    return [
        replace(model, name=f"{model.name}-{index + 1}") if times[model.name] > 1 else model
        for index, model in enumerate(found)
    ]


def _named(where: str, store: str | None, overrides: Sequence[str]) -> Named:
    if where.endswith(RECIPES):
        recipe = load_recipe(where, overrides)
        return Named(
            recipe.run_name,
            f"{recipe.storage.uri.rstrip('/')}/runs/{recipe.run_name}",
            recipe.storage.uri,
            recipe.run_name,
        )
    of_a_run = OF_A_RUN.fullmatch(where)
    if of_a_run and ("://" in where or not (Path(where).expanduser() / CONFIG).is_file()):
        step = f"@{int(of_a_run['step'])}" if of_a_run["step"] else ""
        run = None if step else of_a_run["run"]
        return Named(f"{of_a_run['run']}{step}", where, of_a_run["base"] or ".", run)
    if store is not None and NAMED.fullmatch(where) and find_runs(open_storage(store), where.partition("@")[0]):
        return Named(where, where, store, None if "@" in where else where)
    return Named(Path(where.rstrip("/")).name, where, None)


def read_prompts(path: Path) -> list[str]:
    """The prompts in a file. Raises ConfigError if there are none, or it cannot be read."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"--prompts {path}: cannot be read: {reason}") from error
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        prompts = [_prompt(line) for line in lines] if path.suffix == ".jsonl" else [_escaped(line) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'--prompts {path}: a line is neither a string nor {{"prompt": "..."}} in JSON') from error
    if not prompts:
        raise ConfigError(f"--prompts {path}: it holds no prompt; write one on each line")
    return prompts


def _prompt(line: str) -> str:
    value = json.loads(line)
    found = value if isinstance(value, str) else value["prompt"]
    if not isinstance(found, str):
        raise TypeError(found)
    return found


def _escaped(line: str) -> str:
    return line.replace("\\n", "\n")


@dataclass(frozen=True)
class Data:
    """Text that all models predict."""

    measured: DataSet
    texts: Sequence[Text]


def data_sets(places: Sequence[str], settings: CompareSettings) -> list[Data]:
    """The texts at these places, each once. Raises ConfigError if there are none."""
    if not places:
        raise ConfigError("compare: no model is a run of a store, so there is no held-out text; name some by --data")
    found = []
    for where in dict.fromkeys(places):
        name, source, texts = _texts(where, settings)
        if not texts:
            raise ConfigError(f"--data {where}: it holds no text; name a recipe, a store, a folder or a file of UTF-8")
        sizes = np.array([text.num_bytes for text in texts], np.int64)
        _, units = np.unique([text.repository for text in texts], return_inverse=True)
        found.append(Data(DataSet(name, source, sizes, units), texts))
    names = Counter(each.measured.name for each in found)
    return [
        each if names[each.measured.name] == 1 else replace(each, measured=replace(each.measured, name=where))
        for each, where in zip(found, dict.fromkeys(places), strict=True)
    ]


def _texts(where: str, settings: CompareSettings) -> tuple[str, str, list[Text]]:
    """(a name, where it is in full, documents)"""
    store = load_recipe(where).storage.uri if where.endswith(RECIPES) else where
    path = Path(where).expanduser()
    is_store = where.endswith(RECIPES) or "://" in store or not path.is_file()
    curated = load_manifest(open_storage(store), "curated") if is_store else None
    if curated is None and where.endswith(RECIPES):
        raise ConfigError(f"--data {where}: nothing is curated in its store; run `python -m ray_jobs.curate` first")
    if curated is not None:
        texts = sampled_texts(open_storage(store), curated, settings.seed, settings.max_bytes, settings.document_bytes)
        return store.rstrip("/").rpartition("/")[2], f"validation split of {store}", texts
    if not path.exists():
        raise ConfigError(f"--data {where}: neither a file, a folder, a recipe nor a store with a curated corpus")
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*.py") if each.is_file())
    files.sort(key=lambda file: key(settings.seed, "compare", str(file.relative_to(path))))
    texts, total = [], 0
    for file in files:
        content = decode(file.read_bytes())
        if not isinstance(content, ReadReason) and total < settings.max_bytes:
            text = Text(str(file), path.name, None, content[: settings.document_bytes])
            texts.append(text)
            total += text.num_bytes
    return path.name, str(path.absolute()), texts


def contestant(model: Named, measured: Measured, seed: int) -> Contestant:
    """A model with all that is known of it."""
    corpus, pass_at_k = None, None
    if model.store is not None:
        storage = open_storage(model.store)
        corpus = sampled_corpus(storage, seed)
        made = load_manifest(storage, prefix_of(model.run)) if model.run else None
        scored = load_manifest(storage, f"{prefix_of(model.run)}/humaneval") if model.run and made else None
        pass_at_k = scored.counts["pass_at_k"] if made and scored and scored.inputs["run"] == made.digest else None
    return Contestant(
        name=model.name,
        source=measured.source,
        num_parameters=measured.num_parameters,
        vocab_size=measured.vocab_size,
        context=measured.context,
        nll=[costs.nll for costs in measured.costs],
        num_tokens=[int(costs.num_tokens.sum()) for costs in measured.costs],
        completions=measured.completions,
        tokens_per_second=measured.num_tokens / measured.seconds,
        bytes_per_second=sum(len(text.encode()) for texts in measured.completions for text in texts) / measured.seconds,
        corpus=corpus,
        pass_at_k=pass_at_k,
    )


def sampled_corpus(storage: Storage, seed: int) -> Corpus | None:
    """What a sample of a training split imports; None if there is no corpus."""
    curated = load_manifest(storage, "curated")
    if curated is None:
        return None
    texts = sampled_texts(storage, curated, seed, CORPUS_BYTES, split="train")
    return Corpus(modules_of([text.content for text in texts]), len(texts))


def show(found: Mapping[str, Any]) -> None:
    """The figures that matter, for a person."""
    columns = ("text", *(f">{model['name']}" for model in found["models"]))
    rows = [
        [data["name"], *(f"{model['bits_per_byte'][place]['bits_per_byte']:.3f}" for model in found["models"])]
        for place, data in enumerate(found["data"])
    ]
    print("bits per byte")
    print_table(columns, rows)
    for row in found["differences"]:
        verdict = f"{row['better']} is better" if row["better"] else "not told apart"
        bounds = row["interval"]
        between = f"{bounds['low']:+.3f} to {bounds['high']:+.3f}" if bounds else "no interval"
        print(f"on {row['data']}: {row['first']} - {row['second']} {row['difference']:+.3f} ({between}): {verdict}")


if __name__ == "__main__":
    sys.exit(main())
