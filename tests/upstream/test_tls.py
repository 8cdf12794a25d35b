"""Providers whose TLS is wrong get neither the key nor the call."""

import asyncio
import socket
import struct
from pathlib import Path

import pytest
from stage.asking import STREAM, ask, call, code_of
from stage.certificates import Authority, new_authority
from stage.house import PROVIDER_KEY, open_house, settings_for
from stage.profiles import shipped
from stage.provider import END, STREAM_HEAD, chunk, scripted_provider
from stage.scripts import sends

from llm_proxy.errors import SettingsError


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority in the test's folder."""
    return new_authority(tmp_path)


async def test_a_private_authority_is_trusted_once_it_is_named(tmp_path: Path, authority: Authority) -> None:
    settings = settings_for(tmp_path, SSL_CERT_FILE=str(authority.file))
    async with scripted_provider(authority.server()) as provider, open_house(settings) as house:
        token = await house.token_for(provider.url)
        provider.script = sends(STREAM_HEAD + chunk(b"data: 1\n\n"), END)
        for _ in range(2):
            reply = await ask(house.url, call(token, body=STREAM))
            assert (reply.status, reply.body) == (200, b"data: 1\n\n")  # type: ignore[union-attr]
        assert provider.connections == 1
        assert provider.exchanges[0].header(b"authorization") == f"Bearer {PROVIDER_KEY}".encode()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize(
    ("named", "host", "how"),
    [
        pytest.param(False, "localhost", {}, id="unknown-authority"),
        pytest.param(True, "example.com", {}, id="wrong-name"),
        pytest.param(True, "localhost", {"expired": True}, id="expired"),
        pytest.param(True, "localhost", {"self_signed": True}, id="self-signed"),
    ],
)
async def test_a_wrong_certificate_is_refused_and_costs_nothing(
    tmp_path: Path, authority: Authority, named: bool, host: str, how: dict[str, bool], path: str
) -> None:
    settings = settings_for(tmp_path, **({"SSL_CERT_FILE": str(authority.file)} if named else {}))
    async with scripted_provider(authority.server(host, **how)) as provider, open_house(settings) as house:
        token = await house.token_for(provider.url, provider_type="anthropic", max_requests=1)
        for _ in range(2):
            reply = await ask(house.url, call(token, path=path))
            assert (reply.status, code_of(reply)) == (502, "upstream_tls_error")  # type: ignore[union-attr]
            assert reply.header(b"x-should-retry") == b"true"  # type: ignore[union-attr]
        assert provider.exchanges == []


async def test_verification_can_be_switched_off(tmp_path: Path, authority: Authority) -> None:
    async with (
        scripted_provider(authority.server("example.com", self_signed=True)) as provider,
        open_house(settings_for(tmp_path, VERIFY_SSL="false")) as house,
    ):
        token = await house.token_for(provider.url)
        assert (await ask(house.url, call(token))).status == 200  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("first_bytes", "reset", "code"),
    [
        pytest.param(b"\x15\x03\x03\x00\x02\x02\x28", False, "upstream_tls_error", id="alert"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", False, "upstream_tls_error", id="no-tls-at-all"),
        pytest.param(b"", False, "upstream_unavailable", id="closed"),
        pytest.param(b"", True, "upstream_unavailable", id="reset"),
    ],
)
async def test_a_handshake_that_fails_is_502(tmp_path: Path, first_bytes: bytes, reset: bool, code: str) -> None:
    got: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read(65536))
        writer.write(first_bytes)
        if reset:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, open_house(settings_for(tmp_path)) as house:
        token = await house.token_for(f"https://localhost:{server.sockets[0].getsockname()[1]}")
        reply = await ask(house.url, call(token))
        assert (reply.status, code_of(reply)) == (502, code)  # type: ignore[union-attr]
    assert PROVIDER_KEY.encode() not in b"".join(got)


async def test_a_handshake_that_never_ends_is_504(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.set()

    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0) as server,
        open_house(settings_for(tmp_path), profiles=shipped(timeouts={"connect": 0.1})) as house,
    ):
        token = await house.token_for(f"https://localhost:{server.sockets[0].getsockname()[1]}")
        assert code_of(await ask(house.url, call(token))) == "upstream_timeout"
        await asyncio.wait_for(ended.wait(), 2)


@pytest.mark.parametrize("content", [None, "not a certificate"], ids=["absent", "unreadable"])
async def test_a_file_of_authorities_that_cannot_be_used_stops_the_start(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "authorities.pem"
    if content:
        file.write_text(content)
    with pytest.raises(SettingsError, match=f"SSL_CERT_FILE={file}"):
        async with open_house(settings_for(tmp_path, SSL_CERT_FILE=str(file))):
            raise AssertionError("it opened")
