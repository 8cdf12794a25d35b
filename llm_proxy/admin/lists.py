"""Lists on pages: filters in the URL, paging by key in both directions."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
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
        previous: where the page before this one is, None on the first.
    """

    rows: Sequence[Any]
    filters: Mapping[str, str]
    next: str | None = None
    first: str | None = None
    previous: str | None = None


class Rows(NamedTuple):
    """What was read for a page.

    Attributes:
        rows: with one more than the page where there is more that way.
        until: the id at which a search ended without having seen all.
    """

    rows: Sequence[Any]
    until: str | None = None


def filters_of(request: web.Request, names: Collection[str]) -> dict[str, str]:
    """The filters of a list; a field of its form that was left empty is none."""
    return {name: request.query[name].strip() for name in names if request.query.get(name, "").strip()}


def page_of(request: web.Request) -> Page:
    """The page that is asked for.

    Raises:
        InvalidField: `after` or `before` is no id of ours.
    """
    after, before = (_id_in(request, name) for name in ("after", "before"))
    return Page(after=after) if after else Page(before=before)


def _id_in(request: web.Request, name: str) -> str | None:
    given = request.query.get(name)
    return requests.page({"after": given}).after if given else None


async def paged(request: web.Request, filters: Mapping[str, str], read: Callable[[Page], Awaitable[Rows]]) -> Listing:
    """The page of a list that is asked for.

    Raises:
        InvalidField: as `page_of`.
    """
    page = page_of(request)
    found = await read(page)
    if page.before and len(found.rows) <= page.limit and not found.until:
        # Backward, the beginning was reached: the first page is shown whole.
        page = Page(page.limit)
        found = await read(page)
    return listing(request, found.rows, page, filters, found.until)


def listing(
    request: web.Request, rows: Sequence[Any], page: Page, filters: Mapping[str, str], until: str | None = None
) -> Listing:
    """A page of a list; `rows` hold one more than the page when there is more that way."""

    def at(**place: str) -> str:
        asked = {**filters, **place}
        return f"{request.path}?{urlencode(asked)}" if asked else request.path

    more = len(rows) > page.limit
    shown = rows[-page.limit :] if page.before else rows[: page.limit]
    newest, oldest = (shown[0].id, shown[-1].id) if shown else (None, None)
    # Whoever came from one side can go back there; what lies on the other is known from the row too many.
    back = (newest if more else until) if page.before else newest if page.after else None
    onward = oldest if page.before else oldest if more else until
    return Listing(
        shown,
        filters,
        next=at(after=onward) if onward else None,
        first=at() if page.after or page.before else None,
        previous=at(before=back) if back else None,
    )
