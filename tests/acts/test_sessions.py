"""Logging in and out are acts: audited in the transaction in which they happen."""

from stage.house import TESTER, House

from llm_proxy import audit
from llm_proxy.acts import sessions
from llm_proxy.db.sql import Page


async def test_both_are_audited_with_the_address(each_house: House) -> None:
    context = each_house.context
    who = TESTER._replace(client_ip="192.0.2.7")
    [operator] = context.operators.fingerprints
    id, session = await sessions.begin(context, who, operator, long=True)
    assert await context.sessions.recognise(id.reveal()) == session
    assert session.client_ip == "192.0.2.7"
    await sessions.end(context, who, session)
    await sessions.end(context, who, session)
    assert await context.sessions.recognise(id.reveal()) is None
    found = await audit.find(context.database, Page(), {"client_ip": "192.0.2.7"})
    assert [(event.action, event.outcome) for event in found] == [("admin.logout", "success")] * 2 + [("admin.login", "success")]
