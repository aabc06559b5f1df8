"""Searching for repositories: all that match, although the API shows the first 1,000 only.

A search that finds more is cut in two by the number of stars, again and again; where all have the same number, by the
second in which they were created. The half with more stars comes first, so that the most starred of millions cost few
requests. What is found, and its order, does not depend on how it was cut.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from itertools import product
from math import isqrt
from typing import Any
from urllib.parse import urlencode

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from codeparrot.settings import Settings
from codeparrot.sources.github_api import GitHub, Repository

logger = logging.getLogger(__name__)

MAX_SHOWN = 1000
"""Of one search (https://docs.github.com/rest/search)."""
PAGE = 100
MOST_STARS = 1 << 24
FIRST_DAY, LAST_DAY = date(2007, 1, 1), date(2049, 12, 31)
"""Around every date of creation."""
OWN = ("archived:", "created:", "fork:", "language:", "license:", "pushed:", "sort:", "stars:")
"""Qualifiers that have settings of their own, or that do not fit with cutting."""
NUM_TRIES = 3


class SearchSettings(Settings):
    """What is searched for."""

    languages: tuple[str, ...] = ()
    """Main languages, any of them, as GitHub calls them: `Python`, `Jupyter Notebook`."""
    licenses: tuple[str, ...] = ()
    """Any of them, by GitHub's keys: `mit`, `apache-2.0`."""
    min_stars: NonNegativeInt = 0
    max_stars: NonNegativeInt | None = Field(default=None, lt=MOST_STARS)
    created_from: date | None = None
    created_to: date | None = None
    """The last day, in UTC."""
    pushed_from: date | None = None
    """Something was pushed on this day or later."""
    pushed_to: date | None = None
    qualifiers: str = ""
    """More words and qualifiers, for example `topic:parser org:python`."""

    @field_validator("languages", "licenses")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [name for name in names if not name.strip() or '"' in name or not name.isprintable()]
        if wrong:
            raise ValueError(f"no name: {wrong[0]!r}")
        return names

    @field_validator("qualifiers")
    @classmethod
    def _have_no_settings(cls, qualifiers: str) -> str:
        if not qualifiers.isprintable():
            raise ValueError("write them on one line")
        own = [word for word in OWN if word in qualifiers.lower()]
        if own:
            raise ValueError(f"leave {own[0]} out; there is a setting for it")
        return qualifiers.strip()

    @model_validator(mode="after")
    def _says_something(self) -> "SearchSettings":
        if self == SearchSettings.model_construct():
            raise ValueError("say what to search for, or leave `search` out")
        if self.max_stars is not None and self.max_stars < self.min_stars:
            raise ValueError("max_stars is less than min_stars")
        for begin, end in ((self.created_from, self.created_to), (self.pushed_from, self.pushed_to)):
            if begin and end and end < begin:
                raise ValueError("a range of dates ends before it begins")
        return self


@dataclass(frozen=True)
class Slice:
    """A part of what is searched for: ranges of stars and of seconds since the epoch, with both ends."""

    stars: tuple[int, int]
    created: tuple[int, int]

    def halves(self) -> tuple["Slice", "Slice"] | None:
        """Two that make up this one, the one with more stars first; None if it cannot be cut."""
        low, high = self.stars
        if low < high:
            middle = isqrt((low + 1) * (high + 1)) - 1  # most repositories have few
            return replace(self, stars=(middle + 1, high)), replace(self, stars=(low, middle))
        begin, end = self.created
        if begin < end:
            middle = (begin + end) // 2
            return replace(self, created=(begin, middle)), replace(self, created=(middle + 1, end))
        return None

    def __str__(self) -> str:
        low, high = self.stars
        stars = f"stars:>={low}" if high == MOST_STARS else f"stars:{low}..{high}"
        return stars if self.created == ALWAYS else f"{stars} created:{'..'.join(map(_utc, self.created))}"


def _second(day: date, clock: time) -> int:
    return int(datetime.combine(day, clock, UTC).timestamp())


def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


BEGIN_OF_DAY, END_OF_DAY = time(0, 0, 0), time(23, 59, 59)
ALWAYS = _second(FIRST_DAY, BEGIN_OF_DAY), _second(LAST_DAY, END_OF_DAY)


def search(github: GitHub, settings: SearchSettings, num: int, *, forks: bool, archived: bool) -> list[Repository]:
    """The `num` most starred repositories that match; of equally starred ones the oldest. Raises SourceError."""
    found: dict[int, Repository] = {}
    for words in _searches(settings, forks=forks, archived=archived):
        one: dict[int, Repository] = {}
        for repositories in _parts(github, words, _whole(settings)):  # those with most stars come first
            one |= {repository.number: repository for repository in repositories}
            if len(one) >= num:
                break
        found |= one
    return sorted(found.values(), key=lambda each: (-each.stars, each.created, each.number))[:num]


def _searches(settings: SearchSettings, *, forks: bool, archived: bool) -> Iterator[str]:
    """One for each language and licence: a query with several of a kind is not defined to mean any of them."""
    common = [settings.qualifiers] if settings.qualifiers else []
    if settings.pushed_from or settings.pushed_to:
        common.append(f"pushed:{settings.pushed_from or FIRST_DAY}..{settings.pushed_to or LAST_DAY}")
    common += ["fork:true"] * forks + ["archived:false"] * (not archived)
    for language, license_key in product(settings.languages or (None,), settings.licenses or (None,)):
        named = {"language": language, "license": license_key}
        yield " ".join([*(f"{key}:{_quoted(name)}" for key, name in named.items() if name), *common])


def _quoted(name: str) -> str:
    return f'"{name}"' if " " in name else name


def _whole(settings: SearchSettings) -> Slice:
    begin = _second(settings.created_from or FIRST_DAY, BEGIN_OF_DAY)
    end = _second(settings.created_to or LAST_DAY, END_OF_DAY)
    return Slice((settings.min_stars, MOST_STARS if settings.max_stars is None else settings.max_stars), (begin, end))


def _parts(github: GitHub, words: str, part: Slice) -> Iterator[list[Repository]]:
    """What is found, one part after the other, in the order of stars, then of creation."""
    query = {"q": f"{words} {part}".strip(), "sort": "stars", "order": "desc", "per_page": PAGE}
    page = _asked(github, f"/search/repositories?{urlencode(query)}")
    is_whole = page.is_complete and page.total <= MAX_SHOWN
    halves = None if is_whole else part.halves()
    if halves is not None:
        for half in halves:
            yield from _parts(github, words, half)
        return
    pages = [page]
    while pages[-1].next is not None and len(pages) < MAX_SHOWN // PAGE:
        pages.append(_asked(github, pages[-1].next))
    if page.total > MAX_SHOWN or not all(each.is_complete for each in pages):
        logger.warning("%s: the search %r may have found more than was shown", github.where, query["q"])
    yield [github.repository_of(found) for each in pages for found in each.found]


@dataclass(frozen=True)
class _Page:
    total: int
    is_complete: bool
    """False if the search took the API too long."""
    found: list[dict[str, Any]]
    next: str | None


def _asked(github: GitHub, url: str) -> _Page:
    for attempt in range(NUM_TRIES):
        if attempt:
            github.clock.sleep(2.0**attempt)
        answer = github.ask(url)
        content = github.json(answer)
        try:
            page = _Page(content["total_count"], not content["incomplete_results"], content["items"], answer.next)
        except KeyError as error:
            raise github.error(f"{github.url} answers a search without {error}; correct api_url") from error
        if page.is_complete:
            break
    return page
