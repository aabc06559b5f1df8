"""Files that no person wrote, or that belong to somebody else's project.

The marks are those that code hosts go by (GitHub's linguist): names that programs give to what they write, the sentence
in which they say so, and folders in which projects keep copies of others.
"""

import re

HEAD_LINES = 10

GENERATED_NAME = re.compile(
    r"""(?:
        _pb2(?:_grpc)?\.pyi?            # protocol buffers
      | _(?:pb|twirp)\.(?:js|ts|py)
      | \.pb\.(?:go|cc|h|rb)
      | [.-]min\.(?:js|css)             # minified
      | \.bundle\.js
      | \.designer\.(?:cs|vb)
      | ^(?:.*/)?(?:package-lock\.json|npm-shrinkwrap\.json|go\.sum|[^/]+\.lock|pnpm-lock\.yaml)
      | ^(?:.*/)?(?:parsetab|lextab|_version_generated)\.py
    )$""",
    re.VERBOSE | re.IGNORECASE,
)
GENERATED_HEAD = re.compile(
    r"""
      (?-i:DO\ NOT\ (?:EDIT|MODIFY))\b
    | (?:^\s*(?:\#|//|/?\*|--)[^\w\n]*|[.!:;]\ +)do\ not\ (?:edit|modify)\b     # a sentence of its own in a comment
    | @generated\b
    | \bgenerated\ by\ (?:the\ )?
      (?:protocol\ buffer|grpc|thrift|swig|cython|antlr|ply|pyuic|django\ \d+|openapi|pyrcc)\b
    | \b(?:code|file)\ (?:is|was|has\ been)?\ ?(?:auto(?:matically)?[- ])generated\b
    | ^\#\ in\[\s*\d*\s*\]:                       # a notebook's cell, converted
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
VENDORED = re.compile(
    r"""(?:^|/)(?:
        _?vendor(?:ed|s)?
      | third[-_]?party | 3rd[-_]?party
      | externals
      | node_modules | bower_components
      | site-packages | dist-packages
      | \.?venv | \.tox | __pypackages__
    )/""",
    re.VERBOSE | re.IGNORECASE,
)


def is_generated(path: str, lines: list[str]) -> bool:
    """Whether the name of a file, or a sentence in its first 10 lines, says that a program wrote it."""
    return bool(GENERATED_NAME.search(path)) or bool(GENERATED_HEAD.search("\n".join(lines[:HEAD_LINES])))


def is_vendored(path: str) -> bool:
    """Whether a file lies in a folder for other projects' code. `path` is relative to the repository."""
    return bool(VENDORED.search(path))
