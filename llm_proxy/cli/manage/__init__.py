"""`llm-proxy manage`: projects, providers, tokens, master keys, the cache, the audit log, usage."""

import click

from llm_proxy.cli.manage.arguments import on_server
from llm_proxy.cli.manage.audit import audit
from llm_proxy.cli.manage.cache import cache
from llm_proxy.cli.manage.master_keys import master_key
from llm_proxy.cli.manage.projects import project
from llm_proxy.cli.manage.providers import provider
from llm_proxy.cli.manage.tokens import token
from llm_proxy.cli.manage.usage import usage


@click.group()
@on_server
def command() -> None:
    """Manage projects, providers, tokens, master keys and the cache, read the audit log and the usage.

    \b
    Examples:
      llm-proxy manage project create --name web --api-key -
      llm-proxy manage token create --project PROJECT_ID --minutes 60 --max-requests 100
      llm-proxy manage --local token list --status active
    """


command.add_command(project)
command.add_command(provider)
command.add_command(token)
command.add_command(master_key)
command.add_command(cache)
command.add_command(audit)
command.add_command(usage)
