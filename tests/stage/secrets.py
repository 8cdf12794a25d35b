"""The check for secrets in what a test has written to disk, by the script that operators use."""

import importlib.machinery
import importlib.util
import pathlib
from typing import Any

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "check-secrets"
# Shorter ones, such as a test makes up as a placeholder, stand in a file by chance.
SHORTEST = 12


def _script() -> Any:
    loader = importlib.machinery.SourceFileLoader("check_secrets", str(SCRIPT))
    spec = importlib.util.spec_from_loader("check_secrets", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


_check = _script()
_used: set[str] = set()


def begin() -> None:
    """Nothing was used yet."""
    _used.clear()


def used(secret: str) -> str:
    """The secret, which from now on must not be found in a file."""
    if len(secret) >= SHORTEST:
        _used.add(secret)
    return secret


def found_in(folder: pathlib.Path) -> list[str]:
    """Where the secrets used stand in a folder's files, those apart in which an operator keeps them."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".env"]
    lines: list[str] = _check.Search(_used).in_paths(files) if _used else []
    return lines
