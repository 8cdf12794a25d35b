"""Fixtures of the acts' tests."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
from stage.house import House, open_house

from llm_proxy.settings import Settings


@pytest.fixture
async def each_house(settings: Settings) -> AsyncIterator[House]:
    """The whole program, once on each database."""
    async with open_house(settings) as opened:
        yield opened


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a token of its own."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session
