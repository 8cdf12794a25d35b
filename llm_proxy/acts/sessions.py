"""Acts of logging in to the admin site."""

from llm_proxy import sessions
from llm_proxy.acts import acting
from llm_proxy.audit import Who
from llm_proxy.context import Context
from llm_proxy.secret import Secret
from llm_proxy.sessions import Session


async def begin(context: Context, who: Who, operator: str, *, long: bool) -> tuple[Secret, Session]:
    """Begin a session of the operator with this fingerprint; its id is returned this one time."""
    async with acting(context, who, "admin.login") as act:
        act.details["long"] = long
        return await context.sessions.begin(act.tx, operator, who.client_ip or "", long=long)


async def end(context: Context, who: Who, session: Session) -> None:
    """End a session; once more does no harm."""
    async with acting(context, who, "admin.logout") as act:
        await sessions.end(act.tx, session)
