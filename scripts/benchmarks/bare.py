"""A bare aiohttp handler, or the same behind an Application: the cost of its router and one middleware."""

import argparse
import asyncio

import uvloop
from aiohttp import web
from aiohttp.typedefs import Handler

from benchmarks.nginx import COMPLETION

BODY = COMPLETION.encode()


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    """The same to every request."""
    await request.read()
    return web.Response(body=BODY, content_type="application/json")


@web.middleware
async def through(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Does nothing, once for each request."""
    return await handler(request)


async def serve(port: int, application: bool) -> None:
    """Serve until the process is ended."""
    runner: web.BaseRunner
    if application:
        app = web.Application(middlewares=[through])
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app, access_log=None)
    else:
        runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--application", action="store_true")
    asked = parser.parse_args()
    uvloop.run(serve(asked.port, asked.application))


if __name__ == "__main__":
    main()
