"""How connections come about, and what is left when they do not."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from stage.certificates import new_authority
from stage.scripts import black_hole

from llm_proxy.errors import UpstreamError, UpstreamTimeout, UpstreamTLSError, UpstreamUnavailable
from llm_proxy.upstream.dialing import Dialer
from llm_proxy.upstream.outgoing import Origin
from llm_proxy.upstream.resolver import Address, Resolver


class Listener:
    """A server that notes who comes and who goes."""

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self.gone = asyncio.Event()
        self.address = Address(socket.AF_INET, ())

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        self.gone.set()
        writer.close()


@contextlib.asynccontextmanager
async def listening(tls: ssl.SSLContext | None = None) -> AsyncIterator[Listener]:
    listener = Listener()
    async with await asyncio.start_server(listener.serve, "127.0.0.1", 0, ssl=tls) as server:
        listener.address = Address(socket.AF_INET, server.sockets[0].getsockname())
        yield listener


def dead(url: str) -> Address:
    return Address(socket.AF_INET, ("127.0.0.1", int(url.rpartition(":")[2])))


def refusing() -> Address:
    """An address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Address(socket.AF_INET, probe.getsockname())


async def connected(
    addresses: Sequence[Address],
    *,
    tls: bool = False,
    context: ssl.SSLContext | None = None,
    guarded: bool = False,
    seconds: float = 5,
) -> asyncio.Protocol:
    """Connect to the first of these that answers."""

    async def lookup(host: str, port: int) -> Sequence[Address]:
        return addresses

    dialer = Dialer(context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), Resolver(lookup))
    origin = Origin(tls, "provider.example", 443)
    try:
        return await dialer.connect(Kept, origin, guarded=guarded, seconds=seconds)
    finally:
        await dialer.close()


class Kept(asyncio.Protocol):
    """Keeps its transport."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def end(made: asyncio.Protocol, listener: Listener) -> None:
    assert isinstance(made, Kept)
    made.transport.close()
    await asyncio.wait_for(listener.gone.wait(), 2)


async def test_a_dead_address_costs_no_more_than_a_head_start() -> None:
    with black_hole() as one, black_hole() as other:
        async with listening() as listener, asyncio.timeout(2):
            await end(await connected([dead(one), dead(other), listener.address]), listener)


async def test_addresses_that_refuse_cost_nothing() -> None:
    async with listening() as listener, asyncio.timeout(0.2):
        await end(await connected([refusing(), refusing(), listener.address]), listener)


async def test_of_two_that_answer_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_proxy.upstream.dialing.HEAD_START", 0)
    async with listening() as one, listening() as other:
        made = await connected([one.address, other.address])
        await end(made, one if one.came.is_set() else other)
        loser = other if one.gone.is_set() else one
        assert not loser.came.is_set() or await asyncio.wait_for(loser.gone.wait(), 2)


@pytest.mark.parametrize("addresses", [[refusing()], [refusing(), refusing(), refusing()]], ids=["one", "three"])
async def test_nobody_who_answers_is_an_error(addresses: Sequence[Address]) -> None:
    with pytest.raises(UpstreamUnavailable) as failure:
        await connected(addresses)
    assert not failure.value.sent


@pytest.mark.parametrize("addresses", [1, 3])
async def test_silence_is_a_timeout_and_leaves_nothing(addresses: int) -> None:
    before = descriptors()
    with black_hole() as url, pytest.raises(UpstreamTimeout):
        await connected([dead(url)] * addresses, seconds=0.3)
    await asyncio.sleep(0)
    assert descriptors() <= before
    assert len(asyncio.all_tasks()) == 1


async def test_a_name_whose_addresses_are_private_is_not_connected_to() -> None:
    async with listening() as listener:
        with pytest.raises(UpstreamUnavailable):
            await connected([listener.address], guarded=True)
        assert not listener.came.is_set()


@pytest.mark.parametrize(
    ("name", "how", "error"),
    [
        pytest.param("provider.example", {}, None, id="right"),
        pytest.param("other.example", {}, UpstreamTLSError, id="wrong-name"),
        pytest.param("provider.example", {"expired": True}, UpstreamTLSError, id="expired"),
        pytest.param("provider.example", {"self_signed": True}, UpstreamTLSError, id="self-signed"),
    ],
)
async def test_the_certificate_is_verified_and_the_name_is_sent(
    tmp_path: Path, name: str, how: dict[str, bool], error: type[UpstreamError] | None
) -> None:
    authority = new_authority(tmp_path)
    server, names = authority.server(name, **how), []
    server.sni_callback = lambda _connection, asked, _context: names.append(asked)
    context = ssl.create_default_context(cafile=str(authority.file))
    async with listening(server) as listener:
        if error:
            with pytest.raises(error):
                await connected([listener.address], tls=True, context=context)
        else:
            await end(await connected([listener.address], tls=True, context=context), listener)
    assert names == ["provider.example"]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_who_gives_up_leaves_nothing(tls: bool) -> None:
    """A connection under way is closed, in the middle of its handshake too."""
    with black_hole() as url:
        async with listening() as listener:
            dialing = asyncio.ensure_future(connected([listener.address if tls else dead(url)], tls=tls))
            await asyncio.wait_for(listener.came.wait(), 2) if tls else await asyncio.sleep(0)
            dialing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialing
            if tls:
                await asyncio.wait_for(listener.gone.wait(), 0.1)
    assert len(asyncio.all_tasks()) == 1
