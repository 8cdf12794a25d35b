"""`llm-proxy config`: values, masks, sources."""

import pathlib

import orjson
from stage.house import ENCRYPTION_KEY, MANAGEMENT_TOKEN

from llm_proxy.settings import TABLE

from .conftest import Cli


def test_every_setting_has_its_value_and_where_it_comes_from(cli: Cli, env_file: pathlib.Path) -> None:
    done = cli("config", LOG_LEVEL="debug")
    found = {row[0]: row[1:] for row in done.rows}
    assert list(found) == [field.name.upper() for field in TABLE]
    assert found["LOG_LEVEL"] == ["debug", "environment"]
    assert found["LISTEN_ADDR"] == ["127.0.0.1:0", ".env"]
    assert found["SHUTDOWN_TIMEOUT"][1] == "default"
    assert found["TRUSTED_PROXIES"] == ["-", "default"]


def test_secrets_are_masked_in_the_table_and_in_json(cli: Cli, env_file: pathlib.Path) -> None:
    env = {"DATABASE_URL": "postgresql://user:a-password@host/name", "METRICS_TOKEN": "a-metrics-token"}
    for done in (cli("config", **env), cli("config", "--json", **env)):
        assert done.code == 0
        for secret in (MANAGEMENT_TOKEN, ENCRYPTION_KEY, "a-password", "a-metrics-token"):
            assert secret not in done.out + done.err
    assert {row[0] for row in cli("config", **env).rows if row[1] == "****"} == {
        "MANAGEMENT_TOKEN",
        "ENCRYPTION_KEY",
        "METRICS_TOKEN",
        "DATABASE_URL",
    }


def test_json_is_for_scripts_and_warnings_stay_out_of_it(cli: Cli, env_file: pathlib.Path) -> None:
    env_file.write_text(env_file.read_text() + "LISTEN_ADR=:80\n")
    done = cli("config", "--json")
    rows = orjson.loads(done.out)
    assert {"name": "LISTEN_ADDR", "value": "127.0.0.1:0", "source": ".env"} in rows
    assert done.err == "warning: LISTEN_ADR is not a setting; did you mean LISTEN_ADDR?\n"


def test_describe_says_of_every_setting_what_it_is_for_whatever_the_settings_are(cli: Cli) -> None:
    done = cli("config", "--describe", "--json", LISTEN_ADDR="nonsense")
    rows = orjson.loads(done.out)
    assert [row["name"] for row in rows] == [field.name.upper() for field in TABLE]
    assert all(row["help"] and row["accepts"] for row in rows)
    assert "LISTEN_ADDR" in cli("config", "--describe").out


def test_another_file_is_read_with_env(cli: Cli, tmp_path: pathlib.Path) -> None:
    (tmp_path / "other.env").write_text("LOG_LEVEL=error\n")
    assert ["LOG_LEVEL", "error", "other.env"] in cli("config", "--env", "other.env").rows


def test_a_file_that_is_not_there_exits_2(cli: Cli) -> None:
    done = cli("config", "--env", "nowhere.env")
    assert done.code == 2
    assert done.err == "Error: nowhere.env: there is no such file. `llm-proxy setup` makes one.\n"
