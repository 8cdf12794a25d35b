"""Fixtures of the database's tests."""

import pytest
from stage.postgres import Postgres


@pytest.fixture(scope="session")
def postgres_url(postgres: Postgres) -> str:
    """The URL of one database for all these tests, which leave it as they like and make anew what they need."""
    return postgres.create("contract")
