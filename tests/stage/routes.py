"""Several providers behind one token."""

import secrets
from typing import Any

from llm_proxy.acts import projects, providers
from stage.house import PROVIDER_KEY, TESTER, House
from stage.secrets import used


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def clock_of(house: House) -> Clock:
    """The clock of the breakers of a house, from now on."""
    house.context.breakers._clock = clock = Clock()
    return clock


def at(url: str, weight: int = 1, **fields: Any) -> dict[str, Any]:
    """A provider."""
    return {"api_key": PROVIDER_KEY, "api_base": url, "provider_type": "openai", "weight": weight, **fields}


async def pooled(house: House, *given: dict[str, Any]) -> list[str]:
    """The ids of these providers, which are now in the shared pool."""
    used(PROVIDER_KEY)
    return [(await providers.create(house.context, TESTER, None, one)).id for one in given]


async def project_with(house: House, *given: dict[str, Any]) -> str:
    """A project with these providers; without any it is served by the shared pool."""
    used(PROVIDER_KEY)
    project = await projects.create(house.context, TESTER, {"name": secrets.token_hex(6)})
    for one in given:
        await providers.create(house.context, TESTER, project.id, one)
    return project.id


async def token_with(house: House, *given: dict[str, Any], **fields: Any) -> str:
    """A token of a project with these providers."""
    return await house.token(await project_with(house, *given), **fields)
