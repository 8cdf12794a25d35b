"""The command `llm-proxy`."""

import importlib
from typing import Any

import click

from llm_proxy import __version__
from llm_proxy.errors import LLMProxyError, SettingsError
from llm_proxy.secret import redact

# Name, module, first line of help. A module is imported when its command is run, so that `--help` answers at once.
COMMANDS = {
    "quickstart": ("llm_proxy.cli.quickstart", "Make a demo in this folder and serve it: the first minute."),
    "server": ("llm_proxy.cli.server", "Serve the proxy and the admin site."),
    "admin": ("llm_proxy.cli.admin", "Serve the admin site alone, on a server's database."),
    "setup": ("llm_proxy.cli.setup", "Write a .env file with fresh secrets."),
    "migrate": ("llm_proxy.cli.migrate", "Look after the database's schema and its encryption."),
    "manage": ("llm_proxy.cli.manage", "Manage projects and tokens, read the audit log."),
    "events": ("llm_proxy.cli.events", "Read the log of events, deliver it again."),
    "dispatcher": ("llm_proxy.cli.dispatcher", "Deliver events from Redis to one sink."),
    "chat": ("llm_proxy.cli.chat", "Chat in the terminal, through the proxy."),
    "benchmark": ("llm_proxy.cli.benchmark", "Time many calls, the provider's part apart from the proxy's."),
    "backup": ("llm_proxy.cli.backup", "Back up database, events and settings, while the server runs."),
    "restore": ("llm_proxy.cli.restore", "Restore a backup where no server runs."),
    "config": ("llm_proxy.cli.config", "Show the effective settings, secrets masked."),
    "check": ("llm_proxy.cli.check", "Check settings, profiles, events, database, Redis and providers."),
    "health": ("llm_proxy.cli.health", "Ask a running server whether it is well."),
    "fake-provider": ("llm_proxy.cli.fake_provider", "Serve a pretended provider, with faults, for trying."),
}


class WrongSettings(click.ClickException):
    """Like wrong usage, but there is no use in showing how the command is used."""

    exit_code = 2


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

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what this program raises on purpose becomes one line of text, with exit code 1 or 2."""
        try:
            return super().invoke(ctx)
        except LLMProxyError as error:
            failure = WrongSettings if isinstance(error, SettingsError) else click.ClickException
            raise failure(redact(str(error))) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="llm-proxy")
def command() -> None:
    """A self-hosted proxy that hides LLM provider keys behind withering tokens.

    \b
    First minute:   llm-proxy quickstart
    For real:       llm-proxy setup && llm-proxy server
    Completion:     eval "$(_LLM_PROXY_COMPLETE=bash_source llm-proxy)"
    """


def main() -> None:
    """Run the command and exit: 0 when done, 1 when it failed, 2 for wrong usage or settings."""
    command.main(prog_name="llm-proxy")
