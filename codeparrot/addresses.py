"""Addresses of people and machines: e-mail and the public internet's, told from code and versions that look like them.

Both are found from what is rare in them (an `@` with a domain after it, two dots around digits, two colons), so that a
document without any costs one pass in C.

No e-mail address: a domain that no one can own (RFC 2606, or no top-level domain), `git@host`, the user of a URL
(`ssh://user@host`), a product of matrices (`x@w.to(device)`), a template (`%s@host`).

No public address: all that RFC 6890 and its kin set apart (private, loopback, link-local, documentation, multicast and
more, by `ipaddress`), masks, and version numbers. Four numbers are a version if a word or a sign before them says so
(`version`, `==`, `Chrome/`), or if each is below 40: of random addresses, that is 1 in 1,700.
"""

import ipaddress
import re
from collections.abc import Iterator

from codeparrot.secret_formats import Finding

EMAIL = "email"
MAX_LOCAL_CHARACTERS = 64
"""RFC 5321, 4.5.3.1.1."""
VERSION_PART = 40
"""From here on, a part of a dotted number is rather one of an address."""
BEFORE_CHARACTERS = 48

AT_DOMAIN = re.compile(r"@((?:[A-Za-z0-9-]+\.)+([A-Za-z]{2,}|xn--[A-Za-z0-9]+))(?![\w(\[]|[./-]\w)")
LOCAL = re.compile(r"[\w.+-]+\Z")
ESCAPE = re.compile(r"x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[0-7]{1,3}|\w")
NOT_BEFORE_LOCAL = re.compile(r"[%}@]\Z|%\([^)\n]*\)\Z|://[^\s/@\"'<>]*\Z")
RESERVED_DOMAIN = re.compile(
    r"(?:.*\.)?(?:example\.(?:com|net|org)|[^.]+\.(?:example|test|invalid|localhost|local))", re.IGNORECASE
)
OBJECTS = frozenset({"self", "cls"})
COUNTRIES = """ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs bt bw by bz
    ca cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fk fm fo fr ga
    gd ge gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in io iq ir is it je jm jo jp ke kg
    kh ki km kn kp kr kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo mp mq mr ms mt mu mv mw
    mx my mz na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt pw py qa re ro rs ru rw sa sb sc
    sd se sg sh si sk sl sm sn so sr ss st su sv sx sy sz tc td tf tg th tj tk tl tm tn to tr tt tv tw tz ua ug uk us uy
    uz va vc ve vg vi vn vu wf ws ye yt za zm zw"""
GENERIC = """com org net edu gov mil int arpa info biz name pro aero coop museum jobs mobi tel asia cat post travel xxx
    academy agency ai app art bank berlin bio blog build business cafe capital care center chat city cloud club codes
    community company computer consulting dev digital directory email energy engineering expert finance foundation fun
    fund games global google group guru health help host hosting house industries ink institute international land law
    life link live llc london ltd management media money network news ngo one online page partners photo photography
    plus press science security services shop site social software solutions space studio support swiss systems team
    tech technology tips tools top university ventures vip watch web website wiki win work works world wtf xyz zone"""
TOP_LEVEL = frozenset(f"{COUNTRIES} {GENERIC}".split())
"""Those that people write from; the whole list has 1,400, among them names of attributes such as `dot` and `data`."""

INNER_PARTS = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d")
DIGITS_BEFORE = re.compile(r"\d{1,3}\Z")
BEFORE_ADDRESS = re.compile(r"(?<![\w.])|(?<=\\[nrt])")
QUAD = re.compile(rf"(?:{BEFORE_ADDRESS.pattern})(?<![A-Za-z]-)(?:\d{{1,3}}\.){{3}}\d{{1,3}}(?!\w|\.\d|-[A-Za-z])")
SAYS_VERSION = re.compile(
    r"""(?: version
          | (?<![a-z])(?:vers?|v|releases?d?|rev(?:ision)?|build|since|oid|identifier|upgraded?|bump(?:ed|s)?))
        (?: (?:s|__|_?(?:info|string|str|number|id))? [\s"'`:=(\[,{]* (?:(?:to|from|in|of) \s+)? | \s+\S{1,16}\s+ ) \Z
      | (?:[=~<>!]=|[~^]) \s? \Z
      | [A-Za-z]/ \Z""",
    re.VERBOSE | re.IGNORECASE,
)
COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
HEX_BEFORE = re.compile(r"[0-9A-Fa-f:]*\Z")
HEX_AFTER = re.compile(r"[0-9A-Fa-f:]*")
UNICAST = re.compile(r"[23][0-9A-Fa-f]{3}:")
"""All public addresses of version 6 are in 2000::/3 (RFC 4291, 2.4)."""
MAX_IPV6_CHARACTERS = 39


def emails(text: str) -> Iterator[Finding]:
    """E-mail addresses, equal in whatever case."""
    for match in AT_DOMAIN.finditer(text):
        start = _local_start(text, match.start())
        if start is not None and _is_domain(match[1], match[2]) and text[start : match.start()].lower() != "git":
            yield Finding(start, match.end(), EMAIL, text[start : match.end()].lower())


def _local_start(text: str, at: int) -> int | None:
    """Where the part before an `@` begins, if it may be that of an address."""
    floor = max(0, at - MAX_LOCAL_CHARACTERS - 1)
    local = LOCAL.search(text[floor:at])
    if local is None or local.end() - local.start() > MAX_LOCAL_CHARACTERS or local[0].endswith("."):
        return None
    start = floor + local.start()
    if text[:start].endswith("\\"):
        escape = ESCAPE.match(text, start, at)
        start = escape.end() if escape else start
    start += len(text[start:at]) - len(text[start:at].lstrip(".+-"))
    if start == at or NOT_BEFORE_LOCAL.search(text[max(0, start - BEFORE_CHARACTERS) : start]):
        return None
    return start


def _is_domain(domain: str, top: str) -> bool:
    """Whether people could have addresses there."""
    one_case = top in (top.lower(), top.upper())
    known = top.lower() in TOP_LEVEL or top.startswith("xn--")
    first = domain.partition(".")[0]
    return one_case and known and first not in OBJECTS and not RESERVED_DOMAIN.fullmatch(domain)


def ip_addresses(text: str) -> Iterator[Finding]:
    """Public addresses of the internet, equal however they are written."""
    for match in INNER_PARTS.finditer(text):
        before = DIGITS_BEFORE.search(text[max(0, match.start() - 3) : match.start()])
        quad = QUAD.match(text, match.start() - len(before[0])) if before else None
        if quad and not _is_version(quad[0], text[max(0, quad.start() - BEFORE_CHARACTERS) : quad.start()]):
            yield from _public(quad.start(), quad[0])
    end = 0
    for match in COLONS.finditer(text):
        if match.start() >= end:
            start, run = _hex_run(text, match)
            end = start + len(run)
            telling = sum(map(bool, run.split(":"))) > 2 or re.search("[A-Fa-f]", run)
            if UNICAST.match(run) and telling:  # `x[2000::5]` is a slice
                yield from _public(start, run)


def _is_version(quad: str, before: str) -> bool:
    line = before.rpartition("\n")[2]
    return max(map(int, quad.split("."))) < VERSION_PART or SAYS_VERSION.search(line) is not None


def _hex_run(text: str, match: re.Match[str]) -> tuple[int, str]:
    """All hexadecimal digits and colons around a match: where they begin, and the run; empty in the midst of a word."""
    floor = max(0, match.start() - MAX_IPV6_CHARACTERS)
    before, after = HEX_BEFORE.search(text[floor : match.start()]), HEX_AFTER.match(text, match.end())
    assert before is not None
    assert after is not None
    start, end = floor + before.start(), after.end()
    run = text[start:end]
    if run.endswith(":") and not run.endswith("::"):
        run = run[:-1]
    return start, run if BEFORE_ADDRESS.match(text, start) else ""


def _public(start: int, written: str) -> Iterator[Finding]:
    try:
        address = ipaddress.ip_address(written)
    except ValueError:
        return
    if address.is_global and not address.is_multicast:
        yield Finding(start, start + len(written), f"ipv{address.version}", str(address))
