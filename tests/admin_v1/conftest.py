"""Fixtures of the tests of /admin/v1."""

from collections.abc import AsyncIterator

import pytest
from stage.house import House
from stage.management import Management, managing


@pytest.fixture(params=["proxy site", "admin site"])
async def site(request: pytest.FixtureRequest, house: House) -> AsyncIterator[Management]:
    """The operator, once on each site."""
    async with managing(house, admin=request.param == "admin site") as operator:
        yield operator
