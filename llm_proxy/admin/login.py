"""Logging in to the admin site."""

import re

import aiohttp_jinja2
from aiohttp import web

from llm_proxy.acts import sessions as acts
from llm_proxy.admin import cookies, forms
from llm_proxy.admin.visits import Visit, check_origin, recognise, refuse, see
from llm_proxy.errors import ApiError
from llm_proxy.middleware import CONTEXT, PEER, ask_for_body, audit_refusal, who
from llm_proxy.operators import name_of
from llm_proxy.sessions import LONG_MS

HOME = "/admin/"
# A page of this site, and nothing that a browser could take for an address elsewhere.
_PAGE = re.compile(r"/admin/[!-\[\]-~]*")


def safe_next(path: str) -> str:
    """Where to go after logging in: a page of this site, whatever the link said."""
    return path if _PAGE.fullmatch(path) and not path.startswith("/admin/login") else HOME


async def form(request: web.Request) -> web.Response:
    """The form; who is logged in already goes on."""
    wanted = safe_next(request.query.get("next", HOME))
    if await recognise(request):
        return see(wanted)
    return _shown(request, wanted)


def _shown(request: web.Request, wanted: str, problem: str = "", status: int = 200, *, long: bool = False) -> web.Response:
    # The form's seal follows from a cookie of its own: before a session there is no other.
    key = cookies.read(request, cookies.LOGIN) or cookies.fresh()
    facts = {"next": wanted, "problem": problem, "long": long, "seal": forms.seal_of(key)}
    response = aiohttp_jinja2.render_template("login.html", request, facts, status=status)
    cookies.write(request, response, cookies.LOGIN, key)
    return response


async def log_in(request: web.Request) -> web.Response:
    """Begin a session, always under a new id, when the management token is right."""
    context, origin = request.app[CONTEXT], who(request, "unknown")
    check_origin(request)
    await ask_for_body(request)
    try:
        given = await forms.read_form(request, cookies.read(request, cookies.LOGIN))
    except ApiError as error:
        refuse(request, origin, error)
        # Cookies may have been cleared while the page stood open; a fresh form is of more use than an error.
        return _shown(request, HOME, "This page had become too old. Please try again.", error.status)
    wanted, long = safe_next(given.get("next", HOME)), given.get("long") == "on"
    try:
        operator = _operator(request, given.get("token", "").strip())
    except ApiError as error:
        return _shown(request, wanted, error.message, error.status, long=long)
    if before := await recognise(request):
        await acts.end(context, before.who, before.session)
    id, session = await acts.begin(context, who(request, name_of(operator)), operator, long=long)
    response = see(wanted)
    cookies.remove(request, response, cookies.LOGIN)
    cookies.write(request, response, cookies.SESSION, id.reveal(), LONG_MS // 1000 if session.is_long else None)
    return response


def _operator(request: web.Request, token: str) -> str:
    """The fingerprint of the token that was given; a refusal is audited.

    Raises:
        ApiError: `invalid_management_token`, `too_many_failures`.
    """
    try:
        operator = request.app[CONTEXT].operators.admit(token, request[PEER].address)
        if operator is None:
            raise ApiError("invalid_management_token", "This is not the management token. It is MANAGEMENT_TOKEN of this server.")
    except ApiError as error:
        audit_refusal(request, "admin.login", error)
        raise
    return operator


async def log_out(visit: Visit) -> web.Response:
    """End the session here and in every browser that has it."""
    await acts.end(visit.context, visit.who, visit.session)
    response = see("/admin/login")
    for name in (cookies.SESSION, cookies.NEWS):
        cookies.remove(visit.request, response, name)
    return response
