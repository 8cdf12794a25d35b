"""Acts on dead letters are in the audit log, however they end."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from stage.house import TESTER, House, open_house, settings_for
from stage.logs import samples
from stage.management import Management
from stage.sinks import KEY, FakeLunary, running

from llm_proxy.acts import events as acts
from llm_proxy.errors import ApiError, InvalidField, NotFound
from llm_proxy.events.dead_letters import FILE, DeadLetters
from llm_proxy.events.letters import Chosen


def box_of(house: House) -> DeadLetters:
    """What replays set aside."""
    return DeadLetters(Path(house.context.settings.event_dir) / FILE)


async def audited(api: Management, count: int) -> list[dict[str, Any]]:
    """The retries in the audit log, once there are so many, the newest first."""
    async with asyncio.timeout(5):
        while len(found := await api.audit(action="events.retry")) < count:  # noqa: ASYNC110 - nobody is told of their writing
            await asyncio.sleep(0.01)
    return found


async def test_an_act_tells_the_audit_log_what_was_chosen_and_what_became_of_it(house: House, api: Management) -> None:
    for event in samples(1, 2):
        await box_of(house).add("file", "no", event=event)
    done = await acts.retry(house.context, TESTER, Chosen(sink="file", reason="no"))
    await box_of(house).add("file", "odd", event="{")
    assert (done.delivered, await acts.drop(house.context, TESTER, Chosen(sink="file"))) == (2, 1)
    [retried] = await api.audited(action="events.retry")
    wanted: dict[str, Any] = {"delivered": 2, "refused": 0, "waiting": False, "reason": ""}
    assert retried["details"] == {"letters": {"sink": "file", "reason": "no"}, **wanted}
    [dropped] = await api.audited(action="events.drop")
    assert dropped["details"] == {"letters": {"sink": "file"}, "dropped": 1}


async def test_what_cannot_be_done_is_refused_and_audited(house: House, api: Management) -> None:
    for number, (chosen, error) in enumerate(
        ((Chosen(), InvalidField), (Chosen(sink="lunary"), InvalidField), (Chosen(id="none"), NotFound))
    ):
        with pytest.raises(error) as caught:
            await acts.retry(house.context, TESTER, chosen)
        found = await audited(api, number + 1)
        assert (len(found), found[0]["outcome"], found[0]["reason"]) == (number + 1, "failure", caught.value.code)


async def test_a_disk_that_does_not_answer_is_said_so(house: House, api: Management) -> None:
    # A folder where the file should be cannot be read by anybody.
    (Path(house.context.settings.event_dir) / FILE).mkdir()
    for attempt in (acts.find(house.context, Chosen()), acts.drop(house.context, TESTER, Chosen(sink="file"))):
        with pytest.raises(ApiError) as caught:
            await attempt
        assert (caught.value.code, caught.value.status) == ("events_unavailable", 503)
    assert [event["outcome"] for event in await api.audited(action="events.drop")] == ["failure"]


async def test_who_leaves_during_a_retry_does_not_end_it(tmp_path: Path) -> None:
    service, reached, go_on = FakeLunary(), asyncio.Event(), asyncio.Event()

    class Slow(FakeLunary):
        async def answer(self, request: web.Request) -> web.Response:
            reached.set()
            await go_on.wait()
            return await super().answer(request)

    service = Slow()
    async with running(service):
        settings = settings_for(tmp_path, LUNARY_URL=service.url, LUNARY_API_KEY=KEY)
        async with open_house(settings) as house:
            await box_of(house).add("lunary", "no", event=samples(1)[0])
            retry = asyncio.ensure_future(acts.retry(house.context, TESTER, Chosen(sink="lunary")))
            async with asyncio.timeout(5):
                await reached.wait()
                retry.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await retry
                go_on.set()
                while any(box_of(house).letters()):  # noqa: ASYNC110 - nobody is told of its end
                    await asyncio.sleep(0.01)
            assert len(service.kept) == 1


async def test_who_leaves_while_letters_are_dropped_is_in_the_audit_log_all_the_same(house: House, api: Management) -> None:
    await box_of(house).add("file", "no", event=samples(1)[0])
    drop = asyncio.ensure_future(acts.drop(house.context, TESTER, Chosen(sink="file")))
    await asyncio.sleep(0)
    drop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drop
    [dropped] = await api.audited(action="events.drop")
    assert dropped["details"] == {"letters": {"sink": "file"}, "dropped": 1}
    assert not any(box_of(house).letters())
