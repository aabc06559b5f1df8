"""Remove repositories from what is learned: pack anew without them, and say which runs had seen them.

    python -m ray_jobs.forget --config FILE REPOSITORY... [--yes]

Their names are put on the store's list (`codeparrot.forgotten`), which `collect` and `pack` obey from then on, and
`pack` runs. Without --yes nothing is changed: it only says which rows and runs are concerned.
"""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from codeparrot.config import Recipe
from codeparrot.errors import ConfigError, ManifestError
from codeparrot.forgotten import FORGOTTEN, forget, forgotten
from codeparrot.manifest import Manifest, load_manifest, require_manifest
from codeparrot.provenance import read_version, repositories_of
from codeparrot.sightings import Sighting, sightings
from codeparrot.splits import SPLITS
from codeparrot.storage import Storage, open_storage
from ray_jobs import pack
from ray_jobs.cluster import ray_session
from ray_jobs.progress import configure_logging
from ray_jobs.runs import print_table
from ray_jobs.stage import guarded, run_stage, shared_options

NAME = "ray_jobs.forget"
NUM_SHOWN = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    options = parse(NAME, arguments)
    configure_logging(options.debug)
    return guarded(options, lambda recipe: remove(options, recipe, open_storage(recipe.storage.uri)))


def parse(name: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = shared_options(name)
    parser.description = "Remove repositories from what is learned."
    parser.add_argument("repositories", nargs="+", metavar="REPOSITORY", help="its name, as in attribution.jsonl")
    parser.add_argument("--yes", action="store_true", help="do it, rather than say what it concerns")
    return parser.parse_args(arguments)


def remove(options: argparse.Namespace, recipe: Recipe, storage: Storage) -> None:
    """Say what is concerned, and with --yes forget it and pack anew. Raises ConfigError without --yes."""
    names = sorted(set(options.repositories))
    packed = require_manifest(storage, recipe.prefix_of("packed"), "pack")
    require_known(storage, recipe, packed, names)
    version = read_version(storage, packed.prefix, packed.digest, names)
    for name in names:
        rows = {split: len(version.rows.get(split, {}).get(name, ())) if version else 0 for split in SPLITS}
        print(f"{name}: in {', '.join(f'{count:,} rows of {split}' for split, count in rows.items())}")
    print_sightings(sightings(storage, packed.prefix, names))
    if not options.yes:
        raise ConfigError(f"nothing was changed: {', '.join(names)} is forgotten only with --yes")
    forget(storage, names)
    sys.stdout.flush()
    with ray_session():
        run_stage(pack.STAGE, recipe, storage)
    print(
        f"forgotten: {', '.join(names)} ({storage.uri}/{FORGOTTEN}); no later version of {packed.prefix} has rows of "
        f"it. {recipe.prefix_of('raw')} and {recipe.prefix_of('curated')} have it until `python -m ray_jobs.pipeline` "
        "runs again, and models that have seen it until they are deleted"
    )


def require_known(storage: Storage, recipe: Recipe, packed: Manifest, names: Sequence[str]) -> None:
    """Raise ConfigError if the store has never had one of them: it is a slip of the pen, most likely."""
    in_rows = repositories_of(storage, packed.prefix, packed.digest)
    if not in_rows:
        raise ManifestError(f"{packed.prefix} was packed without provenance; run `python -m ray_jobs.pack` again")
    raw = load_manifest(storage, recipe.prefix_of("raw"))
    known = {*in_rows, *(raw.counts["by_repository"] if raw else ()), *forgotten(storage)}
    for name in names:
        if name not in known:
            near = get_close_matches(name, sorted(known), n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "attribution.jsonl of the curated output lists them"
            raise ConfigError(f"{storage.uri} has no repository {name!r}; {hint}")


def print_sightings(found: Sequence[Sighting]) -> None:
    """A line for each run that has, or may have, seen them."""
    if not found:
        print("no run in this store has seen them")
        return
    columns = ("run", ">steps", "packed", ">seen", ">first in step", "which")
    print_table(columns, [_cells(sighting) for sighting in found])


def _cells(sighting: Sighting) -> list[str]:
    training, held, rows = sighting.training, sighting.num_held, sighting.rows
    which = ", ".join(map(str, rows[:NUM_SHOWN])) + (", ..." if len(rows) > NUM_SHOWN else "") if rows else ""
    if held is None:
        which = "packed before provenance was kept: it may have seen them"
    elif rows is None:
        which = f"it mixes corpora: it may have seen some of {held:,} rows"
    seen = f"{len(rows):,} of {held:,}" if rows is not None else "?"
    first = f"{sighting.first_step}" if sighting.first_step is not None else "?"
    return [training.run, f"{training.num_steps}", training.packed[:12], seen, first, which]


if __name__ == "__main__":
    sys.exit(main())
