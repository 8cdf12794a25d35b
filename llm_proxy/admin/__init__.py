"""The admin site."""

import aiohttp_jinja2
import jinja2
from aiohttp import web

from llm_proxy import __version__, health
from llm_proxy.context import Context
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


def create_app(context: Context) -> web.Application:
    """The application of the admin site."""
    app = web.Application(middlewares=[frame])
    app[CONTEXT] = context
    aiohttp_jinja2.setup(app, loader=jinja2.PackageLoader("llm_proxy.web"), autoescape=True)
    app.router.add_get("/", to_admin)
    app.router.add_get("/admin/", welcome)
    app.router.add_static("/admin/static/", static_folder())
    health.add_routes(app)
    return app


def static_folder() -> str:
    """Where the stylesheet and its like are."""
    from importlib import resources

    return str(resources.files("llm_proxy.web").joinpath("static"))


async def to_admin(request: web.Request) -> web.Response:
    """The site begins at /admin/."""
    return web.Response(status=302, headers={"Location": "/admin/", **HEADERS})


async def welcome(request: web.Request) -> web.Response:
    """What this site is, and how to administer the proxy until its pages come."""
    context = request.app[CONTEXT]
    facts = {"version": __version__, "proxy": context.settings.listen_addr}
    response = aiohttp_jinja2.render_template("welcome.html", request, facts)
    response.headers.update(HEADERS)
    return response
