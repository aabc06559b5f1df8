"""The version of the code that makes an output: its source and that of all it imports from this project.

Read from the source files without importing them, so it needs no list that someone must keep up to date.
"""

import ast
import hashlib
from collections.abc import Collection, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

CARRIERS = frozenset(
    {
        *("codeparrot", "codeparrot.code_version", "codeparrot.config", "codeparrot.errors", "codeparrot.lease"),
        *("codeparrot.manifest", "codeparrot.s3", "codeparrot.settings", "codeparrot.storage"),
        *(
            "ray_jobs",
            "ray_jobs.cluster",
            "ray_jobs.interrupt",
            "ray_jobs.progress",
            "ray_jobs.sizes",
            "ray_jobs.stage",
        ),
    }
)
"""Modules that carry an output without shaping it. Settings are part of a fingerprint by their values."""


def code_version(module: str, leave_out: Collection[str] = CARRIERS) -> str:
    """SHA-256 over the files of a module and of every module of the same project that it imports, however deep.

    What only those left out import does not count either. A file that has the same stem as a module, such as its
    template, belongs to it.
    """
    digest = hashlib.sha256()
    for name in sorted(closure(module, leave_out)):
        for path in _files(name):
            digest.update(f"{name}\0{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def closure(module: str, leave_out: Collection[str] = CARRIERS) -> set[str]:
    """The module and all modules of this project that it imports, without those left out."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and name not in leave_out:
            found.add(name)
            waiting += _imports(name)
    return found


@lru_cache(maxsize=256)
def _imports(module: str) -> tuple[str, ...]:
    path = _files(module)[0]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    projects = {project.split(".")[0] for project in (module, __name__)}
    names = (name for name in _imported(ast.parse(path.read_bytes()), package) if name.split(".")[0] in projects)
    return tuple(sorted({name for name in names if _is_module(name)}))


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Every dotted name that an import statement mentions, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a part of the name is not a package: it is a class or a function
        return False


@lru_cache(maxsize=256)
def _files(module: str) -> tuple[Path, ...]:
    """The source of a module, then the files beside it that share its stem."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module {module!r} with a source file", name=module)
    source = Path(spec.origin)
    beside = source.parent.glob(f"{source.stem}.*") if source.name != "__init__.py" else ()
    return source, *sorted(path for path in beside if path != source and path.suffix not in (".pyc", ".so"))
