"""The repository itself: documents that tell the truth, recipes that parse, locks that lock."""

import fnmatch
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

import codeparrot
import ray_jobs
from codeparrot.config import load_recipe, recipe_schema
from codeparrot.sources.packages import normalise
from codeparrot.study import load_study

ROOT = Path(__file__).parents[1]
SHOWN_WITH_THEIR_FILES = {
    *("", ".ci", "benchmarks", "codeparrot", "codeparrot/sources", "docs", "ray_jobs", "recipes", "tests"),
}
"""Folders whose files stand in the README's tree one by one; of others only the folder does."""
MAX_LINES = 350
# In pieces, or this file would be found by its own search.
REGISTRIES = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"))]
REGISTRIES += [".".join(parts) for parts in (("anaconda", "org"), ("proxy", "golang", "org"), ("download", "pytorch"))]
ABSOLUTE = re.compile(r"(?<![\w.~-])/(?:work|root)(?![\w-])")


def listed_by_git() -> list[str] | None:
    """What is tracked, or new and not ignored; None if this is no git checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    names = {os.fsdecode(name) for name in done.stdout.split(b"\0") if name}
    return sorted(name for name in names if (ROOT / name).is_file())


def walked() -> list[str]:
    """The same without git: everything that .gitignore does not name."""
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line] + [".git"]
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [name for name in subfolders if not any(fnmatch.fnmatch(name, each) for each in ignored)]
        kept = [name for name in names if not any(fnmatch.fnmatch(name, each) for each in ignored)]
        found += [(Path(folder) / name).relative_to(ROOT).as_posix() for name in kept]
    return sorted(found)


@lru_cache(maxsize=1)
def files() -> tuple[str, ...]:
    """Every file of the repository, relative to its root."""
    return tuple(listed_by_git() or walked())


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def documents() -> list[str]:
    return [name for name in files() if name.endswith(".md")]


def code_in(text: str) -> Iterator[str]:
    """The lines of a document's fenced blocks, and its code spans."""
    fenced = r"^```[^\n]*\n(.*?)^```"
    for block in re.findall(fenced, text, re.DOTALL | re.MULTILINE):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(fenced, "", text, flags=re.DOTALL | re.MULTILINE))


def pyproject() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):(?!=)", read("Makefile"), re.MULTILINE))


def tree_in_the_readme() -> dict[str, str]:
    """Path to description, for every line of the README's tree; folders end with a slash."""
    block = re.search(r"^## The tree\n+```text\n(.*?)^```", read("README.md"), re.DOTALL | re.MULTILINE)
    assert block, "the README has a section 'The tree' with a text block"
    found: dict[str, str] = {}
    parents: list[str] = []
    for line in block[1].splitlines():
        name, _, description = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [name]
        path = "".join(parents)
        assert path not in found, f"{path} stands there twice"
        found[path] = description.strip()
    return found


def test_the_tree_in_the_readme_is_the_tree() -> None:
    expected = set()
    for name in files():
        if name.endswith("/__init__.py") and not read(name):
            continue
        for path in (PurePosixPath(name), *PurePosixPath(name).parents[:-1]):
            parent = "" if str(path.parent) == "." else str(path.parent)
            if parent in SHOWN_WITH_THEIR_FILES:
                expected.add(str(path) if str(path) == name else f"{path}/")
    assert set(tree_in_the_readme()) == expected


def test_every_line_of_the_tree_says_what_the_file_is() -> None:
    assert not [path for path, description in tree_in_the_readme().items() if not description]


@pytest.mark.parametrize("name", documents())
def test_every_command_in_a_document_exists(name: str) -> None:
    code = list(code_in(read(name)))
    targets = {target for text in code for target in re.findall(r"^\s*(?:\$ )?make ([a-z][\w-]*)", text)}
    assert targets <= make_targets(), targets - make_targets()
    modules = {module for text in code for module in re.findall(r"python -m ([a-z0-9_.]*[a-z0-9_])", text)}
    for module in modules:
        assert find_spec(module) is not None, module


@pytest.mark.parametrize("name", documents())
def test_every_relative_link_leads_somewhere(name: str) -> None:
    text = re.sub(r"^```.*?^```", "", read(name), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        target = link.partition("#")[0]
        if target and not re.match(r"[a-z]+:", target):
            assert (ROOT / name).parent.joinpath(target).exists(), link


def test_every_message_in_the_runbook_is_one_that_the_code_prints() -> None:
    parts = [name for name in files() if re.match(r"(codeparrot|ray_jobs|k8s)/.*\.py$", name)]
    source = "\n".join(re.sub(r'"\s*\n\s*f?"', "", read(name)) for name in parts)
    messages = re.findall(r"^### `([^`]+)`", read("docs/runbook.md"), re.MULTILINE)
    assert len(messages) > 20
    for message in messages:
        for fragment in message.split("..."):
            assert fragment in source, message


@pytest.mark.parametrize("name", [name for name in files() if re.match(r"recipes/.*\.ya?ml$", name)])
def test_every_recipe_and_study_parses(name: str) -> None:
    is_study = "study_name" in yaml.safe_load(read(name))
    (load_study if is_study else load_recipe)(ROOT / name)


def test_the_schema_of_a_recipe_is_up_to_date() -> None:
    assert read("recipes/schema.json") == recipe_schema(), "make schema"


def modules_listed(docstring: str | None) -> list[str]:
    return re.findall(r"^    (\w+)/? {2,}\S", docstring or "", re.MULTILINE)


def modules_of(package: str) -> set[str]:
    here = [name.removeprefix(f"{package}/") for name in files() if name.startswith(f"{package}/")]
    found = {name.partition("/")[0].removesuffix(".py") for name in here if name.endswith(".py")}
    return found - {"__init__"}


def test_the_library_lists_its_modules_in_the_order_that_the_linter_checks() -> None:
    contracts = pyproject()["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if "codeparrot.errors" in contract.get("layers", ()))
    order = [layer.removeprefix("codeparrot.") for layer in reversed(layers)]
    assert modules_listed(codeparrot.__doc__) == order
    assert set(order) == modules_of("codeparrot")


def test_the_stages_list_their_modules() -> None:
    listed = modules_listed(ray_jobs.__doc__)
    assert len(set(listed)) == len(listed)
    assert set(listed) == modules_of("ray_jobs")


def test_no_module_is_too_long_to_read() -> None:
    modules = [name for name in files() if re.match(r"(codeparrot|ray_jobs|k8s)/.*\.py$", name)]
    lengths = {name: len(read(name).splitlines()) for name in modules}
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES}


def requirements(lock: str) -> dict[str, str]:
    """Normalised name to the whole entry, continuation lines joined."""
    entries = read(lock).replace("\\\n", " ").splitlines()
    return {normalise(entry.partition("==")[0]): entry for entry in entries if entry.strip()}


@pytest.mark.parametrize("lock", [name for name in files() if name.endswith(".lock")])
def test_a_lock_pins_and_hashes_everything_and_names_no_index(lock: str) -> None:
    assert "://" not in read(lock)
    entries = requirements(lock)
    assert entries
    for entry in entries.values():
        assert re.match(r"[A-Za-z0-9][\w.-]*==\S+ .*--hash=sha256:[0-9a-f]{64}", entry), entry


def test_the_locks_hold_every_dependency() -> None:
    project = pyproject()["project"]
    wanted = {"requirements.lock": project["dependencies"]}
    wanted["requirements-dev.lock"] = project["optional-dependencies"]["dev"] + project["dependencies"]
    for lock, dependencies in wanted.items():
        names = {normalise(re.split(r"[^\w.-]", dependency)[0]) for dependency in dependencies}
        assert names <= set(requirements(lock)), lock


@pytest.mark.parametrize("name", files())
def test_a_file_names_no_package_registry_and_no_path_of_one_machine(name: str) -> None:
    text = (ROOT / name).read_bytes().decode("utf-8", "replace")
    assert not [host for host in REGISTRIES if host in text]
    assert not ABSOLUTE.search(text)


def test_make_help_lists_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^  make ([a-z0-9-]+) +\S", done.stdout, re.MULTILINE)) == make_targets()


@pytest.mark.parametrize("document", ["README.md", "docs/bigquery.md"])
def test_parts_of_recipes_in_documents_are_parts_of_recipes(document: str, tmp_path: Path) -> None:
    whole = yaml.safe_load((ROOT / "recipes" / "tiny.yaml").read_text())
    found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", read(document), re.DOTALL)]
    parts = [part for part in found if {*part} <= {*whole}]
    assert parts
    for part in parts:
        merged = {
            key: {**value, **part[key]} if isinstance(part.get(key), dict) else part.get(key, value)
            for key, value in whole.items()
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(merged))
        load_recipe(path, [])
