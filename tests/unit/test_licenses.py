import textwrap
from email.message import Message
from importlib.metadata import distributions
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from identify.vendor.licenses import LICENSES

from codeparrot.licenses import (
    MAX_FIELD_LENGTH,
    SPELLINGS,
    TROVE,
    allowed,
    is_license_file,
    license_from_metadata,
    license_of_file,
    license_of_text,
    spdx,
)
from tests.unit.trees import MIT_TEXT

WORDS = st.sampled_from(
    ["MIT", "GPL-2.0", "Apache-2.0", "AND", "OR", "WITH", "(", ")", "/", ",", "+", "LLVM-exception", "foo", "\n", "'"]
)
TEXTS = st.text(max_size=30) | st.lists(WORDS, max_size=7).map(" ".join)


def metadata(*fields: tuple[str, str]) -> Message:
    message = Message()
    for name, value in fields:
        message[name] = value
    return message


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("MIT", "MIT"),
        ("mit", "MIT"),
        ("MIT License", "MIT"),
        ("  Apache\n  License,  Version 2.0 ", "Apache-2.0"),
        ('"BSD"', "BSD-3-Clause"),
        ("GPL-2.0", "GPL-2.0-only"),
        ("GPL-2.0+", "GPL-2.0-or-later"),
        ("mit or apache-2.0", "MIT OR Apache-2.0"),
        ("Apache-2.0 WITH LLVM-exception", "Apache-2.0 WITH LLVM-exception"),
        ("LicenseRef-Proprietary", "LicenseRef-Proprietary"),
    ],
)
def test_a_known_licence_gets_its_one_spelling(text: str, expression: str) -> None:
    assert spdx(text) == expression


@pytest.mark.parametrize(
    "text",
    ["", " ", "UNKNOWN", "Proprietary", "see LICENSE", "MIT, BSD", "MIT/X11", "MIT AND", "()", "LLVM-exception",
     "MIT WITH MIT", "LicenseRef-", "MIT OR foo"],
)  # fmt: skip
def test_what_is_no_known_licence_is_unknown(text: str) -> None:
    assert spdx(text) is None


def test_the_text_of_a_licence_is_not_its_name() -> None:
    assert spdx(" OR ".join(["MIT"] * 20)) is not None
    assert spdx(" OR ".join(["MIT"] * (MAX_FIELD_LENGTH // 6))) is None


@given(TEXTS)
def test_any_text_is_an_expression_that_stays_the_same_or_nothing(text: str) -> None:
    expression = spdx(text)
    assert expression is None or spdx(expression) == expression


@pytest.mark.parametrize("expression", sorted({*TROVE.values(), *SPELLINGS.values()}))
def test_every_licence_in_our_tables_is_spdx(expression: str) -> None:
    assert spdx(expression) == expression


@pytest.mark.parametrize(
    ("fields", "expression"),
    [
        ([("License-Expression", "MIT OR Apache-2.0"), ("License", "GPL-2.0")], "MIT OR Apache-2.0"),
        ([("License-Expression", "no such"), ("License", "MIT")], None),
        ([("Classifier", "License :: OSI Approved :: MIT License"), ("License", "GPL-2.0")], "MIT"),
        ([("Classifier", "License :: OSI Approved"), ("License", "MIT")], "MIT"),
        ([("Classifier", "Topic :: MIT License"), ("License", "ISC license")], "ISC"),
        (
            [
                ("Classifier", "License :: OSI Approved :: MIT License"),
                ("Classifier", "License :: OSI Approved :: BSD License"),
                ("License", "MIT"),
            ],
            None,
        ),
        ([("License", "MIT, BSD")], None),
        ([], None),
    ],
)
def test_the_clearest_field_of_the_metadata_decides(fields: list[tuple[str, str]], expression: str | None) -> None:
    assert license_from_metadata(metadata(*fields)) == expression


@pytest.mark.parametrize(
    ("expression", "allow", "answer"),
    [
        ("MIT", {"MIT"}, True),
        ("MIT", {"ISC"}, False),
        ("MIT", set(), False),
        ("MIT OR GPL-3.0-only", {"MIT"}, True),
        ("MIT AND GPL-3.0-only", {"MIT"}, False),
        ("MIT AND ISC", {"MIT", "ISC"}, True),
        ("MIT AND (GPL-3.0-only OR ISC)", {"MIT", "ISC"}, True),
        ("(MIT AND GPL-3.0-only) OR ISC", {"MIT"}, False),
        ("Apache-2.0 WITH LLVM-exception", {"Apache-2.0"}, True),
        ("Apache-2.0 WITH LLVM-exception", {"Apache-2.0 WITH LLVM-exception"}, True),
        ("Apache-2.0", {"Apache-2.0 WITH LLVM-exception"}, False),
        ("LicenseRef-Proprietary", {"LicenseRef-Proprietary"}, True),
        ("LicenseRef-Proprietary", {"MIT"}, False),
        ("a licence of our own", {"a licence of our own"}, True),
        ("", {"MIT"}, False),
        ("()", {"MIT"}, False),
    ],
)
def test_an_allow_list_satisfies_any_side_of_or_and_every_side_of_and(
    expression: str, allow: set[str], answer: bool
) -> None:
    assert allowed(expression, frozenset(allow)) is answer


@given(TEXTS)
def test_nothing_is_allowed_by_an_empty_list(text: str) -> None:
    assert not allowed(text, frozenset())


@pytest.mark.parametrize(
    ("head", "license"),
    [
        ("# SPDX-License-Identifier: MIT\nx = 1\n", "MIT"),
        ("#!/usr/bin/env python\n#\n# Copyright\n#   SPDX-License-Identifier:  GPL-2.0+\n", "GPL-2.0-or-later"),
        (
            '"""A module.\n\nSPDX-License-Identifier: Apache-2.0 WITH LLVM-exception"""\n',
            "Apache-2.0 WITH LLVM-exception",
        ),
        ("/* SPDX-License-Identifier: (MIT OR Apache-2.0) */\n", "MIT OR Apache-2.0"),
        ("<!-- SPDX-License-Identifier: BSD-2-Clause -->\n", "BSD-2-Clause"),
        ("# SPDX-License-Identifier: MIT\n# SPDX-License-Identifier: BSD-3-Clause\n", "BSD-3-Clause AND MIT"),
        ("# SPDX-License-Identifier: MIT\n# SPDX-License-Identifier: mit\n", "MIT"),
        (
            "# SPDX-License-Identifier: MIT\n# SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0\n",
            "(GPL-2.0-only OR Apache-2.0) AND MIT",
        ),
        ("# SPDX-License-Identifier: LicenseRef-Proprietary\n", "LicenseRef-Proprietary"),
        ("# SPDX-License-Identifier: our own, ask us\n", None),
        ("# SPDX-License-Identifier: MIT\n# SPDX-License-Identifier: our own\n", None),
        ("# SPDX-License-Identifier:\nx = 1\n", None),
        ('tag = "SPDX-License-Identifier: GPL-3.0-only"\n', "ISC"),
        ("x = 1\n" * 1000 + "# SPDX-License-Identifier: MIT\n", "ISC"),
        ("x = 1\n", "ISC"),
    ],
)
def test_what_a_file_declares_wins_over_what_is_known_of_its_repository(head: str, license: str | None) -> None:
    assert license_of_file(head, "ISC") == license


@given(st.lists(WORDS | st.just("\n# SPDX-License-Identifier: "), max_size=12).map("".join))
def test_whatever_a_file_declares_is_an_expression_or_unknown(text: str) -> None:
    found = license_of_file(text, None)
    assert found is None or spdx(found) == found


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("LICENSE", True),
        ("LICENCE.md", True),
        ("src/license.txt", True),
        ("LICENSE-MIT", True),
        ("UNLICENSE", True),
        ("COPYING", True),
        ("COPYING.txt", True),
        ("license.py", False),
        ("licenses.json", False),
        ("LICENSE/x", False),
        ("COPYING.cpp", False),
        ("my_license", False),
    ],
)
def test_licence_files_are_known_by_their_names(path: str, is_one: bool) -> None:
    assert is_license_file(path) is is_one


@pytest.mark.parametrize(
    ("text", "license"),
    [
        (MIT_TEXT, "MIT"),
        (MIT_TEXT.replace("Somebody", "Somebody Else, Inc."), "MIT"),
        (MIT_TEXT + "\n" + MIT_TEXT.replace("sell", "never sell"), None),
        ("All rights reserved.\n", None),
        ("", None),
        ("\0" * 200_000, None),
    ],
)
def test_the_text_of_a_licence_is_recognised(text: str, license: str | None) -> None:
    assert license_of_text(text) == license


@pytest.mark.parametrize(("name", "text"), LICENSES, ids=[name for name, _ in LICENSES])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_known_licence_is_recognised_however_it_is_wrapped(name: str, text: str, width: int) -> None:
    wrapped = "\n\n".join(textwrap.fill(paragraph, width) for paragraph in text.split("\n\n"))
    assert license_of_text(wrapped) == spdx(name)


def test_installed_packages_hold_the_licences_that_their_metadata_tell() -> None:
    """Where both are known and there is one licence file. Classifiers do not tell the kinds of BSD licences apart."""
    agree = differ = 0
    for distribution in distributions():
        told = license_from_metadata(cast("Message", distribution.metadata))
        texts = [file for file in distribution.files or () if ".dist-info/" in str(file) and is_license_file(file.name)]
        if told is None or " " in told or len(texts) != 1:
            continue
        found = license_of_text(texts[0].read_text("utf-8"))
        if found is not None:
            same = found == told or {found, told} <= {"BSD-2-Clause", "BSD-3-Clause"}
            agree, differ = agree + same, differ + (not same)
    assert agree > 50
    assert differ <= agree // 50
