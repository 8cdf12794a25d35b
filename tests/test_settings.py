"""Settings come from where the operator put them, or stop the start with a text that says what to do."""

import base64
import dataclasses
import pathlib
from typing import Any

import pytest

from llm_proxy.errors import SettingsError
from llm_proxy.settings import OUR_PREFIXES, RETIRED, TABLE, Settings, check_serving, kind_of, load, shown
from llm_proxy.settings.values import SECRET_KINDS

KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(32)).decode()
STRONG = "f3b1c9d27a5e48609b7c0d1e2f3a4b5c6d7e8f90"
ALIASES = {alias: field.name.upper() for field in TABLE for alias in field.metadata["aliases"]}
SECRETS = [field.name.upper() for field in TABLE if field.metadata["parse"] in SECRET_KINDS]


def write_env(*lines: str, name: str = ".env") -> None:
    pathlib.Path(name).write_text("".join(f"{line}\n" for line in lines))


# The table


def test_defaults_alone_make_settings() -> None:
    settings = load()
    assert settings == Settings()
    assert (settings.listen_addr, settings.admin_ui_listen_addr, settings.db_driver) == (":8080", "127.0.0.1:8081", "sqlite")
    assert settings.sources == {}
    assert settings.warnings == ()


@pytest.mark.parametrize("field", TABLE, ids=lambda field: field.name)
def test_every_setting_says_what_it_is_for_and_what_it_accepts(field: Any) -> None:
    assert field.metadata["help"].endswith(".")
    assert kind_of(field)
    assert field.name == field.name.lower()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load().listen_addr = ":1"  # type: ignore[misc]


# Where values come from


@pytest.mark.parametrize(
    ("file", "environment", "flag", "level", "source"),
    [
        (None, None, None, "info", None),
        ("debug", None, None, "debug", ".env"),
        ("debug", "warning", None, "warning", "environment"),
        ("debug", "warning", "error", "error", "flag"),
        ("debug", None, "error", "error", "flag"),
        ("debug", "", None, "debug", ".env"),
        ("debug", "  ", "", "debug", ".env"),
        ("", None, None, "info", None),
    ],
)
def test_flags_go_over_the_environment_over_the_file_over_defaults(
    monkeypatch: pytest.MonkeyPatch, file: str | None, environment: str | None, flag: str | None, level: str, source: str | None
) -> None:
    if file is not None:
        write_env(f"LOG_LEVEL={file}")
    if environment is not None:
        monkeypatch.setenv("LOG_LEVEL", environment)
    settings = load(overrides={} if flag is None else {"LOG_LEVEL": flag})
    assert settings.log_level == level
    assert settings.sources.get("LOG_LEVEL") == source


def test_named_file_stands_in_for_the_usual_one() -> None:
    write_env("LOG_LEVEL=debug")
    write_env("LOG_FORMAT=text", name="other.env")
    settings = load("other.env")
    assert (settings.log_level, settings.log_format, settings.sources["LOG_FORMAT"]) == ("info", "text", "other.env")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("LOG_FILE=plain.log", "plain.log"),
        ("export LOG_FILE=plain.log", "plain.log"),
        ("LOG_FILE = 'a b.log' # why", "a b.log"),
        ('LOG_FILE="$HOME/x.log"', "$HOME/x.log"),
        ("# LOG_FILE=no.log", ""),
        ("LOG_FILE", ""),
    ],
)
def test_lines_of_the_file_are_read_without_surprises(line: str, value: str) -> None:
    write_env(line)
    assert load().log_file == value


def test_file_that_was_named_must_be_there() -> None:
    for name in ("missing.env", "."):
        with pytest.raises(SettingsError, match=r"there is no such file\. `llm-proxy setup` makes one\."):
            load(name)


def test_folder_in_the_place_of_the_usual_file_is_not_it() -> None:
    pathlib.Path(".env").mkdir()
    assert load() == Settings()


def test_file_that_is_no_text_stops_the_start() -> None:
    pathlib.Path(".env").write_bytes(b"LOG_LEVEL=\xff\xfe")
    with pytest.raises(SettingsError, match=r"\.env: cannot be read"):
        load()


@pytest.mark.parametrize("alias", ["ADMIN_KEY", "DB_URL"])
def test_alias_is_another_name(monkeypatch: pytest.MonkeyPatch, alias: str) -> None:
    monkeypatch.setenv(alias, "postgresql://h/d")
    settings = load()
    [secret] = settings.management_token or (settings.database_url,)
    assert secret.reveal() == "postgresql://h/d"
    assert settings.sources[ALIASES[alias]] == "environment"
    assert settings.warnings == ()


def test_name_goes_over_its_alias_but_not_over_a_higher_place(monkeypatch: pytest.MonkeyPatch) -> None:
    write_env("MANAGEMENT_TOKEN=file-name", "ADMIN_KEY=file-alias")
    assert load().management_token[0].reveal() == "file-name"
    monkeypatch.setenv("ADMIN_KEY", "environment-alias")
    assert load().management_token[0].reveal() == "environment-alias"


# Secrets from files


def valid(name: str) -> str:
    return {"ENCRYPTION_KEY": KEY, "DATABASE_URL": "postgresql://u:p@h/d", "REDIS_URL": "redis://:p@h/1"}.get(name, STRONG)


def revealed(settings: Settings, name: str) -> str:
    value = getattr(settings, name.lower())
    return ",".join(part.reveal() for part in value) if isinstance(value, tuple) else str(value.reveal())


@pytest.mark.parametrize("name", [*SECRETS, *ALIASES])
def test_secret_may_be_in_a_file_of_its_own(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    setting = ALIASES.get(name, name)
    pathlib.Path("secret").write_text(f"\n{valid(setting)}\n")
    write_env(f"{name}_FILE=secret")
    settings = load()
    assert revealed(settings, setting) == valid(setting)
    assert settings.sources[setting] == f".env ({name}_FILE)"
    assert settings.warnings == ()


def test_file_of_a_secret_counts_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pathlib.Path("secret").write_text("from-the-file")
    write_env("METRICS_TOKEN=in-the-env-file", "METRICS_TOKEN_FILE=nowhere")
    assert load().metrics_token.reveal() == "in-the-env-file"
    monkeypatch.setenv("METRICS_TOKEN_FILE", "secret")
    assert load().metrics_token.reveal() == "from-the-file"


def test_only_secrets_may_be_in_files() -> None:
    write_env("LOG_LEVEL_FILE=secret")
    settings = load()
    assert settings.log_level == "info"
    assert settings.warnings == ("LOG_LEVEL_FILE is not a setting; did you mean LOG_LEVEL?",)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "the file cannot be read"),
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"\xff", "the file cannot be read"),
    ],
)
def test_file_without_a_secret_stops_the_start(content: bytes | None, problem: str) -> None:
    if content is not None:
        pathlib.Path("secret").write_bytes(content)
    with pytest.raises(SettingsError, match=f"ENCRYPTION_KEY_FILE=secret: {problem}") as caught:
        load(overrides={"ENCRYPTION_KEY_FILE": "secret"})
    assert "Give a file that holds the secret." in str(caught.value)


@pytest.mark.parametrize("name", SECRETS)
def test_systemd_may_hold_a_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / name).write_text(valid(name) + "\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    settings = load()
    assert revealed(settings, name) == valid(name)
    assert settings.sources[name] == "CREDENTIALS_DIRECTORY"


@pytest.mark.parametrize("name", SECRETS)
def test_an_empty_credential_of_systemd_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / name).write_text("\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert name not in load().sources


def test_any_other_place_goes_over_systemd_s(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    (tmp_path / "ENCRYPTION_KEY").write_text(KEY)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    write_env(f"ENCRYPTION_KEY={OTHER_KEY}")
    assert revealed(load(), "ENCRYPTION_KEY") == OTHER_KEY


# HOST and PORT


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({"PORT": "9000"}, ":9000"),
        ({"PORT": "9000", "HOST": "127.0.0.1"}, "127.0.0.1:9000"),
        ({"PORT": "9000", "HOST": "::"}, "[::]:9000"),
        ({"PORT": "9000", "HOST": "[::1]"}, "[::1]:9000"),
        ({"PORT": "9000", "LISTEN_ADDR": ":7000"}, ":7000"),
        ({"HOST": "x86_64-conda-linux-gnu"}, ":8080"),
    ],
)
def test_host_and_port_stand_in_for_the_address(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], address: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load()
    assert settings.listen_addr == address
    assert settings.warnings == ()


def test_host_and_port_of_the_file_are_named_as_the_source() -> None:
    write_env("PORT=9000", "HOST=localhost")
    settings = load()
    assert (settings.listen_addr, settings.sources["LISTEN_ADDR"], settings.warnings) == (
        "localhost:9000",
        ".env (HOST, PORT)",
        (),
    )


def test_address_anywhere_goes_over_host_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    write_env("LISTEN_ADDR=:7000")
    monkeypatch.setenv("PORT", "9000")
    assert load().listen_addr == ":7000"


def test_unusable_port_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "http")
    with pytest.raises(SettingsError, match="HOST and PORT give :http: not accepted"):
        load()


# The database


def test_database_url_alone_implies_postgres() -> None:
    settings = load(overrides={"DATABASE_URL": "postgresql://u:p@h/d", "REDIS_URL": "redis://:p@h/1"})
    assert (settings.db_driver, settings.sources["DB_DRIVER"]) == ("postgres", "implied by DATABASE_URL")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"DB_DRIVER": "sqlite", "DATABASE_URL": "postgresql://h/d"}, "DB_DRIVER=sqlite and DATABASE_URL contradict each other"),
        ({"DB_DRIVER": "postgres"}, "DB_DRIVER=postgres needs DATABASE_URL, such as postgresql://"),
        (
            {"DATABASE_PATH": "x.db", "DATABASE_URL": "postgresql://h/d"},
            "DATABASE_PATH=x.db and DATABASE_URL contradict each other",
        ),
    ],
)
def test_contradiction_stops_the_start(given: dict[str, str], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        load(overrides=given)


def test_path_of_a_database_no_longer_used_is_no_contradiction() -> None:
    write_env("DATABASE_PATH=x.db", "DATABASE_URL=postgresql://h/d")
    assert load().db_driver == "postgres"


# Values that are refused

UNUSABLE = "?! unusable"


def refuses(field: Any) -> bool:
    try:
        field.metadata["parse"](UNUSABLE)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("field", [field for field in TABLE if refuses(field)], ids=lambda field: field.name)
def test_refusal_names_setting_value_and_what_is_accepted(field: Any) -> None:
    name = field.name.upper()
    with pytest.raises(SettingsError) as caught:
        load(overrides={name: UNUSABLE})
    value = "****" if name in SECRETS else UNUSABLE
    assert str(caught.value).startswith(f"{name}={value}: not accepted. Give ")
    assert (UNUSABLE in str(caught.value)) is (name not in SECRETS)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("LOG_LEVEL", "loud", "LOG_LEVEL=loud: not accepted. Give debug or info or warning or error."),
        ("SHUTDOWN_TIMEOUT", "soon", "SHUTDOWN_TIMEOUT=soon: not accepted. Give a duration such as 500ms, 30s, 5m or 1h."),
        ("MAX_CONCURRENT_REQUESTS", "0", "MAX_CONCURRENT_REQUESTS=0: not accepted. Give a whole number, 1 or more."),
        (
            "METRICS_PATH",
            "/health",
            "METRICS_PATH=/health: not accepted. Give a path such as /metrics, none of this program's own.",
        ),
        ("DB_URL", "mysql://root:hidden@h/d", "DB_URL=****: not accepted. Give postgresql://user:password@host:5432/name."),
    ],
)
def test_refusals_read_like_this(name: str, value: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(overrides={name: value})
    assert str(caught.value) == text


@pytest.mark.parametrize("name", ["REQUEST_TIMEOUT_SECS", "TTFT_TIMEOUT_SECS"])
@pytest.mark.parametrize(("text", "seconds"), [("30", 30.0), ("2m", 120.0), ("0", 0.0), ("250ms", 0.25)])
def test_timeouts_of_providers_are_durations_in_which_a_bare_number_is_seconds(name: str, text: str, seconds: float) -> None:
    assert getattr(load(overrides={name: text}), name.lower()) == seconds


# What serving needs


def serving(**given: str) -> None:
    check_serving(load(overrides={"MANAGEMENT_TOKEN": STRONG, **given}))


def test_strong_token_may_serve_anywhere() -> None:
    serving(LISTEN_ADDR=":8080", ADMIN_UI_LISTEN_ADDR="0.0.0.0:8081")
    serving(MANAGEMENT_TOKEN=f"{STRONG},{STRONG[::-1]}")


WEAK = [
    pytest.param("tiny", id="short"),
    pytest.param(STRONG[:31], id="31 characters"),
    pytest.param("a" * 40, id="one character"),
    pytest.param("abcabcd" * 8, id="few characters"),
    pytest.param("your-management-token-goes-here-please", id="example"),
    pytest.param("CHANGEME-changeme-CHANGEME-changeme", id="placeholder"),
    pytest.param("0123456789abcdef0123456789abcdef", id="digits in order"),
    pytest.param(f"{STRONG},tiny", id="one of two"),
]


@pytest.mark.parametrize("token", WEAK)
def test_weak_token_may_not_serve_beyond_loopback(token: str) -> None:
    with pytest.raises(SettingsError, match=r"MANAGEMENT_TOKEN=\*\*\*\*: .*`openssl rand -hex 24` makes a good one") as caught:
        serving(MANAGEMENT_TOKEN=token)
    assert token.split(",")[-1] not in str(caught.value)


@pytest.mark.parametrize("token", WEAK)
@pytest.mark.parametrize("address", ["127.0.0.1:8080", "localhost:8080", "[::1]:8080", "127.8.8.8:0"])
def test_weak_token_may_serve_on_loopback(token: str, address: str) -> None:
    serving(MANAGEMENT_TOKEN=token, LISTEN_ADDR=address)


@pytest.mark.parametrize(
    ("given", "weak"),
    [
        ({"LISTEN_ADDR": "0.0.0.0:8080"}, True),
        ({"LISTEN_ADDR": "[::]:8080"}, True),
        ({"LISTEN_ADDR": "10.0.0.1:8080"}, True),
        ({"LISTEN_ADDR": "proxy.example.com:8080"}, True),
        ({"LISTEN_ADDR": "127.0.0.1:8080", "ADMIN_UI_LISTEN_ADDR": ":8081"}, True),
        ({"LISTEN_ADDR": "127.0.0.1:8080", "ADMIN_UI_LISTEN_ADDR": ":8081", "ADMIN_UI_ENABLED": "false"}, False),
    ],
)
def test_every_site_that_is_served_counts(given: dict[str, str], weak: bool) -> None:
    if weak:
        with pytest.raises(SettingsError, match="MANAGEMENT_TOKEN"):
            serving(MANAGEMENT_TOKEN="short", **given)
    else:
        serving(MANAGEMENT_TOKEN="short", **given)


def test_missing_token_stops_the_start() -> None:
    with pytest.raises(SettingsError, match=r"MANAGEMENT_TOKEN is not set\. `llm-proxy setup` writes"):
        check_serving(load(overrides={"LISTEN_ADDR": "127.0.0.1:0"}))


def test_encryption_key_may_be_required() -> None:
    serving(REQUIRE_ENCRYPTION_KEY="true", ENCRYPTION_KEY=KEY)
    with pytest.raises(SettingsError, match=r"ENCRYPTION_KEY is not set\. `openssl rand -base64 32` makes one"):
        serving(REQUIRE_ENCRYPTION_KEY="true")


@pytest.mark.parametrize("sink", ["lunary", "helicone"])
def test_a_sink_without_its_key_stops_the_start(sink: str) -> None:
    key = f"{sink.upper()}_API_KEY"
    with pytest.raises(SettingsError, match=rf"^{key} is not set, and the sink {sink} needs it\. Set it"):
        serving(EVENT_SINKS=f"file,{sink}")
    serving(EVENT_SINKS=f"file,{sink}", **{key: "a-key"})
    serving(EVENT_SINKS=f"file,{sink}", OBSERVABILITY_ENABLED="false")


def test_an_event_with_its_bodies_must_fit_into_a_record() -> None:
    load(overrides={"OBSERVABILITY_MAX_REQUEST_BODY_BYTES": "1MiB", "OBSERVABILITY_MAX_RESPONSE_BODY_BYTES": "1MiB"})
    with pytest.raises(SettingsError, match="more than 2MiB together"):
        load(overrides={"OBSERVABILITY_MAX_REQUEST_BODY_BYTES": "2MiB"})


# Names that are not settings


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("LISTEN_ADRR", "LISTEN_ADRR is not a setting; did you mean LISTEN_ADDR?"),
        ("MANAGMENT_TOKEN", "MANAGMENT_TOKEN is not a setting; did you mean MANAGEMENT_TOKEN?"),
        ("Q", "Q is not a setting."),
        *((name, f"{name} is not used any more: use {instead}.") for name, instead in RETIRED.items()),
    ],
)
def test_every_unknown_name_in_the_file_is_warned_of(name: str, warning: str) -> None:
    write_env(f"{name}=1", "LOG_LEVEL=debug")
    assert load().warnings == (warning,)


@pytest.mark.parametrize("prefix", OUR_PREFIXES)
def test_unknown_names_of_ours_in_the_environment_are_warned_of(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setenv(f"{prefix}QQQQQQ", "1")
    monkeypatch.setenv("LISTEN_ADRR", "1")
    [warning] = load().warnings
    assert warning.startswith(f"{prefix}QQQQQQ is not a setting")


@pytest.mark.parametrize("name", RETIRED)
def test_retired_names_in_the_environment_are_warned_of(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert load().warnings == (f"{name} is not used any more: use {RETIRED[name]}.",)


@pytest.mark.parametrize("name", [words for words in RETIRED.values() if words.isupper()])
def test_what_to_use_instead_exists(name: str) -> None:
    assert name in {field.name.upper() for field in TABLE}


# What is shown


def test_effective_values_are_shown_with_their_source_but_no_secret() -> None:
    write_env(f"MANAGEMENT_TOKEN={STRONG},{STRONG[::-1]}", f"ENCRYPTION_KEY={KEY}", "SHUTDOWN_TIMEOUT=1m")
    rows = {name: (value, source) for name, value, source in shown(load(overrides={"DATABASE_URL": "postgresql://u:pass@h/d"}))}
    assert list(rows) == [field.name.upper() for field in TABLE]
    assert rows["MANAGEMENT_TOKEN"] == ("****, ****", ".env")
    assert rows["ENCRYPTION_KEY"] == ("****", ".env")
    assert rows["DATABASE_URL"] == ("****", "flag")
    assert rows["DB_DRIVER"] == ("postgres", "implied by DATABASE_URL")
    assert rows["METRICS_TOKEN"] == ("", "default")
    assert rows["SHUTDOWN_TIMEOUT"] == ("60s", ".env")
    assert rows["VERIFY_SSL"] == ("true", "default")


def test_no_secret_shows_in_the_settings_themselves() -> None:
    settings = load(
        overrides={
            "MANAGEMENT_TOKEN": STRONG,
            "ENCRYPTION_KEY": KEY,
            "METRICS_TOKEN": STRONG,
            "DB_URL": "postgresql://u:pass@h/d",
        }
    )
    for text in (repr(settings), str(dataclasses.asdict(settings))):
        assert STRONG not in text and KEY not in text and "pass" not in text


# Redis


def test_an_address_of_redis_is_another_way_to_write_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_ADDR", "cache.internal:6380")
    monkeypatch.setenv("REDIS_DB", "3")
    settings = load()
    assert settings.redis_url.reveal() == "redis://cache.internal:6380/3"
    assert settings.sources["REDIS_URL"] == "environment (REDIS_ADDR, REDIS_DB)"


def test_a_url_and_an_address_of_redis_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_ADDR", "localhost:6379")
    monkeypatch.setenv("REDIS_URL", "redis://localhost:6379/0")
    with pytest.raises(SettingsError, match="REDIS_URL and REDIS_ADDR contradict"):
        load()


def test_an_address_of_redis_must_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_ADDR", "not an address")
    with pytest.raises(SettingsError, match="REDIS_ADDR=not an address"):
        load()


@pytest.mark.parametrize(
    ("name", "value"),
    [("DISTRIBUTED_RATE_LIMIT_ENABLED", "true"), ("HTTP_CACHE_BACKEND", "redis"), ("LLM_PROXY_EVENT_BUS", "redis-streams")],
)
def test_what_needs_redis_says_so(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"{name}={value} needs REDIS_URL"):
        load()


def test_a_window_without_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIBUTED_RATE_LIMIT_MAX", "10")
    monkeypatch.setenv("DISTRIBUTED_RATE_LIMIT_WINDOW", "0s")
    with pytest.raises(SettingsError, match="DISTRIBUTED_RATE_LIMIT_WINDOW"):
        load()


# Where events go


@pytest.mark.parametrize(
    ("given", "ships", "delivers"),
    [
        pytest.param({}, False, True, id="from here"),
        pytest.param({"LLM_PROXY_EVENT_BUS": "redis-streams"}, True, False, id="to Redis"),
        pytest.param({"LLM_PROXY_EVENT_BUS": "redis-streams", "OBSERVABILITY_ENABLED": "false"}, False, False, id="nowhere"),
    ],
)
def test_events_go_to_sinks_or_to_redis(given: dict[str, str], ships: bool, delivers: bool) -> None:
    settings = load(overrides={"MANAGEMENT_TOKEN": STRONG, "REDIS_URL": "redis://localhost", "EVENT_SINKS": "lunary", **given})
    assert (settings.ships, settings.delivers) == (ships, delivers)
    if delivers:
        with pytest.raises(SettingsError, match="LUNARY_API_KEY"):
            check_serving(settings)
    else:
        check_serving(settings)
