"""The command `llm-proxy`."""

import importlib
import sys
from typing import Any

import click

from llm_proxy import __version__
from llm_proxy.errors import ApiError, SettingsError, StartError

# Name, module, first line of help. A module is imported when its command is run, so that `--help` answers at once.
COMMANDS = {
    "quickstart": ("llm_proxy.cli.quickstart", "Make a demo in this folder and serve it: the first minute."),
    "server": ("llm_proxy.cli.server", "Serve the proxy and the admin site."),
    "setup": ("llm_proxy.cli.setup", "Write a .env file with fresh secrets."),
    "migrate": ("llm_proxy.cli.migrate", "Look after the database's schema and its encryption."),
    "manage": ("llm_proxy.cli.manage", "Manage projects and tokens, read the audit log."),
    "chat": ("llm_proxy.cli.chat", "Chat in the terminal, through the proxy."),
    "config": ("llm_proxy.cli.config", "Show the effective settings, secrets masked."),
    "check": ("llm_proxy.cli.check", "Check settings, profiles, database and providers without serving."),
    "fake-provider": (
        "llm_proxy.cli.fake_provider",
        "Serve an OpenAI- and Anthropic-speaking provider, with faults, for trying.",
    ),
}


class Commands(click.Group):
    """The commands of the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="llm-proxy")
def command() -> None:
    """A self-hosted proxy that hides LLM provider keys behind withering tokens.

    \b
    First minute:   llm-proxy quickstart
    For real:       llm-proxy setup && llm-proxy server
    Completion:     eval "$(_LLM_PROXY_COMPLETE=bash_source llm-proxy)"
    """


def main() -> Any:
    """Run the command; exit 0 when done, 1 when it failed, 2 for wrong usage or settings."""
    try:
        command.main(prog_name="llm-proxy")
    except SettingsError as error:
        _give_up(error, 2)
    except (StartError, ApiError) as error:
        _give_up(error, 1)


def _give_up(error: Exception, code: int) -> None:
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(str(error), err=True)
    sys.exit(code)
