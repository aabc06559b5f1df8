import codecs
import encodings.aliases
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.documents import (
    Document,
    ReadReason,
    decode,
    document_id,
    from_parquet,
    language_of,
    make_document,
    to_parquet,
    to_table,
)

ENCODINGS = sorted({*encodings.aliases.aliases, *encodings.aliases.aliases.values(), "utf-8-sig", "no-such"})
# Characters without a role in white space, line ends or byte-order marks, and without surrogates.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\r\0\ufeff")


def made(data: bytes, path: str = "a.py") -> Document:
    document = make_document(data, source="s", repository="r", path=path, revision="1", license="MIT")
    assert isinstance(document, Document)
    return document


@given(st.text(CHARACTERS).map(lambda text: f"# text\n{text}"))
def test_utf_8_is_read_as_it_is(text: str) -> None:
    assert decode(text.encode()) == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (codecs.BOM_UTF8 + b"x = 1\n", "x = 1\n"),
        (codecs.BOM_UTF8 * 2 + b"x = 1\n", "x = 1\n"),
        (b"x = 1\r\ny = 2\rz = 3\n\r", "x = 1\ny = 2\nz = 3\n\n"),
        (b"# -*- coding: latin-1 -*-\nx = '\xe9'\n", "# -*- coding: latin-1 -*-\nx = '\xe9'\n"),
        (b"#!/usr/bin/python\n# vim: set fileencoding=cp1252 :\nx = '\x80'\n", None),
        (b"x = '\xc3\xa9'", "x = '\xe9'"),
        ("x = '\U0001f40d'\n".encode(), "x = '\U0001f40d'\n"),
    ],
)
def test_marks_cookies_and_line_ends_are_understood(data: bytes, text: str | None) -> None:
    assert decode(data) == (text or "#!/usr/bin/python\n# vim: set fileencoding=cp1252 :\nx = '\u20ac'\n")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", ReadReason.EMPTY),
        (b" \t\r\n\f\v", ReadReason.EMPTY),
        (codecs.BOM_UTF8, ReadReason.EMPTY),
        ("\u00a0\u2003\n".encode(), ReadReason.EMPTY),
        (b"x = '\0'\n", ReadReason.BINARY),
        (b"\x7fELF\0\xff", ReadReason.BINARY),
        ("x = 1\n".encode("utf-16"), ReadReason.BINARY),
        (b"x = '\xe9'\n", ReadReason.BAD_ENCODING),
        (b"# coding: no-such-encoding\nx = 1\n", ReadReason.BAD_ENCODING),
        (b"# coding: hex\n00\n", ReadReason.BAD_ENCODING),
        (b"# coding: ascii\nx = '\xe9'\n", ReadReason.BAD_ENCODING),
        (codecs.BOM_UTF8 + b"# coding: latin-1\nx = 1\n", ReadReason.BAD_ENCODING),
        (b"# coding: utf-7\nx = '+2AA-'\n", ReadReason.BAD_ENCODING),
    ],
)
def test_what_cannot_be_a_document_is_given_a_reason(data: bytes, reason: ReadReason) -> None:
    assert decode(data) is reason


@given(st.sampled_from(ENCODINGS), st.binary(max_size=60))
def test_any_bytes_under_any_cookie_become_clean_text_or_a_reason(encoding: str, data: bytes) -> None:
    text = decode(f"# coding: {encoding}\n".encode() + data)
    if not isinstance(text, ReadReason):
        text.encode()
        assert text.strip()
        assert not {"\0", "\r"} & {*text}
        assert not text.startswith("\ufeff")


def test_size_and_hash_are_those_of_the_content_in_utf_8() -> None:
    document = made(b"# coding: latin-1\r\n# \xe9")
    assert document.content == "# coding: latin-1\n# \xe9"
    assert document.size_bytes == len(document.content.encode()) == 22
    assert document.sha256 == sha256(document.content.encode()).hexdigest()


def test_the_same_content_has_the_same_hash_however_it_was_stored() -> None:
    assert made(codecs.BOM_UTF8 + b"x = 1\r\n").sha256 == made(b"x = 1\n").sha256 != made(b"x = 2\n").sha256


def test_what_is_no_document_gives_its_reason() -> None:
    reason = make_document(b"", source="s", repository="r", path="p", revision=None, license=None)
    assert reason is ReadReason.EMPTY


def test_a_document_is_known_by_source_repository_and_path_alone() -> None:
    assert made(b"x = 1\n").id == made(b"y = 2\n").id == document_id("s", "r", "a.py")
    assert document_id("a", "b", "cd") != document_id("a", "bc", "d")


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("a/b.py", "Python"),
        ("a/b.PYI", "Python"),
        ("b.pyx", "Cython"),
        ("a.py/b", None),
        ("b.c", None),
        ("py", None),
        (".py", "Python"),
    ],
)
def test_the_language_follows_the_end_of_the_name(path: str, language: str | None) -> None:
    assert language_of(path) == language


def test_a_table_of_documents_survives_parquet() -> None:
    documents = [made(b"x = 1\n"), made("# \U0001f40d\n".encode(), path="no-extension")]
    table = from_parquet(to_parquet(to_table(documents)))
    assert [Document(**row) for row in table.to_pylist()] == documents
    assert to_table([]).schema == table.schema


def test_equal_tables_give_equal_bytes() -> None:
    documents = [made(b"x = 1\n"), made(b"y = 1\n")]
    assert to_parquet(to_table(documents)) == to_parquet(to_table(list(documents)))


def test_only_the_columns_asked_for_are_read() -> None:
    assert from_parquet(to_parquet(to_table([made(b"x = 1\n")])), ["path", "content"]).to_pylist() == [
        {"path": "a.py", "content": "x = 1\n"}
    ]
