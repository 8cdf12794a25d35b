"""Tests of every sink behind the dispatcher, through the faults that a service has."""

import asyncio
import email.utils
import pathlib
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from stage.certificates import new_authority
from stage.sinks import KEY, FakeHelicone, FakeLunary, FakeService, VirtualClock, running, sample

from llm_proxy import settings
from llm_proxy.events.dead_letters import DeadLetters
from llm_proxy.events.dispatcher import Dispatcher
from llm_proxy.events.reading import Reader, SpoolSource
from llm_proxy.events.sinks import SINKS, SinkOptions, http, options_of
from llm_proxy.events.spool import Spool
from llm_proxy.secret import Secret

FAULTS: dict[str, Callable[[], web.Response | str]] = {
    "429": lambda: web.Response(status=429, headers={"Retry-After": "30"}),
    "429 until a date": lambda: web.Response(status=429, headers={"Retry-After": email.utils.formatdate(time.time() + 40)}),
    "429 of no sense": lambda: web.Response(status=429, headers={"Retry-After": "-1e999"}),
    "429 for a year": lambda: web.Response(status=429, headers={"Retry-After": "31536000"}),
    "400": lambda: web.Response(status=400),
    "401": lambda: web.Response(status=401),
    "500": lambda: web.Response(status=500, text="oops"),
    "503": lambda: web.Response(status=503),
    "reset": lambda: "reset",
    "hang": lambda: "hang",
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

    @property
    def buried(self) -> list[tuple[str, str, str]]:
        """Sink, reason and event of each dead letter."""
        letters = [orjson.loads(line) for line in self.letters.read_bytes().splitlines()]
        return [(letter["sink"], letter["reason"], letter["event"]["id"]) for letter in letters]

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
async def test_every_event_arrives_once_after_an_hour_of_a_fault(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: str
) -> None:
    service, patience = SERVICES[name](), http.TIMEOUT
    service.fault = lambda request, document: FAULTS[fault]()
    events = [sample(number) for number in range(6)]
    async with running(service), aiohttp.ClientSession() as session:
        delivery = Delivery(tmp_path, name, service, session)

        def recover() -> None:
            monkeypatch.setattr(http, "TIMEOUT", patience)
            service.fault = lambda request, document: None

        # Every attempt at a service that hangs takes a time of ours.
        if fault == "hang":
            monkeypatch.setattr(http, "TIMEOUT", aiohttp.ClientTimeout(total=0.01))
        delivery.clock.at(300 if fault == "hang" else 3600, recover)
        for event in events:
            delivery.spool.append(orjson.dumps(event))
        await delivery.run_until(lambda: len(service.kept) == 6)
    assert service.kept == [event["id"] for event in events]
    assert not delivery.letters.exists()


@pytest.mark.parametrize(("status", "count", "tries"), [(400, 6, None), (500, 6, 10), (400, 1, 1)])
@pytest.mark.parametrize("name", SERVICES)
async def test_a_poison_event_lands_in_the_dead_letters_with_its_reason(
    tmp_path: pathlib.Path, name: str, status: int, count: int, tries: int | None
) -> None:
    service = SERVICES[name]()
    events = [sample(number) for number in range(count)]
    poison = events[count // 3]

    def is_poisoned(document: Any) -> bool:
        return poison["id"] in orjson.dumps(document).decode()

    service.fault = lambda request, document: (
        web.Response(status=status, text="this one is poison") if is_poisoned(document) else None
    )
    async with running(service), aiohttp.ClientSession() as session:
        delivery = Delivery(tmp_path, name, service, session)
        for event in events:
            delivery.spool.append(orjson.dumps(event))
        await delivery.run_until(lambda: len(service.kept) == count - 1 and delivery.letters.exists())
    assert service.kept == [event["id"] for event in events if event is not poison]
    assert delivery.buried == [(name, f"{status} this one is poison", poison["id"])]
    assert tries in (None, sum(map(is_poisoned, service.bodies)))


async def test_what_lunary_refuses_of_a_batch_alone_is_sent_again(tmp_path: pathlib.Path) -> None:
    service = FakeLunary()
    events = [sample(number, request_body='"\\u0000"' if number == 4 else None) for number in range(6)]
    ids = [event["id"] for event in events]
    service.poison = {ids[1]: "Connection terminated"}
    async with running(service), aiohttp.ClientSession() as session:
        delivery = Delivery(tmp_path, "lunary", service, session)
        delivery.clock.at(5, service.poison.clear)
        for event in events:
            delivery.spool.append(orjson.dumps(event))
        await delivery.run_until(lambda: len(service.kept) == 5)
    assert service.kept == [ids[0], ids[2], ids[3], ids[5], ids[1]]
    assert delivery.buried == [("lunary", "unsupported Unicode escape sequence", ids[4])]
    assert {id for document in service.bodies[1:] for id in {record["runId"] for record in document["events"]}} == {ids[1]}


async def test_a_service_whose_certificate_is_not_trusted_is_told_nothing(tmp_path: pathlib.Path) -> None:
    service = FakeHelicone()
    async with running(service, new_authority(tmp_path).server("127.0.0.1")), aiohttp.ClientSession() as session:
        delivery = Delivery(tmp_path, "helicone", service, session)
        delivery.spool.append(orjson.dumps(sample(1)))
        await delivery.run_until(lambda: delivery.dispatcher.stats.failed > 12)
    assert "certificate" in delivery.dispatcher.stats.last_error
    assert (service.bodies, delivery.dispatcher.stats.backlog.count) == ([], 1)


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
