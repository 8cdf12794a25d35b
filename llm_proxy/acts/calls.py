"""Acts on calls that run in this process."""

from llm_proxy.acts import acting
from llm_proxy.audit import Who
from llm_proxy.context import Context
from llm_proxy.errors import ApiError, NotFound


async def end(context: Context, who: Who, id: str) -> None:
    """End a running call; its client is told that an operator did it, in its stream where that has begun.

    Args:
        id: of its event.

    Raises:
        NotFound: it has ended already, or runs in another process.
    """
    async with acting(context, who, "call.end") as act:
        call = context.running.get(id)
        if call is None:
            raise NotFound("running call")
        event = call.event
        act.token_id, act.project_id = call.token_id, call.project_id
        act.details.update({"call": id, "call_request_id": event.request_id, "path": event.path, "model": event.model})
    call.end(ApiError("ended_by_operator", "An operator of this proxy ended this call."))
