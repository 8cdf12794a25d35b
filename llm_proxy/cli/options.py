"""Options that become settings, wherever in a command line they stand."""

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from llm_proxy.settings import Settings, load, parse_address

F = TypeVar("F", bound=Callable[..., Any])
_SAID = "llm_proxy.said"


def address(text: str) -> str:
    """The type of options that say what to listen on."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not accepted. Give {error}.") from None


def site_url(text: str) -> str:
    """The type of options that say where a site is; returns it without a slash at its end."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.BadParameter(f"{text!r} is not accepted. Give a URL such as http://127.0.0.1:8080.")
    return text.rstrip("/")


def said() -> dict[str, Any]:
    """What the kept options of this command line say: settings by their name in capitals, everything else in small letters."""
    found: dict[str, Any] = click.get_current_context().meta.setdefault(_SAID, {})
    return found


def kept(*names: str, **attributes: Any) -> Callable[[F], F]:
    """An option that goes to `said()`; a group and its commands may both have it, and the command's goes before."""

    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value:
            ctx.meta.setdefault(_SAID, {})[param.name] = value

    return click.option(*names, expose_value=False, callback=keep, **attributes)


addr = kept("--addr", "LISTEN_ADDR", metavar="HOST:PORT", type=address, help="Where the proxy listens (LISTEN_ADDR).")
admin_addr = kept(
    "--admin-addr",
    "ADMIN_UI_LISTEN_ADDR",
    metavar="HOST:PORT",
    type=address,
    help="Where the admin site listens (ADMIN_UI_LISTEN_ADDR).",
)
no_admin = kept("--no-admin", "ADMIN_UI_ENABLED", flag_value="false", help="Do not serve the admin site (ADMIN_UI_ENABLED).")
management_token = kept(
    "--management-token",
    "MANAGEMENT_TOKEN",
    metavar="TOKEN",
    help="The management token (MANAGEMENT_TOKEN); others here can see it.",
)
database = kept("--db", "DATABASE_PATH", metavar="PATH", help="The SQLite file (DATABASE_PATH).")
profiles = kept("--config", "API_CONFIG_PATH", metavar="FILE", help="The provider profiles (API_CONFIG_PATH).")
log_level = kept(
    "--log-level",
    "LOG_LEVEL",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="The least level that is logged (LOG_LEVEL).",
)
env_file = kept("--env", metavar="FILE", help="The settings file.  [default: .env]")


def settings() -> Settings:
    """The settings, with what the options say over everything else.

    Raises:
        SettingsError: they cannot be used.
    """
    return load(said().get("env"), {name: value for name, value in said().items() if name.isupper()})


def own_address(settings: Settings) -> str:
    """Where a server with these settings is reached from the same machine."""
    host, _, port = settings.listen_addr.rpartition(":")
    own = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    return f"http://{own}:{port}"
