"""One connection's deadlines, limits and last moments, with the deadlines made short (rows 89 and 90 of the malicious inputs)."""

import asyncio
import contextlib
import gc
import inspect
import logging
import socket
import statistics
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest
import uvloop
from aiohttp import base_protocol, web, web_protocol
from aiohttp.web_protocol import RequestHandler
from stage.asking import until
from stage.raw import Answer, RawConnection, connected
from stage.site import ROOMY, Site, echo, open_site, serving_tasks

from llm_proxy import connection, serving, wire
from llm_proxy.errors import ApiError
from llm_proxy.logs import request_ids
from llm_proxy.peers import LOOPBACK

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
HEAD_SECONDS = 0.25


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"POST / HTTP/1.1", b"Host: h", *headers, b"", body])


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {
        "WATCH_SECONDS": 0.02,
        "HEAD_SECONDS": HEAD_SECONDS,
        "BODY_IDLE_SECONDS": 0.25,
        "BODY_GRACE_SECONDS": 0.4,
        "WRITE_STALL_SECONDS": 0.3,
        "LINGER_SECONDS": 0.2,
        "LONGEST_LINGER_SECONDS": 0.6,
    }
    for name, value in seconds.items():
        monkeypatch.setattr(serving if "LINGER" in name else connection, name, value)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with open_site() as opened:
        yield opened


@asynccontextmanager
async def visiting(site: Site) -> AsyncIterator[RawConnection]:
    async with asyncio.timeout(10), connected(site.url) as client:
        yield client


async def stays_silent(client: RawConnection, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await client.reader.read(1)
        return False
    except TimeoutError:
        return True


def check_error(answer: Answer | None, status: int, code: str) -> None:
    assert answer and answer.whole and answer.status == status, answer
    assert orjson.loads(answer.body)["error"]["code"] == code
    assert answer.header(b"connection") == b"close" and answer.header(b"x-request-id")


class TestTheHead:
    @pytest.mark.parametrize("data", [GET, post(b"Content-Length: 2", body=b"{}")], ids=["without a body", "with one"])
    async def test_that_comes_in_one_segment_costs_no_timer(
        self, site: Site, data: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watched: list[str] = []
        monkeypatch.setattr(connection.Connection, "_watch", lambda self: watched.append("timer"))
        async with visiting(site) as client:
            for _ in range(3):
                await client.send(data)
                assert await client.answer()
        assert not watched

    @pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\n", GET[:-2], b"\r\n"], ids=ascii)
    async def test_that_does_not_come_in_time_is_refused(self, site: Site, start: bytes) -> None:
        async with visiting(site) as client:
            began = time.monotonic()
            await client.send(start)
            check_error(await client.answer(), 408, "request_timeout")
            assert time.monotonic() - began >= HEAD_SECONDS
            assert await client.is_closed()
        assert site.refused == ["request_timeout"]

    async def test_that_drips_is_refused_however_steadily(self, site: Site) -> None:
        async with visiting(site) as client:
            dripping = asyncio.ensure_future(drip(client, post(b"A: " + b"a" * 1000), 0.02))
            check_error(await client.answer(), 408, "request_timeout")
            assert await client.is_closed()
            dripping.cancel()

    async def test_that_comes_slowly_but_in_time_is_served(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connection, "HEAD_SECONDS", 1.0)
        async with visiting(site) as client:
            for start in range(0, len(GET), 5):
                await client.send(GET[start : start + 5])
                await asyncio.sleep(0.03)
            answer = await client.answer()
            assert answer and answer.status == 200
            assert await stays_silent(client, 1.2)
        assert not site.refused

    async def test_of_the_second_request_has_a_deadline_too(self, site: Site) -> None:
        async with visiting(site) as client:
            await client.send(GET)
            assert await client.answer()
            await client.send(GET[:10])
            check_error(await client.answer(), 408, "request_timeout")
            assert await client.is_closed()

    async def test_is_refused_after_the_answer_that_is_under_way(self) -> None:
        release = asyncio.Event()

        async def wait(request: web.BaseRequest) -> web.StreamResponse:
            await release.wait()
            return web.Response(text="first")

        async with open_site(wait) as site, visiting(site) as client:
            await client.send(GET)
            await until(lambda: site.connection.is_busy)
            await client.send(GET[:10])
            await until(lambda: site.connection._deaf)
            release.set()
            first = await client.answer()
            assert first and first.body == b"first"
            check_error(await client.answer(), 408, "request_timeout")

    @pytest.mark.parametrize("pieces", [1, 50], ids=["at once", "in pieces"])
    async def test_of_many_small_headers_is_bounded(self, site: Site, pieces: int) -> None:
        """The client sends a hundred kilobytes more than it may before it reads, and reads the answer all the same."""
        head = b"GET / HTTP/1.1\r\nHost: h\r\n" + b"".join(b"A%d: %b\r\n" % (number, b"a" * 1500) for number in range(110))
        size = len(head) // pieces
        async with visiting(site) as client:
            for start in range(0, len(head), size):
                await client.send(head[start : start + size])
                await asyncio.sleep(0)
            check_error(await client.answer(), 431, "headers_too_large")
            assert await client.is_closed()

    @pytest.mark.parametrize(
        ("data", "status", "code"),
        [
            (b"GET /" + b"a" * 120_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414, "target_too_long"),
            (b"GET / HTTP/1.1\r\nA: " + b"a" * 5_000_000, 431, "headers_too_large"),
            (b"\0" * 5_000_000, 400, "bad_request"),
        ],
        ids=["target", "header", "garbage"],
    )
    def test_is_refused_in_words_that_a_client_of_one_thread_can_read(self, data: bytes, status: int, code: str) -> None:
        """It sends everything, and only then reads: a connection closed with bytes unread would be reset before that."""

        def talk(url: str) -> bytes:
            port = int(url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.sendall(data)
                # Time in which a reset would arrive, and destroy what was not read.
                time.sleep(0.05)
                return b"".join(iter(lambda: client.recv(65536), b""))

        async def main() -> bytes:
            async with open_site() as site:
                return await asyncio.to_thread(talk, site.url)

        reply = uvloop.run(main())
        assert reply.startswith(b"HTTP/1.1 %d " % status) and code.encode() in reply


async def drip(client: RawConnection, data: bytes, pause: float) -> None:
    for byte in data:
        await client.send(bytes([byte]))
        await asyncio.sleep(pause)


class TestTheBody:
    @pytest.mark.parametrize("framing", [b"Content-Length: 2", b"Transfer-Encoding: chunked"])
    async def test_that_comes_after_its_head_leaves_an_idle_connection_idle(self, site: Site, framing: bytes) -> None:
        body = b"{}" if framing.startswith(b"Content") else b"2\r\n{}\r\n0\r\n\r\n"
        async with visiting(site) as client:
            await client.send(post(framing))
            await until(lambda: site.connections and site.connection.is_busy)
            await client.send(body)
            answer = await client.answer()
            assert answer and answer.body == b"{}"
            await until(lambda: site.connection._timer is None)
            assert await stays_silent(client, HEAD_SECONDS * 2)
            await client.send(GET)
            assert await client.answer()
        assert not site.refused

    @pytest.mark.parametrize("framing", ["length", "chunks"])
    async def test_that_waits_for_us_leaves_an_idle_connection_idle(self, framing: str) -> None:
        """We read late: the last bytes come out of the parser's own buffer, not off the socket."""
        begin = asyncio.Event()

        async def late(request: web.BaseRequest) -> web.StreamResponse:
            await begin.wait()
            return await echo(request)

        body = b"a" * 3_000_000
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        data = (
            post(b"Content-Length: 3000000", body=body)
            if framing == "length"
            else post(b"Transfer-Encoding: chunked", body=chunks)
        )
        async with open_site(late) as site, visiting(site) as client:
            sending = asyncio.ensure_future(client.send(data))
            await until(lambda: site.connections and site.connection._reading_paused)
            # Longer than every deadline of the client's.
            assert await stays_silent(client, 0.6)
            begin.set()
            answer = await client.answer()
            await sending
            assert answer and len(answer.body) == len(body)
            assert await stays_silent(client, HEAD_SECONDS * 2)
            assert not site.refused

    @pytest.mark.parametrize(
        "start",
        [
            post(b"Content-Length: 10", body=b"12345"),
            post(b"Transfer-Encoding: chunked", body=b"5\r\n12"),
            post(b"Content-Length: 10"),
        ],
        ids=["length", "chunks", "nothing"],
    )
    async def test_that_stops_is_given_up(self, site: Site, start: bytes) -> None:
        async with visiting(site) as client:
            await client.send(start)
            check_error(await client.answer(), 408, "request_timeout")
            assert await client.is_closed()

    async def test_that_drips_is_given_up_below_the_least_rate(self, site: Site) -> None:
        async with visiting(site) as client:
            await client.send(post(b"Content-Length: 100000"))
            dripping = asyncio.ensure_future(drip(client, b"a" * 100_000, 0.02))
            check_error(await client.answer(), 408, "request_timeout")
            assert await client.is_closed()
            dripping.cancel()

    async def test_that_comes_at_a_fair_rate_may_take_long(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connection, "BODY_IDLE_SECONDS", 1.0)
        async with visiting(site) as client:
            await client.send(post(b"Content-Length: 20000"))
            for _ in range(20):
                await client.send(b"a" * 1000)
                await asyncio.sleep(0.04)
            answer = await client.answer()
            assert answer and len(answer.body) == 20_000

    @pytest.mark.parametrize("framing", ["extension", "chunks"])
    async def test_is_bounded_with_its_framing(self, framing: str) -> None:
        data = {"extension": b"5;" + b"a" * 200_000 + b"\r\n12345\r\n0\r\n\r\n", "chunks": b"1\r\na\r\n" * 40_000 + b"0\r\n\r\n"}[
            framing
        ]
        async with open_site(echo, ROOMY._replace(body_bytes=100_000)) as site, visiting(site) as client:
            await client.send(post(b"Transfer-Encoding: chunked"))
            await until(lambda: site.connections and site.connection.is_busy)
            await client.send(data)
            check_error(await client.answer(), 413, "request_too_large")
            assert await client.is_closed()

    async def test_that_breaks_is_answered_once(self, site: Site) -> None:
        async with visiting(site) as client:
            await client.send(post(b"Transfer-Encoding: chunked"))
            await until(lambda: site.connections and site.connection.is_busy)
            await client.send(b"5\r\n123456\r\n" + GET)
            check_error(await client.answer(), 400, "bad_request")
            assert await client.is_closed()

    async def test_that_breaks_ends_its_connection_whatever_the_handler_makes_of_it(self) -> None:
        async def forgiving(request: web.BaseRequest) -> web.StreamResponse:
            with contextlib.suppress(ApiError):
                await request.content.read()
            return web.Response(text="never mind")

        async with open_site(forgiving) as site, visiting(site) as client:
            await client.send(post(b"Transfer-Encoding: chunked"))
            await until(lambda: site.connections and site.connection.is_busy)
            await client.send(b"zz\r\n" + GET)
            answer = await client.answer()
            assert answer and answer.body == b"never mind" and answer.header(b"connection") == b"close"
            assert await client.is_closed()

    @pytest.mark.parametrize("rest", [b"zz\r\n", b""], ids=["breaks", "stops"])
    async def test_that_nobody_read_ends_its_connection_in_peace(self, rest: bytes, caplog: pytest.LogCaptureFixture) -> None:
        async def early(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(text="early")

        async with open_site(early) as site, visiting(site) as client:
            await client.send(post(b"Transfer-Encoding: chunked", body=b"5\r\n"))
            answer = await client.answer()
            assert answer and answer.body == b"early"
            await client.send(rest)
            assert await client.is_closed()
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

    async def test_that_is_refused_early_is_swallowed_while_it_comes(self) -> None:
        """A client that sends on before it reads gets the refusal, not a reset."""

        async def refuse(request: web.BaseRequest) -> web.StreamResponse:
            answer = web.Response(status=401)
            answer.force_close()
            return answer

        async with open_site(refuse) as site, visiting(site) as client:
            await client.send(post(b"Content-Length: 50000000"))
            for _ in range(8):
                await client.send(b"a" * 1_000_000)
                await asyncio.sleep(0.04)
            answer = await client.answer()
            assert answer and answer.status == 401
            assert await client.is_closed()


class TestWriting:
    @staticmethod
    async def much(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"a" * 12_000_000)

    async def test_to_a_client_that_reads_nothing_is_cut(self) -> None:
        async with open_site(self.much) as site, visiting(site) as client:
            client.writer.transport.pause_reading()
            await client.send(GET)
            await until(lambda: site.connections and site.connection.writing_paused)
            began = time.monotonic()
            await until(lambda: not site.connections)
            assert time.monotonic() - began >= 0.2
            assert serving_tasks() == 0

    async def test_to_a_client_that_reads_slowly_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connection, "WRITE_STALL_SECONDS", 0.8)
        loop = asyncio.get_running_loop()
        async with open_site(self.much) as site, asyncio.timeout(10):
            with socket.socket() as raw:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                raw.setblocking(False)
                await loop.sock_connect(raw, ("127.0.0.1", int(site.url.rpartition(":")[2])))
                await loop.sock_sendall(raw, GET)
                got, began = 0, time.monotonic()
                while got < 12_000_000:
                    piece = await loop.sock_recv(raw, 100_000)
                    assert piece, "a client that reads was cut"
                    got += len(piece)
                    # For twice as long as a client that does not read would be waited for.
                    if time.monotonic() - began < 1.6:
                        await asyncio.sleep(0.02)

    @pytest.mark.parametrize("last", [False, True], ids=["of an idle connection", "after the last answer"])
    async def test_what_is_left_at_a_close_is_cut_too(self, monkeypatch: pytest.MonkeyPatch, last: bool) -> None:
        """Less than what pauses writing is still unread by then."""
        monkeypatch.setattr(wire, "KEEPALIVE_SECONDS", 75 if last else 0.2)

        async def fill(request: web.BaseRequest) -> web.StreamResponse:
            assert request.transport
            while not request.transport.get_write_buffer_size():
                request.transport.write(b"a" * 16_384)
                await asyncio.sleep(0)
            answer = web.Response(body=b"end")
            if last:
                answer.force_close()
            return answer

        async with open_site(fill) as site, visiting(site) as client:
            client.writer.transport.pause_reading()
            await client.send(GET)
            await until(lambda: site.connections and site.connection._unsent_bytes())
            assert not site.connection.writing_paused
            await until(lambda: not site.connections)

    async def test_an_answer_that_breaks_never_looks_whole(self) -> None:
        async def breaks(request: web.BaseRequest) -> web.StreamResponse:
            answer = web.StreamResponse()
            await answer.prepare(request)
            await answer.write(b"begin")
            raise ValueError("zx9q")

        async with open_site(breaks) as site, visiting(site) as client:
            await client.send(GET)
            answer = await client.answer()
            assert answer and not answer.whole and b"HTTP/" not in answer.body and b"zx9q" not in answer.body
            assert await client.is_closed()

    async def test_a_mistake_of_ours_is_told_without_its_details(self, caplog: pytest.LogCaptureFixture) -> None:
        async def fails(request: web.BaseRequest) -> web.StreamResponse:
            raise ValueError("zx9q")

        async with open_site(fails) as site, visiting(site) as client:
            await client.send(GET)
            answer = await client.answer()
            check_error(answer, 500, "internal_error")
            assert answer and b"zx9q" not in answer.head + answer.body
            assert await client.is_closed()
        assert "zx9q" in caplog.text


class TestTheEnd:
    @pytest.mark.parametrize(
        "start", [b"", GET[:10], post(b"Content-Length: 10", body=b"1"), GET], ids=["idle", "head", "body", "kept"]
    )
    async def test_nothing_is_left_of_a_connection_whose_client_leaves(self, site: Site, start: bytes) -> None:
        async with visiting(site) as client:
            await client.send(start)
            await until(lambda: site.connections)
            if start == GET:
                await client.answer()
            elif start:
                await until(lambda: site.connection._timer)
            left = site.connection
            client.abort()
            await until(lambda: not site.connections)
        assert left._timer is None or left._timer.cancelled()
        assert left._keepalive_handle is None or left._keepalive_handle.cancelled()
        assert serving_tasks() == 0

    async def test_nothing_is_left_when_the_client_leaves_at_the_last_answer(self, site: Site) -> None:
        async with visiting(site) as client:
            await client.send(b"\0")
            await client.answer()
            await until(lambda: site.connection._lingering)
            client.abort()
            await until(lambda: not site.connections)
        assert serving_tasks() == 0

    async def test_a_client_that_never_closes_is_waited_for_briefly(self, site: Site) -> None:
        async with visiting(site) as client:
            await client.send(b"\0")
            await client.answer()
            assert await client.is_closed()
            await until(lambda: not site.connections, 1)

    async def test_a_client_that_never_stops_sending_is_waited_for_briefly(self, site: Site) -> None:
        async with visiting(site) as client:
            await client.send(b"\0")
            sending = asyncio.ensure_future(drip(client, b"a" * 1000, 0.02))
            await until(lambda: site.connections and site.connection._lingering)
            await until(lambda: not site.connections, 2)
            sending.cancel()

    @pytest.mark.parametrize("start", [b"", GET], ids=["fresh", "kept"])
    async def test_an_idle_connection_is_closed_without_a_word(self, monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
        monkeypatch.setattr(wire, "KEEPALIVE_SECONDS", 0.3)
        async with open_site() as site, visiting(site) as client:
            await client.send(start)
            if start:
                assert await client.answer()
            assert not await client.is_closed(0.15)
            assert await client.is_closed(2)

    async def test_an_idle_connection_of_a_gateway_is_left_for_it_to_close(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wire, "KEEPALIVE_SECONDS", 0.1)
        async with open_site(gateways=LOOPBACK) as site, visiting(site) as client:
            await client.send(GET)
            assert await client.answer()
            assert not await client.is_closed(0.4)
            await client.send(GET)
            assert await client.answer()

    async def test_many_slow_peers_hurt_no_other(self, site: Site) -> None:
        async with asyncio.timeout(20):
            slow = [await asyncio.open_connection("127.0.0.1", int(site.url.rpartition(":")[2])) for _ in range(300)]
            for _, writer in slow:
                writer.write(GET[:10])
            async with visiting(site) as client:
                took = []
                for _ in range(50):
                    began = time.monotonic()
                    await client.send(GET)
                    assert await client.answer()
                    took.append(time.monotonic() - began)
                assert statistics.median(took) < 0.5
            answers = [await reader.read() for reader, _ in slow]
            assert {answer.split(b" ")[1] for answer in answers} == {b"408"}
            for _, writer in slow:
                writer.close()
        await until(lambda: not site.connections)


class TestPipelining:
    async def test_what_waits_on_a_busy_connection_is_bounded(self) -> None:
        release = asyncio.Event()

        async def wait(request: web.BaseRequest) -> web.StreamResponse:
            await release.wait()
            return web.Response(text=request.path)

        count = 5000
        async with open_site(wait) as site, visiting(site) as client:
            sending = asyncio.ensure_future(client.send(b"".join(GET.replace(b"/ ", b"/%d " % n) for n in range(count))))
            await until(lambda: site.connections and site.connection._buffer_paused)
            assert len(site.connection._messages) <= web_protocol.MAX_MSG_QUEUE_SIZE
            # The client waits for us, so no deadline of its own runs.
            assert await stays_silent(client, HEAD_SECONDS * 2)
            release.set()
            for number in range(count):
                answer = await client.answer()
                assert answer and answer.body == b"/%d" % number
            await sending
            assert await stays_silent(client, HEAD_SECONDS * 2)

    async def test_the_last_answer_reaches_a_client_that_sends_on(self) -> None:
        """Its queue is full, so that nothing is read of it any more when the answer is given."""

        async def last(request: web.BaseRequest) -> web.StreamResponse:
            await until(lambda: site.connection._buffer_paused)
            answer = web.Response(text="last")
            answer.force_close()
            return answer

        async with open_site(last) as site, visiting(site) as client:
            await client.send(GET * 50 + b"a" * 20_000_000)
            answer = await client.answer()
            assert answer and answer.body == b"last"
            assert await client.is_closed()

    async def test_what_waits_behind_chunks_is_never_half_read(self) -> None:
        """The queue is full when the chunks end, so what follows them stays in the parser."""
        release, served = asyncio.Event(), []

        async def note(request: web.BaseRequest) -> web.StreamResponse:
            served.append(request.path)
            await release.wait()
            return web.Response()

        async with open_site(note) as site, visiting(site) as client:
            await client.send(GET * 31 + post(b"Transfer-Encoding: chunked", body=b"0\r\nX-Evil: 1\r\n\r\n") + GET)
            await until(lambda: site.connections and site.connection._buffer_paused)
            release.set()
            answers = []
            while answer := await client.answer():
                answers.append(answer)
            assert answers[-1].header(b"connection") == b"close" and len(answers) == len(served) <= 32

    async def test_what_follows_chunks_in_a_segment_of_its_own_is_served(self, site: Site) -> None:
        data = post(b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n")
        async with visiting(site) as client:
            for _ in range(5):
                await client.send(data)
                answer = await client.answer()
                assert answer and answer.body == b"{}" and answer.header(b"connection") is None

    async def test_what_follows_the_last_request_is_not_served(self) -> None:
        served: list[str] = []
        release = asyncio.Event()

        async def note(request: web.BaseRequest) -> web.StreamResponse:
            served.append(request.path)
            await release.wait()
            return web.Response()

        async with open_site(note) as site, visiting(site) as client:
            await client.send(b"GET /1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            await until(lambda: served)
            await client.send(GET.replace(b"/ ", b"/2 "))
            release.set()
            answer = await client.answer()
            assert answer and answer.status == 200
            assert await client.is_closed()
        assert served == ["/1"]


async def test_a_request_knows_nothing_of_the_one_before_it_on_its_connection() -> None:
    known: list[object] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        known.append(request_ids.get())
        request_ids.set(("first", None))
        return web.Response()

    async with open_site(answer) as site, visiting(site) as client:
        for _ in range(2):
            await client.send(GET)
            assert await client.answer()
    assert known == [None, None]


async def test_nothing_is_left_of_a_client_that_left_even_before_garbage_is_collected() -> None:
    came, serving = asyncio.Event(), []

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task
        serving.append(weakref.ref(task))
        del task
        came.set()
        return await asyncio.get_running_loop().create_future()

    async with open_site(wait) as site:
        gc.disable()
        try:
            async with visiting(site) as client:
                await client.send(GET)
                await came.wait()
            await until(lambda: serving[0]() is None)
        finally:
            gc.enable()


async def test_connections_beyond_the_limit_are_closed_at_once() -> None:
    async with open_site(echo, ROOMY._replace(connections=2)) as site, visiting(site) as first, visiting(site) as second:
        await until(lambda: len(site.connections) == 2)
        async with visiting(site) as third:
            assert await third.is_closed()
        second.abort()
        await until(lambda: len(site.connections) == 1)
        async with visiting(site) as fourth:
            await fourth.send(GET)
            assert await fourth.answer()
        await first.send(GET)
        assert await first.answer()
        assert site.guard._of_peer["127.0.0.1"] == 1
    await until(lambda: not site.connections)
    assert not site.guard._of_peer
    assert site.refused == ["overloaded"]


class TestAiohttp:
    """What is used of aiohttp beyond its documentation: an update that moves it must fail here, not in production."""

    @pytest.mark.parametrize(
        "name",
        [
            *("_body", "_deaf", "_timer", "_wire"),
            *("_buffer_paused", "_close", "_force_close", "_loop", "_max_msg_queue_size", "_messages", "_parser", "_paused"),
            *("_read_bufsize", "_reading_paused", "_request_count", "_request_in_progress", "_waiter", "max_field_size"),
            *("max_headers", "max_line_size", "transport", "_keepalive_handle"),
        ],
    )
    async def test_keeps_the_attributes(self, site: Site, name: str) -> None:
        async with visiting(site) as client:
            await client.send(GET)
            await client.answer()
            assert hasattr(site.connection, name)
            assert not hasattr(site.connection, "__dict__"), "an attribute of a connection is not in __slots__"

    @pytest.mark.parametrize(
        ("owner", "name", "parameters"),
        [
            (RequestHandler, "data_received", ["self", "data"]),
            (RequestHandler, "handle_error", ["self", "request", "status", "exc", "message"]),
            (RequestHandler, "finish_response", ["self", "request", "resp", "start_time"]),
            (RequestHandler, "force_close", ["self"]),
            (base_protocol.BaseProtocol, "pause_writing", ["self"]),
            (base_protocol.BaseProtocol, "_resume_transport_reading", ["self"]),
            (web_protocol._ErrInfo, "__init__", ["self", "status", "exc", "message"]),
        ],
        ids=lambda value: getattr(value, "__name__", None) or str(value),
    )
    def test_keeps_the_methods(self, owner: type, name: str, parameters: list[str]) -> None:
        assert list(inspect.signature(getattr(owner, name)).parameters) == parameters

    async def test_makes_parsers_as_we_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After chunks a fresh parser is made: it must be made as the first one was."""
        made: list[dict[str, object]] = []
        real = connection.HttpRequestParser

        def record(*args: object, **kwargs: object) -> object:
            made.append({**kwargs, "args": args[1:]})
            return real(*args, **kwargs)

        monkeypatch.setattr(connection, "HttpRequestParser", record)
        monkeypatch.setattr(web_protocol, "HttpRequestParser", record)
        async with open_site() as site:
            made.clear()
            async with visiting(site) as client:
                await client.send(post(b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n"))
                assert await client.answer()
        first, second = made
        assert first == second
