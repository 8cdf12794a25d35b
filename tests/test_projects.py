"""Projects: their rows, their pages."""

import pytest

from llm_proxy import projects
from llm_proxy.clock import now_ms
from llm_proxy.db import Database
from llm_proxy.db.sql import Page
from llm_proxy.errors import Conflict
from llm_proxy.ids import new_id
from llm_proxy.projects import Project


async def make(database: Database, name: str, **limits: int | None) -> Project:
    async with database.transaction() as tx:
        return await projects.insert(tx, new_id(), name, limits)


async def test_a_project_is_stored_as_it_is_returned(database: Database) -> None:
    before = now_ms()
    made = await make(database, "one", rate_limit=5, max_parallel=0)
    assert (made.name, made.is_active, made.deactivated_at) == ("one", True, None)
    assert (made.rate_limit, made.rate_limit_per_minute, made.max_parallel) == (5, None, 0)
    assert before <= made.created_at == made.updated_at <= now_ms()
    assert await projects.get(database, made.id) == made
    assert await projects.get(database, new_id()) is None


async def test_names_are_taken_once(database: Database) -> None:
    await make(database, "one")
    other = await make(database, "other")
    with pytest.raises(Conflict):
        await make(database, "one")
    with pytest.raises(Conflict):
        await projects.update(database, other.id, {"name": "one"})
    assert await projects.get(database, other.id) == other


async def test_an_update_writes_what_it_names_and_nothing_else(database: Database) -> None:
    made = await make(database, "one", rate_limit=5)
    changed = await projects.update(database, made.id, {"name": "two"})
    assert changed is not None
    assert (changed.name, changed.rate_limit, changed.is_active) == ("two", 5, True)
    assert changed.updated_at >= made.updated_at
    cleared = await projects.update(database, made.id, {"rate_limit": None})
    assert cleared is not None
    assert (cleared.name, cleared.rate_limit) == ("two", None)
    assert await projects.update(database, new_id(), {"name": "three"}) is None


async def test_the_time_of_a_deactivation_is_kept_until_it_is_undone(database: Database) -> None:
    made = await make(database, "one")
    stopped = await projects.update(database, made.id, {"is_active": False})
    assert stopped is not None
    assert not stopped.is_active
    assert stopped.deactivated_at == stopped.updated_at
    renamed = await projects.update(database, made.id, {"name": "two"})
    assert renamed is not None
    assert renamed.deactivated_at == stopped.deactivated_at
    again = await projects.update(database, made.id, {"is_active": True})
    assert again is not None
    assert again.is_active
    assert again.deactivated_at is None


async def test_pages_go_from_the_newest_to_the_oldest(database: Database) -> None:
    made = [await make(database, f"project {number}") for number in range(5)]
    newest_first = [project.id for project in reversed(made)]
    first = await projects.find(database, Page(limit=2))
    assert [project.id for project in first] == newest_first[:3], "one more than asked says that there is a next page"
    second = await projects.find(database, Page(limit=2, after=first[1].id))
    assert [project.id for project in second] == newest_first[2:]
    assert await projects.find(database, Page(limit=2, after=newest_first[-1])) == []


async def test_lists_are_filtered(database: Database) -> None:
    one, two = await make(database, "one"), await make(database, "two")
    await projects.update(database, two.id, {"is_active": False})

    async def names(**filters: object) -> list[str]:
        return [project.name for project in await projects.find(database, Page(), **filters)]  # type: ignore[arg-type]

    assert await names(name="one") == [one.name]
    assert await names(is_active=False) == [two.name]
    assert await names(is_active=True, name="two") == []
    assert await names() == ["two", "one"]


async def test_a_column_that_a_newer_program_added_is_no_hindrance(database: Database) -> None:
    made = await make(database, "one")
    await database.execute("ALTER TABLE projects ADD COLUMN later TEXT")
    assert await projects.get(database, made.id) == made
    assert await projects.find(database, Page()) == [made]
    assert (await make(database, "two")).name == "two"
    assert await projects.update(database, made.id, {"name": "three"}) is not None


async def test_names_are_found_for_any_number_of_ids(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projects, "IDS_AT_ONCE", 2)
    made = [await make(database, f"name {number}") for number in range(5)]
    ids = [*(project.id for project in made), "nobody", ""]
    assert await projects.names_of(database, ids) == {project.id: project.name for project in made}
    assert await projects.names_of(database, []) == {}
