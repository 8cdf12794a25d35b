"""What deploy/containers/Dockerfile says, and how its containers read their settings."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from llm_proxy.cli import command
from llm_proxy.settings import Settings, load
from stage.house import ENCRYPTION_KEY, MANAGEMENT_TOKEN

FOLDER = Path(__file__).parents[2] / "deploy" / "containers"
DOCKERFILE = FOLDER / "Dockerfile"
# What an operator gives, each as a file of CREDENTIALS_DIRECTORY or in the environment.
SECRETS = {
    "MANAGEMENT_TOKEN": MANAGEMENT_TOKEN,
    "ENCRYPTION_KEY": ENCRYPTION_KEY,
    "METRICS_TOKEN": "8d1f2c7b9a4e6d3c5b8a7f1e2d9c4b6a",
    "DATABASE_URL": "postgresql://llm_proxy:3fe8b7a1@db.internal:5432/llm_proxy",
    "REDIS_URL": "rediss://:9c2e51d4@redis.internal:6379/0",
    "LUNARY_API_KEY": "1e7d9b42-aa51",
}


class Instruction(NamedTuple):
    """One instruction: `RUN` with all that stands behind it."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """What stands behind it, as a shell would split it or as JSON."""
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)


def stages() -> list[list[Instruction]]:
    """The instructions of each stage, in their order; each begins with its FROM."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[Instruction]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append(Instruction(name, rest.strip()))
    return found


def last(name: str) -> Instruction:
    """The only instruction of this name in the image's stage."""
    [found] = [instruction for instruction in stages()[-1] if instruction.name == name]
    return found


def environment() -> dict[str, str]:
    """What the image sets."""
    return dict(word.split("=", 1) for word in last("ENV").words)


def settings_of(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> Settings:
    """The settings of a container that is given this environment. A warning is an error."""
    with monkeypatch.context() as patch:
        for name, value in {**environment(), **env}.items():
            patch.setenv(name, value)
        settings = load()
    assert settings.warnings == ()
    return settings


def parsed(arguments: Sequence[str]) -> click.Context:
    """What the program makes of the arguments of a container, without running it; wrong ones are refused here."""
    found: click.Command | None = command
    # What a command makes of its context once, such as the names of its help, it keeps for all later ones.
    context, rest = click.Context(command, **command.context_settings), list(arguments)
    while isinstance(found, click.Group):
        name = rest.pop(0)
        found = found.get_command(context, name)
        assert found, name
        if isinstance(found, click.Group):
            context = click.Context(found, context)
    assert found
    return found.make_context("llm-proxy", rest, context)
