"""Lists on pages: filters in the URL, paging by key."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from llm_proxy import requests
from llm_proxy.db.sql import Page


@dataclass(frozen=True)
class Listing:
    """One page of a list.

    Attributes:
        filters: those that are set.
        next: where the next page is, None on the last.
        first: where the list begins, None on the first page.
    """

    rows: Sequence[Any]
    filters: Mapping[str, str]
    next: str | None
    first: str | None


def filters_of(request: web.Request, names: Collection[str]) -> dict[str, str]:
    """The filters of a list; a field of its form that was left empty is none."""
    return {name: request.query[name].strip() for name in names if request.query.get(name, "").strip()}


def page_of(request: web.Request) -> Page:
    """The page that is asked for.

    Raises:
        InvalidField: `after` is no id of ours.
    """
    after = request.query.get("after")
    return requests.page({"after": after} if after else {})


def listing(request: web.Request, rows: Sequence[Any], page: Page, filters: Mapping[str, str]) -> Listing:
    """A page of a list; `rows` hold one more than the page when there is a next one."""
    shown, more = rows[: page.limit], len(rows) > page.limit
    here = request.path
    first = f"{here}?{urlencode(filters)}" if filters else here
    next = f"{here}?{urlencode({**filters, 'after': shown[-1].id})}" if more else None
    return Listing(shown, filters, next, first if page.after else None)
