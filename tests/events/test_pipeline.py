"""Every event of every call reaches the disk, then every sink, whatever happens to sinks, disks, instances."""

import asyncio
import errno
import os
import pathlib
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from stage.asking import until
from stage.calls import call
from stage.house import House, open_house, settings_for
from stage.logs import left_behind, lines_of, logged, samples
from stage.management import managing
from stage.sinks import KEY, FakeHelicone, FakeLunary, FakeService, running

from llm_proxy.clock import to_rfc3339
from llm_proxy.events import Event, dispatcher, pipeline
from llm_proxy.events.disk import Disk
from llm_proxy.events.pipeline import instance_name, without_client

SERVICES = {"LUNARY_API_KEY": KEY, "HELICONE_API_KEY": KEY}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of the delivery, shortened."""
    monkeypatch.setattr(dispatcher, "FLUSH", 0.02)
    monkeypatch.setattr(dispatcher, "SHORTEST_PAUSE", 0.02)
    monkeypatch.setattr(pipeline, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(pipeline, "ADOPT_SECONDS", 0.05)


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def calls(client: aiohttp.ClientSession, house: House, token: str, count: int) -> list[float]:
    """So many calls, which must go well; how long each took."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        assert await call(client, house, token) == (200, None)
        took.append(time.perf_counter() - began)
    return took


def ids(house: House) -> list[str]:
    return [event.id for event in house.events]


def sample(house: House, name: str, sink: str) -> float | None:
    return house.context.metrics.registry.get_sample_value(f"llm_proxy_events_{name}", {"sink": sink})


async def test_an_event_is_on_the_disk_when_its_client_has_the_whole_answer(
    tmp_path: pathlib.Path, fake: str, client: aiohttp.ClientSession
) -> None:
    async with open_house(settings_for(tmp_path)) as house:
        token = await house.token_for(fake)
        for number in range(1, 6):
            await calls(client, house, token, 1)
            assert [event["id"] for event in logged(tmp_path / "events")] == ids(house)
            assert house.context.events.report().last == number
        [event] = [event for event in house.events if event is house.events[0]]
        assert logged(tmp_path / "events")[0]["started_at"] == to_rfc3339(event.started_at)


async def test_every_sink_gets_every_event_with_all_that_it_says(
    tmp_path: pathlib.Path, fake: str, client: aiohttp.ClientSession
) -> None:
    lunary, helicone = FakeLunary(), FakeHelicone()
    async with running(lunary), running(helicone):
        settings = settings_for(
            tmp_path,
            EVENT_SINKS="file,lunary,helicone",
            LUNARY_URL=lunary.url,
            HELICONE_URL=helicone.url,
            OBSERVABILITY_CAPTURE="bodies",
            **SERVICES,
        )
        async with open_house(settings) as house:
            token = await house.token_for(fake)
            await calls(client, house, token, 5)
            assert (await call(client, house, "wrong-token-0123456789"))[0] == 401
            await until(lambda: len(lunary.kept) == len(helicone.kept) == len(lines_of(tmp_path / "events.jsonl")) == 6, 10)
            written = lines_of(tmp_path / "events.jsonl")
            assert ids(house) == lunary.kept == helicone.kept == [event["id"] for event in written]
            await until(lambda: all(sample(house, "delivered_total", sink) == 6 for sink in ("file", "lunary", "helicone")))
        assert [event["outcome"] for event in written] == ["completed"] * 5 + ["refused"]
        run = lunary.runs[lunary.kept[0]]
        assert run["start"]["input"] == [{"role": "user", "content": "hello"}]
        assert run["end"]["output"]["role"] == "assistant"
        assert run["end"]["tokensUsage"]["prompt"] == written[0]["usage"]["prompt_tokens"] > 0
        assert helicone.bodies[0]["providerRequest"]["json"]["messages"] == [{"role": "user", "content": "hello"}]
        assert "choices" in helicone.bodies[0]["providerResponse"]["json"]


@pytest.mark.parametrize("fault", ["503", "500", "429", "reset"])
@pytest.mark.parametrize("made", [FakeLunary, FakeHelicone], ids=["lunary", "helicone"])
async def test_a_sink_in_trouble_is_felt_by_no_call_and_gets_every_event_once_it_is_back(
    tmp_path: pathlib.Path, fake: str, client: aiohttp.ClientSession, made: type[FakeService], fault: str
) -> None:
    service, asked = made(), asyncio.Event()

    def trouble(request: web.Request, document: Any) -> web.Response | str:
        asked.set()
        return "reset" if fault == "reset" else web.Response(status=int(fault))

    service.fault = trouble
    name = "lunary" if made is FakeLunary else "helicone"
    async with running(service):
        settings = settings_for(tmp_path, EVENT_SINKS=name, **{f"{name.upper()}_URL": service.url}, **SERVICES)
        async with open_house(settings) as house:
            token = await house.token_for(fake)
            await calls(client, house, token, 1)
            await asyncio.wait_for(asked.wait(), 5)
            took = await calls(client, house, token, 20)
            assert sorted(took)[10] < 0.1
            await until(lambda: (sample(house, "failed_total", name) or 0) > 0)
            stats = house.context.events.report().sinks[name]
            assert (service.kept, stats.backlog.count) == ([], 21) and stats.oldest_age > 0
            service.fault = lambda request, document: None
            await until(lambda: len(service.kept) == 21, 10)
            # Lunary sorts what comes in one call by its time.
            assert (service.kept if made is FakeHelicone else sorted(service.kept)) == sorted(ids(house))
            await until(lambda: sample(house, "backlog", name) == 0)


async def test_a_sink_that_never_answers_holds_up_neither_calls_nor_the_other_sinks_nor_a_stop(
    tmp_path: pathlib.Path, fake: str, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "DRAIN_SECONDS", 0.2)
    service = FakeHelicone()
    service.fault = lambda request, document: "hang"
    lines = tmp_path / "events.jsonl"
    async with running(service):
        settings = settings_for(tmp_path, EVENT_SINKS="helicone,file", HELICONE_URL=service.url, **SERVICES)
        calm = settings_for(
            tmp_path, EVENT_SINKS="file", EVENT_DIR=str(tmp_path / "calm"), DATABASE_PATH=str(tmp_path / "calm.db")
        )
        async with open_house(settings) as house, open_house(calm) as other:
            token, another = await house.token_for(fake), await other.token_for(fake)
            await calls(client, house, token, 1)
            await until(lambda: service.bodies)
            with_it, without = [], []
            for _ in range(40):
                with_it += await calls(client, house, token, 1)
                without += await calls(client, other, another, 1)
            assert statistics.median(with_it) < 1.5 * statistics.median(without) + 0.001
            await until(lambda: {event["id"] for event in lines_of(lines)} >= set(ids(house)))
            assert service.kept == []
            began = time.monotonic()
        assert time.monotonic() - began < 2
    assert [event["id"] for event in logged(tmp_path / "events")] == ids(house)


async def test_what_a_sink_lacks_at_a_stop_it_gets_after_the_next_start(
    tmp_path: pathlib.Path, fake: str, client: aiohttp.ClientSession
) -> None:
    service = FakeHelicone()
    service.fault = lambda request, document: web.Response(status=503)
    async with running(service):
        settings = settings_for(tmp_path, EVENT_SINKS="helicone", HELICONE_URL=service.url, **SERVICES)
        async with open_house(settings) as house:
            await calls(client, house, await house.token_for(fake), 7)
            began = time.monotonic()
        assert time.monotonic() - began < 4
        service.fault = lambda request, document: None
        assert service.kept == []
        async with open_house(settings) as second:
            await until(lambda: len(service.kept) == 7)
            assert second.context.events.report().last == 7, "the log goes on where it ended"
    assert service.kept == ids(house)


async def test_a_stop_delivers_what_can_be_delivered(tmp_path: pathlib.Path, fake: str, client: aiohttp.ClientSession) -> None:
    async with open_house(settings_for(tmp_path, EVENT_SINKS="file")) as house:
        await calls(client, house, await house.token_for(fake), 3)
    assert [event["id"] for event in lines_of(tmp_path / "events.jsonl")] == ids(house)


async def test_logs_of_dead_instances_are_delivered_and_removed_those_of_the_living_are_not(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "events"
    early = left_behind(root, *samples(1, 2), name="early")
    async with open_house(settings_for(tmp_path)) as living, open_house(settings_for(tmp_path, EVENT_SINKS="file")) as house:
        living.context.bus.publish(Event("of-the-living", None, None, None, "GET", "/"))
        await until(lambda: not early.exists())
        late = left_behind(root, *samples(3), name="late", sinks=("file",))
        await until(lambda: not late.exists())
        stats = house.context.events.report().sinks["file"]
        assert (stats.delivered, stats.backlog.count) == (3, 0)
        assert sorted(event["request_id"] for event in lines_of(tmp_path / "events.jsonl")) == [f"request-{n}" for n in (1, 2, 3)]
        assert [event["request_id"] for event in logged(root)] == ["of-the-living"]


async def test_without_sinks_what_dead_instances_left_is_kept_within_the_cap(tmp_path: pathlib.Path) -> None:
    gone = [left_behind(tmp_path / "events", *samples(*range(20)), name=name) for name in ("first", "second")]
    async with open_house(settings_for(tmp_path, EVENT_BACKLOG_BYTES="12KB")):
        await until(lambda: not gone[0].exists())
        assert [event["request_id"] for event in logged(tmp_path / "events")] == [f"request-{n}" for n in range(20)]


class RefusingDisk(Disk):
    """The real disk, full or read-only at times."""

    refusal = 0

    def write(self, fd: int, data: bytes) -> int:  # type: ignore[override]
        if RefusingDisk.refusal:
            raise OSError(RefusingDisk.refusal, os.strerror(RefusingDisk.refusal))
        return os.write(fd, data)


@pytest.mark.parametrize("refusal", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
async def test_a_disk_that_refuses_costs_the_events_meanwhile_counted_and_nothing_else(
    tmp_path: pathlib.Path, fake: str, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    monkeypatch.setattr("llm_proxy.events.spool.Disk", RefusingDisk)
    async with open_house(settings_for(tmp_path)) as house, managing(house) as site:
        token = await house.token_for(fake)
        await calls(client, house, token, 3)
        monkeypatch.setattr(RefusingDisk, "refusal", refusal)
        await calls(client, house, token, 5)
        assert (await site.ask("GET", "/ready", token=None)).status == 200
        told = (await site.done("GET", "/health/detailed"))["events"]
        assert 0 < told.pop("log_bytes") < told.pop("log_cap_bytes")
        assert told == {"enabled": True, "writing": False, "lost": 5, "backlog": 0, "dead_letters": 0}
        assert sample(house, "lost_total", "spool") == 5
        monkeypatch.setattr(RefusingDisk, "refusal", 0)
        await calls(client, house, token, 2)
        found = (await site.done("GET", "/health/detailed"))["events"]
        assert (found["writing"], found["lost"]) == (True, 5)
        written = [event["id"] for event in logged(tmp_path / "events")]
    assert written == ids(house)[:3] + ids(house)[8:]


async def test_a_folder_that_cannot_be_used_at_the_start_is_when_it_can(
    tmp_path: pathlib.Path, fake: str, client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "events").write_text("in the way")
    async with open_house(settings_for(tmp_path, EVENT_SINKS="file")) as house, managing(house) as site:
        assert "events are lost until it can" in caplog.text
        token = await house.token_for(fake)
        await calls(client, house, token, 2)
        assert (await site.ask("GET", "/ready", token=None)).status == 200
        assert (await site.done("GET", "/health/detailed"))["events"]["writing"] is False
        (tmp_path / "events").unlink()
        await until(lambda: house.context.events.report().writing)
        await calls(client, house, token, 2)
        await until(lambda: len(lines_of(tmp_path / "events.jsonl")) == 2)
        assert house.context.events.report().lost == 2
    assert [event["id"] for event in lines_of(tmp_path / "events.jsonl")] == ids(house)[2:]


async def test_switched_off_nothing_is_written_or_delivered(
    tmp_path: pathlib.Path, fake: str, client: aiohttp.ClientSession
) -> None:
    settings = settings_for(tmp_path, OBSERVABILITY_ENABLED="false", EVENT_SINKS="file,lunary")
    async with open_house(settings) as house, managing(house) as site:
        await calls(client, house, await house.token_for(fake), 1)
        assert len(house.events) == 1
        found = await site.done("GET", "/manage/events/stats")
        assert (found["enabled"], found["lost"], found["sinks"]) == (False, 0, [])
        assert "llm_proxy_events_lost_total" not in (await site.ask("GET", "/metrics", token=None)).text
    assert not (tmp_path / "events").exists()


async def test_an_event_of_which_no_record_can_be_made_counts_as_lost(house: House) -> None:
    house.context.bus.publish(Event("r1", None, None, "\ud800", "GET", "/"))
    assert house.context.events.report().lost == 1


def test_an_event_may_be_silent_on_the_client() -> None:
    event = Event("r1", None, "192.0.2.1", "ua", "GET", "/")
    assert without_client(event) == {**vars(event), "client_ip": None, "user_agent": None}


@pytest.mark.parametrize(
    ("host", "name"), [("web-1.example", "web-1.example"), ("a/b_c", "a-b-c"), ("..", "instance"), ("", "instance")]
)
def test_the_name_of_an_instance_is_that_of_the_machine_made_fit_for_a_folder(
    monkeypatch: pytest.MonkeyPatch, host: str, name: str
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert instance_name() == name
