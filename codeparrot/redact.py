"""Redaction: secrets and addresses do not reach a model. Each is replaced by something of its kind that is nobody's.

A placeholder looks like what it stands for, since a model writes what it was shown: an address of a reserved domain
(`email1@example.com`, RFC 2606), an address for documentation (`192.0.2.1`, RFC 5737; `2001:db8::1`, RFC 3849), and for
a secret a name such as `GITHUB_TOKEN_1`, which is what good code has in its place. `<EMAIL>`, as in StarCoder's corpus,
would be a word of its own in programs that no longer run, and the placeholders would have to be found and replaced in
whatever the model writes.

It stands in place of the match alone and fits wherever that stood: in a string, in a comment, and as an expression of
Python. No line comes or goes; of a private key every line is replaced, and the two that frame it stay. Within a
document, equal values get equal placeholders and others get other numbers, in the order of their first appearance; a
number that the document uses already is left out. What is redacted has nothing left to redact.

Not found: secrets without a form (passwords in assignments), addresses spelled out (`name at host dot com`), names of
people, and whatever stands in paths and names of repositories.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from codeparrot.addresses import EMAIL, emails, ip_addresses
from codeparrot.secret_formats import Finding, kinds, secrets
from codeparrot.settings import Settings
from codeparrot.storage import sha256_hex

if TYPE_CHECKING:
    import pyarrow as pa

NETWORKS = {
    "ipv4": ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15"),
    "ipv6": ("2001:db8::/32",),
}
"""What placeholders are taken from, in this order. The last of version 4 is for benchmarks of networks (RFC 2544)."""
MAX_ROUNDS = 8
DOMAIN = re.compile(r"(?:[a-z0-9-]+\.)+[a-z0-9-]+")
SAYS_COPYRIGHT = re.compile(r"copyright|\(c\)|\u00a9|SPDX-", re.IGNORECASE)


class RedactSettings(Settings):
    """What is replaced by placeholders, and what may stay."""

    kinds: tuple[Literal["secrets", "email", "ip_address"], ...] = Field(
        default=("secrets", "email", "ip_address"), min_length=1
    )
    """`secrets`: tokens of known formats, passwords in URLs and private keys. `ip_address`: public ones."""
    keep_email_domains: tuple[str, ...] = ()
    """Domains such as `python.org`; addresses there, and in domains below, stay."""
    keep_networks: tuple[str, ...] = ()
    """IP networks such as `8.8.8.0/24`; addresses there stay."""
    keep_patterns: tuple[str, ...] = ()
    """Regular expressions; what one of them matches as a whole stays, of whatever kind."""
    keep_copyright: bool = False
    """Whether e-mail addresses stay in lines with `Copyright`, `(c)` or `SPDX-`: licences ask to keep such lines."""

    @field_validator("keep_email_domains")
    @classmethod
    def _domains(cls, domains: tuple[str, ...]) -> tuple[str, ...]:
        lowered = tuple(domain.lower() for domain in domains)
        wrong = [domain for domain in lowered if not DOMAIN.fullmatch(domain)]
        if wrong:
            raise ValueError(f"not a domain such as 'python.org': {', '.join(map(repr, wrong))}")
        return lowered

    @field_validator("keep_networks")
    @classmethod
    def _networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"not an IP network such as '8.8.8.0/24': {error}") from None
        return networks

    @field_validator("keep_patterns")
    @classmethod
    def _patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {pattern!r}: {error}") from None
        return patterns


def redact(text: str, settings: RedactSettings) -> tuple[str, Counter[str]]:
    """The text without what is found in it, and how many different values of each kind that was.

    A text in which nothing is found is returned itself.
    """
    return redact_all([text], settings)[0]


def redact_all(texts: Sequence[str], settings: RedactSettings) -> list[tuple[str, Counter[str]]]:
    """The same for each of many texts, faster."""
    done, names = list(texts), [Names() for _ in texts]
    waiting = list(range(len(done)))
    for _ in range(MAX_ROUNDS):  # again, since a placeholder and its neighbours may look like something else
        found = _find([done[index] for index in waiting], settings)
        changed = [(index, findings) for index, findings in zip(waiting, found, strict=True) if findings]
        for index, findings in changed:
            done[index] = names[index].replace(done[index], findings)
        waiting = [index for index, _ in changed]
        if not waiting:
            break
    return [(text, own.counts()) for text, own in zip(done, names, strict=True)]


def redact_table(table: "pa.Table", settings: RedactSettings | None) -> tuple["pa.Table", list[Counter[str]]]:
    """A table of documents as curation sees it, and the values redacted in each; None: as it is.

    `content` is redacted, and `size_bytes` and `sha256` are those of the new content, where the table has them.
    """
    import pyarrow as pa

    if settings is None:
        return table, [Counter() for _ in range(table.num_rows)]
    done = redact_all(table["content"].to_pylist(), settings)
    encoded = {index: text.encode() for index, (text, count) in enumerate(done) if count}
    columns = {
        "content": [text for text, _ in done],
        "size_bytes": {index: len(data) for index, data in encoded.items()},
        "sha256": {index: sha256_hex(data) for index, data in encoded.items()},
    }
    for name, values in columns.items():
        if encoded and name in table.column_names:
            if isinstance(values, dict):
                values = [values.get(index, old) for index, old in enumerate(table[name].to_pylist())]
            place = table.column_names.index(name)
            table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    return table, [count for _, count in done]


def _find(texts: Sequence[str], settings: RedactSettings) -> list[list[Finding]]:
    """What is to be replaced in each text: in order, nothing overlapping."""
    found = secrets(texts) if "secrets" in settings.kinds else [[] for _ in texts]
    for text, findings in zip(texts, found, strict=True):
        if EMAIL in settings.kinds and "@" in text:
            findings += emails(text)
        if "ip_address" in settings.kinds:
            findings += ip_addresses(text)
        findings[:] = _apart(text, (each for each in sorted(findings) if not _stays(text, each, settings)))
    return found


def _stays(text: str, finding: Finding, settings: RedactSettings) -> bool:
    value = finding.value
    if finding.kind == EMAIL:
        domain = value.rpartition("@")[2]
        if any(f".{domain}".endswith(f".{kept}") for kept in settings.keep_email_domains):
            return True
        if settings.keep_copyright and SAYS_COPYRIGHT.search(_line(text, finding.start)):
            return True
    elif finding.kind in NETWORKS:
        if any(ipaddress.ip_address(value) in ipaddress.ip_network(kept) for kept in settings.keep_networks):
            return True
    elif _secret_name().fullmatch(value):
        return True
    return any(re.fullmatch(pattern, value) for pattern in settings.keep_patterns)


def _line(text: str, place: int) -> str:
    end = text.find("\n", place)
    return text[text.rfind("\n", 0, place) + 1 : end if end >= 0 else len(text)]


@lru_cache(maxsize=1)
def _secret_name() -> re.Pattern[str]:
    return re.compile(f"(?:{'|'.join(sorted(kind.upper() for kind in kinds()))})_[0-9]+")


@lru_cache(maxsize=1)
def _placeholders() -> re.Pattern[str]:
    """Whatever may be a placeholder: those that a text has are not given to other values."""
    return re.compile(rf"{_secret_name().pattern}|email\d+@example\.com|(?:\d+\.){{3}}\d+|2001:db8::[0-9a-f]+")


def _apart(text: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings in order; those that overlap become one."""
    last: Finding | None = None
    for each in findings:
        if last is not None and each.start < last.end:
            if each.end > last.end:
                last = Finding(last.start, each.end, last.kind, text[last.start : each.end])
        else:
            if last is not None:
                yield last
            last = each
    if last is not None:
        yield last


class Names:
    """The placeholders of one document."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self._numbers: Counter[str] = Counter()
        self._used: set[str] = set()

    def counts(self) -> Counter[str]:
        """How many different values of each kind have one."""
        return Counter(kind for kind, _ in self._names)

    def replace(self, text: str, findings: Iterable[Finding]) -> str:
        """The text with placeholders in place of what was found, in order."""
        self._used.update(_placeholders().findall(text))
        pieces, place = [], 0
        for each in findings:
            key = (each.kind, each.value)
            if key not in self._names:
                self._names[key] = self._next(each.kind)
            pieces += [text[place : each.start], self._names[key]]
            place = each.end
        return "".join([*pieces, text[place:]])

    def _next(self, kind: str) -> str:
        while True:
            self._numbers[kind] += 1
            name = placeholder(kind, self._numbers[kind])
            if name not in self._used:
                return name


def placeholder(kind: str, number: int) -> str:
    """The placeholder of the first, second, ... value of a kind in a document."""
    if kind == EMAIL:
        return f"email{number}@example.com"
    for network in map(ipaddress.ip_network, NETWORKS.get(kind, ())):
        if number < network.num_addresses - 1:
            return str(network[number])
        number -= network.num_addresses - 2
    return f"{kind.upper()}_{number}"
