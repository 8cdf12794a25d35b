"""Tests of every sink behind the dispatcher, through the faults that a service has."""

import asyncio
import pathlib
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from stage.sinks import KEY, FakeHelicone, FakeLunary, FakeService, VirtualClock, running, sample

from llm_proxy import settings
from llm_proxy.events.dead_letters import DeadLetters
from llm_proxy.events.dispatcher import Dispatcher
from llm_proxy.events.reading import Reader, SpoolSource
from llm_proxy.events.sinks import SINKS, SinkOptions, options_of
from llm_proxy.events.spool import Spool
from llm_proxy.secret import Secret

FAULTS: dict[str, Callable[[], web.Response | str]] = {
    "429": lambda: web.Response(status=429, headers={"Retry-After": "30"}),
    "429 for a year": lambda: web.Response(status=429, headers={"Retry-After": "31536000"}),
    "400": lambda: web.Response(status=400),
    "401": lambda: web.Response(status=401),
    "500": lambda: web.Response(status=500, text="oops"),
    "503": lambda: web.Response(status=503),
    "reset": lambda: "reset",
}
SERVICES: dict[str, type[FakeService]] = {"lunary": FakeLunary, "helicone": FakeHelicone}


class Delivery:
    """One log delivered to one service by the real sink."""

    def __init__(self, folder: pathlib.Path, name: str, service: FakeService, session: aiohttp.ClientSession) -> None:
        key = Secret(KEY)
        options = SinkOptions(lunary_url=service.url, lunary_api_key=key, helicone_url=service.url, helicone_api_key=key)
        self.clock, self.letters = VirtualClock(), folder / "dead.jsonl"
        self.spool = Spool(folder, (name,))
        self.spool.open()
        source = SpoolSource(Reader(self.spool, name))
        letters = DeadLetters(self.letters, self.clock.ms)
        self.dispatcher = Dispatcher(
            name, SINKS[name](options, session), source, letters, pause=self.clock.pause, now=self.clock.ms, chance=lambda: 0.5
        )

    async def run_until(self, reached: Callable[[], bool]) -> None:
        running = asyncio.ensure_future(self.dispatcher.run())
        async with asyncio.timeout(30):
            while not reached():  # noqa: ASYNC110 - what is awaited are counters of the service
                await asyncio.sleep(0.001)
        self.dispatcher.stop()
        await running
        self.spool.close()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", SERVICES)
async def test_every_event_arrives_once_after_an_hour_of_a_fault(tmp_path: pathlib.Path, name: str, fault: str) -> None:
    service = SERVICES[name]()
    service.fault = lambda request, document: FAULTS[fault]()
    events = [sample(number) for number in range(6)]
    async with running(service), aiohttp.ClientSession() as session:
        delivery = Delivery(tmp_path, name, service, session)
        delivery.clock.at(3600, lambda: setattr(service, "fault", lambda request, document: None))
        for event in events:
            delivery.spool.append(orjson.dumps(event))
        await delivery.run_until(lambda: len(service.kept) == 6)
    assert service.kept == [event["id"] for event in events]
    assert not delivery.letters.exists()


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("name", SERVICES)
async def test_a_poison_event_lands_in_the_dead_letters_with_its_reason(tmp_path: pathlib.Path, name: str, status: int) -> None:
    service = SERVICES[name]()
    events = [sample(number) for number in range(6)]

    def fault(request: web.Request, document: Any) -> web.Response | None:
        poisoned = events[2]["id"] in orjson.dumps(document).decode()
        return web.Response(status=status, text="this one is poison") if poisoned else None

    service.fault = fault
    async with running(service), aiohttp.ClientSession() as session:
        delivery = Delivery(tmp_path, name, service, session)
        for event in events:
            delivery.spool.append(orjson.dumps(event))
        await delivery.run_until(lambda: len(service.kept) == 5 and delivery.letters.exists())
    assert service.kept == [event["id"] for event in events if event is not events[2]]
    [letter] = [orjson.loads(line) for line in delivery.letters.read_bytes().splitlines()]
    assert (letter["sink"], letter["reason"], letter["event"]["id"]) == (name, f"{status} this one is poison", events[2]["id"])


async def test_a_service_that_nobody_listens_for_is_waited_for(tmp_path: pathlib.Path, unused_tcp_port: int) -> None:
    service = FakeLunary()
    service.url = f"http://127.0.0.1:{unused_tcp_port}/"
    async with aiohttp.ClientSession() as session:
        delivery = Delivery(tmp_path, "lunary", service, session)
        delivery.spool.append(orjson.dumps(sample(1)))
        await delivery.run_until(lambda: delivery.dispatcher.stats.failed > 12)
    assert "no connection" in delivery.dispatcher.stats.last_error
    assert delivery.dispatcher.stats.backlog.count == 1


def test_the_sinks_are_those_that_the_setting_admits() -> None:
    assert tuple(SINKS) == settings.SINKS == ("file", "lunary", "helicone")


def test_services_are_asked_where_they_listen() -> None:
    found = options_of(settings.load(overrides={"HELICONE_URL": "http://127.0.0.1:8585/"}))
    assert found.lunary_url == SinkOptions.lunary_url == "https://api.lunary.ai/v1/runs/ingest"
    assert found.helicone_url == "http://127.0.0.1:8585/custom/v1/log"
    assert SinkOptions.helicone_url == "https://api.worker.helicone.ai/custom/v1/log"
