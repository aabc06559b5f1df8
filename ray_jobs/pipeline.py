"""All stages in order, as one job that can be interrupted anywhere and run again.

At the end it prints what came out, and copies report, data card, summary and export from the store to
`.codeparrot/runs/NAME/` (or below CODEPARROT_STATE) on the machine it runs on.
"""

import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from codeparrot import data_card
from codeparrot.config import Recipe
from codeparrot.manifest import Manifest
from codeparrot.plots import visible
from codeparrot.storage import LocalStorage, Storage
from ray_jobs import humaneval, report
from ray_jobs.progress import console, duration
from ray_jobs.stage import Outcome, command, run_stage, state_folder, wanted

STAGES = (*report.SHOWN, report.STAGE)


def run_pipeline(recipe: Recipe, storage: Storage) -> None:
    """Bring every output up to date and show the result."""
    if wanted("humaneval", recipe):
        humaneval.require_no_programs_beside_ray(recipe)  # now, rather than when the model is trained
    stages = [stage for stage in STAGES if wanted(stage.makes, recipe)]
    outcomes = [run_stage(stage, recipe, storage) for stage in stages]
    manifests = {stage.makes: outcome.manifest for stage, outcome in zip(stages, outcomes, strict=True)}
    folder = state_folder() / "runs" / recipe.run_name
    pairs = json.loads(manifests["completions"].read(storage, "completions.json"))
    local = LocalStorage(str(folder))
    copy_export(storage, manifests["run"], local)
    values = summary(recipe, storage, outcomes, manifests, pairs, folder / "export")
    text = json.dumps(values, indent=2, ensure_ascii=False).encode()
    local.write("summary.json", text)
    storage.write(f"{recipe.prefix_of('run')}/summary.json", text)
    local.write(report.PAGE, manifests["report"].read(storage, report.PAGE))
    for name in data_card.FILES:
        local.write(name, manifests["curated"].read(storage, name))
    show(outcomes, pairs)
    console.print()
    for label, name in (("summary", "summary.json"), ("report", report.PAGE), ("data card", data_card.HTML)):
        console.print(f"{label:<9}  {escape(str(folder / name))}")


def summary(
    recipe: Recipe,
    storage: Storage,
    outcomes: list[Outcome],
    manifests: dict[str, Manifest],
    completions: list[dict[str, str]],
    export: Path,
) -> dict[str, Any]:
    """The run in figures; the contract of `summary.json`."""
    run, packed, evaluation = (manifests[noun].counts for noun in ("run", "packed", "evaluation"))
    ledger = ("tokens_in", "tokens_in_rows", "tokens_remainder", "tokens_padding")
    measured = ("loss", "perplexity", "bits_per_byte", "gzip_bits_per_byte", "xz_bits_per_byte")
    return {
        "run_name": recipe.run_name,
        "storage_uri": storage.uri,
        "stages": [
            {"name": outcome.name, "seconds": round(outcome.seconds, 3), "status": outcome.status}
            for outcome in outcomes
        ],
        "num_parameters": run["num_parameters"],
        "world_size": run["world_size"],
        "num_documents": manifests["curated"].counts["num_documents"],
        "ledger": {key: sum(split[key] for split in packed["splits"].values()) for key in ledger},
        "ledger_by_split": packed["splits"],
        "validation": {key: evaluation[key] for key in measured},
        "checkpoint_uri": run["checkpoint_uri"],
        "export_path": str(export),
        "completions": completions,
        **({"humaneval": manifests["humaneval"].counts} if "humaneval" in manifests else {}),
    }


def copy_export(storage: Storage, run: Manifest, local: Storage) -> None:
    """The exported model on this machine, unless it is there already."""
    have = dict(local.list("export/"))
    for name in run.names("export/"):
        stamp, digest = f"export/.{name.removeprefix('export/')}.sha256", run.file(name).sha256.encode()
        if not (name in have and stamp in have and local.read(stamp) == digest):
            local.write(name, run.read(storage, name))
            local.write(stamp, digest)


def show(outcomes: list[Outcome], completions: list[dict[str, str]]) -> None:
    """The table of stages and the completions."""
    table = Table("stage", "status", "time", "in", "out")
    table.columns[2].justify = "right"
    for outcome in outcomes:
        table.add_row(outcome.name, outcome.status, duration(outcome.seconds), *outcome.summary)
    total = sum(outcome.seconds for outcome in outcomes)
    table.add_section()
    table.add_row("total", "", duration(total), "", "")
    console.print(table)
    for pair in completions:
        # Untrusted text: neither control sequences nor markup nor emoji codes of it may act.
        before, after = ((visible(pair.get(name, "")), "bold") for name in ("prompt", "suffix"))
        console.print(Text.assemble("\n", before, visible(pair["completion"]), after))


if __name__ == "__main__":
    command("ray_jobs.pipeline", run_pipeline)
