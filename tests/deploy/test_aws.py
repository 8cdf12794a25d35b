"""What deploy/aws tells the program is what the program knows; its own tests, which need CDK, are run by scripts/check-aws."""

import ast
import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from stage.house import ENCRYPTION_KEY, MANAGEMENT_TOKEN
from stage.postgres import Postgres
from stage.profiles import shipped

from llm_proxy.connection import GATEWAY_KEEPALIVE_SECONDS
from llm_proxy.db import migrate, open_database
from llm_proxy.events import OUTCOMES, Event
from llm_proxy.events.recorders import facts_of
from llm_proxy.events.recorders import log as call_log
from llm_proxy.logs import JsonFormatter
from llm_proxy.server import CLOSING_SECONDS
from llm_proxy.settings import SINKS, TABLE, check_serving, check_sinks, load
from llm_proxy.settings.values import SECRET_KINDS

AWS = Path(__file__).parents[2] / "deploy" / "aws"
GUIDE = AWS.with_name("AWS.md")
NAMES = {name for field in TABLE for name in (field.name.upper(), *field.metadata["aliases"])}
# Of everything written in capitals, these are AWS's own words.
OTHERS = re.compile(r"AWS_\w+|LLM_PROXY_CONTEXT")
SECRETS = {
    "MANAGEMENT_TOKEN": MANAGEMENT_TOKEN,
    "METRICS_TOKEN": "b1946ac92492d2347c6235b4d2611184",
    "ENCRYPTION_KEY": ENCRYPTION_KEY,
    "LUNARY_API_KEY": "lunary-key",
    "HELICONE_API_KEY": "helicone-key",
}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module that says what tasks are told; it needs no CDK."""
    monkeypatch.syspath_prepend(str(AWS))
    yield importlib.import_module("stacks.settings")
    for name in [name for name in sys.modules if name.partition(".")[0] == "stacks"]:
        del sys.modules[name]


def chosen(**context: str) -> Any:
    """Options of a deployment."""
    given = {"tag": "1", "domain": "llm.example.com", "zone_id": "Z1", **context}
    return importlib.import_module("stacks.options").read(given)


def words_in_capitals() -> set[str]:
    """Every NAME_OF_SOMETHING that the app's texts, the Dockerfile and the guide hold."""
    found = {word for path in (AWS / "Dockerfile", GUIDE) for word in re.findall(r"`([A-Z]+(?:_[A-Z]+)+)\b", path.read_text())}
    for path in AWS.glob("stacks/*.py"):
        texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        found |= {text for text in texts if isinstance(text, str) and re.fullmatch(r"[A-Z]+(?:_[A-Z]+)+", text)}
    return found


def test_every_setting_that_is_named_exists() -> None:
    named = words_in_capitals()
    assert {"DATABASE_URL", "DRAIN_DELAY", "ENCRYPTION_KEY"} <= named
    assert {name for name in named - NAMES if not OTHERS.fullmatch(name)} == set()


@pytest.mark.parametrize("sinks", ["", "lunary,helicone"], ids=["no dispatcher", "dispatchers"])
def test_the_program_takes_what_its_tasks_are_told(told: ModuleType, monkeypatch: pytest.MonkeyPatch, sinks: str) -> None:
    database = told.database_url("llm_proxy", "db.example.com", "5432", "llm_proxy")
    redis = told.redis_url("r3d1s", "redis.example.com", "6379")
    options = chosen(sinks=sinks, settings='{"LOG_LEVEL": "warning"}')
    for name, value in {**told.of_proxy(options, database), **SECRETS, "REDIS_URL": redis}.items():
        monkeypatch.setenv(name, value)
    settings = load()
    check_serving(settings)
    assert (settings.db_driver, settings.log_level, settings.ships, settings.warnings) == ("postgres", "warning", bool(sinks), ())
    assert settings.drain_delay + settings.shutdown_timeout + CLOSING_SECONDS <= told.STOP_TIMEOUT
    check_sinks(load(overrides=told.of_dispatcher(options)), options.sinks)
    assert set(told.SINK_KEYS) == set(SINKS) - {"file"}


def test_options_take_no_setting_that_is_a_secret(told: ModuleType) -> None:
    of_secrets = [field for field in TABLE if field.metadata["parse"] in SECRET_KINDS]
    names = {name for field in of_secrets for name in (field.name.upper(), *field.metadata["aliases"])}
    assert set(importlib.import_module("stacks.options").NOT_GIVEN) == names


def test_the_balancer_waits_longer_than_a_profile_and_shorter_than_the_proxy_keeps_connections(told: ModuleType) -> None:
    slowest = max(profile.timeouts.first_byte for profile in shipped().apis.values())
    assert slowest < told.IDLE_TIMEOUT < GATEWAY_KEEPALIVE_SECONDS


def test_metric_filters_ask_for_what_a_call_line_holds() -> None:
    event = Event("r1", "c1", "192.0.2.1", "ua/1.0", "POST", "/v1/chat/completions", ttft=0.1)
    line = json.loads(JsonFormatter().line(0, "INFO", call_log.name, "said", facts_of(event)))
    text = (AWS / "stacks" / "monitoring.py").read_text()
    asked = set(re.findall(r"\$\.([a-z_.]+)", text))
    assert {"logger", "status", "usage.prompt_tokens"} <= asked
    for path in asked:
        found = line
        for part in path.split("."):
            assert part in found, path
            found = found[part]
    assert set(re.findall(r'\$\.outcome = "(\w+)"', text)) <= set(OUTCOMES)
    assert set(re.findall(r'\$\.logger = "([\w.]+)"', text)) == {line["logger"]}


async def test_a_password_that_the_url_lacks_comes_from_where_libpq_looks(
    told: ModuleType, postgres: Postgres, empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "p:w/@7f1c"
    postgres.add_role("fargate", password)
    monkeypatch.setenv(told.DATABASE_PASSWORD, password)
    settings = load(overrides={"DATABASE_URL": empty_postgres_url.replace("//llm@", "//fargate@")})
    assert migrate.up(settings) == migrate.known()
    async with open_database(settings) as database:
        row = await database.fetch_one("SELECT current_user AS name")
    assert row and row["name"] == "fargate"
