"""What a recipe's training will take, as comments below the recipe that --dry-run prints."""

import argparse
from collections.abc import Iterator

from codeparrot.config import Recipe
from codeparrot.plots import compact, count, size
from codeparrot.sizing import ACCELERATORS, MFU, Accelerator, Layout, Size, layout_of, memory, size_of

DEFAULT_GPU = "h100"
ONLY_DRY = ("accelerator", "price", "mfu")
"""Options that say nothing without --dry-run."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that an estimate takes."""
    group = parser.add_argument_group("with --dry-run")
    group.add_argument("--accelerator", choices=sorted(ACCELERATORS), help=f"default, with use_gpu: {DEFAULT_GPU}")
    group.add_argument("--price", type=_positive, metavar="AMOUNT", help="of one accelerator for an hour")
    group.add_argument("--mfu", type=_share, metavar="SHARE", help=f"of its peak that is used; default: {MFU}")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be > 0, got {text}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be > 0 and <= 1, got {text}")
    return value


def require_dry_run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the command if options of an estimate stand without --dry-run."""
    given = [f"--{name}" for name in ONLY_DRY if getattr(options, name) is not None]
    if given and not options.dry_run:
        parser.error(f"{', '.join(given)}: only with --dry-run")


def estimate(recipe: Recipe, options: argparse.Namespace) -> str:
    """Lines that YAML takes for comments."""
    chosen = options.accelerator or (DEFAULT_GPU if recipe.train.use_gpu else None)
    device = ACCELERATORS[chosen] if chosen else None
    lines = [*_work(recipe), *_memory(recipe, device), *_time(recipe, device, options.mfu or MFU, options.price)]
    return "".join(f"# {line}".rstrip() + "\n" for line in ["", "An estimate (codeparrot/sizing.py):", *lines])


def size_of_recipe(recipe: Recipe) -> Size:
    """The arithmetic of its training."""
    return size_of(
        recipe.model, recipe.train, vocab_size=recipe.tokenizer.vocab_size, max_seq_len=recipe.pack.max_seq_len
    )


def _work(recipe: Recipe) -> Iterator[str]:
    found = size_of_recipe(recipe)
    yield f"parameters         {found.num_parameters / 1e6:.1f}M ({count(found.num_parameters)})"
    yield f"FLOPs per token    {found.flops_per_token:.4g}, forward and backward"
    yield (
        f"tokens             {compact(found.tokens)} ({count(recipe.train.max_steps)} steps of "
        f"{count(found.tokens_per_step)}), {found.tokens / found.num_parameters:.1f} for each parameter"
    )
    yield f"FLOPs              {found.flops:.3g}"


def _memory(recipe: Recipe, device: Accelerator | None) -> Iterator[str]:
    settings = recipe.train
    on_gpu = settings.use_gpu or device is not None
    precision = "fp32" if settings.precision == "fp32" or not on_gpu else "bf16"
    yield ""
    yield f"tensors of one of {settings.num_workers} workers at the fullest moment of a step, in {precision},"
    yield f"with micro-batches of {settings.micro_batch_size} rows"
    yield f"{'':32}{'weights':>10}{'gradients':>11}{'optimizer':>11}{'activations':>13}{'total':>10}"
    for parallel in ("ddp", "fsdp"):
        for again in (False, True):
            train = settings.model_copy(update={"parallel": parallel, "activation_checkpointing": again})
            layout = layout_of(
                recipe.model,
                train,
                vocab_size=recipe.tokenizer.vocab_size,
                max_seq_len=recipe.pack.max_seq_len,
                precision=precision,
                device="cuda" if on_gpu else "cpu",
            )
            this = (parallel, again) == (settings.parallel, settings.activation_checkpointing)
            yield _row(layout, this, device)


def _row(layout: Layout, this: bool, device: Accelerator | None) -> str:
    found = memory(layout)
    name = layout.parallel + (", activation checkpointing" if layout.activation_checkpointing else "")
    parts = (found.weights, found.gradients, found.optimizer, found.activations, found.total)
    cells = "".join(f"{size(part):>{width}}" for part, width in zip(parts, (10, 11, 11, 13, 10), strict=True))
    note = "  does not fit" if device and found.total > device.memory_bytes else ""
    return f"{name:<32}{cells}{'  this recipe' if this else ''}{note}"


def _time(recipe: Recipe, device: Accelerator | None, mfu: float, price: float | None) -> Iterator[str]:
    yield ""
    if device is None:
        yield "hours and cost: name a device by --accelerator"
        return
    workers = recipe.train.num_workers
    hours = size_of_recipe(recipe).hours(workers * device.flops, mfu)
    yield f"{workers} x {device.name}: {device.flops / 1e12:,.0f} TFLOP/s and {size(device.memory_bytes)} each"
    yield f"hours              {hours:,.1f} at an MFU of {mfu:.0%}: {hours * workers:,.1f} of one device"
    cost = f"{hours * workers * price:,.0f}, at {price:g} an hour" if price else "give the price of an hour by --price"
    yield f"cost               {cost}"
