"""The admin site."""

from importlib import resources
from typing import NamedTuple

import aiohttp_jinja2
import jinja2
from aiohttp import web

from llm_proxy import __version__, admin_v1
from llm_proxy.admin import (
    audit,
    cache,
    chat,
    dashboard,
    events,
    health,
    login,
    master_keys,
    projects,
    providers,
    requests,
    tokens,
)
from llm_proxy.admin.display import FILTERS
from llm_proxy.admin.playground import Playground
from llm_proxy.admin.tail import Tail
from llm_proxy.admin.visits import PROXY, Page, ProxySite, act, page, see, show_error
from llm_proxy.context import Context
from llm_proxy.errors import ApiError
from llm_proxy.health import add_routes as add_health_routes
from llm_proxy.middleware import CONTEXT, SHOW_ERROR, decide_later, frame

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".yaml": "application/yaml",
}


HOME = "/admin/dashboard"
PAGES: tuple[tuple[str, Page], ...] = (
    ("dashboard", dashboard.show),
    ("requests", requests.find),
    ("requests/{id}", requests.show),
    ("chat", chat.show),
    ("projects", projects.find),
    ("new-project", projects.new),
    ("projects/{id}", projects.show),
    ("projects/{id}/deactivate", projects.confirm_deactivate),
    ("projects/{id}/revoke", projects.confirm_revoke),
    ("projects/{id}/new-key", providers.new),
    ("projects/{id}/keys/{provider_id}", providers.show),
    ("projects/{id}/keys/{provider_id}/delete", providers.confirm_delete),
    ("tokens", tokens.find),
    ("new-token", tokens.new),
    ("tokens/{id}", tokens.show),
    ("tokens/{id}/revoke", tokens.confirm_revoke),
    ("tokens/{id}/reissue", tokens.confirm_reissue),
    ("master-keys", master_keys.find),
    ("new-master-key", master_keys.new),
    ("master-keys/{id}", master_keys.show),
    ("master-keys/{id}/delete", master_keys.confirm_delete),
    ("providers", providers.find),
    ("new-provider", providers.new),
    ("profiles", providers.profiles),
    ("providers/{provider_id}", providers.show),
    ("providers/{provider_id}/delete", providers.confirm_delete),
    ("cache", cache.show),
    ("audit", audit.find),
    ("audit/{id}", audit.show),
    ("audit-export/{kind}", audit.export),
    ("events", events.show),
    ("events/drop", events.confirm_drop),
    ("events/{id}", events.letter),
    ("health", health.show),
)
# What pages that are open keep themselves up to date with.
STREAMS: tuple[tuple[str, Page], ...] = (("dashboard/live", dashboard.live), ("requests-live", requests.live))
ACTS: tuple[tuple[str, Page], ...] = (
    ("logout", login.log_out),
    ("requests/end", requests.end),
    ("chat", chat.send),
    ("projects", projects.create),
    ("projects/{id}", projects.update),
    ("projects/{id}/activate", projects.activate),
    ("projects/{id}/deactivate", projects.deactivate),
    ("projects/{id}/revoke", projects.revoke),
    ("projects/{id}/keys", providers.create),
    ("projects/{id}/keys/{provider_id}", providers.update),
    ("projects/{id}/keys/{provider_id}/state", providers.set_state),
    ("projects/{id}/keys/{provider_id}/test", providers.test),
    ("projects/{id}/keys/{provider_id}/delete", providers.delete),
    ("tokens", tokens.create),
    ("tokens/{id}", tokens.update),
    ("tokens/{id}/revoke", tokens.revoke),
    ("tokens/{id}/reissue", tokens.reissue),
    ("master-keys", master_keys.create),
    ("master-keys/{id}", master_keys.update),
    ("master-keys/{id}/rotate", master_keys.rotate),
    ("master-keys/{id}/delete", master_keys.delete),
    ("providers", providers.create),
    ("reload", providers.reload),
    ("providers/{provider_id}", providers.update),
    ("providers/{provider_id}/state", providers.set_state),
    ("providers/{provider_id}/test", providers.test),
    ("providers/{provider_id}/delete", providers.delete),
    ("cache/preview", cache.preview),
    ("cache/purge", cache.purge),
    ("events/retry", events.retry),
    ("events/drop", events.drop),
)


class Static(NamedTuple):
    """A file that pages refer to."""

    content_type: str
    body: bytes


STATIC = web.AppKey("static", dict[str, Static])


def create_app(context: Context, proxy: ProxySite) -> web.Application:
    """The application of the admin site."""
    app = web.Application(middlewares=[frame])
    app[CONTEXT], app[PROXY], app[STATIC] = context, proxy, read_static()
    app[requests.TAIL] = Tail(context)
    app[SHOW_ERROR] = show_error
    app[chat.PLAYGROUND] = Playground()
    app.on_response_prepare.append(protect)
    templates = jinja2.PackageLoader("llm_proxy.web")
    pages = aiohttp_jinja2.setup(app, loader=templates, autoescape=True, undefined=jinja2.StrictUndefined, filters=FILTERS)
    pages.globals |= {"version": __version__, "alone": context.alone}
    for path in ("/", "/admin", "/admin/"):
        app.router.add_get(path, to_home)
    app.router.add_get("/admin/static/{name}", static)
    app.router.add_get("/admin/login", login.form)
    app.router.add_post("/admin/login", login.log_in, expect_handler=decide_later)
    # Before the pages: `/admin/v1` is no page.
    admin_v1.add_routes(app)
    app[dashboard.BOARDS] = dashboard.boards(app)
    for path, show in (*PAGES, *STREAMS):
        app.router.add_get(f"/admin/{path}", page(show))
    for path, do in ACTS:
        app.router.add_post(f"/admin/{path}", act(do), expect_handler=decide_later)
    add_health_routes(app, metrics_to_all=True)
    return app


def read_static() -> dict[str, Static]:
    """The files of web/static by name: what is not among them cannot be asked for."""
    files = [
        (file, TYPES.get("." + file.name.rpartition(".")[2]))
        for file in resources.files("llm_proxy.web").joinpath("static").iterdir()
    ]
    return {file.name: Static(kind, file.read_bytes()) for file, kind in files if kind}


async def protect(request: web.Request, response: web.StreamResponse) -> None:
    """Give every answer of the site, errors included, the headers that keep other sites out of it."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


async def to_home(request: web.Request) -> web.Response:
    """The site begins with the dashboard."""
    return see(HOME)


async def static(request: web.Request) -> web.Response:
    """A stylesheet, an icon, or the description of the API."""
    found = request.app[STATIC].get(request.match_info["name"])
    if found is None:
        raise ApiError("endpoint_not_found", "There is no such file.")
    return web.Response(body=found.body, headers={"Content-Type": found.content_type})
