"""The configuration as a whole in `/admin/v1`."""

from aiohttp import web

from llm_proxy.acts import configuration as acts
from llm_proxy.acts.fields import read
from llm_proxy.audit import Who
from llm_proxy.middleware import CONTEXT, answer_json
from llm_proxy.requests import json_object, parameters


async def version(request: web.Request, who: Who) -> web.Response:
    """The version of what is stored."""
    parameters(request, ())
    return answer_json(await acts.shown(request.app[CONTEXT]))


async def reload(request: web.Request, who: Who) -> web.Response:
    """Read profiles and providers anew, in every instance."""
    read({}, await json_object(request))
    return answer_json(await acts.reload(request.app[CONTEXT], who))


async def validate(request: web.Request, who: Who) -> web.Response:
    """The credential is good, or this would not have been reached."""
    read({}, await json_object(request))
    return answer_json({"valid": True, "message": "The management token is good."})
