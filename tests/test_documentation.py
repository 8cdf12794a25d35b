"""The README is true: every setting, command and error code is in it."""

import configparser
import pathlib
import re
import struct
import subprocess

import click
import pytest

from llm_proxy.cli import COMMANDS, command
from llm_proxy.errors import RULES
from llm_proxy.settings import TABLE
from llm_proxy.tokens import PATTERN

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# What scripts/screenshots writes.
PICTURES = ROOT / "deploy" / "screenshots"


def settings_table() -> str:
    lines = ["| setting | default | what it does |", "| --- | --- | --- |"]
    for field in TABLE:
        default = f"`{field.metadata['default']}`" if field.metadata["default"] else "-"
        lines.append(f"| `{field.name.upper()}` | {default} | {field.metadata['help']} |")
    return "\n".join(lines)


def test_the_settings_table_is_that_of_the_program() -> None:
    assert settings_table() in README, "paste this into the README:\n" + settings_table()


def commands(group: click.Group, prefix: str) -> list[str]:
    names = []
    for name in group.list_commands(click.Context(group)):
        found = group.get_command(click.Context(group), name)
        assert found is not None
        names += commands(found, f"{prefix} {name}") if isinstance(found, click.Group) else [f"{prefix} {name}"]
    return names


@pytest.mark.parametrize("name", commands(command, "llm-proxy"))  # type: ignore[arg-type]
def test_every_command_is_in_the_readme(name: str) -> None:
    words = name.split()
    group, last = " ".join(words[:-1]), words[-1]
    assert name in README or re.search(rf"`{re.escape(group)} [^`]*\b{re.escape(last)}\b[^`]*`", README), name


def test_the_table_of_commands_says_what_each_command_says() -> None:
    assert set(COMMANDS) == set(command.list_commands(click.Context(command)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("code", sorted(RULES))
def test_every_error_code_is_in_the_readme(code: str) -> None:
    assert f"`{code}`" in README


def test_the_pattern_for_secret_scanners_is_the_real_one() -> None:
    assert f"`{PATTERN}`" in README


def test_the_pictures_are_there_light_to_load_and_described() -> None:
    found = re.findall(r'<img src="([^"]+)" [^>]*alt="([^"]{30,})">', README)
    assert len(found) == README.count("<img") == 3
    assert {pathlib.Path(path) for path, _ in found} == {path.relative_to(ROOT) for path in PICTURES.iterdir()}
    for path, _ in found:
        data = (ROOT / path).read_bytes()
        assert (data[12:16], struct.unpack(">II", data[16:24])) == (b"IHDR", (1440, 900)), path
        assert len(data) <= 150_000, path


def test_the_changelog_has_a_line_for_this_version() -> None:
    from llm_proxy import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_only_what_belongs_there_is_at_the_top_of_the_tree() -> None:
    allowed = {"setup.cfg", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore", ".ci", ".git"}
    allowed |= {"llm_proxy", "sql", "config", "web", "tests", "deploy", "scripts"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name.partition("/")[0] for name in tracked.splitlines()} <= allowed


def test_every_package_is_installed() -> None:
    listed = configparser.ConfigParser()
    listed.read(ROOT / "setup.cfg")
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "llm_proxy").rglob("__init__.py")}
    assert found <= set(listed["options"]["packages"].split())
