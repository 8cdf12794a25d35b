"""`llm-proxy manage audit`, on a running server and on its database."""

import asyncio
import os
import pwd

import pytest
from stage.house import House

from ..conftest import Manage


async def test_the_log_is_newest_first_and_says_about_what(manage: Manage, house: House) -> None:
    project = await house.project("http://127.0.0.1:1")
    await house.token(project)
    done = await manage("audit")
    assert done.out.split("\n")[0].split() == ["TIMESTAMP", "ACTION", "OUTCOME", "ACTOR", "FROM", "ABOUT"]
    assert [row[1:5] for row in done.rows] == [
        ["token.create", "success", "tester", "-"],
        ["project.create", "success", "tester", "-"],
    ]
    assert done.rows[1][5] == f"project {project}" and done.rows[0][5].startswith("token ")


async def test_an_act_by_the_command_is_that_of_whoever_ran_it(manage: Manage, request: pytest.FixtureRequest) -> None:
    assert (await manage("project", "create", "--name", "x")).code == 0
    [[_, action, _, actor, *_]] = (await manage("audit")).rows
    assert action == "project.create"
    if request.node.callspec.params["manage"] == "local":
        assert actor == f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    else:
        assert actor.startswith("operator:")


async def test_filters_narrow_the_log(manage: Manage, house: House) -> None:
    project, _ = [await house.project("http://127.0.0.1:1", name=name) for name in ("needle", "straw")]
    await house.token(project)
    for flags in (
        ("--where", f"project_id={project}", "--where", "action=project.create"),
        ("--search", "needle", "--where", "action=project.create", "--where", "actor=tester"),
    ):
        assert [row[1] for row in (await manage("audit", *flags)).rows] == ["project.create"], flags
    assert (await manage("audit", "--since", "2999-01-01T00:00:00Z")).out == "Nothing found.\n"
    assert len((await manage("audit", "--until", "2999-01-01T00:00:00Z")).rows) == 3
    assert len((await manage("audit", "--limit", "1")).rows) == 1


async def test_a_failure_comes_with_its_reason(manage: Manage) -> None:
    await manage("project", "create", "--name", "x")
    await manage("project", "create", "--name", "x")
    # The event of a refusal goes to the database behind the answer's back.
    outcome = ""
    async with asyncio.timeout(10):
        while not outcome.startswith("failure ("):
            outcome = (await manage("audit", "--limit", "1")).rows[0][2]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--where", "nonsense"), 2, "NAME=VALUE"),
        (("--where", "colour=red"), 2, "action, actor"),
        (("--since", "yesterday"), 1, "start_time"),
    ],
    ids=str,
)
async def test_what_cannot_be_asked_is_said(manage: Manage, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = await manage("audit", *arguments)
    assert (done.code, done.out) == (code, "")
    assert says in done.err
