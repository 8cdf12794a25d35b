"""Fixtures of the management API's tests."""

from collections.abc import AsyncIterator

import pytest
from stage.house import House, open_house
from stage.management import Management, managing

from llm_proxy.settings import Settings


@pytest.fixture
async def api(house: House) -> AsyncIterator[Management]:
    """The operator of a house on SQLite."""
    async with managing(house) as operator:
        yield operator


@pytest.fixture
async def each_house(settings: Settings) -> AsyncIterator[House]:
    """The whole program, once on each database."""
    async with open_house(settings) as opened:
        yield opened


@pytest.fixture
async def each_api(each_house: House) -> AsyncIterator[Management]:
    """The operator of a house, once on each database."""
    async with managing(each_house) as operator:
        yield operator
