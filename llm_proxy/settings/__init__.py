"""The settings table: the only reader of the environment."""

import dataclasses
import difflib
import ipaddress
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dotenv import dotenv_values

from llm_proxy.errors import SettingsError
from llm_proxy.secret import Secret
from llm_proxy.settings.values import (
    SECRET_KINDS,
    one_of,
    parse_address,
    parse_bool,
    parse_count,
    parse_database_url,
    parse_duration,
    parse_encryption_keys,
    parse_event_sync,
    parse_int,
    parse_list,
    parse_path,
    parse_secret,
    parse_secrets,
    parse_size,
    parse_text,
    parse_url,
    some_of,
    written,
)

__all__ = [
    "SINKS",
    "TABLE",
    "Settings",
    "check_serving",
    "check_sinks",
    "kind_of",
    "load",
    "parse_address",
    "parse_duration",
    "parse_int",
    "shown",
]

SHORTEST_MANAGEMENT_TOKEN = 32
FEWEST_CHARACTERS = 8
# What the tokens of examples are made of, those of the predecessors too; chance does not make any of these.
WELL_KNOWN = (
    *("change-me", "change_me", "changeme", "example", "management-token", "management_token", "password", "placeholder"),
    *("secret", "replace-", "replace_", "your-", "your_", "0123456789", "12345678"),
)
FLAG = "flag"
SINKS = ("file", "lunary", "helicone")
# An event is one record of the log, in which a byte may take six.
LARGEST_CAPTURE = 2 * 1024 * 1024
OUR_PREFIXES = ("LLM_PROXY_", "HTTP_CACHE_", "EVENT_", "OBSERVABILITY_", "DISTRIBUTED_RATE_LIMIT_")

# Names of the two predecessors that mean nothing here, and what to use instead.
RETIRED = {
    "ADMIN_UI_API_BASE_URL": "nothing: the admin site needs no address of the API",
    "DATABASE_MAX_CONNECTIONS": "DATABASE_POOL_SIZE",
    "DB_MAX_CONNECTIONS": "DATABASE_POOL_SIZE",
    "MASTER_API_KEY": "a master key made with /admin/v1/master-keys",
    "MAX_REQUEST_SIZE": "MAX_REQUEST_BYTES",
    "PROVIDER_CONFIG_FILE": "API_CONFIG_PATH",
    "SERVER_ADDR": "LISTEN_ADDR",
}


def setting(group: str, parse: Callable[[str], Any], default: str, help: str, *aliases: str) -> Any:
    """One row of the table: a dataclass field whose default is written as an operator would write it."""
    return dataclasses.field(
        default=parse(default),
        metadata={"group": group, "parse": parse, "default": default, "help": help, "aliases": aliases},
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The effective settings; durations are seconds, sizes bytes. One field is one setting of the same name in capitals."""

    listen_addr: str = setting("sites", parse_address, ":8080", "Where the proxy listens.")
    admin_ui_listen_addr: str = setting(
        "sites", parse_address, "127.0.0.1:8081", "Where the admin site listens; loopback unless you say otherwise."
    )
    admin_ui_enabled: bool = setting("sites", parse_bool, "true", "Serve the admin site.")
    shutdown_timeout: float = setting("sites", parse_duration, "30s", "How long running calls may take to finish at a stop.")
    drain_delay: float = setting(
        "sites",
        parse_duration,
        "0s",
        "How long /ready says 503 at a stop while calls are still accepted; 5s behind a load balancer.",
    )
    trusted_proxies: tuple[str, ...] = setting(
        "sites", parse_list, "", "Networks (CIDR) whose X-Forwarded-For and X-Forwarded-Proto count."
    )
    allowed_hosts: tuple[str, ...] = setting("sites", parse_list, "", "Host names that are answered; empty for any.")
    sse_keepalive: float = setting(
        "sites", parse_duration, "15s", "Silence on an event stream after which a comment line is sent; 0 for never."
    )
    reuse_port: bool = setting("sites", parse_bool, "false", "Let several processes listen on the same port (SO_REUSEPORT).")
    max_request_bytes: int = setting("sites", parse_size, "32MiB", "The largest request body.")
    max_concurrent_requests: int = setting("sites", parse_count, "10000", "Calls in flight, above which 503 is answered.")

    management_token: tuple[Secret, ...] = setting(
        "secrets",
        parse_secrets,
        "",
        "The operator's credential for /manage and the admin site, 32 characters or more; several, separated by commas, "
        "while rotating.",
        "ADMIN_KEY",
    )
    encryption_key: tuple[Secret, ...] = setting(
        "secrets",
        parse_encryption_keys,
        "",
        "Encrypts provider keys at rest: base64 of 32 random bytes; several while rotating, newest first.",
    )
    require_encryption_key: bool = setting("secrets", parse_bool, "false", "Refuse to start without ENCRYPTION_KEY.")
    metrics_token: Secret = setting(  # noqa: RUF009
        "secrets", parse_secret, "", "Bearer token for /metrics; without one the proxy site serves it to loopback only."
    )

    db_driver: str = setting(
        "database", one_of("sqlite", "postgres"), "sqlite", "The database; DATABASE_URL alone implies postgres."
    )
    database_path: str = setting("database", parse_text, "data/llm-proxy.db", "The SQLite file.")
    database_url: Secret = setting(  # noqa: RUF009
        "database", parse_database_url, "", "The PostgreSQL database, postgresql://user:password@host:5432/name.", "DB_URL"
    )
    database_pool_size: int = setting("database", parse_count, "10", "Connections to PostgreSQL.")

    api_config_path: str = setting(
        "providers", parse_text, "config/api_providers.yaml", "The provider profiles; the packaged file when this one is absent."
    )
    default_api_provider: str = setting("providers", parse_text, "", "The profile of new projects, over the file's default_api.")
    request_timeout_secs: float = setting(
        "providers", parse_duration, "0", "Replaces first_byte and idle of every profile; 0 for the profile's own."
    )
    ttft_timeout_secs: float = setting(
        "providers", parse_duration, "0", "Bounds the time to the first body byte of a stream; 0 for none."
    )
    verify_ssl: bool = setting("providers", parse_bool, "true", "Verify the certificates of providers.")
    ssl_cert_file: str = setting("providers", parse_text, "", "Further certificate authorities (PEM) for providers.")
    allow_private_upstreams: bool = setting(
        "providers", parse_bool, "false", "Admit http and private addresses as base URLs given through an API (local models)."
    )

    token_cache_size: int = setting("limits", parse_count, "10000", "Tokens kept in memory.")

    observability_enabled: bool = setting("events", parse_bool, "true", "Keep an event of every call, and deliver it.")
    observability_capture: str = setting(
        "events",
        one_of("none", "metadata", "bodies"),
        "metadata",
        "What events hold: bodies, the request and the reply too; none, not even the client's address and user agent.",
    )
    observability_max_request_body_bytes: int = setting("events", parse_size, "64KiB", "How much of a request is captured.")
    observability_max_response_body_bytes: int = setting("events", parse_size, "256KiB", "How much of a reply is captured.")
    observability_buffer_size: int = setting("events", parse_count, "1000", "Events that wait for a live subscriber.")
    event_dir: str = setting("events", parse_text, "data/events", "The log of events, a folder for each instance.")
    event_sinks: tuple[str, ...] = setting(
        "events", some_of(*SINKS), "", "Where events are delivered: file, lunary, helicone; empty keeps them in EVENT_DIR only."
    )
    event_file: str = setting("events", parse_text, "data/events.jsonl", "The file of the sink `file`.")
    event_sync: str = setting(
        "events",
        parse_event_sync,
        "100ms",
        "How often the log is synced to the disk; or always, or os to leave it to the system.",
    )
    event_backlog_bytes: int = setting("events", parse_size, "1GiB", "What the log may hold; above it the oldest events go.")
    dispatcher_batch_size: int = setting("events", parse_count, "100", "Events that go to a sink at once.")
    lunary_api_key: Secret = setting("events", parse_secret, "", "The key of the sink `lunary`.")  # noqa: RUF009
    lunary_url: str = setting("events", parse_url, "https://api.lunary.ai", "Where Lunary is.")
    helicone_api_key: Secret = setting("events", parse_secret, "", "The key of the sink `helicone`.")  # noqa: RUF009
    helicone_url: str = setting("events", parse_url, "https://api.worker.helicone.ai", "Where Helicone is.")

    audit_enabled: bool = setting("audit", parse_bool, "true", "Keep the audit log.")
    audit_log_file: str = setting("audit", parse_text, "", "Also append audit events to this file, as JSON lines.")
    audit_retention_days: int = setting("audit", parse_int, "0", "Days after which audit events are deleted; 0 keeps them.")

    log_level: str = setting("logs", one_of("debug", "info", "warning", "error"), "info", "The least level that is logged.")
    log_format: str = setting("logs", one_of("auto", "json", "text"), "auto", "JSON, or text; auto is text on a terminal.")
    log_file: str = setting("logs", parse_text, "", "Append the log to this file instead of standard error.")

    enable_metrics: bool = setting("metrics", parse_bool, "true", "Serve Prometheus metrics.")
    metrics_path: str = setting("metrics", parse_path, "/metrics", "Where metrics are served.")

    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    warnings: tuple[str, ...] = dataclasses.field(default=(), compare=False)


TABLE = tuple(field for field in dataclasses.fields(Settings) if field.metadata)
ALIASES = {alias: field.name.upper() for field in TABLE for alias in field.metadata["aliases"]}


def kind_of(field: "dataclasses.Field[Any]") -> str:
    """What a setting accepts, in words."""
    return (field.metadata["parse"].__doc__ or "").strip().rstrip(".")


def load(env_file: str | None = None, overrides: Mapping[str, str] | None = None) -> Settings:
    """Read the settings: overrides (flags), over the environment, over the file, over the defaults.

    Args:
        env_file: a file of NAME=value lines; without one `.env` of the working directory, when there.
        overrides: values by setting name, as a command's flags give them.

    Raises:
        SettingsError: a value does not parse, names contradict, or a named file cannot be read.
    """
    path = pathlib.Path(env_file or ".env")
    file = _read_env_file(path, required=env_file is not None)
    layers = [(dict(overrides or {}), FLAG), (dict(os.environ), "environment"), (file, str(path))]
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for field in TABLE:
        found = _find(field, layers)
        if found is not None:
            name, text, source = found
            values[field.name], sources[field.name.upper()] = _parse(field, name, text), source
    _stand_in(values, sources, layers)
    if "DATABASE_URL" in sources and "DB_DRIVER" not in sources:
        values["db_driver"], sources["DB_DRIVER"] = "postgres", "implied by DATABASE_URL"
    warnings = tuple(_unknown(file, all_names=True) + _unknown(os.environ, all_names=False))
    settings = Settings(**values, sources=sources, warnings=warnings)
    _check_database(settings)
    _check_capture(settings)
    return settings


def _read_env_file(path: pathlib.Path, *, required: bool) -> dict[str, str]:
    if not path.exists() or path.is_dir():
        if required:
            raise SettingsError(f"{path}: there is no such file. `llm-proxy setup` makes one.")
        return {}
    try:
        return {name: value for name, value in dotenv_values(path, interpolate=False).items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from error


def _find(field: "dataclasses.Field[Any]", layers: list[tuple[dict[str, str], str]]) -> tuple[str, str, str] | None:
    names = (field.name.upper(), *field.metadata["aliases"])
    for values, source in layers:
        for name in names:
            if text := values.get(name, "").strip():
                return name, text, source
            if field.metadata["parse"] in SECRET_KINDS and (file := values.get(f"{name}_FILE", "").strip()):
                return name, _read_secret_file(f"{name}_FILE", file), f"{source} ({name}_FILE)"
    return _systemd_credential(names[0]) if field.metadata["parse"] in SECRET_KINDS else None


def _read_secret_file(name: str, path: str) -> str:
    try:
        text = pathlib.Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name}={path}: the file cannot be read: {error}. Give a file that holds the secret.") from error
    if not text:
        raise SettingsError(f"{name}={path}: the file is empty. Give a file that holds the secret.")
    return text


def _systemd_credential(name: str) -> tuple[str, str, str] | None:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory and (path := pathlib.Path(directory, name)).is_file():
        return name, _read_secret_file(name, str(path)), "CREDENTIALS_DIRECTORY"
    return None


def _parse(field: "dataclasses.Field[Any]", name: str, text: str) -> Any:
    try:
        return field.metadata["parse"](text)
    except ValueError as error:
        value = "****" if field.metadata["parse"] in SECRET_KINDS else text
        raise SettingsError(f"{name}={value}: not accepted. Give {error}.") from None


def _stand_in(values: dict[str, Any], sources: dict[str, str], layers: list[tuple[dict[str, str], str]]) -> None:
    """HOST and PORT stand in for LISTEN_ADDR, as many platforms set them."""
    if "listen_addr" in values:
        return
    for layer, source in layers:
        if layer.get("PORT"):
            host = layer.get("HOST", "")
            host = f"[{host}]" if ":" in host and not host.startswith("[") else host
            text = f"{host}:{layer['PORT']}"
            try:
                values["listen_addr"] = parse_address(text)
            except ValueError as error:
                raise SettingsError(f"HOST and PORT give {text}: not accepted. Give {error}.") from None
            sources["LISTEN_ADDR"] = f"{source} (HOST, PORT)"
            return


def _check_database(settings: Settings) -> None:
    if settings.db_driver == "sqlite" and settings.database_url:
        raise SettingsError("DB_DRIVER=sqlite and DATABASE_URL contradict each other. Remove one of them.")
    if settings.db_driver == "postgres" and not settings.database_url:
        raise SettingsError("DB_DRIVER=postgres needs DATABASE_URL, such as postgresql://user:password@host:5432/name.")
    if settings.database_url and settings.sources.get("DATABASE_PATH") == FLAG:
        raise SettingsError(f"DATABASE_PATH={settings.database_path} and DATABASE_URL contradict each other. Remove one of them.")


def _check_capture(settings: Settings) -> None:
    captured = settings.observability_max_request_body_bytes + settings.observability_max_response_body_bytes
    if captured > LARGEST_CAPTURE:
        raise SettingsError(
            "OBSERVABILITY_MAX_REQUEST_BODY_BYTES and OBSERVABILITY_MAX_RESPONSE_BODY_BYTES are more than 2MiB together. "
            "Give less."
        )


def _unknown(names: Mapping[str, str], *, all_names: bool) -> list[str]:
    known = {"HOST", "PORT"}
    for field in TABLE:
        own = {field.name.upper(), *field.metadata["aliases"]}
        known |= own | ({f"{name}_FILE" for name in own} if field.metadata["parse"] in SECRET_KINDS else set())
    said = []
    for name in names:
        if name in RETIRED:
            said.append(f"{name} is not used any more: use {RETIRED[name]}.")
        elif name not in known and (all_names or name.startswith(OUR_PREFIXES)):
            near = difflib.get_close_matches(name, sorted(known), 1)
            said.append(f"{name} is not a setting{f'; did you mean {near[0]}?' if near else '.'}")
    return said


def check_serving(settings: Settings) -> None:
    """Refuse settings with which no site may be opened.

    Raises:
        SettingsError: the management token is missing or weak, a required encryption key is missing, or the key of a sink.
    """
    if not settings.management_token:
        raise SettingsError("MANAGEMENT_TOKEN is not set. `llm-proxy setup` writes a .env file with one.")
    if settings.require_encryption_key and not settings.encryption_key:
        raise SettingsError("REQUIRE_ENCRYPTION_KEY is true, and ENCRYPTION_KEY is not set. `openssl rand -base64 32` makes one.")
    check_sinks(settings, settings.event_sinks if settings.observability_enabled else ())
    for token in settings.management_token:
        if not _only_loopback(settings) and _weak(token.reveal()):
            raise SettingsError(
                f"MANAGEMENT_TOKEN=****: it is shorter than {SHORTEST_MANAGEMENT_TOKEN} characters or can be guessed, and a site "
                "listens beyond loopback. `openssl rand -hex 24` makes a good one."
            )


def check_sinks(settings: Settings, sinks: Sequence[str]) -> None:
    """Refuse sinks that lack their key.

    Raises:
        SettingsError: one does.
    """
    for sink, key in (("lunary", settings.lunary_api_key), ("helicone", settings.helicone_api_key)):
        if sink in sinks and not key:
            raise SettingsError(
                f"{sink.upper()}_API_KEY is not set, and the sink {sink} needs it. Set it, or leave the sink out."
            )


def _weak(token: str) -> bool:
    guessable = len(set(token)) < FEWEST_CHARACTERS or any(word in token.lower() for word in WELL_KNOWN)
    return len(token) < SHORTEST_MANAGEMENT_TOKEN or guessable


def _only_loopback(settings: Settings) -> bool:
    addresses = [settings.listen_addr, *([settings.admin_ui_listen_addr] if settings.admin_ui_enabled else [])]
    return all(_is_loopback(address.rpartition(":")[0].strip("[]")) for address in addresses)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def shown(settings: Settings) -> list[tuple[str, str, str]]:
    """Name, effective value with secrets masked, and source of every setting."""
    rows = []
    for field in TABLE:
        name = field.name.upper()
        rows.append((name, written(getattr(settings, field.name)), settings.sources.get(name, "default")))
    return rows
