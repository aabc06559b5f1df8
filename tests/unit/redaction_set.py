"""A labelled set for redaction, the same on every machine: what must go, in lines as programs have them, and what must
stay though it looks like it. `python -m tests.unit.redaction_set` prints precision and recall by kind;
`python -m tests.unit.redaction_set FOLDER` what is found in the Python files of a folder, and how fast.

Every secret is made of random characters and put together here, so that none stands in this file.
"""

import base64
import ipaddress
import json
import random
import string
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from codeparrot.documents import ReadReason, decode
from codeparrot.redact import RedactSettings, redact_all

LOWER, UPPER, DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits
ALNUM = LOWER + UPPER + DIGITS
HEX = DIGITS + "abcdef"
URL_SAFE = ALNUM + "-_"
PER_TEMPLATE = 3
MAX_FILES = 6000
BATCH = 300


@dataclass(frozen=True)
class Case:
    """A text, and what must not be left of it."""

    text: str
    kind: str | None
    """None: nothing in it may be touched."""
    planted: str = ""


Make = Callable[[random.Random], str]


def drawn(chance: random.Random, alphabet: str, length: int) -> str:
    return "".join(chance.choices(alphabet, k=length))


def token(*parts: str | tuple[str, int]) -> Make:
    """Something that draws tokens: pieces as they are, and (alphabet, length) at random."""
    return lambda chance: "".join(part if isinstance(part, str) else drawn(chance, *part) for part in parts)


def web_token(chance: random.Random) -> str:
    claims: list[dict[str, object]] = [
        {"alg": "HS256", "typ": "JWT"},
        {"sub": drawn(chance, DIGITS, 10), "name": drawn(chance, LOWER, 8), "iat": chance.randrange(10**9)},
    ]
    parts = [base64.urlsafe_b64encode(json.dumps(claim).encode()).decode().rstrip("=") for claim in claims]
    return ".".join([*parts, drawn(chance, URL_SAFE, 43)])


TOKENS: dict[str, list[Make]] = {
    "aws_access_key": [token("AK" + "IA", (UPPER + DIGITS, 16)), token("AS" + "IA", (UPPER + DIGITS, 16))],
    "github_token": [token("gh" + letter + "_", (ALNUM, 36)) for letter in "pous"],
    "gitlab_token": [token("gl" + "pat-", (URL_SAFE, 20)), token("gl" + "rt-", (URL_SAFE, 20))],
    "slack_token": [
        token("xo" + "xb-", (DIGITS, 12), "-", (DIGITS, 12), "-", (ALNUM, 24)),
        token("https://hooks.sl" + "ack.com/services/T", (ALNUM, 8), "/B", (ALNUM, 8), "/", (ALNUM, 24)),
    ],
    "stripe_access_key": [token("sk_" + "live_", (ALNUM, 24)), token("rk_" + "live_", (ALNUM, 99))],
    "json_web_token": [web_token],
    "sendgrid_api_key": [token("S" + "G.", (URL_SAFE, 22), ".", (URL_SAFE, 43))],
    "pypi_token": [token("py" + "pi-AgEIcHlwaS5vcmc", (URL_SAFE, 120))],
    "openai_token": [token("s" + "k-", (ALNUM, 20), "T3Blbk" + "FJ", (ALNUM, 20))],
    "twilio_api_key": [token("S" + "K", (HEX, 32)), token("A" + "C", (HEX, 32))],
    "telegram_bot_token": [token((DIGITS[1:], 9), ":AA", (URL_SAFE, 33))],
    "mailchimp_access_key": [token((HEX, 32), "-us", (DIGITS[1:], 1))],
    "square_oauth_secret": [token("sq0" + "csp-", (URL_SAFE, 43))],
    "discord_bot_token": [token("M", (ALNUM, 23), ".", (ALNUM, 6), ".", (URL_SAFE, 27))],
}
AROUND_TOKENS = [
    'TOKEN = "{}"\n',
    "client = connect(token='{}', retries=3)\n",
    "# the old one was {}, do not use it\n",
    'headers = {{"Authorization": "Bearer {}"}}\n',
    'os.environ.setdefault("API_TOKEN", "{}")\n',
    'CONFIG = """\n[service]\ntoken={}\nregion=eu\n"""\n',
    'data = b"{}"\n',
    'script = "set -e\\n{}\\nexit 0"\n',
    "curl -H 'X-Token: {}' https://api.service.io/v1\n",
]
KEYED: dict[str, list[tuple[str, Make]]] = {
    "aws_access_key": [("aws_secret_access_key = '{}'\n", token((ALNUM + "/+", 40)))],
    "azure_storage_account_access_key": [
        ('"DefaultEndpointsProtocol=https;AccountName=box;AccountKey={};"\n', token((ALNUM + "+/", 86), "=="))
    ],
    "ibm_cloud_iam_key": [('ibm_cloud_api_key = "{}"\n', token((ALNUM, 41), "a", "B", "3"))],
    "npm_tokens": [("//registry.host.io/:_authToken={}\n", token("np" + "m_", (ALNUM, 36)))],
    "basic_auth_credentials": [
        (template, token((ALNUM + "-_%.", 12)))
        for template in (
            'DATABASE_URL = "postgres://app:{}@db.internal:5432/app"\n',
            "requests.get('https://robot:{}@git.host.io/repo.git')\n",
            "# mongodb://admin:{}@10.0.0.7/admin\n",
            'broker = f"amqp://worker:{}@{{host}}:5672"\n',
        )
    ],
}
AROUND_EMAILS = [
    "__author__ = 'Jo Doe <{}>'\n",
    "# Contact: {}.\n",
    'send_mail(to="{}", subject="hello")\n',
    ":author: Jo Doe ({})\n",
    'MAINTAINERS = ["{}"]\n',
    '"""Written by Jo.\n\nmailto:{}\n"""\n',
    'text = "bye\\n{}\\n"\n',
    "email={},\n",
]
DOMAINS = [
    "gmail.com",
    "uni-bonn.de",
    "cs.mit.edu",
    "corp.co.uk",
    "startup.io",
    "inria.fr",
    "acm.org",
    "mail.ru",
    "abc.museum",
]
AROUND_IPS = [
    'HOST = "{}"\n',
    "ping -c 1 {}\n",
    '("{}", 8080)\n',
    "url = 'http://{}:8000/api'\n",
    "# moved to {} last week\n",
    'ALLOWED = ["10.0.0.1", "{}"]\n',
    'if peer == "{}":\n    drop()\n',
    "{} - - [10/Oct/2020:13:55:36] GET /\n",
]
AROUND_IPS_V6 = [each for each in AROUND_IPS if "http" not in each] + ["url = 'http://[{}]:8000/api'\n"]
STAY = [
    *("@app.route('/users')\ndef users(): pass\n", "@pytest.mark.parametrize\n", "y = a@b\n", "y = x@w.T\n"),
    *("loss = (x@w.to(device)).sum()\n", "z = self.q@self.k.mT\n", "out = inputs@weights.data\n", "A@B.inv()\n"),
    *(
        "user@localhost\n",
        "root@example.com\n",
        "git clone git@github.com:org/repo.git\n",
        "ssh://deploy@host.io/srv\n",
    ),
    *("mail = f'{name}@corp.io'\n", "mail = '%s@corp.io' % name\n", "npm install react@16.8.0\n", "icon@2x.png\n"),
    *("see `pkg@latest`\n", "jo@mail.invalid\n", "git+https://token@github.com/org/repo\n", "alice@test.example.org\n"),
    *(
        "from . import x\n",
        "from .. import y\n",
        "version = '1.2.3.4'\n",
        "pkg==2.31.0.20240406\n",
        "foo==81.92.103.114\n",
    ),
    *("Changed in version 4.50.60.70\n", "__version__ = '93.184.216.34'\n", "Chrome/96.0.120.110\n", "# 3.0.0.1\n"),
    *(
        "OID = '1.3.6.1.4.1.311'\n",
        "id = '2.5.29.15'\n",
        "section 12.3.4.5\n",
        "127.0.0.1\n",
        "0.0.0.0\n",
        "10.1.2.3\n",
    ),
    *("192.168.178.1\n", "172.16.254.1\n", "169.254.169.254\n", "192.0.2.44\n", "203.0.113.9\n", "255.255.255.0\n"),
    *(
        "224.0.0.251\n",
        "300.400.500.600\n",
        "1.2.3\n",
        "::1\n",
        "fe80::1\n",
        "2001:db8::8:800:200c:417a\n",
        "fd00::12\n",
    ),
    *("x[::2]\n", "x[2000::5]\n", "x[1::2, ::-1]\n", "std::abs(x)\n", "at 12:34:56\n", "aa:bb:cc:dd:ee:ff\n"),
    *(
        "2024:12:31:10:20:30\n",
        "libfoo-81.2.69.142.tar.gz\n",
        "release 99.88.77.66\n",
        "libfoo 62.14.50.115 (stable)\n",
    ),
    *("https://user:password@host.io/\n", "https://<user>:<pass>@host.io\n", "f'https://{user}:{pw}@{host}'\n"),
    *("http://%s:%s@proxy:3128\n", "redis://:@cache:6379\n", "http://host.io:8080/a@b\n", "smtp://user:***@mail.io\n"),
    *("AK" + "IA" + "X" * 16 + "\n", "gh" + "p_" + "x" * 36 + "\n", "sk_" + "live_" + "0" * 24 + "\n"),
    *(
        "-----BEGIN CERTIFICATE-----\n",
        "if 'BEGIN RSA PRIVATE KEY' in text: fail()\n",
        "AKIA = 1\n",
        "password = get()\n",
    ),
    'START = "-----BEGIN OPENSSH PRIVATE KEY-----"\nEND = "-----END OPENSSH PRIVATE KEY-----"\nvalue = read(path)\n',
    "-----BEGIN PRIVATE KEY-----\nMII...\n-----END PRIVATE KEY-----\n",
]


def random_things(chance: random.Random) -> Iterator[str]:
    """What is random, and nobody's secret."""
    yield f"commit = '{drawn(chance, HEX, 40)}'\n"
    yield f"sha256:{drawn(chance, HEX, 64)}\n"
    yield f"md5 = {drawn(chance, HEX, 32)!r}\n"
    yield f"id = '{drawn(chance, HEX, 8)}-{drawn(chance, HEX, 4)}-4{drawn(chance, HEX, 3)}-{drawn(chance, HEX, 12)}'\n"
    image = base64.b64encode(chance.randbytes(600)).decode()
    yield f'ICON = "data:image/png;base64,{image}"\n'
    yield f'BLOB = """\n{image[:76]}\n{image[76:152]}\n"""\n'
    yield f"{image[:40]}{'AK' + 'IA' + drawn(chance, UPPER + DIGITS, 16)}{image[40:80]}\n"
    yield ".".join(str(chance.randrange(40)) for _ in range(4)) + "\n"
    yield "v" + ".".join(str(chance.randrange(256)) for _ in range(4)) + "\n"
    yield f"client_{drawn(chance, LOWER, 20)}_{drawn(chance, LOWER, 20)} = None\n"


def private_key(chance: random.Random) -> tuple[str, list[str]]:
    """The frame's name, and the lines of a key."""
    name = chance.choice(
        ["RSA PRIVATE KEY", "PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY", "ENCRYPTED PRIVATE KEY"]
    )
    lines = [drawn(chance, ALNUM + "+/", 64) for _ in range(chance.randrange(1, 25))]
    return name, [*lines, drawn(chance, ALNUM + "+/", chance.randrange(4, 62)) + "=="]


def framed(name: str, lines: list[str], form: str) -> str:
    """A key in one of the ways in which programs hold them."""
    begin, end = f"-----BEGIN {name}-----", f"-----END {name}-----"
    whole = [begin, *lines, end]
    return {
        "triple": 'KEY = """' + "\n".join(whole) + '\n"""\n',
        "escaped": 'KEY = "' + "\\n".join(whole) + '\\n"\n',
        "strings": "KEY = (\n" + "".join(f'    b"{line}\\n"\n' for line in whole) + ")\n",
        "added": "KEY = " + " + \\\n    ".join(f"'{line}\\n'" for line in whole) + "\n",
        "list": "KEY = [" + ",\n".join(f'"{line}"' for line in whole) + "]\n",
        "comment": "".join(f"# {line}\n" for line in whole),
        "plain": "\n".join(whole) + "\n",
    }[form]


KEY_FORMS = ("triple", "escaped", "strings", "added", "list", "comment", "plain")


def public_ip(chance: random.Random, version: int) -> str:
    """Any address of the public internet."""
    while True:
        bits = chance.getrandbits(32) if version == 4 else (0b001 << 125) | chance.getrandbits(125)
        address = ipaddress.ip_address(bits) if version == 4 else ipaddress.IPv6Address(bits)
        if address.is_global and not address.is_multicast:
            return str(address)


def email(chance: random.Random) -> str:
    local = drawn(chance, LOWER, 6) + chance.choice(["", ".", "_", "+", "-"]) + drawn(chance, LOWER + DIGITS, 4)
    return f"{local}@{chance.choice(DOMAINS)}"


def cases(seed: int = 1) -> Iterator[Case]:
    """The whole set."""
    chance = random.Random(seed)
    simple: list[tuple[str, Make, list[str]]] = [
        *((kind, make, AROUND_TOKENS) for kind, makes in TOKENS.items() for make in makes),
        *((kind, make, [around] * 4) for kind, pairs in KEYED.items() for around, make in pairs),
        ("email", email, AROUND_EMAILS),
        ("ipv4", lambda chance: public_ip(chance, 4), AROUND_IPS),
        ("ipv6", lambda chance: public_ip(chance, 6), AROUND_IPS_V6),
    ]
    for kind, make, templates in simple:
        for template in templates * PER_TEMPLATE:
            value = make(chance)
            yield Case(template.format(value), kind, value)
    for form in KEY_FORMS * PER_TEMPLATE:
        name, lines = private_key(chance)
        yield Case(framed(name, lines, form), "private_key", "\n".join(lines))
    for text in STAY:
        yield Case(text, None)
    for _ in range(PER_TEMPLATE * 4):
        yield from (Case(text, None) for text in random_things(chance))


@dataclass
class Score:
    """Of one kind: values that were planted, found among them, and found elsewhere."""

    planted: int = 0
    found: int = 0
    wrong: int = 0

    @property
    def precision(self) -> float:
        return self.found / max(1, self.found + self.wrong)

    @property
    def recall(self) -> float:
        return self.found / max(1, self.planted)


def evaluate() -> tuple[dict[str, Score], list[Case]]:
    """Scores by kind, and the cases that went wrong. A value counts as found if nothing of it is left."""
    scores: dict[str, Score] = defaultdict(Score)
    wrong = []
    everything = list(cases())
    for case, (text, values) in zip(
        everything, redact_all([case.text for case in everything], RedactSettings()), strict=True
    ):
        gone = case.kind is not None and not any(line in text for line in case.planted.split("\n"))
        if case.kind is not None:
            scores[case.kind].planted += 1
            scores[case.kind].found += gone
        for kind, count in values.items():
            scores[kind].wrong += count - (gone and kind == case.kind)
        if gone != (case.kind is not None) or values.total() != gone:
            wrong.append(case)
    return dict(scores), wrong


def main() -> None:
    """Print the scores."""
    scores, wrong = evaluate()
    print(f"{'kind':34} {'planted':>7} {'precision':>10} {'recall':>7}")
    for kind, score in sorted(scores.items()):
        print(f"{kind:34} {score.planted:7} {100 * score.precision:8.1f} % {100 * score.recall:5.1f} %")
    print(f"{sum(1 for case in cases() if case.kind is None)} texts in which nothing may be found; wrong:")
    for case in wrong:
        print(f"  {case.kind}: {case.text[:100]!r}")


def survey(folder: Path) -> None:
    """Print how many values are found in a folder, and MB/s of one core."""
    texts = [decode(path.read_bytes()) for path in sorted(folder.rglob("*.py"))[:MAX_FILES]]
    documents = [text for text in texts if isinstance(text, str) and not isinstance(text, ReadReason)]
    size = sum(len(text.encode()) for text in documents)
    redact_all(["warm"], RedactSettings())
    began, total = time.process_time(), Counter[str]()
    num_touched = 0
    for start in range(0, len(documents), BATCH):
        batch = documents[start : start + BATCH]
        for _, values in redact_all(batch, RedactSettings()):
            total += values
            num_touched += bool(values)
    speed = size / 1e6 / (time.process_time() - began)
    print(f"{len(documents)} files, {size / 1e6:.1f} MB, {speed:.0f} MB/s of processor time")
    print(f"{num_touched} files with findings: {dict(total)}")


if __name__ == "__main__":
    survey(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
