"""The settings table: the only reader of the environment."""

import dataclasses
import difflib
import ipaddress
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dotenv import dotenv_values

from llm_proxy.errors import SettingsError
from llm_proxy.settings.table import SINKS, TABLE, Settings
from llm_proxy.settings.values import SECRET_KINDS, parse_address, parse_duration, parse_int, parse_redis_url, written

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
    _point_to_redis(values, sources)
    warnings = tuple(_unknown(file, all_names=True) + _unknown(os.environ, all_names=False))
    settings = Settings(**values, sources=sources, warnings=warnings)
    _check_database(settings)
    _check_redis(settings)
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
    """One of systemd's credentials; an empty one is the way in which a unit says that there may be none (SetCredential)."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory or not (path := pathlib.Path(directory, name)).is_file() or path.stat().st_size <= 1:
        return None
    return name, _read_secret_file(name, str(path)), "CREDENTIALS_DIRECTORY"


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


def _point_to_redis(values: dict[str, Any], sources: dict[str, str]) -> None:
    """REDIS_ADDR with REDIS_DB is another way to write REDIS_URL."""
    if "redis_addr" not in values:
        return
    if "redis_url" in values:
        raise SettingsError("REDIS_URL and REDIS_ADDR contradict each other. Remove one of them.")
    text = f"redis://{values['redis_addr']}/{values.get('redis_db', 0)}"
    try:
        values["redis_url"] = parse_redis_url(text)
    except ValueError:
        raise SettingsError(f"REDIS_ADDR={values['redis_addr']}: not accepted. Give host:port.") from None
    sources["REDIS_URL"] = f"{sources['REDIS_ADDR']} (REDIS_ADDR, REDIS_DB)"


def _check_redis(settings: Settings) -> None:
    """What needs Redis has one."""
    needing = {
        "DISTRIBUTED_RATE_LIMIT_ENABLED=true": settings.distributed_rate_limit_enabled,
        "HTTP_CACHE_BACKEND=redis": settings.http_cache_backend == "redis",
        "LLM_PROXY_EVENT_BUS=redis-streams": settings.llm_proxy_event_bus == "redis-streams",
    }
    for name, wanted in needing.items():
        if wanted and not settings.redis_url:
            raise SettingsError(f"{name} needs REDIS_URL, such as redis://localhost:6379/0.")
    if settings.distributed_rate_limit_max and not settings.distributed_rate_limit_window:
        raise SettingsError("DISTRIBUTED_RATE_LIMIT_WINDOW=0s: not accepted. Give the time in which the requests are counted.")


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
    check_sinks(settings, settings.event_sinks if settings.delivers else ())
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
