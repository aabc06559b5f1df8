"""Secrets that can be told by their form: tokens with a known shape, passwords in URLs, blocks of private keys.

The forms are those of the library detect-secrets (its `RegexBasedDetector.denylist`). Its API takes one line at a time
and tries every pattern on it, 0.6 MB/s, so the patterns are taken from its plugins and used here:

- A document is looked at only if RE2 (by pyarrow) finds one of the patterns in it. RE2 knows no look-around, so those
  are dropped for this question, which makes a pattern match more, never less.
- Where a pattern matches, the plugin itself must agree (`analyze_string`), and the match must be a whole token: not the
  middle of base64, not `xxxxxxxx`, not `user:password@`. It is then extended to the token's end.

Its plugins for entropy and for keywords are not used. They say that something may be a secret, for a person to look at:
in 10 MB of installed packages the one for base64 calls 199 strings secret and the one for keywords 2, none of which is.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from detect_secrets.plugins.base import RegexBasedDetector

PRIVATE_KEY = "private_key"
OTHERS = frozenset({"PrivateKeyDetector", "IPPublicDetector"})
"""Plugins for what is found in another way: a key is more than its first line, an address may be a version."""
WHOLE_MATCH = frozenset({"GitHubTokenDetector", "GitLabTokenDetector"})
"""Plugins whose groups are a token's prefix; that of others is the secret without its surroundings."""
MUST_MIX = frozenset({"ArtifactoryDetector", "IbmCloudIamDetector"})
"""Plugins whose patterns match long names too: there, a secret has a digit, an upper and a lower case letter."""
BASIC_AUTH = "BasicAuthDetector"
GROUPS = (
    frozenset({"DiscordBotTokenDetector", "MailchimpDetector", "StripeDetector", "TelegramBotTokenDetector"}),
    frozenset({"IbmCosHmacDetector", "CloudantDetector", "SoftlayerDetector"}),
    frozenset({"IbmCloudIamDetector"}),
    frozenset({"ArtifactoryDetector"}),
)
"""Plugins that RE2 looks for at once; the rest is one more group. All in one are too many states, and slow."""
MIN_DISTINCT = 5
"""Characters at the end of a token: `xxxxxxxx` and `AKIA0000000000000000` are no secrets."""
RANDOM_CHARACTERS = 20

LOOK_AROUND = re.compile(r"\(\?<?[=!](?:[^()\\\[\]]|\\.|\[[^\]]*\])*\)")
LONG_REPEAT = re.compile(r"\{(\d+),\d{4,}\}")
"""RE2 counts to 1000."""
CLASS_OR_SPACE = re.compile(r"\[(?:[^\]\\]|\\.)*\]|\\s|\\.")
ANY_SPACE = r"[\s\v\x1c-\x1f\x{80}-\x{10ffff}]"
"""What Python calls white space, and more; RE2 knows that of ASCII alone."""
BEFORE_TOKEN = re.compile(r"(?:(?<![^\W_])|(?<=\\[nrt])|(?<=\bbot))(?<![0-9A-Za-z+/]{24})")
"""What a token may follow: no letter or digit (but an escape such as `\\n`, and Telegram's `/bot`), no base64."""
LEAD = re.compile(r'(?:[\s:"=]|AccountKey=)*')
TOKEN = re.compile(r"[\w+/=-]+", re.ASCII)
TOKEN_REST = {"JwtTokenDetector": re.compile(r"[\w.+/=-]*(?<!\.)", re.ASCII)}
ANY_REST = re.compile(r"[\w-]*", re.ASCII)
NO_PASSWORD = re.compile(
    r""".*[<>{}"'`\\|].* | %[sdr] | \*+ | \.+ | .{1,2} | """
    r"""(?:my)?(?:user(?:name)?|pass(?:w(?:or)?d)?|pwd?|pw|secret|token|"""
    r"""api_?key|key|auth|creds?|credentials?|changeme|redacted|x{3,}|x-oauth-basic|foo|bar|baz|test|port)""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
"""What stands where a password would: a template, or the word itself."""

KEY_BEGIN = r"BEGIN ENCRYPTED PRIVATE KEY|PuTTY-User-Key-File-3"
"""What the library's plugin for private keys does not know."""
KEY_END = re.compile(r"-----END|Private-MAC|-----BEGIN")
MAX_KEY_CHARACTERS = 16_384
MAX_HEAD_CHARACTERS = 512
"""Between the line that begins a key and its first full line."""
KEY_LINE = re.compile(
    r"""\\[nrt\\] | (?P<line>
        (?:(?<![\w+/])|(?<=\\[nrt])) [0-9A-Za-z+/]{32,}={0,2}
      | [0-9A-Za-z+/]{3,}={0,2} (?= (?:\\[nr] | [\s"'+\\\#,;*()] | [bBrRuUfF]["'])* (?:-----END|Private-MAC) )
    )""",
    re.VERBOSE,
)
"""In a key's block: a line of base64, or what is left of it before the end."""
FULL_KEY_LINE = 32


class Finding(NamedTuple):
    """A piece of a text that must go."""

    start: int
    end: int
    kind: str
    value: str
    """Equal for pieces that say the same."""


@dataclass(frozen=True)
class Format:
    """One pattern of the library."""

    plugin: "RegexBasedDetector"
    pattern: re.Pattern[str]

    @property
    def name(self) -> str:
        return type(self.plugin).__name__

    @property
    def kind(self) -> str:
        """Such as `github_token`."""
        return re.sub(r"\W+", "_", self.plugin.secret_type).lower()


@dataclass(frozen=True)
class Group:
    """Patterns that are looked for together."""

    formats: tuple[Format, ...]
    re2: str
    """Matches wherever one of them does."""


@lru_cache(maxsize=1)
def groups() -> tuple[Group, ...]:
    """All patterns of the library that are used."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector

    every: list[type[Any]] = list(get_mapping_from_secret_type_to_class().values())
    plugins = [each() for each in every if issubclass(each, RegexBasedDetector) and each.__name__ not in OTHERS]
    formats = [Format(plugin, pattern) for plugin in plugins for pattern in plugin.denylist]
    places = [next((i for i, names in enumerate(GROUPS) if each.name in names), len(GROUPS)) for each in formats]
    parts = [[each for each, at in zip(formats, places, strict=True) if at == place] for place in sorted({*places})]
    return tuple(Group(tuple(part), "|".join(_loose(each.pattern) for each in part)) for part in parts)


def _loose(pattern: re.Pattern[str]) -> str:
    """For RE2: the pattern without look-around, and so matching at least where it does."""
    text = LONG_REPEAT.sub(r"{\1,}", LOOK_AROUND.sub("", pattern.pattern))
    text = CLASS_OR_SPACE.sub(lambda match: ANY_SPACE if match[0] == r"\s" else match[0], text)
    return f"(?i:{text})" if pattern.flags & re.IGNORECASE else f"(?:{text})"


@lru_cache(maxsize=1)
def kinds() -> frozenset[str]:
    """Every kind of finding."""
    return frozenset({PRIVATE_KEY, *(each.kind for group in groups() for each in group.formats)})


@lru_cache(maxsize=1)
def key_begin() -> re.Pattern[str]:
    """Where the block of a private key begins."""
    from detect_secrets.plugins.private_key import PrivateKeyDetector

    return re.compile("|".join([KEY_BEGIN, *(pattern.pattern for pattern in PrivateKeyDetector.denylist)]))


def secrets(texts: Sequence[str]) -> list[list[Finding]]:
    """The secrets of each text, in no order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: list[list[Finding]] = [[*_private_keys(text)] for text in texts]
    column = pa.array(texts, pa.large_string())
    for group in groups():
        for index in pc.indices_nonzero(pc.match_substring_regex(column, group.re2)).to_pylist():
            for each in group.formats:
                found[index] += _tokens(texts[index], each)
    return found


def _tokens(text: str, form: Format) -> Iterator[Finding]:
    grouped = form.pattern.groups > 0 and form.name not in WHOLE_MATCH
    for match in form.pattern.finditer(text):
        start, end = match.span(int(grouped))
        if form.name == BASIC_AUTH:
            if not NO_PASSWORD.fullmatch(text, start, end):
                yield Finding(start, end, form.kind, text[start:end])
        elif next(form.plugin.analyze_string(match[0]), None) is not None:
            start = _end(LEAD, text, start, end)
            end = _end(TOKEN, text, start, end) if grouped else start + len(text[start:end].rstrip(' \t\n"'))
            end = _end(TOKEN_REST.get(form.name, ANY_REST), text, end, len(text))
            if _is_secret(text, start, end, form):
                yield Finding(start, end, form.kind, text[start:end])


def _end(pattern: re.Pattern[str], text: str, start: int, stop: int) -> int:
    """Where a match that begins at `start` ends; there, if none does."""
    match = pattern.match(text, start, stop)
    return match.end() if match else start


def _is_secret(text: str, start: int, end: int, form: Format) -> bool:
    """Whether it is a whole token, and random: not one character again and again, not a name."""
    value = text[start:end]
    mixed = all(re.search(part, value) for part in ("[0-9]", "[a-z]", "[A-Z]"))
    varied = len({*value[-RANDOM_CHARACTERS:].lower()}) >= MIN_DISTINCT
    return varied and (mixed or form.name not in MUST_MIX) and BEFORE_TOKEN.match(text, start) is not None


def _private_keys(text: str) -> Iterator[Finding]:
    """Every line of every private key. The lines that frame it stay, so that code around them means what it did."""
    if "PRIVATE KEY" not in text and "PuTTY-User-Key" not in text:
        return
    for begin in key_begin().finditer(text):
        first = begin.end() + len("-----")  # do not take the frame's own dashes for the next one
        limit = min(len(text), first + MAX_KEY_CHARACTERS)
        end = KEY_END.search(text, first, limit)
        stop = end.end() if end else limit
        lines = [match for match in KEY_LINE.finditer(text, first, stop) if match["line"]]
        full = next((match.start() for match in lines if len(match[0]) >= FULL_KEY_LINE), limit)
        if full <= first + MAX_HEAD_CHARACTERS and full < limit:
            value = "".join(match[0] for match in lines)
            yield from (Finding(match.start(), match.end(), PRIVATE_KEY, value) for match in lines)
