"""The page of health."""

from aiohttp import web

from llm_proxy import health
from llm_proxy.acts import providers as acts
from llm_proxy.admin.visits import Visit


async def show(visit: Visit) -> web.Response:
    """What this process knows of itself and of what it needs, with the providers to try."""
    context = visit.context
    pool = [acts.shown(context, one) for one in await acts.of_project(context, None)]
    known = await health.details(context)
    # A provider that no call has asked for yet has no breaker.
    breakers = {one["id"]: one["status"]["state"] for one in known["providers"]["pool"]}  # type: ignore[index]
    rows = [{**one, "breaker": breakers.get(one["id"], "closed")} for one in sorted(pool, key=lambda one: str(one["id"]))]
    facts = {"health": known, "providers": rows}
    return visit.show("health.html", facts)
