"""Lunary and Helicone, as strict as the real ones, with faults on demand."""

import asyncio
import datetime
import re
import ssl
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

from llm_proxy.clock import now_ms, to_rfc3339

KEY = "key-of-the-sink-0001"
Fault = Callable[[web.Request, Any], web.Response | str | None]


class FakeService:
    """Takes documents, on `/` or where the real one does.

    Attributes:
        fault: given a request with its document, answers in place of the service; `reset` breaks the connection, `hang`
            leaves it without an answer.
        bodies: every document that came.
        kept: the ids of what was taken, in order, once each.
        connections: the ports that calls came from.
    """

    def __init__(self) -> None:
        self.fault: Fault = lambda request, document: None
        self.bodies: list[Any] = []
        self.kept: list[str] = []
        self.connections: set[int] = set()
        self.closing = asyncio.Event()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        """One call."""
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": "unauthorized"}, status=401)
        transport = request.transport
        assert transport and request.content_type == "application/json"
        self.connections.add(transport.get_extra_info("peername")[1])
        document = await request.json()
        self.bodies.append(document)
        fault = self.fault(request, document)
        if fault == "hang":
            await self.closing.wait()
        if fault in ("reset", "hang"):
            transport.abort()
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

    The real one notes the end of a run that it does not know as a success, and forgets it: so does this one. Its database
    refuses a character zero.

    Attributes:
        runs: what is known of each run, by its id.
        poison: ids of runs that its database refuses, with the message.
        tries: how many starts came for each run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[str, dict[str, Any]] = {}
        self.poison: dict[str, str] = {}
        self.tries: Counter[str] = Counter()

    def take(self, document: Any) -> web.Response:
        assert set(document) == {"events"}
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
        # What is no plain value is dropped from the metadata without a word.
        assert all(isinstance(value, str | int | float | bool) for value in event.get("metadata", {}).values())
        if id in self.poison:
            raise ValueError(self.poison[id])
        if b"\\u0000" in orjson.dumps(event):
            raise ValueError("unsupported Unicode escape sequence")
        if event["event"] == "start":
            self._start(id, event)
        elif event["event"] == "end":
            assert all(type(count) is int for count in event.get("tokensUsage", {}).values())
            assert set(event.get("tokensUsage", {})) in (set(), {"prompt", "completion"})
            if id in self.runs:
                self.runs[id]["end"] = event
                self.keep(id)
        else:
            raise ValueError(f"unknown event {event['event']}")

    def _start(self, id: str, event: dict[str, Any]) -> None:
        self.tries[id] += 1
        if id in self.runs:
            raise ValueError("Run with this ID already exists in the database.")
        assert isinstance(event["name"], str)
        self.runs[id] = {"start": event}


class FakeHelicone(FakeService):
    """Takes one log a call; makes headers of what is told beside the bodies, as the real one does."""

    def take(self, document: Any) -> web.Response:
        request, response, timing = document["providerRequest"], document["providerResponse"], document["timing"]
        sound = (
            set(document) == {"providerRequest", "providerResponse", "timing"}
            and request["url"] == "custom-model-nopath"
            and isinstance(request["json"], dict)
            and isinstance(response["json"], dict)
            and type(response["status"]) is int
            and 100 <= response["status"] < 600
            and type(timing.get("timeToFirstToken", 0)) is int
            and milliseconds(timing["startTime"]) <= milliseconds(timing["endTime"])
        )
        if not sound:
            return web.json_response({"error": "invalid log"}, status=400)
        if not are_headers(request["meta"]) or not are_headers(response["headers"]):
            return web.Response(status=500, text="TypeError: Cannot convert argument to a ByteString")
        self.keep(str(uuid.UUID(request["meta"]["Helicone-Request-Id"])))
        return web.json_response({})


def milliseconds(moment: dict[str, int]) -> int:
    """A time of Helicone's, which must be split as it wants it."""
    assert set(moment) == {"seconds", "milliseconds"} and all(type(part) is int for part in moment.values())
    assert 0 <= moment["milliseconds"] < 1000
    return moment["seconds"] * 1000 + moment["milliseconds"]


def are_headers(found: dict[str, str]) -> bool:
    """Whether the `Headers` of a JavaScript runtime takes these."""
    names = all(re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) for name in found)
    return names and all(re.fullmatch(r"[^\0\r\n\u0100-\U0010ffff]*", value) for value in found.values())


@asynccontextmanager
async def running(service: FakeService, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    """Serve it on a free loopback port."""
    app = web.Application(client_max_size=64 * 1024 * 1024)
    for path in ("/", "/v1/runs/ingest", "/custom/v1/log"):
        app.router.add_post(path, service.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    service.url = f"{'https' if tls else 'http'}://{host}:{port}/"
    try:
        yield
    finally:
        service.closing.set()
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
