"""The log is one readable line for each record, in which no secret is left."""

import json
import logging
import pathlib
import secrets
import sys
from collections.abc import Iterator

import pytest
from stage.house import settings_for

from llm_proxy import logs
from llm_proxy.errors import SettingsError
from llm_proxy.logs import JsonFormatter, TextFormatter, configure, request_ids
from llm_proxy.secret import Secret

FORMATTERS = pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])


def record(message: str, *args: object, facts: dict[str, object] | None = None, exc_info: object = None) -> logging.LogRecord:
    made = logging.LogRecord("llm_proxy.test", logging.WARNING, __file__, 1, message, args, exc_info)  # type: ignore[arg-type]
    made.created = 1_795_251_277.12
    if facts is not None:
        made.facts = facts
    return made


def test_json_line_has_time_level_place_message_and_facts() -> None:
    line = json.loads(JsonFormatter().format(record("%d of %d", 3, 4, facts={"seconds": 0.5, "none": None, "usage": {"n": 1}})))
    assert line == {
        "time": "2026-11-21T08:54:37.120Z",
        "level": "warning",
        "logger": "llm_proxy.test",
        "message": "3 of 4",
        "seconds": 0.5,
        "usage": {"n": 1},
    }


def test_text_line_is_for_people() -> None:
    line = TextFormatter().format(record("%d of %d", 3, 4, facts={"seconds": 0.5, "none": None}))
    assert line == "2026-11-21T08:54:37.120Z WARNING 3 of 4 seconds=0.5"


@FORMATTERS
def test_every_line_of_a_request_carries_its_ids(formatter: logging.Formatter) -> None:
    token = request_ids.set(("r-1", "c-1"))
    try:
        line = formatter.format(record("hello"))
    finally:
        request_ids.reset(token)
    assert "r-1" in line and "c-1" in line
    assert "r-1" not in formatter.format(record("hello"))


def test_ids_in_the_facts_go_over_those_of_the_moment() -> None:
    token = request_ids.set(("r-1", None))
    try:
        line = json.loads(JsonFormatter().format(record("hello", facts={"request_id": "r-2"})))
    finally:
        request_ids.reset(token)
    assert line["request_id"] == "r-2"


@FORMATTERS
def test_live_secret_is_removed_from_message_facts_and_traceback(formatter: logging.Formatter) -> None:
    secret = Secret(f'quo"te\\{secrets.token_hex(12)}')
    try:
        raise RuntimeError(f"cannot use {secret.reveal()}")
    except RuntimeError:
        made = record(
            "key %s", secret.reveal(), facts={"plain": secret.reveal(), "deep": [{"k": secret.reveal()}]}, exc_info=sys.exc_info()
        )
    line = formatter.format(made)
    assert secret.reveal()[8:] not in line
    assert line.count("****") == 4
    assert "RuntimeError" in line


@FORMATTERS
def test_shape_of_a_credential_is_removed(formatter: logging.Formatter) -> None:
    line = formatter.format(record("got %s", "sk-lp-0123456789abcdefghij", facts={"header": 'Bearer abcdef.123"'}))
    assert "0123456789" not in line and "abcdef" not in line


def test_secret_objects_show_masked() -> None:
    line = json.loads(
        JsonFormatter().format(record("%s %r", Secret("0123456789"), Secret("abcdefghij"), facts={"key": Secret("x" * 20)}))
    )
    assert (line["message"], line["key"]) == ("**** Secret('****')", "****")


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"agent": "half \udce9 a character"}, id="half a surrogate pair"),
        pytest.param({"huge": 2**70}, id="number beyond 64 bits"),
        pytest.param({"deep": {7: "number as key"}}, id="number as key"),
        pytest.param({"path": pathlib.Path("/x")}, id="any object"),
        pytest.param({"odd": float("nan")}, id="not a number"),
    ],
)
def test_no_fact_costs_the_line(facts: dict[str, object]) -> None:
    raw = JsonFormatter().format(record("hello", facts=facts)).encode(errors="backslashreplace")
    line = json.loads(raw)
    assert line["message"] == "hello"
    assert set(facts) <= set(line)


def test_client_can_neither_forge_a_line_nor_steer_the_terminal() -> None:
    line = TextFormatter().format(record("model %s", "a\n2026 ERROR forged\r", facts={"agent": "\x1b[2J\x9b\u202e\udce9"}))
    assert line.isprintable()
    assert r"a\n2026 ERROR forged\r agent=\x1b[2J\x9b\u202e\udce9" in line
    assert JsonFormatter().format(record("a\nb")).count("\n") == 0


@FORMATTERS
def test_traceback_is_whole(formatter: logging.Formatter) -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        line = formatter.format(record("failed", exc_info=sys.exc_info()))
    assert "Traceback" in line and "RuntimeError: broken" in line


@pytest.fixture
def clean_root() -> Iterator[None]:
    """The root logger as it was."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()


@pytest.mark.usefixtures("clean_root")
def test_file_gets_the_lines_from_the_level_on(tmp_path: pathlib.Path) -> None:
    configure(settings_for(tmp_path, LOG_FILE="proxy.log", LOG_LEVEL="warning"))
    logging.getLogger("llm_proxy.test").info("too little")
    logging.getLogger("llm_proxy.test").warning("enough")
    [line] = pathlib.Path("proxy.log").read_text().splitlines()
    assert json.loads(line)["message"] == "enough"


@pytest.mark.usefixtures("clean_root")
def test_file_that_was_rotated_away_is_opened_anew(tmp_path: pathlib.Path) -> None:
    handler = configure(settings_for(tmp_path, LOG_FILE="proxy.log", LOG_FORMAT="text"))
    handler.handle(record("one"))
    pathlib.Path("proxy.log").rename("proxy.log.1")
    handler.handle(record("two"))
    assert pathlib.Path("proxy.log.1").read_text().endswith("one\n")
    assert pathlib.Path("proxy.log").read_text().endswith("two\n")


@pytest.mark.usefixtures("clean_root")
@pytest.mark.parametrize("format", ["json", "text"])
def test_file_takes_text_that_is_no_utf_8(tmp_path: pathlib.Path, format: str) -> None:
    # Straight to the handler: pytest cannot carry such a line from process to process.
    configure(settings_for(tmp_path, LOG_FILE="proxy.log", LOG_FORMAT=format)).handle(record("half \udce9 of it"))
    assert r"half \udce9 of it" in pathlib.Path("proxy.log").read_text()


@pytest.mark.usefixtures("clean_root")
@pytest.mark.parametrize(
    ("format", "kind"), [("json", JsonFormatter), ("text", TextFormatter), ("auto", JsonFormatter)], ids=["json", "text", "auto"]
)
def test_format_is_as_set_and_json_where_nobody_watches(
    tmp_path: pathlib.Path, format: str, kind: type[logging.Formatter]
) -> None:
    assert isinstance(configure(settings_for(tmp_path, LOG_FORMAT=format)).formatter, kind)


@pytest.mark.usefixtures("clean_root")
def test_terminal_gets_text(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(logs.sys, "stderr", Terminal())
    assert isinstance(configure(settings_for(tmp_path)).formatter, TextFormatter)
    assert isinstance(configure(settings_for(tmp_path, LOG_FILE="proxy.log")).formatter, JsonFormatter)


@pytest.mark.usefixtures("clean_root")
def test_statements_of_sql_are_not_logged(tmp_path: pathlib.Path) -> None:
    configure(settings_for(tmp_path, LOG_FILE="proxy.log", LOG_LEVEL="debug"))
    for name in ("yoyo.migrations", "aiosqlite"):
        logging.getLogger(name).debug("SELECT 1")
    assert pathlib.Path("proxy.log").read_text() == ""


def test_file_that_cannot_be_opened_stops_the_start(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingsError, match=r"LOG_FILE=nowhere/proxy\.log: cannot be opened"):
        configure(settings_for(tmp_path, LOG_FILE="nowhere/proxy.log"))
