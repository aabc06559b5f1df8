"""Licences as SPDX expressions: from package metadata, licence files and files themselves; and allow-lists.

Parsing and the list of known identifiers are the `license-expression` library's; licence texts are compared
with those of choosealicense.com, which `identify` brings.
"""

import math
import re
from collections.abc import Collection, Iterable
from email.message import Message
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from license_expression import Licensing

TROVE = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "GNU Affero General Public License v3": "AGPL-3.0-only",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Library or Lesser General Public License (LGPL)": "LGPL-2.0-or-later",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}
"""Trove classifiers with one clear meaning. "BSD License" does not say which; the three-clause one, the stricter
of the two in use, is assumed."""

SPELLINGS = {
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "3-clause bsd": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "2-clause bsd": "BSD-2-Clause",
    "isc license": "ISC",
    "mit license": "MIT",
    "the mit license": "MIT",
    "mpl 2.0": "MPL-2.0",
    "psf": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "zlib": "Zlib",
}
"""Free-text licence fields in common use."""

LICENSE_FILE = re.compile(r"(?:UN)?LICEN[CS]E(?:[-_.][^/]*)?|COPYING(?:\.(?:txt|md|rst))?", re.IGNORECASE)
"""The name of a file that holds the licence of what lies beside it and below."""
NO_LICENSE_TEXT = (".py", ".pyi", ".json", ".html", ".toml", ".yaml", ".yml")
"""What a program about licences may be called."""
COPYRIGHT_IN_TEXT = re.compile(
    r"\s+(?=copyright (?:holder|owner|notice|statement|licen[cs]e|law|interest))", re.IGNORECASE
)
"""Not the begin of a line that names who holds it, wherever the text was wrapped."""
COPYRIGHT_LINE = re.compile(r"^\s*(?:copyright|\(c\)) .*$", re.IGNORECASE | re.MULTILINE)
MAX_DIFFERENCE = 0.05
MAX_TEXT_LENGTH = 100_000
MAX_FIELD_LENGTH = 200  # longer ones are the licence's text, not its name

END_OF_COMMENT = " \t\r*/->\"'"
HEADER_CHARACTERS = 4096
"""Where a file may declare its licence, from its begin."""
HEADER = re.compile(r"^[^\w\n]{0,8}SPDX-License-Identifier:([^\n]*)", re.MULTILINE)
"""A line of its own, maybe after the marks of a comment (https://spdx.dev/learn/handling-license-info)."""


@lru_cache(maxsize=1)
def _licensing() -> "Licensing":
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


@lru_cache(maxsize=4096)
def spdx(text: str) -> str | None:
    """The text as a normalised SPDX expression, or None if it is not one."""
    from license_expression import ExpressionError

    text = re.sub(r"\s+", " ", text).strip().strip('"')
    if not text or len(text) > MAX_FIELD_LENGTH:
        return None
    text = SPELLINGS.get(text.lower(), text)
    if re.fullmatch(r"LicenseRef-[A-Za-z0-9.-]+", text):
        return text  # valid by construction, though in no list
    try:
        parsed = _licensing().parse(text, validate=True, strict=True)
    except (ExpressionError, LookupError):  # LookupError: "()"
        return None
    return None if parsed is None else str(parsed.render())


def license_from_metadata(metadata: Message) -> str | None:
    """The licence in a distribution's metadata: License-Expression, else classifiers, else the License field."""
    expression = metadata.get("License-Expression")
    if expression:
        return spdx(expression)
    classifiers = [
        value.rsplit(" :: ", 1)[-1] for value in metadata.get_all("Classifier") or () if value.startswith("License :: ")
    ]
    known = sorted({TROVE[name] for name in classifiers if name in TROVE})
    if len(known) == 1:
        return known[0]
    if len(known) > 1:
        return None  # "and" or "or"? The classifiers do not say.
    return spdx(metadata.get("License") or "")


def license_of_file(content: str, otherwise: str | None) -> str | None:
    """What a file declares by `SPDX-License-Identifier`, else `otherwise`. None if it declares what is no expression.

    Of several, all hold: a file that took code from others names their licences too.
    """
    declared = {*HEADER.findall(content, 0, HEADER_CHARACTERS)} if "SPDX-License-Identifier:" in content else set()
    if not declared:
        return otherwise
    return all_of(text.strip(END_OF_COMMENT) for text in declared)


def all_of(texts: Iterable[str]) -> str | None:
    """One expression that asks for all of these; None if there is none, or one of them is no expression."""
    expressions = {spdx(text) for text in texts}
    known = sorted(expression for expression in expressions if expression is not None)
    if not known or len(known) < len(expressions):
        return None
    return known[0] if len(known) == 1 else spdx(" AND ".join(f"({expression})" for expression in known))


def is_license_file(path: str) -> bool:
    """Whether the file holds a licence, by its name."""
    name = path.rsplit("/", 1)[-1]
    return LICENSE_FILE.fullmatch(name) is not None and not name.lower().endswith(NO_LICENSE_TEXT)


@lru_cache(maxsize=4096)
def license_of_text(text: str) -> str | None:
    """The licence that a licence file holds, if it is one known text but for names, dates and up to 5 % of it."""
    from ukkonen import distance

    if len(text) > MAX_TEXT_LENGTH:
        return None
    text = _essence(text)
    limit = math.ceil(MAX_DIFFERENCE * len(text))
    alike = (known for known in _known_texts() if abs(len(known) - len(text)) < limit)
    num_edits, nearest = min(((distance(text, known, limit), known) for known in alike), default=(limit, ""))
    return _known_texts()[nearest] if num_edits < limit else None


@lru_cache(maxsize=1)
def _known_texts() -> dict[str, str | None]:
    """What matters of the text of each known licence, and its expression."""
    from identify.vendor.licenses import LICENSES

    return {_essence(text): spdx(name) for name, text in LICENSES}


def _essence(text: str) -> str:
    """A licence's text without the lines that say who holds the copyright, however it is wrapped."""
    return " ".join(COPYRIGHT_LINE.sub("", COPYRIGHT_IN_TEXT.sub(" ", text)).split())


@lru_cache(maxsize=4096)
def allowed(expression: str, allow: frozenset[str]) -> bool:
    """Whether the allow-list satisfies an SPDX expression: any side of an OR, every side of an AND.

    `A WITH exception` needs that whole term, or `A` alone, in the list: an exception only adds permissions.
    """
    from license_expression import ExpressionError

    try:
        parsed = _licensing().parse(expression)
    except (ExpressionError, LookupError):
        return expression in allow
    return parsed is not None and _satisfied(parsed, allow)


def _satisfied(node: Any, allow: Collection[str]) -> bool:
    from license_expression import LicenseWithExceptionSymbol

    licensing = _licensing()
    if isinstance(node, licensing.AND):
        return all(_satisfied(part, allow) for part in node.args)
    if isinstance(node, licensing.OR):
        return any(_satisfied(part, allow) for part in node.args)
    if isinstance(node, LicenseWithExceptionSymbol):
        return str(node) in allow or node.license_symbol.key in allow
    return node.key in allow
