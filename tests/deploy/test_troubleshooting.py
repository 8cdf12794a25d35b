"""deploy/TROUBLESHOOTING.md: its codes and texts are those of the program, and none that matters is missing."""

import ast
import functools
import pathlib
import re
from collections.abc import Iterator

import pytest

import llm_proxy
from llm_proxy.errors import RULES
from llm_proxy.settings import TABLE

ROOT = pathlib.Path(__file__).parents[2]
GUIDES = {name: (ROOT / "deploy" / name).read_text() for name in ("BACKUP.md", "KEY-ROTATION.md", "TROUBLESHOOTING.md")}
GUIDE = GUIDES["TROUBLESHOOTING.md"]
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL))
TABLED = re.findall(r"^\| (.+?) \| .+ \|$", SECTIONS["Callers get an error"], re.MULTILINE)
# The first column of the other tables: what people see.
SEEN = [
    text
    for name in ("It does not start", "Events pile up", "Backup and restore")
    for row in re.findall(r"^\| (.+?) \| .+ \|$", SECTIONS[name], re.MULTILINE)
    for text in re.findall(r"`([^`]+)`", row)
    if text != "last_error"
]
SENTENCES = [
    "The provider's address is not public.",
    "This form was not sent by a page of this site.",
    "This is not the management token.",
    "rate limits: Redis does not answer",
    "cache: Redis does not answer",
    "is out of use.",
    "which ENCRYPTION_KEY does not hold",
]
# Those whose meaning a caller can only learn from an operator.
WHAT_MATTERS = {code for code, rule in RULES.items() if rule.status in (401, 403, 429) or rule.status >= 500}


@functools.cache
def texts() -> str:
    """Every text that the program may say, in its parts between what is filled in."""
    return "\n".join(_texts())


def _texts() -> Iterator[str]:
    for path in pathlib.Path(llm_proxy.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def codes_by_status() -> list[tuple[str, int]]:
    return [
        (code, int(row[:3]))
        for row in TABLED
        if row[:3].isdecimal()
        for code in re.findall(r"`([a-z_]+)`", row)
        if code != "source"
    ]


@pytest.mark.parametrize(("code", "status"), codes_by_status())
def test_each_code_exists_with_its_status(code: str, status: int) -> None:
    # Where all providers rest, the code is that of one that is away.
    assert status == RULES[code].status or (code, status) == ("upstream_unavailable", 503)


def test_every_code_that_needs_an_operator_is_told_of() -> None:
    assert not WHAT_MATTERS - {code for code, _ in codes_by_status()}


@pytest.mark.parametrize("text", [*SEEN, *SENTENCES])
def test_what_people_see_is_what_the_program_says(text: str) -> None:
    assert text in texts() and text in GUIDE


@pytest.mark.parametrize("name", sorted(GUIDES))
def test_each_setting_that_a_guide_names_exists(name: str) -> None:
    known = {field.name.upper() for field in TABLE}
    stems = {name.partition("_")[0] for name in known if "_" in name} - {"ADMIN"}
    named = {one for one in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", GUIDES[name]) if one.partition("_")[0] in stems}
    assert len(named) > 3 and not named - known - {"TOKEN_ID"}


@pytest.mark.parametrize("name", sorted(GUIDES))
def test_the_readme_links_it(name: str) -> None:
    assert f"](deploy/{name})" in (ROOT / "README.md").read_text()
