"""An operator at the management API of a house."""

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy

from stage.house import MANAGEMENT_TOKEN, House


@dataclass
class Reply:
    """What came back; `data` is the decoded JSON, None where the body is empty or something else."""

    status: int
    headers: CIMultiDictProxy[str]
    text: str
    data: Any

    @property
    def error(self) -> dict[str, Any]:
        """The error object of a refusal."""
        return dict(self.data["error"])


class Management:
    """Calls one site, as the operator unless told otherwise."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        raw: bytes | None = None,
        token: str | None = MANAGEMENT_TOKEN,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request; `raw` stands in for a JSON body."""
        sent = {**({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
        given = {"data": io.BytesIO(raw)} if raw is not None else {"json": body} if body is not None else {}
        async with self._session.request(
            method, self._url + path, headers=sent, params=params, allow_redirects=False, **given
        ) as reply:
            text = await reply.text()
            data = await reply.json() if text and reply.content_type == "application/json" else None
            return Reply(reply.status, reply.headers, text, data)

    async def done(self, method: str, path: str, body: object = None, **more: Any) -> Any:
        """The decoded answer of a request that must succeed."""
        reply = await self.ask(method, path, body, **more)
        assert reply.status < 300, reply.text
        return reply.data

    async def refused(self, method: str, path: str, body: object = None, **more: Any) -> tuple[int, str, str | None]:
        """Status, code and param of a request that must be refused."""
        reply = await self.ask(method, path, body, **more)
        assert reply.status >= 400, reply.text
        return reply.status, reply.error["code"], reply.error["param"]

    async def project(self, name: str = "demo", **fields: Any) -> str:
        """The id of a new project."""
        return str((await self.done("POST", "/manage/projects", {"name": name, **fields}))["id"])

    async def token(self, project_id: str, **fields: Any) -> dict[str, Any]:
        """A new token, its secret under `token`."""
        return dict(await self.done("POST", "/manage/tokens", {"project_id": project_id, **fields}))

    async def audit(self, **filters: str) -> list[dict[str, Any]]:
        """The audit events that fit, newest first."""
        return list((await self.done("GET", "/manage/audit", params=filters))["data"])

    async def audited(self, **filters: str) -> list[dict[str, Any]]:
        """The audit events that fit, once there are any: refusals are written a moment after their answer."""
        for _ in range(500):
            if found := await self.audit(**filters):
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(f"no audit event fits {filters}")


@asynccontextmanager
async def managing(house: House, *, admin: bool = False) -> AsyncIterator[Management]:
    """The operator at the proxy site, or at the admin site."""
    url = house.sites.admin if admin else house.url
    assert url
    async with aiohttp.ClientSession() as session:
        yield Management(session, url)
