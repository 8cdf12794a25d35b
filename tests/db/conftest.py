"""Fixtures of the database's tests."""

from contextlib import closing

import psycopg2
import pytest
from stage.postgres import Postgres


@pytest.fixture(scope="session")
def postgres_url(postgres: Postgres) -> str:
    """The URL of one database for all these tests, which leave it as they like and make anew what they need."""
    with closing(psycopg2.connect(postgres.uri)) as connection:
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE contract")
    return postgres.uri.replace("/postgres", "/contract")
