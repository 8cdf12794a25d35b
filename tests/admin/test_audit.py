"""The audit log is filtered, read whole, exported."""

import csv
import io
import json

import pytest
from stage.house import House
from stage.management import Management
from stage.visitor import Visitor

from llm_proxy import audit
from llm_proxy.admin.audit import BATCH, NAMES
from llm_proxy.audit import AuditEvent


async def fill(house: House, *events: AuditEvent) -> None:
    await audit.insert(house.context.database, events)


async def test_every_filter_of_the_api_is_there_and_filters(house: House, visitor: Visitor) -> None:
    given = {name: f"{name}-1" for name in NAMES if name not in ("outcome", "search", "start_time", "end_time")}
    # A project is chosen among those that there are.
    given["project_id"] = await house.project("https://api.example.com/v1", name="demo")
    await house.project("https://api.example.com/v1", name="other")
    await fill(house, AuditEvent(**{**given, "outcome": "denied"}, details={"needle": "haystack"}))
    page = await visitor.get("/admin/audit")
    assert set(NAMES) <= page.values.keys() | {"outcome"}
    for name, value in {**given, "outcome": "denied", "search": "HAYSTACK", "start_time": "2020-01-01T00:00:00Z"}.items():
        assert "action-1" in (await visitor.get(f"/admin/audit?{name}={value}")).text, name
    for name in (*given, "search"):
        beside = "outcome=denied" if name == "action" else "action=action-1"
        assert "No audit event fits" in (await visitor.get(f"/admin/audit?{beside}&{name}=other")).text, name
    page = await visitor.get("/admin/audit?start_time=yesterday")
    assert (page.status, list(page.problems)) == (400, ["start_time"])


async def test_an_event_is_shown_whole(visitor: Visitor, api: Management) -> None:
    await api.project("demo")
    [event] = await api.audit(action="project.create")
    page = await visitor.get(f"/admin/audit/{event['id']}")
    for value in (event["actor"], event["request_id"], event["client_ip"], event["user_agent"], '"name": "demo"'):
        assert value in page.text


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
async def test_an_export_holds_all_that_fit_and_no_formula(house: House, visitor: Visitor, kind: str) -> None:
    many = BATCH * 2
    await fill(house, *(AuditEvent("bulk", "=cmd()", reason=f"{number}") for number in range(many)), AuditEvent("other", "x"))
    page = await visitor.get("/admin/audit?action=bulk")
    [link] = [link for link in page.links if f"/{kind}?" in link]
    reply = await visitor.get(link)
    assert reply.headers["Content-Disposition"] == f'attachment; filename="audit.{kind}"'
    if kind == "csv":
        rows = list(csv.DictReader(io.StringIO(reply.source)))
        assert {row["actor"] for row in rows} == {"'=cmd()"}
    else:
        rows = [json.loads(line) for line in reply.source.splitlines()]
        assert {row["actor"] for row in rows} == {"=cmd()"}
    assert [int(row["reason"]) for row in rows] == list(reversed(range(many)))


async def test_an_export_of_nothing_is_empty(visitor: Visitor) -> None:
    assert (await visitor.get("/admin/audit-export/csv?action=none")).source == ""
