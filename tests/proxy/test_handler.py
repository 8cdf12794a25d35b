"""The life of a call, through the front door."""

import asyncio
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from stage.asking import ask, call, code_of, until
from stage.house import TESTER, House, open_house, settings_for
from stage.profiles import shipped
from stage.provider import ScriptedProvider, answer, scripted_provider
from stage.raw import connected, exchange
from stage.routes import at, token_with
from stage.scripts import holds, sends

from llm_proxy.acts import providers
from llm_proxy.errors import DatabaseUnavailable

ORIGIN = "https://app.example.com"


async def test_the_database_away_is_503(house: House, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    known, unknown = await house.token_for(provider.url), await house.token_for(provider.url)
    assert (await ask(house.url, call(known))).status == 200  # type: ignore[union-attr]

    async def away(*_: object) -> None:
        raise DatabaseUnavailable

    for verb in ("fetch_one", "fetch_all", "execute"):
        monkeypatch.setattr(house.context.database, verb, away)
    reply = await ask(house.url, call(unknown))
    assert reply is not None
    assert (reply.status, code_of(reply), reply.header(b"retry-after")) == (503, "database_unavailable", b"1")
    assert (await ask(house.url, call(known))).status == 200  # type: ignore[union-attr]


async def test_calls_beyond_the_room_are_503_until_there_is_room(tmp_path: Path, provider: ScriptedProvider) -> None:
    async with open_house(settings_for(tmp_path, MAX_CONCURRENT_REQUESTS="2")) as house:
        token = await house.token_for(provider.url)
        provider.script = holds()
        async with connected(house.url) as one, connected(house.url) as two:
            await one.send(call(token))
            await two.send(call(token))
            await until(lambda: len(provider.exchanges) == 2)
            reply = await ask(house.url, call(token))
            assert (reply.status, code_of(reply)) == (503, "overloaded")  # type: ignore[union-attr]
            assert reply.header(b"retry-after") == b"1"  # type: ignore[union-attr]
            one.abort()
            await until(lambda: house.context.active == 1)
            provider.script = sends(answer(b"{}"))
            assert (await ask(house.url, call(token))).status == 200  # type: ignore[union-attr]
        await until(lambda: house.context.active == 0)


async def test_a_connection_serves_call_after_call(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    calls = [
        call(token),
        call(token, path="/v1/nothing"),
        call("wrong"),
        call(token, path="/v1/models", method="GET", body=b""),
        call(token),
    ]
    async with connected(house.url) as connection:
        for data in calls:
            await connection.send(data)
        statuses = [(await connection.answer()).status for _ in calls]  # type: ignore[union-attr]
    assert statuses == [200, 404, 401, 200, 200]


@pytest.mark.parametrize(
    ("version", "headers", "closed"),
    [
        ("1.1", (), False),
        ("1.1", (b"Connection: close",), True),
        ("1.0", (), True),
        ("1.0", (b"Connection: keep-alive",), False),
    ],
)
async def test_connections_are_kept_as_the_client_asks(
    house: House, provider: ScriptedProvider, version: str, headers: tuple[bytes, ...], closed: bool
) -> None:
    token = await house.token_for(provider.url)
    reply = await exchange(house.url, call(token, *headers, version=version))
    assert reply is not None and (reply.status, reply.closed) == (200, closed)
    said = reply.header(b"connection")
    assert said == (b"close" if closed else b"keep-alive" if version == "1.0" else None)


async def test_a_process_that_stops_takes_no_further_request_on_a_connection(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    async with connected(house.url) as one, connected(house.url) as two:
        await one.send(call(token))
        await two.send(call(token))
        assert (await one.answer()).header(b"connection") is None  # type: ignore[union-attr]
        assert (await two.answer()).header(b"connection") is None  # type: ignore[union-attr]
        house.context.stopping = True
        await one.send(call(token))
        await two.send(call(token, path="/v1/nothing"))
        assert (await one.answer()).header(b"connection") == b"close"  # type: ignore[union-attr]
        assert (await two.answer()).header(b"connection") == b"close"  # type: ignore[union-attr]
        assert await one.is_closed() and await two.is_closed()


async def test_a_client_that_asks_is_told_to_send_its_body(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    head, _, body = call(token, b"Expect: 100-Continue").partition(b"\r\n\r\n")
    async with asyncio.timeout(5), connected(house.url) as connection:
        for _ in range(2):
            await connection.send(head + b"\r\n\r\n")
            assert (await connection.answer()).status == 100  # type: ignore[union-attr]
            await connection.send(body)
            assert (await connection.answer()).status == 200  # type: ignore[union-attr]
    assert [exchange.body for exchange in provider.exchanges] == [body, body]
    assert provider.exchanges[0].header(b"expect") is None


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        ("wrong", (b"Expect: 100-continue",), 401),
        ("", (b"Expect: 200-ok",), 417),
        ("", (b"Expect: 100-continue", b"Content-Length: 99999999999"), 413),
    ],
)
async def test_a_body_is_not_asked_for_when_it_is_not_wanted(
    house: House, provider: ScriptedProvider, token: str, headers: tuple[bytes, ...], status: int
) -> None:
    good = await house.token_for(provider.url)
    reply = await exchange(house.url, call(token or good, *headers, body=b""))
    assert reply is not None and (reply.status, reply.closed) == (status, True)
    assert reply.header(b"connection") == b"close"
    assert provider.exchanges == []


async def test_an_expectation_of_http_1_0_is_none(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    assert (await ask(house.url, call(token, b"Expect: 100-continue", version="1.0"))).status == 200  # type: ignore[union-attr]


async def test_browsers_are_answered_from_the_union_and_checked_by_their_own(tmp_path: Path, provider: ScriptedProvider) -> None:
    profiles = shipped()
    apis = {**profiles.apis, "groq": replace(profiles.apis["groq"], allowed_origins=(ORIGIN,))}
    async with open_house(settings_for(tmp_path), profiles=replace(profiles, apis=apis)) as house:
        groq = await house.token_for(provider.url, provider_type="groq")
        openai = await house.token_for(provider.url)
        origin = f"Origin: {ORIGIN}".encode()
        preflight = (origin, b"Access-Control-Request-Method: POST", b"Access-Control-Request-Headers: authorization, x-new")
        reply = await ask(house.url, b"\r\n".join([b"OPTIONS /v1/anything HTTP/1.1", b"Host: p", *preflight, b"", b""]))
        assert reply is not None and reply.status == 204 and reply.header(b"content-length") is None
        assert reply.header(b"access-control-allow-origin") == ORIGIN.encode()
        assert reply.header(b"access-control-allow-headers") == b"authorization, x-new"
        assert reply.header(b"x-request-id") and reply.header(b"vary") == b"Origin"
        refused = await ask(house.url, call("wrong", origin))
        assert refused is not None and refused.header(b"access-control-allow-origin") == ORIGIN.encode()
        provider.script = sends(answer(b"{}", extra=b"Access-Control-Allow-Origin: *\r\nVary: Accept\r\n"))
        allowed = await ask(house.url, call(groq, origin))
        assert allowed is not None and allowed.head.lower().count(b"access-control-allow-origin") == 1
        assert allowed.header(b"access-control-allow-origin") == ORIGIN.encode()
        assert b"Vary: Accept\r\n" in allowed.head and b"Vary: Origin\r\n" in allowed.head
        other = await ask(house.url, call(openai, origin))
        assert other is not None and other.header(b"access-control-allow-origin") is None
        stranger = await ask(house.url, call(groq, b"Origin: https://elsewhere.example"))
        assert stranger is not None and code_of(stranger) == "origin_not_allowed"
        assert stranger.header(b"access-control-allow-origin") is None


async def test_options_for_the_whole_server_is_answered_here(house: House, provider: ScriptedProvider) -> None:
    reply = await ask(house.url, b"OPTIONS * HTTP/1.1\r\nHost: p\r\n\r\n")
    assert reply is not None and reply.status == 204
    assert provider.connections == 0


@pytest.mark.parametrize(
    ("trusted", "address", "scheme"), [("127.0.0.0/8", "203.0.113.7", b"https"), ("10.0.0.0/8", "127.0.0.1", b"http")]
)
async def test_forwarded_headers_count_from_trusted_proxies_only(
    tmp_path: Path, provider: ScriptedProvider, trusted: str, address: str, scheme: bytes
) -> None:
    async with open_house(settings_for(tmp_path, TRUSTED_PROXIES=trusted)) as house:
        token = await house.token_for(provider.url)
        provider.script = sends(answer(b"{}", extra=f"Location: {provider.url}/v1/x\r\n".encode()))
        reply = await ask(house.url, call(token, b"X-Forwarded-For: 203.0.113.7", b"X-Forwarded-Proto: https"))
        assert reply is not None and reply.header(b"location") == scheme + b"://proxy/v1/x"
        assert house.events[0].client_ip == address
        assert provider.exchanges[0].header(b"x-forwarded-for") is None


async def test_a_provider_is_chosen_by_weight(house: House, provider: ScriptedProvider) -> None:
    async with scripted_provider() as other, scripted_provider() as spare:
        project = await house.project(provider.url)
        await providers.create(
            house.context, TESTER, project, {"api_key": "sk-other-0123456789", "api_base": other.url, "weight": 3}
        )
        await providers.create(
            house.context, TESTER, project, {"api_key": "sk-spare-0123456789", "api_base": spare.url, "weight": 0}
        )
        token = await house.token(project)
        for _ in range(60):
            assert (await ask(house.url, call(token))).status == 200  # type: ignore[union-attr]
        counts = [len(one.exchanges) for one in (provider, other, spare)]
        assert counts[2] == 0 and sum(counts) == 60 and 0 < counts[0] < counts[1]
        assert {one.header(b"authorization") for one in other.exchanges} == {b"Bearer sk-other-0123456789"}


async def test_a_provider_whose_profile_refuses_drops_out(house: House, provider: ScriptedProvider) -> None:
    async with scripted_provider() as other:
        project = await house.project(provider.url)
        await providers.create(
            house.context, TESTER, project, {"api_key": "sk-ant-0123456789", "api_base": other.url, "provider_type": "anthropic"}
        )
        token = await house.token(project)
        for path, method in (("/v1/messages", "POST"), ("/v1/embeddings", "POST"), ("/v1/messages", "POST")):
            assert (await ask(house.url, call(token, path=path, method=method))).status == 200  # type: ignore[union-attr]
        assert [one.request_line.split()[1] for one in other.exchanges] == [b"/v1/messages"] * 2
        assert [one.request_line.split()[1] for one in provider.exchanges] == [b"/v1/embeddings"]


async def test_refused_credentials_are_audited_others_are_not(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    for data in (call("wrong"), call(token, path="/v1/nothing"), call("wrong again")):
        await ask(house.url, data)

    async def refusals() -> list[str]:
        rows = await house.context.database.fetch_all("SELECT reason FROM audit_events WHERE action = 'call.refuse'", {})
        return [row["reason"] for row in rows]

    await house.context.audit.close()
    assert await refusals() == ["invalid_token"]


async def test_bodies_choose_neither_host_nor_credential(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    async with scripted_provider() as evil:
        body = orjson.dumps(
            {
                "model": "gpt-4o",
                "api_base": evil.url,
                "base_url": evil.url,
                "api_key": "sk-evil",
                "extra_headers": {"Host": "evil"},
            }
        )
        assert (await ask(house.url, call(token, body=body))).status == 200  # type: ignore[union-attr]
        assert (evil.connections, provider.exchanges[0].body) == (0, body)
        assert provider.exchanges[0].header(b"host") == provider.url.removeprefix("http://").encode()


FORM = b"Content-Type: multipart/form-data; boundary=b"
URLENCODED = b"Content-Type: application/x-www-form-urlencoded"
JSON = b"Content-Type: application/json"
OTHER = b'{"model": "o1", "input": "a"}'
ALLOWED = b'{"model": "gpt-4o", "input": "a"}'
CHAT, EMBED, SPEECH = "/v1/chat/completions", "/v1/embeddings", "/v1/audio/transcriptions"


def form(*models: bytes, name: bytes = b'"model"') -> bytes:
    return (
        b"".join(b"--b\r\nContent-Disposition: form-data; name=%b\r\n\r\n%b\r\n" % (name, one) for one in models) + b"--b--\r\n"
    )


# What a key limited to gpt-4* tries to reach another model by: lines of the head, path, body.
TRICKS: dict[str, tuple[list[bytes], str, bytes]] = {
    "openly": ([JSON], CHAT, OTHER),
    "with-the-suffix": ([JSON], CHAT, b'{"model": "acme/o1"}'),
    "with-the-suffix-twice": ([JSON], CHAT, b'{"model": "acme/acme/gpt-4o"}'),
    "with-another-suffix": ([JSON], CHAT, b'{"model": "other/gpt-4o"}'),
    "without-a-model": ([JSON], CHAT, b'{"input": "a"}'),
    "null": ([JSON], CHAT, b'{"model": null}'),
    "a-list": ([JSON], CHAT, b'{"model": ["gpt-4o", "o1"]}'),
    "by-the-key-twice": ([JSON], CHAT, b'{"model": "gpt-4o", "model": "o1"}'),
    "by-the-key-twice-escaped": ([JSON], CHAT, b'{"model": "gpt-4o", "\\u006dodel": "o1"}'),
    "by-the-key-in-capitals": ([JSON], CHAT, b'{"model": "gpt-4o", "Model": "o1"}'),
    "by-the-key-in-capitals-alone": ([JSON], "/v1/assistants", b'{"MODEL": "o1"}'),
    "by-space-around": ([JSON], CHAT, b'{"model": " gpt-4o"}'),
    "by-comments": ([JSON], CHAT, b'/* {"model": "gpt-4o"} */ {"model": "o1"}'),
    "by-two-documents": ([JSON], CHAT, ALLOWED + b"\n" + OTHER),
    "by-utf-16": ([b"Content-Type: application/json; charset=utf-16"], CHAT, OTHER.decode().encode("utf-16")),
    "by-a-byte-order-mark": ([JSON], CHAT, b"\xef\xbb\xbf" + OTHER),
    "as-text": ([b"Content-Type: text/plain"], CHAT, OTHER),
    "without-a-type": ([b"Content-Type:"], CHAT, OTHER),
    "under-two-types": ([URLENCODED, JSON], CHAT, b'{"a":"&model=gpt-4o&","model":"o1"}'),
    "compressed": ([JSON, b"Content-Encoding: gzip"], CHAT, OTHER),
    "compressed-in-two-lines": ([JSON, b"Content-Encoding: identity", b"Content-Encoding: gzip"], CHAT, ALLOWED),
    "in-a-form": ([URLENCODED], CHAT, b"model=o1"),
    "in-a-form-twice": ([URLENCODED], CHAT, b"model=gpt-4o&model=o1"),
    "in-a-form-escaped": ([URLENCODED], CHAT, b"model=gpt-4o&%6dodel=o1"),
    "in-a-form-parted-otherwise": ([URLENCODED], CHAT, b"model=gpt-4o;model=o1"),
    "in-parts": ([FORM], SPEECH, form(b"o1")),
    "in-parts-twice": ([FORM], SPEECH, form(b"gpt-4o", b"o1")),
    "in-parts-unquoted": ([FORM], SPEECH, form(b"o1", name=b"model")),
    "in-other-parts": ([b"Content-Type: multipart/mixed; boundary=b"], SPEECH, form(b"o1")),
    "by-an-id": ([JSON], "/v1/models/o1", ALLOWED),
    "by-an-escaped-id": ([JSON], "/v1/models/%6f1", ALLOWED),
    "by-a-deployment": ([JSON], "/openai/deployments/o1/chat/completions", ALLOWED),
    "by-dots": ([JSON], "/openai/deployments/gpt-4o/../o1/chat/completions", ALLOWED),
    "by-another-path": ([JSON, b"X-Original-URL: /v1/embeddings", b"X-HTTP-Method-Override: GET"], CHAT, OTHER),
}


@pytest.mark.parametrize("kind", ["openai", "azure"])
@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "mapped"])
async def test_a_key_limited_to_some_models_reaches_no_other_by_any_trick(
    tmp_path: Path, provider: ScriptedProvider, kind: str, mapped: bool
) -> None:
    async with open_house(settings_for(tmp_path, PROVIDER_SUFFIX="acme")) as house:
        given = at(provider.url, provider_type=kind, **({"model_mapping": {"*": "prov-*"}} if mapped else {}))
        token = await token_with(house, given, allowed_models=["gpt-4*"])
        for name, (head, path, body) in TRICKS.items():
            method = "GET" if "/models/" in path else "POST"
            reply = await ask(house.url, call(token, *head, path=path, method=method, body=body), method)
            assert reply is not None and 400 <= reply.status < 500, name
        assert [exchange.head + exchange.body for exchange in provider.exchanges] == []
        reply = await ask(house.url, call(token, body=b'{"model": "acme/gpt-4o"}'))
        assert reply is not None and reply.status == 200
        assert provider.exchanges[0].body == (b'{"model": "prov-gpt-4o"}' if mapped else b'{"model": "gpt-4o"}')


async def test_parameters_are_checked_on_the_name_without_the_suffix(tmp_path: Path, provider: ScriptedProvider) -> None:
    profiles = shipped(param_whitelist={"model": ("gpt-4o",)})
    async with open_house(settings_for(tmp_path, PROVIDER_SUFFIX="acme"), profiles=profiles) as house:
        token = await house.token_for(provider.url)
        for model, status in (("acme/gpt-4o", 200), ("gpt-4o", 200), ("acme/o1", 400)):
            reply = await ask(house.url, call(token, body=orjson.dumps({"model": model})))
            assert reply is not None and reply.status == status
