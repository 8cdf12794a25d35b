"""What the management API says of itself."""

import functools
import platform
from importlib import resources

import aiohttp
from aiohttp import web

from llm_proxy import __version__
from llm_proxy.audit import Who
from llm_proxy.db import migrate
from llm_proxy.middleware import CONTEXT, answer_json


async def version(request: web.Request, who: Who) -> web.Response:
    """The versions of what runs here."""
    return answer_json(
        {
            "version": __version__,
            "schema": migrate.known()[-1],
            "database": request.app[CONTEXT].settings.db_driver,
            "python": platform.python_version(),
            "aiohttp": aiohttp.__version__,
        }
    )


async def openapi(request: web.Request) -> web.Response:
    """The description of the API; it holds nothing that needs a credential."""
    return web.Response(body=_description(), content_type="application/yaml")


@functools.cache
def _description() -> bytes:
    return resources.files("llm_proxy.web").joinpath("static/openapi.yaml").read_bytes()
