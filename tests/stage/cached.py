"""A client of one project whose provider is scripted, and answers that may be stored."""

from dataclasses import dataclass

from llm_proxy.acts import tokens
from stage.asking import ask, call
from stage.house import TESTER, House
from stage.provider import Exchange, Script, ScriptedProvider, answer
from stage.raw import Answer
from stage.secrets import used

MODELS = "/v1/models"
FRESH = b"Cache-Control: max-age=60\r\n"
# Older than its lifetime from the beginning, so that no test has to wait.
STALE = b"Cache-Control: max-age=60\r\nAge: 100\r\n"


@dataclass
class Tenant:
    """Who calls with one token."""

    house: House
    provider: ScriptedProvider
    token: str
    token_id: str
    project: str

    @property
    def asked(self) -> int:
        """How often the provider was asked."""
        return len(self.provider.exchanges)

    async def send(self, *headers: bytes, path: str = MODELS, method: str = "GET", body: bytes = b"") -> Answer:
        """A call with these header lines; its answer, which must be whole."""
        reply = await ask(self.house.url, call(self.token, *headers, path=path, method=method, body=body), method)
        assert reply is not None and reply.whole, reply
        return reply

    async def how(self, *headers: bytes, path: str = MODELS, method: str = "GET", body: bytes = b"") -> str | None:
        """What X-PROXY-CACHE says of a call."""
        return said_of(await self.send(*headers, path=path, method=method, body=body))

    async def revoke(self) -> None:
        """Take the token's permission away."""
        await tokens.revoke(self.house.context, TESTER, self.token_id)


async def tenant_of(house: House, provider: ScriptedProvider, **fields: object) -> Tenant:
    """A client with a token of a new project."""
    project = await house.project(provider.url)
    token, secret = await tokens.create(house.context, TESTER, {"project_id": project, **fields})
    return Tenant(house, provider, used(secret.reveal()), token.id, project)


def said_of(reply: Answer) -> str | None:
    """What X-PROXY-CACHE says."""
    value = reply.header(b"X-PROXY-CACHE")
    return value.decode() if value else None


def key_of(reply: Answer) -> str:
    """The key in Cache-Status, by which the answer can be purged."""
    return (reply.header(b"Cache-Status") or b"").decode().partition('key="')[2].rstrip('"')


def numbered(extra: bytes = FRESH, status: bytes = b"200 OK") -> Script:
    """Answers that differ: each says the how manieth it is."""
    count = 0

    async def script(exchange: Exchange) -> None:
        nonlocal count
        count += 1
        await exchange.send(answer(b'{"n": %d}' % count, extra=extra, status=status))

    return script
