"""Redaction: nothing planted survives, nothing else changes, and programs stay programs."""

import ast
import ipaddress
import random
import re
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codeparrot.documents import make_document, to_table
from codeparrot.errors import ConfigError
from codeparrot.filters import is_python
from codeparrot.redact import RedactSettings, placeholder, redact, redact_all, redact_table
from codeparrot.secret_formats import Format, groups, kinds, secrets
from codeparrot.settings import validate
from codeparrot.storage import sha256_hex
from tests.unit.redaction_set import (
    ALNUM,
    KEY_FORMS,
    STAY,
    TOKENS,
    Case,
    cases,
    drawn,
    evaluate,
    framed,
    private_key,
    public_ip,
)

DEFAULT = RedactSettings()
CASES = list(cases(seed=3))
PLANTED = [case for case in CASES if case.kind]
PROGRAMS = [case for case in CASES if is_python(case.text) and not case.text.startswith("email=")]
"""The address there is an expression, a product of matrices."""
FORMATS = [form for group in groups() for form in group.formats]
SCRAPS = [
    "\n",
    " ",
    '"',
    "'",
    "\\n",
    "\\",
    "://a:",
    "@",
    ".",
    "-",
    "_",
    "/",
    "=",
    "key=",
    "AKC",
    "x",
    "é",
    "1",
    "{",
    "\x85",
]
SCRAPS += [
    "email1@example.com",
    "GITHUB_TOKEN_1",
    "://user:",
    "@host.io",
    "192.0.2.1",
    "::",
    "-----BEGIN PRIVATE KEY-----",
]


def github_token(seed: int) -> str:
    return TOKENS["github_token"][0](random.Random(seed))


def structure(text: str) -> str:
    """A program without the values of its constants."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            node.value = type(node.value).__name__
    return ast.dump(tree)


@given(st.lists(st.sampled_from(CASES), max_size=12), st.sampled_from(["\n", "\n\n", "\n# "]))
def test_nothing_planted_survives_in_whatever_company(chosen: list[Case], between: str) -> None:
    text = between.join(case.text for case in chosen)
    redacted, values = redact(text, DEFAULT)
    lines = [line for case in chosen if case.kind for line in case.planted.split("\n")]
    assert not [line for line in lines if line in redacted]
    assert {case.kind for case in chosen if case.kind} <= values.keys()
    assert redacted.count("\n") == text.count("\n")
    assert bool(lines) <= (redacted != text)


@given(st.lists(st.sampled_from([case.text for case in CASES] + SCRAPS * 20) | st.text(max_size=5), max_size=12))
def test_what_is_redacted_has_nothing_left_to_redact(pieces: list[str]) -> None:
    text = "".join(pieces).encode("utf-8", "ignore").decode()
    once, values = redact(text, DEFAULT)
    twice, again = redact(once, DEFAULT)
    assert twice is once
    assert not again
    assert (once is text) == (not values)
    assert once.count("\n") == text.count("\n")


@given(st.lists(st.sampled_from(PROGRAMS), max_size=12))
def test_a_program_keeps_its_structure(chosen: list[Case]) -> None:
    text = "\n".join(case.text for case in chosen)
    assert structure(redact(text, DEFAULT)[0]) == structure(text)


def test_most_of_the_set_are_programs_so_that_this_says_something() -> None:
    assert len(PROGRAMS) > 400
    assert {case.kind for case in PROGRAMS} >= {"private_key", "email", "ipv4", "ipv6", "github_token"}


@pytest.mark.parametrize("text", ["y = a@corp.io\n", "y = x.a@corp.io + 1\n", "f(k=a@corp.io)\n"])
def test_an_address_that_is_an_expression_becomes_one(text: str) -> None:
    redacted, values = redact(text, DEFAULT)
    assert values["email"] == 1
    assert is_python(redacted)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_equal_values_have_equal_placeholders_numbered_by_appearance(order: list[int]) -> None:
    values = [github_token(number) for number in range(5)]
    text = "".join(f"t = '{values[number]}'\n" for number in order)
    redacted, count = redact(text, DEFAULT)
    first = list(dict.fromkeys(order))
    assert redacted == "".join(f"t = 'GITHUB_TOKEN_{first.index(number) + 1}'\n" for number in order)
    assert count == {"github_token": len(first)}


def test_an_address_is_the_same_however_it_is_written() -> None:
    text = "Jo@Corp.io jo@corp.io 2a00:1450::aBcd 2A00:1450:0:0::ABCD 2a00:1450::1:2"
    assert redact(text, DEFAULT)[0] == "email1@example.com email1@example.com 2001:db8::1 2001:db8::1 2001:db8::2"


def test_a_number_that_a_document_uses_is_left_out() -> None:
    text = f"GITHUB_TOKEN_1 = '{github_token(1)}'  # email1@example.com, jo@corp.io, 192.0.2.1, 93.184.216.34"
    assert redact(text, DEFAULT)[0] == (
        "GITHUB_TOKEN_1 = 'GITHUB_TOKEN_2'  # email1@example.com, email2@example.com, 192.0.2.1, 192.0.2.2"
    )


@given(st.lists(st.sampled_from(STAY), max_size=12))
def test_a_text_in_which_nothing_is_found_is_returned_itself(pieces: list[str]) -> None:
    text = "".join(piece for piece in pieces if "libfoo 62" not in piece)
    redacted, values = redact(text, DEFAULT)
    assert redacted is text
    assert values == Counter()


def test_precision_and_recall_on_the_labelled_set() -> None:
    scores, wrong = evaluate()
    assert kinds() | {"email", "ipv4", "ipv6"} >= scores.keys() >= {*TOKENS, "private_key", "email", "ipv4", "ipv6"}
    assert {kind: score.recall for kind, score in scores.items() if score.recall < 0.99} == {}
    assert {kind: score.precision for kind, score in scores.items() if score.precision < 0.95} == {}
    assert len(wrong) <= 1


@pytest.mark.parametrize("form", KEY_FORMS)
def test_of_a_private_key_only_its_frame_is_left(form: str) -> None:
    name, lines = private_key(random.Random(5))
    redacted, values = redact(framed(name, lines, form), DEFAULT)
    assert redacted == framed(name, ["PRIVATE_KEY_1"] * len(lines), form)
    assert values == {"private_key": 1}


def test_two_keys_of_a_document_are_two_and_what_stands_between_stays() -> None:
    (name, first), (_, second) = private_key(random.Random(1)), private_key(random.Random(2))
    digest = f"digest = '{drawn(random.Random(3), '0123456789abcdef', 64)}'\n"
    parts = [framed(name, lines, "triple") for lines in (first, second, first)]
    redacted, values = redact(digest.join(parts), DEFAULT)
    assert values == {"private_key": 2}
    assert redacted.count(digest) == 2
    assert re.findall(r"-----\n(\w+)", redacted) == [f"PRIVATE_KEY_{number}" for number in (1, 2, 1)]


def test_a_key_that_is_cut_off_goes_too() -> None:
    name, lines = private_key(random.Random(5))
    cut = f"-----BEGIN {name}-----\n" + "\n".join(lines[:-1])
    assert redact(cut, DEFAULT)[0] == f"-----BEGIN {name}-----\n" + "\n".join(["PRIVATE_KEY_1"] * (len(lines) - 1))


def test_a_putty_key_goes_and_its_head_stays() -> None:
    body = [drawn(random.Random(6), ALNUM + "+/", 64) for _ in range(3)]
    head = "PuTTY-User-Key-File-2: ssh-rsa\nEncryption: none\nComment: mine\nPrivate-Lines: 3\n"
    redacted = redact(head + "\n".join(body) + "\nPrivate-MAC: 12\n", DEFAULT)[0]
    assert redacted == head + "PRIVATE_KEY_1\n" * 3 + "Private-MAC: 12\n"


@pytest.mark.parametrize("around", ["é{}", "#{}#", "({})", "\\n{}", "x={}&y", "/bot{}", "Basic {}"])
def test_the_surroundings_of_a_token_stay(around: str) -> None:
    value = TOKENS["telegram_bot_token"][0](random.Random(1))
    redacted, values = redact(around.format(value), DEFAULT)
    if around.startswith("é"):  # the middle of a word
        assert not values
    else:
        assert redacted == around.format("TELEGRAM_BOT_TOKEN_1")


def test_a_token_that_is_longer_than_its_pattern_goes_whole() -> None:
    value = github_token(1) + "abcDEF123_-xyz"
    assert redact(f"'{value}'", DEFAULT)[0] == "'GITHUB_TOKEN_1'"


def test_a_user_in_a_url_with_a_password_is_no_email_address_even_if_secrets_stay() -> None:
    text = "https://robot:" + "s3cr3t99" + "@host.io/"
    assert redact(text, RedactSettings(kinds=("email",)))[0] is text
    assert redact(text, DEFAULT)[0] == "https://robot:BASIC_AUTH_CREDENTIALS_1@host.io/"


def test_only_the_kinds_that_are_asked_for_are_redacted() -> None:
    text = f"{github_token(1)} jo@corp.io 93.184.216.34"
    assert redact(text, RedactSettings(kinds=("secrets",)))[0] == "GITHUB_TOKEN_1 jo@corp.io 93.184.216.34"
    assert redact(text, RedactSettings(kinds=("email",)))[1] == {"email": 1}
    assert redact(text, RedactSettings(kinds=("ip_address",)))[1] == {"ipv4": 1}


def test_what_the_settings_name_stays() -> None:
    text = "jo@python.org jo@lists.Python.org jo@notpython.org 9.99.9.9 93.184.216.34 jane+x@corp.io\n"
    kept = RedactSettings(
        keep_email_domains=("Python.org",), keep_networks=("93.184.0.0/16",), keep_patterns=(r"jane.*@corp\.io",)
    )
    assert redact(text, kept)[0] == text.replace("jo@notpython.org", "email1@example.com").replace(
        "9.99.9.9", "192.0.2.1"
    )


def test_copyright_lines_stay_if_the_settings_say_so() -> None:
    text = "# Copyright 2020 Jo <jo@corp.io>\n# by jo@corp.io\n"
    assert redact(text, RedactSettings(keep_copyright=True))[0] == text.replace(
        "by jo@corp.io", "by email1@example.com"
    )
    assert "jo@corp.io" not in redact(text, DEFAULT)[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"keep_email_domains": ["jo@corp.io"]},
            r"keep_email_domains: not a domain such as 'python.org': 'jo@corp.io'",
        ),
        ({"keep_networks": ["8.8.8.8/24"]}, r"keep_networks: not an IP network such as '8.8.8.0/24': 8.8.8.8/24 has"),
        ({"keep_patterns": ["a", "(b"]}, r"keep_patterns: not a regular expression: '\(b': missing \)"),
        ({"kinds": []}, r"kinds: .*at least 1 item"),
        ({"kinds": ["names"]}, r"kinds.0: .*'secrets', 'email' or 'ip_address'"),
        ({"keep": []}, r"keep: unknown key"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(RedactSettings, values, "recipe")


def test_placeholders_of_addresses_are_distinct_and_nobodys() -> None:
    for kind in ("ipv4", "ipv6"):
        names = [placeholder(kind, number) for number in range(1, 2000)]
        assert len({*names}) == len(names)
        assert not any(ipaddress.ip_address(name).is_global for name in names)
    assert redact("\n".join(placeholder("ipv4", number) for number in range(1, 2000)), DEFAULT)[1] == {}


def test_many_addresses_are_told_apart() -> None:
    chance = random.Random(1)
    addresses = list(dict.fromkeys(public_ip(chance, 4) for _ in range(1000)))
    redacted, values = redact("\n".join(addresses), DEFAULT)
    assert len({*redacted.split("\n")}) == len(addresses)
    assert values["ipv4"] > 990


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_a_pattern_of_the_library_matches_is_looked_at(form: Format, data: st.DataObject) -> None:
    text = data.draw(
        st.from_regex(form.pattern.pattern.replace(r"(?:(?<=\W)|(?<=^))", ""), alphabet=st.characters(codec="ascii"))
    )
    group = next(group for group in groups() if form in group.formats)
    if form.pattern.search(text):
        assert pc.match_substring_regex(pa.array([text]), group.re2).to_pylist() == [True]


def test_every_plugin_that_knows_a_format_is_used() -> None:
    assert len(FORMATS) > 30
    assert {"aws_access_key", "github_token", "slack_token", "stripe_access_key", "json_web_token"} <= kinds()
    assert not [kind for kind in kinds() if not re.fullmatch(r"[a-z][a-z0-9_]*", kind)]


@pytest.mark.timeout(60)
def test_long_lines_are_no_trap() -> None:
    for text in (
        "a" * 10**6,
        "a@" * 10**5,
        "1.2." * 10**5,
        "ab:" * 10**5,
        "://a:" * 10**5,
        "-----BEGIN PRIVATE KEY-----" * 10**4,
    ):
        assert redact(text, DEFAULT)[0] is text


def test_texts_are_redacted_alike_alone_and_together() -> None:
    texts = [case.text for case in CASES[::20]]
    assert redact_all(texts, DEFAULT) == [redact(text, DEFAULT) for text in texts]
    assert secrets([]) == []


def test_a_table_has_the_size_and_the_hash_of_what_it_holds() -> None:
    contents = ["x = 1\n", f"x = '{github_token(1)}'\n", "é = 'jo@corp.io jo@corp.io'\n"]
    documents = [
        make_document(text.encode(), source="s", repository="r", path=f"{index}.py", revision=None, license=None)
        for index, text in enumerate(contents)
    ]
    table = to_table(documents)  # type: ignore[arg-type]
    redacted, values = redact_table(table, DEFAULT)
    assert redacted.schema == table.schema
    assert [{**count} for count in values] == [{}, {"github_token": 1}, {"email": 1}]
    for row in redacted.to_pylist():
        data = row["content"].encode()
        assert (row["size_bytes"], row["sha256"]) == (len(data), sha256_hex(data))
    assert redacted.drop_columns(["content", "size_bytes", "sha256"]) == table.drop_columns(
        ["content", "size_bytes", "sha256"]
    )
    assert redact_table(table, None)[0] is table
    assert redact_table(table.slice(0, 1), DEFAULT)[0].equals(table.slice(0, 1))
    assert redact_table(table.select(["content"]), DEFAULT)[0]["content"].to_pylist() == redacted["content"].to_pylist()
