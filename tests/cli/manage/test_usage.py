"""`llm-proxy manage usage`, on a running server and on its database."""

import json

import pytest
from stage.house import House

from llm_proxy.events import Event

from ..conftest import Manage


async def use(house: House, **calls: int) -> str:
    """Calls by model, of one project, written; returns the project's id."""
    project = await house.project("http://127.0.0.1:1", name="web")
    for model, number in calls.items():
        for _ in range(number):
            made = Event("r1", None, None, None, "POST", "/v1/chat/completions", duration=0.4)
            made.project_id, made.provider, made.model, made.status = project, "openai", model, 200
            made.outcome = "completed"
            house.context.bus.publish(made)
    # --local is a process of its own, which sees what is written.
    await house.context.history.settle()
    return project


async def test_the_table_shows_names_and_figures(manage: Manage, house: House) -> None:
    await use(house, a=2, b=1)
    done = await manage("usage")
    assert done.out.splitlines()[0].startswith("PROJECT  CALLS  ERRORS  CACHED  PROMPT  COMPLETION  P50 MS")
    assert [row[:4] for row in done.rows] == [["web", "3", "0", "0"]]
    assert [row[:2] for row in (await manage("usage", "--by", "model")).rows] == [["a", "2"], ["b", "1"]]
    assert [row[1] for row in (await manage("usage", "--by", "day", "--model", "b")).rows] == ["1"]


async def test_filters_narrow_what_is_summed(manage: Manage, house: House) -> None:
    project = await use(house, a=1)
    for flags in (
        ("--project", project),
        ("--provider", "openai"),
        ("--since", "2020-01-01T00:00:00Z"),
    ):
        assert [row[:2] for row in (await manage("usage", *flags)).rows] == [["web", "1"]], flags
    assert (await manage("usage", "--project", "nobody")).out == "Nothing found.\n"


async def test_scripts_get_json_and_spreadsheets_csv(manage: Manage, house: House) -> None:
    await use(house, a=1, b=1, c=1)
    done = await manage("usage", "--by", "model", "--json", "--limit", "2")
    assert [row["model"] for row in json.loads(done.out)] == ["a", "b"] and "There are more than these 2" in done.err
    done = await manage("usage", "--by", "model", "--csv")
    assert [line.split(",")[:2] for line in done.out.splitlines()] == [["model", "calls"], ["a", "1"], ["b", "1"], ["c", "1"]]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--by", "colour"), 2, "'project', 'provider', 'model', 'hour', 'day'"),
        (("--csv", "--json"), 2, "Give one of them"),
        (("--since", "yesterday"), 1, "start_time"),
        (("--since", "yesterday", "--csv"), 1, "start_time"),
    ],
    ids=str,
)
async def test_what_cannot_be_asked_is_said(manage: Manage, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = await manage("usage", *arguments)
    assert (done.code, done.out) == (code, "")
    assert says in done.err
