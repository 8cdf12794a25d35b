"""Options that several commands take, and the settings they make."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from llm_proxy.settings import Settings, load

F = TypeVar("F", bound=Callable[..., Any])

env_file = click.option("--env", metavar="FILE", help="Settings file; the environment goes over it.  [default: .env]")
database = click.option("--db", metavar="PATH", help="The SQLite file (DATABASE_PATH).")
profiles = click.option("--config", metavar="FILE", help="The provider profiles (API_CONFIG_PATH).")
log_level = click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="The least level logged.")

_SETTING_OF = {
    "addr": "LISTEN_ADDR",
    "admin_addr": "ADMIN_UI_LISTEN_ADDR",
    "db": "DATABASE_PATH",
    "config": "API_CONFIG_PATH",
    "log_level": "LOG_LEVEL",
}


def settings_from(env: str | None, **flags: str | None) -> Settings:
    """The settings, with what the flags say over everything else."""
    return load(env, {_SETTING_OF[name]: value for name, value in flags.items() if value})
