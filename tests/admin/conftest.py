"""Fixtures of the tests of the admin site."""

from collections.abc import AsyncIterator

import pytest
from stage.house import House
from stage.visitor import Visitor, visiting


@pytest.fixture
async def visitor(house: House) -> AsyncIterator[Visitor]:
    """A browser that is logged in."""
    async with visiting(house) as browser:
        yield browser


@pytest.fixture
async def stranger(house: House) -> AsyncIterator[Visitor]:
    """A browser that is not."""
    async with visiting(house, logged_in=False) as browser:
        yield browser
