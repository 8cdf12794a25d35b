"""An act, its audit event and its change are one."""

import asyncio
import json
from pathlib import Path

import pytest
from stage.house import TESTER, House, open_house, settings_for

from llm_proxy import audit
from llm_proxy.acts import Act, act_among_others, acting, projects, tokens
from llm_proxy.db.sql import Page
from llm_proxy.errors import AlreadyExists, Conflict, NotFound
from llm_proxy.projects import find, insert

NO_AUDIT = {
    "sqlite": [
        "CREATE TRIGGER no_audit BEFORE INSERT ON audit_events WHEN NEW.outcome = 'success' BEGIN SELECT RAISE(ABORT, 'no'); END"
    ],
    "postgres": ["ALTER TABLE audit_events ADD CONSTRAINT no_audit CHECK (outcome <> 'success') NOT VALID"],
}


async def events_of(house: House, **filters: str) -> list[audit.AuditEvent]:
    """The audit events that fit, once there are any."""
    for _ in range(500):
        if found := await audit.find(house.context.database, Page(), filters):
            return found
        await asyncio.sleep(0.01)
    return []


async def version_of(house: House) -> int:
    """The number of changes ever recorded."""
    row = await house.context.database.fetch_one("SELECT version FROM config_version WHERE id = 1")
    assert row
    return int(row["version"])


async def test_write_event_and_change_are_there_together(each_house: House) -> None:
    before = await version_of(each_house)
    async with acting(each_house.context, TESTER, "test.act") as act:
        await insert(act.tx, "p1", "demo", {})
        await act.project("p1")
        act.token_id = "t1"
        act.details["fact"] = 7
        act.changed("project", "p1", more=1)
        assert await find(each_house.context.database, Page()) == []
    [event] = await audit.find(each_house.context.database, Page(), {})
    assert (event.action, event.actor, event.outcome) == ("test.act", "tester", "success")
    assert (event.project_id, event.token_id, event.details) == ("p1", "t1", {"fact": 7})
    [change] = await each_house.context.database.fetch_all("SELECT * FROM changes")
    assert (change["version"], change["kind"], change["ref"], json.loads(change["payload"])) == (
        before + 1,
        "project",
        "p1",
        {"more": 1},
    )


async def test_an_act_whose_event_cannot_be_written_leaves_nothing(each_house: House) -> None:
    context = each_house.context
    project = (await projects.create(context, TESTER, {"name": "there"})).id
    token, _ = await tokens.create(context, TESTER, {"project_id": project})
    before = await version_of(each_house)
    for statement in NO_AUDIT[context.settings.db_driver]:
        await context.database.execute(statement)
    for attempt in (
        projects.create(context, TESTER, {"name": "new", "api_key": "sk-0123456789abcdef"}),
        projects.update(context, TESTER, project, {"name": "renamed"}),
        projects.deactivate(context, TESTER, project),
        tokens.create(context, TESTER, {"project_id": project}),
        tokens.revoke(context, TESTER, token.id),
    ):
        with pytest.raises(Conflict):
            await attempt
    [left] = await find(context.database, Page())
    assert (left.name, left.is_active) == ("there", True)
    [row] = await context.database.fetch_all("SELECT id, is_active FROM tokens")
    assert (row["id"], bool(row["is_active"])) == (token.id, True)
    assert await context.database.fetch_all("SELECT id FROM providers") == []
    assert await version_of(each_house) == before


async def test_an_act_that_is_refused_leaves_nothing_but_the_event_of_its_failure(each_house: House) -> None:
    before = await version_of(each_house)
    with pytest.raises(NotFound):
        async with acting(each_house.context, TESTER, "test.act") as act:
            await insert(act.tx, "p1", "demo", {})
            act.changed("project", "p1")
            act.details["secret"] = "of no concern"
            await act.project("nobody")
    [event] = await events_of(each_house)
    assert (event.action, event.outcome, event.reason, event.project_id) == ("test.act", "failure", "not_found", None)
    assert event.details == {}
    assert await find(each_house.context.database, Page()) == []
    assert await version_of(each_house) == before


async def test_an_act_that_breaks_is_told_from_one_that_is_refused(each_house: House) -> None:
    with pytest.raises(ZeroDivisionError):
        async with acting(each_house.context, TESTER, "test.act") as act:
            await insert(act.tx, "p1", "demo", {})
            await act.project("p1")
            raise ZeroDivisionError
    [event] = await events_of(each_house)
    assert (event.outcome, event.reason, event.project_id) == ("error", "ZeroDivisionError", "p1")
    assert await find(each_house.context.database, Page()) == []


async def test_an_act_that_is_cancelled_leaves_nothing_and_lets_the_next_one_through(each_house: House) -> None:
    inside = asyncio.Event()

    async def act_forever() -> None:
        async with acting(each_house.context, TESTER, "test.act") as act:
            await insert(act.tx, "p1", "demo", {})
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(act_forever())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await find(each_house.context.database, Page()) == []
    assert (await projects.create(each_house.context, TESTER, {"name": "demo"})).name == "demo"


async def test_one_name_asked_for_by_many_at_once_is_given_once(each_house: House) -> None:
    attempts = (projects.create(each_house.context, TESTER, {"name": "wanted"}) for _ in range(8))
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert sum(isinstance(outcome, projects.Project) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, AlreadyExists) for outcome in outcomes) == 7


async def test_acts_among_others_are_audited_each_for_itself_and_their_changes_are_in_force(each_house: House) -> None:
    context, told = each_house.context, list[str]()
    context.changes.listen(lambda change: told.append(change.ref))

    async def act_on(name: str) -> str:
        async def work(act: Act) -> str:
            await insert(act.tx, name, name, {})
            await act.project("p0" if name == "p2" else name)
            act.changed("project", name)
            return name

        return await act_among_others(context, TESTER, "test.act", work)

    outcomes = await asyncio.gather(*(act_on(f"p{n}") for n in range(1, 5)), return_exceptions=True)
    assert [str(one) if isinstance(one, str) else type(one) for one in outcomes] == ["p1", NotFound, "p3", "p4"]
    assert sorted(told) == ["p1", "p3", "p4"] == sorted(project.id for project in await find(context.database, Page()))
    assert {event.project_id for event in await events_of(each_house, outcome="success")} == {"p1", "p3", "p4"}
    [failure] = await events_of(each_house, outcome="failure")
    assert (failure.action, failure.reason, failure.project_id) == ("test.act", "not_found", None)


async def test_every_event_is_copied_to_the_file_once_it_is_committed(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    async with open_house(settings_for(tmp_path, AUDIT_LOG_FILE=str(file))) as house:
        project = (await projects.create(house.context, TESTER, {"name": "demo"})).id
        with pytest.raises(AlreadyExists):
            await projects.create(house.context, TESTER, {"name": "demo"})
        await events_of(house, outcome="failure")
        leaving = asyncio.ensure_future(tokens.create(house.context, TESTER, {"project_id": project}))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        await tokens.create(house.context, TESTER, {"project_id": project})
        stored = await audit.find(house.context.database, Page(), {})
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["id"] for line in lines} == {event.id for event in stored}
    # One who leaves while the commit is under way leaves an event all the same.
    assert sorted(line["action"] for line in lines if line["outcome"] == "success") == ["project.create"] + 2 * ["token.create"]
    assert len(lines) == 4


async def test_without_an_audit_log_acts_go_on(tmp_path: Path) -> None:
    async with open_house(settings_for(tmp_path, AUDIT_ENABLED="false")) as house:
        await projects.create(house.context, TESTER, {"name": "demo"})
        with pytest.raises(AlreadyExists):
            await projects.create(house.context, TESTER, {"name": "demo"})
        assert await audit.find(house.context.database, Page(), {}) == []
