"""The admin site."""

from importlib import resources
from typing import NamedTuple

import aiohttp_jinja2
import jinja2
from aiohttp import web

from llm_proxy import __version__, admin_v1, health
from llm_proxy.context import Context
from llm_proxy.errors import ApiError
from llm_proxy.middleware import CONTEXT, frame

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
TYPES = {".css": "text/css; charset=utf-8", ".svg": "image/svg+xml", ".yaml": "application/yaml"}


class Static(NamedTuple):
    """A file that pages refer to."""

    content_type: str
    body: bytes


STATIC = web.AppKey("static", dict[str, Static])


def create_app(context: Context) -> web.Application:
    """The application of the admin site."""
    app = web.Application(middlewares=[frame])
    app[CONTEXT] = context
    app[STATIC] = read_static()
    app.on_response_prepare.append(protect)
    aiohttp_jinja2.setup(app, loader=jinja2.PackageLoader("llm_proxy.web"), autoescape=True)
    app.router.add_get("/", to_admin)
    app.router.add_get("/admin", to_admin)
    app.router.add_get("/admin/", welcome)
    app.router.add_get("/admin/static/{name}", static)
    admin_v1.add_routes(app)
    health.add_routes(app, metrics_to_all=True)
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


async def to_admin(request: web.Request) -> web.Response:
    """The site begins at /admin/."""
    return web.Response(status=302, headers={"Location": "/admin/"})


async def static(request: web.Request) -> web.Response:
    """A stylesheet, an icon, or the description of the API."""
    found = request.app[STATIC].get(request.match_info["name"])
    if found is None:
        raise ApiError("endpoint_not_found", "There is no such file.")
    return web.Response(body=found.body, headers={"Content-Type": found.content_type})


async def welcome(request: web.Request) -> web.Response:
    """What this site is, and how to administer the proxy until its pages come."""
    context = request.app[CONTEXT]
    facts = {"version": __version__, "proxy": context.settings.listen_addr}
    return aiohttp_jinja2.render_template("welcome.html", request, facts)
