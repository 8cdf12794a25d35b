"""The settings table is one of names that mean one thing."""

from llm_proxy.settings import RETIRED, TABLE


def test_names_are_unique_aliases_included() -> None:
    names = [field.name.upper() for field in TABLE] + [alias for field in TABLE for alias in field.metadata["aliases"]]
    assert len(names) == len(set(names))
    assert not set(RETIRED) & set(names)
    aliases = {alias: field.name.upper() for field in TABLE for alias in field.metadata["aliases"]}
    assert aliases == {"ADMIN_KEY": "MANAGEMENT_TOKEN", "DB_URL": "DATABASE_URL"}


def test_every_setting_says_what_it_does() -> None:
    for field in TABLE:
        assert field.metadata["help"].endswith("."), field.name
