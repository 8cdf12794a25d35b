"""What a copied database needs: its schema, the encryption keys that something in it still depends on."""

import base64
import pathlib

import pytest
from stage.house import ENCRYPTION_KEY, House, open_house, settings_for

from llm_proxy.backup.content import content_of
from llm_proxy.backup.manifest import KeyUse
from llm_proxy.db import migrate
from llm_proxy.errors import StartError
from llm_proxy.secret import Secret
from llm_proxy.vault import Vault

OTHER = base64.b64encode(bytes(32)).decode()
[OTHER_ID], [OWN_ID] = (Vault([Secret(key)]).key_ids for key in (OTHER, ENCRYPTION_KEY))


async def test_a_key_is_needed_by_keys_of_providers_and_by_tokens_that_are_good(house: House) -> None:
    project = await house.project("http://127.0.0.1:1")
    for fields in ({}, {"expires_at": None}):
        await house.token(project, **fields)
    await house.context.database.execute("UPDATE tokens SET expires_at = 1 WHERE expires_at IS NOT NULL")
    other = settings_for(pathlib.Path(house.context.settings.database_path).parent, ENCRYPTION_KEY=OTHER)
    async with open_house(other) as second:
        await second.project("http://127.0.0.1:1")
    found = content_of(pathlib.Path(house.context.settings.database_path))
    assert found.keys == {OWN_ID: KeyUse(1, 1), OTHER_ID: KeyUse(1, 0)}
    assert (found.migration, found.holds) == (migrate.known()[-1], {"projects": 2, "providers": 2, "tokens": 2})
    assert found.plain == 0


async def test_keys_of_providers_that_are_plain_are_counted(tmp_path: pathlib.Path) -> None:
    async with open_house(settings_for(tmp_path, ENCRYPTION_KEY="")) as house:
        await house.token_for("http://127.0.0.1:1")
    found = content_of(tmp_path / "house.db")
    assert (found.keys, found.plain) == ({}, 1)


def test_another_programs_database_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty.db").touch()
    with pytest.raises(StartError, match="Is it a database of LLM Proxy"):
        content_of(tmp_path / "empty.db")
