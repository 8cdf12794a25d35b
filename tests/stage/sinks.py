"""Lunary and Helicone, as strict as the real ones, with faults on demand."""

import asyncio
import datetime
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from llm_proxy.clock import now_ms, to_rfc3339

KEY = "key-of-the-sink-0001"
Fault = Callable[[web.Request, Any], web.Response | str | None]


class FakeService:
    """Takes documents, on `/` or where the real one does.

    Attributes:
        fault: given a request with its document, answers in place of the service; `reset` breaks the connection.
        bodies: every document that came.
        kept: the ids of what was taken, in order, once each.
    """

    def __init__(self) -> None:
        self.fault: Fault = lambda request, document: None
        self.bodies: list[Any] = []
        self.kept: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        """One call."""
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": "unauthorized"}, status=401)
        document = await request.json()
        self.bodies.append(document)
        fault = self.fault(request, document)
        if fault == "reset":
            assert request.transport
            request.transport.abort()
            return web.Response()
        return fault if isinstance(fault, web.Response) else self.take(document)

    def take(self, document: Any) -> web.Response:
        """What the service does when it is well."""
        raise NotImplementedError

    def keep(self, id: str) -> None:
        """Note what was taken."""
        if id not in self.kept:
            self.kept.append(id)


class FakeLunary(FakeService):
    """Answers 200 with a result for each record, sorted by time, as the real one does.

    Attributes:
        runs: what is known of each run, by its id.
        poison: ids of runs that its database refuses, with the message.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[str, dict[str, Any]] = {}
        self.poison: dict[str, str] = {}

    def take(self, document: Any) -> web.Response:
        if not isinstance(document.get("events"), list):
            return web.json_response({"message": "Missing events payload."}, status=500)
        events = sorted(document["events"], key=lambda event: datetime.datetime.fromisoformat(event["timestamp"]))
        return web.json_response({"results": [self._result(event) for event in events]})

    def _result(self, event: dict[str, Any]) -> dict[str, Any]:
        try:
            self._register(event)
        except (ValueError, KeyError, AssertionError) as error:
            return {"id": event.get("runId"), "success": False, "error": str(error)}
        return {"id": event["runId"], "success": True}

    def _register(self, event: dict[str, Any]) -> None:
        id = str(uuid.UUID(event["runId"]))
        assert event["type"] == "llm", f"invalid type {event['type']}"
        if id in self.poison:
            raise ValueError(self.poison[id])
        if event["event"] == "start":
            if id in self.runs:
                raise ValueError("Run with this ID already exists in the database.")
            assert isinstance(event["name"], str)
            self.runs[id] = {"start": event}
        elif event["event"] == "end":
            assert set(event.get("tokensUsage", {})) <= {"prompt", "completion"}
            self.runs[id]["end"] = event
            self.keep(id)
        else:
            raise ValueError(f"unknown event {event['event']}")


class FakeHelicone(FakeService):
    """Takes one log a call."""

    def take(self, document: Any) -> web.Response:
        request, response, timing = document["providerRequest"], document["providerResponse"], document["timing"]
        sound = (
            request["url"] == "custom-model-nopath"
            and isinstance(request["json"], dict)
            and all(isinstance(value, str) for value in request["meta"].values())
            and isinstance(response["json"], dict)
            and type(response["status"]) is int
            and 100 <= response["status"] < 600
            and all(isinstance(value, str) for value in response["headers"].values())
            and all(set(timing[name]) == {"seconds", "milliseconds"} for name in ("startTime", "endTime"))
            and all(0 <= timing[name]["milliseconds"] < 1000 for name in ("startTime", "endTime"))
        )
        if not sound:
            return web.json_response({"error": "invalid log"}, status=400)
        self.keep(request["meta"]["Helicone-Request-Id"])
        return web.json_response({})


@asynccontextmanager
async def running(service: FakeService) -> AsyncIterator[None]:
    """Serve it on a free loopback port."""
    app = web.Application(client_max_size=64 * 1024 * 1024)
    for path in ("/", "/v1/runs/ingest", "/custom/v1/log"):
        app.router.add_post(path, service.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    service.url = f"http://{host}:{port}/"
    try:
        yield
    finally:
        await runner.cleanup()


class VirtualClock:
    """Time that passes only while somebody waits for it."""

    def __init__(self) -> None:
        self.now = float(now_ms() // 1000)
        self.due: list[tuple[float, Callable[[], None]]] = []

    def at(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something, that many seconds from now."""
        self.due.append((self.now + seconds, act))

    def ms(self) -> int:
        """Milliseconds since the epoch."""
        return int(self.now * 1000)

    async def pause(self, stopping: asyncio.Event, seconds: float) -> None:
        """Wait in no time."""
        await asyncio.sleep(0)
        if stopping.is_set():
            return
        self.now += seconds
        for entry in sorted(self.due, key=lambda entry: entry[0]):
            if entry[0] <= self.now:
                self.due.remove(entry)
                entry[1]()


def sample(number: int = 0, **changes: Any) -> dict[str, Any]:
    """An event as it stands in the log."""
    return {
        "id": f"0199a1b2-0000-7000-8000-{number:012d}",
        "request_id": f"request-{number}",
        "started_at": to_rfc3339(1_790_000_000_123 + number),
        "duration": 1.5,
        "path": "/v1/chat/completions",
        "model": "gpt-4o",
        "status": 200,
        "outcome": "completed",
        "stream": False,
        "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "source": "provider"},
        **changes,
    }
