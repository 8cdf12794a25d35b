"""Visits of pages: who comes, what they are shown, where they go next."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any
from urllib.parse import quote

import aiohttp_jinja2
from aiohttp import web

from llm_proxy.admin import cookies, forms
from llm_proxy.admin.news import News, seal, unseal
from llm_proxy.audit import Who, event_of
from llm_proxy.context import Context
from llm_proxy.errors import ApiError
from llm_proxy.middleware import CONTEXT, IDS, PEER, Handler, ask_for_body, who
from llm_proxy.operators import name_of
from llm_proxy.sessions import Session

# Of these a form shows the problem beside the field; anything else is a page of its own.
ABOUT_FIELDS = frozenset({"invalid_field", "masked_secret", "already_exists", "built_in_project"})


@dataclass(frozen=True)
class ProxySite:
    """Where the proxy listens.

    Attributes:
        wildcard: whether on every address of this machine.
    """

    url: str
    wildcard: bool


PROXY = web.AppKey("proxy", ProxySite)


@dataclass(frozen=True)
class Visit:
    """A request of somebody who is logged in.

    Attributes:
        id: of the session; forms and news are sealed with it.
        form: the fields of a form that was sent.
    """

    request: web.Request
    session: Session
    id: str
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def context(self) -> Context:
        """What the process shares."""
        return self.request.app[CONTEXT]

    @property
    def who(self) -> Who:
        """The operator, for the audit log."""
        return who(self.request, name_of(self.session.management_hash))

    @property
    def seal(self) -> str:
        """What every form of this session carries."""
        return forms.seal_of(self.id)

    @cached_property
    def news(self) -> News | None:
        """What the act before this page left."""
        return unseal(cookies.read(self.request, cookies.NEWS), self.id)

    def part(self, name: str) -> str:
        """A variable part of the path."""
        return self.request.match_info[name]

    def show(self, template: str, facts: Mapping[str, Any], status: int = 200) -> web.Response:
        """A page, with the news that the act before it left."""
        shown = {"form": {}, "problems": {}, **facts, "visit": self, "news": self.news}
        response = aiohttp_jinja2.render_template(template, self.request, shown, status=status)
        if self.news:
            cookies.remove(self.request, response, cookies.NEWS)
        return response

    def go(self, path: str, text: str = "", *, is_bad: bool = False, secret: str = "") -> web.Response:
        """Send the browser to a page, so that loading that again repeats nothing."""
        response = see(path)
        if text:
            cookies.write(self.request, response, cookies.NEWS, seal(News(text, is_bad, secret), self.id))
        return response


VISIT = web.RequestKey("visit", Visit)
Page = Callable[[Visit], Awaitable[web.StreamResponse]]


def see(path: str) -> web.Response:
    """A redirect after a form, which every browser follows with GET."""
    return web.Response(status=303, headers={"Location": path})


async def recognise(request: web.Request) -> Visit | None:
    """The visit of somebody who is logged in, or None."""
    id = cookies.read(request, cookies.SESSION)
    session = await request.app[CONTEXT].sessions.recognise(id) if id else None
    return Visit(request, session, id) if session else None


def page(handler: Page) -> Handler:
    """Serve only who is logged in; others come back after they are."""

    @wraps(handler)
    async def serve(request: web.Request) -> web.StreamResponse:
        visit = await recognise(request)
        if visit is None:
            return see(f"/admin/login?next={quote(request.path_qs, safe='/')}")
        request[VISIT] = visit
        return await handler(visit)

    return serve


def act(handler: Page) -> Handler:
    """Serve a form of a page of this site, in the session in which the page was shown."""

    @wraps(handler)
    async def serve(request: web.Request) -> web.StreamResponse:
        check_origin(request)
        visit = await recognise(request)
        if visit is None:
            return see("/admin/login?next=/admin/")
        request[VISIT] = visit
        await ask_for_body(request)
        try:
            form = await forms.read_form(request, visit.id)
        except ApiError as error:
            refuse(request, visit.who, error)
            raise
        request[VISIT] = visit = Visit(request, visit.session, visit.id, form)
        return await handler(visit)

    return serve


def check_origin(request: web.Request) -> None:
    """Refuse, with an audit event, what no page of this site has sent."""
    try:
        forms.check_origin(request)
    except ApiError as error:
        refuse(request, who(request, "unknown"), error)
        raise


def refuse(request: web.Request, origin: Who, error: ApiError) -> None:
    """Put a refusal into the audit log, at most one a minute of an address."""
    event = event_of(origin, "admin.refuse", outcome="denied", reason=error.code)
    request.app[CONTEXT].audit.append_sampled(event, request[PEER].address)


def problems_of(error: ApiError, names: Mapping[str, object]) -> dict[str, str]:
    """What is wrong with a form, by the field beside which it stands, the empty name for the form as a whole.

    Raises:
        ApiError: the error itself, where it is not about what was filled in.
    """
    if error.code not in ABOUT_FIELDS:
        raise error
    param = error.param or ""
    name = param.partition("[")[0].partition(".")[0]
    if name not in names:
        return {"": error.message}
    text = error.message if param != name else error.message.removeprefix(f"{param}: ")
    return {name: text[:1].upper() + text[1:]}


def show_error(request: web.Request, error: ApiError) -> web.Response | None:
    """An error as a page, for a browser at a page; None for programs."""
    in_pages = request.path.startswith("/admin/") and not request.path.startswith(("/admin/v1/", "/admin/static/"))
    if not in_pages or "text/html" not in request.headers.get("Accept", ""):
        return None
    facts = {"error": error, "request_id": request[IDS][0], "visit": request.get(VISIT)}
    return aiohttp_jinja2.render_template("error.html", request, facts, status=error.status)
