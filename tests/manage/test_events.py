"""The management API tells how events are delivered."""

import pathlib

from stage.asking import ask, call, until
from stage.house import open_house, settings_for
from stage.management import Management, managing
from stage.redis import RedisServer


async def test_the_numbers_are_those_of_the_delivery(tmp_path: pathlib.Path, fake: str) -> None:
    async with open_house(settings_for(tmp_path, EVENT_SINKS="file")) as house, managing(house) as api:
        await ask(house.url, call(await house.token_for(fake)))
        stats = house.context.events.report
        await until(lambda: stats().sinks["file"].delivered == 1 and stats().synced == 1)
        found = await api.done("GET", "/manage/events/stats")
    [sink] = found.pop("sinks")
    assert found == {
        **{"object": "event_stats", "enabled": True, "writing": True, "lost": 0, "dropped": 0},
        **{"last_sequence": 1, "synced_sequence": 1, "stream": None},
    }
    assert (sink["name"], sink["delivered"], sink["backlog"], sink["last_error"]) == ("file", 1, 0, None)


async def test_events_that_go_to_redis_are_told_with_what_each_group_lacks(
    mortal_redis: RedisServer, tmp_path: pathlib.Path, fake: str
) -> None:
    settings = settings_for(tmp_path, LLM_PROXY_EVENT_BUS="redis-streams", REDIS_URL=mortal_redis.uri)
    async with open_house(settings) as house, managing(house) as api:
        assert mortal_redis.say("XGROUP CREATE llm-proxy-events llm-proxy:file 0 MKSTREAM") == "+OK"
        await ask(house.url, call(await house.token_for(fake)))
        await until(lambda: house.context.events.report().sinks["redis"].delivered == 1)
        found = await api.done("GET", "/manage/events/stats")
        assert [(sink["name"], sink["delivered"], sink["backlog"]) for sink in found["sinks"]] == [("redis", 1, 0)]
        [group] = found["stream"].pop("groups")
        assert group == {"name": "llm-proxy:file", "consumers": 0, "lag": 1, "pending": 0, "dead_letters": 0}
        assert found["stream"].pop("bytes") > 0
        assert found["stream"] == {"key": "llm-proxy-events", "available": True, "length": 1}
        mortal_redis.kill()
        assert (await api.done("GET", "/manage/events/stats"))["stream"]["available"] is False


async def test_they_are_for_the_operator_who_asks_without_parameters(api: Management) -> None:
    assert (await api.ask("GET", "/manage/events/stats", token=None)).status == 401
    assert (await api.refused("GET", "/manage/events/stats?sink=file"))[:2] == (400, "invalid_field")
