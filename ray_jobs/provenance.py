"""Where a packed row comes from.

    python -m ray_jobs.provenance --config FILE [--split SPLIT] [--json] ROW[:OFFSET]

prints repository, path, line, revision and licence of every piece of a document in a row; with an offset, of the piece
that the token there belongs to, and the line of that token. No stage, and no Ray: everything is read from the store.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from codeparrot.config import Recipe
from codeparrot.dataloader import PackedRows
from codeparrot.errors import ConfigError
from codeparrot.manifest import Manifest, load_manifest, require_manifest
from codeparrot.provenance import index_of
from codeparrot.splits import SPLITS
from codeparrot.storage import Storage, open_storage
from codeparrot.tokenizer import Encoder
from ray_jobs.runs import UNKNOWN, print_json, print_table
from ray_jobs.stage import guarded, shared_options

NAME = "ray_jobs.provenance"
SHOWN = ("repository", "path", "revision", "license")


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer the command line; returns the exit code."""
    options = parse(NAME, arguments)
    return guarded(options, lambda recipe: show(options, recipe, open_storage(recipe.storage.uri)))


def parse(name: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = shared_options(name)
    parser.description = "Where a packed row comes from."
    parser.add_argument("where", metavar="ROW[:OFFSET]", help="a row, counted from 0, and a token of it")
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0], help=f"of the rows; {SPLITS[0]} unless given")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args(arguments)


def show(options: argparse.Namespace, recipe: Recipe, storage: Storage) -> None:
    """Print the pieces of a row, or the one that a token belongs to."""
    packed = require_manifest(storage, recipe.prefix_of("packed"), "pack")
    row, offset = place(options.where, packed.counts["max_seq_len"])
    pieces = index_of(storage, packed, options.split, row)
    if offset is not None:
        pieces = [piece for piece in pieces if 0 <= offset - piece["offset"] < piece["num_tokens"]]
        for piece in pieces:
            tokenizer = load_manifest(storage, recipe.prefix_of("tokenizer"))
            piece["line"] += _lines_before(storage, packed, tokenizer, options.split, row, piece["offset"], offset)
    if options.json:
        print_json({"split": options.split, "row": row, "pieces": pieces})
    elif pieces:
        columns = (">offset", ">tokens", "repository", "path", ">line", "revision", "licence")
        print_table(columns, [_cells(piece) for piece in pieces])
    else:
        print(f"token {offset} of row {row} is padding: it comes from no document")


def place(where: str, max_seq_len: int) -> tuple[int, int | None]:
    """Row and offset. Raises ConfigError."""
    found = re.fullmatch(r"(\d+)(?::(\d+))?", where, re.ASCII)
    if not found:
        raise ConfigError(f"{where}: write ROW or ROW:OFFSET, for example 17:200")
    offset = int(found[2]) if found[2] else None
    if offset is not None and offset >= max_seq_len:
        raise ConfigError(f"{where}: a row has {max_seq_len} tokens, numbered from 0")
    return int(found[1]), offset


def _lines_before(
    storage: Storage, packed: Manifest, tokenizer: Manifest | None, split: str, row: int, start: int, stop: int
) -> int:
    """Line feeds among the tokens of a row from one offset to another; 0 without the tokenizer that packed them."""
    if tokenizer is None or tokenizer.digest != packed.inputs["tokenizer"]:
        return 0
    encoder = Encoder(tokenizer.read(storage, "tokenizer.json").decode())
    tokens = PackedRows(storage, packed, split).rows([row])[0, start:stop]
    return encoder.decode_bytes(tokens.tolist()).count(b"\n")


def _cells(piece: dict[str, Any]) -> list[str]:
    repository, path, revision, licence = (piece[name] or UNKNOWN for name in SHOWN)
    return [f"{piece['offset']}", f"{piece['num_tokens']}", repository, path, f"{piece['line']}", revision, licence]


if __name__ == "__main__":
    sys.exit(main())
