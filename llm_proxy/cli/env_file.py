"""The .env file that `setup` and `quickstart` write."""

import base64
import contextlib
import os
import pathlib
import re
import secrets
from collections.abc import Mapping

from llm_proxy.errors import StartError

HEADER = """\
# Settings of LLM Proxy. Keep this file to yourself: it holds secrets.
# `llm-proxy config` shows every setting with its effective value; the README explains them.

"""
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./?&~-]*")


def fresh_secrets() -> dict[str, str]:
    """A management token and an encryption key that nobody else has."""
    return {
        "MANAGEMENT_TOKEN": secrets.token_hex(24),
        "ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
    }


def write(path: pathlib.Path, values: Mapping[str, str], header: str = HEADER) -> None:
    """Write the file, readable by its owner only, in place of one that is there.

    Raises:
        StartError: it cannot be written.
    """
    write_private(path, header + lines(values))


def extend(path: pathlib.Path, values: Mapping[str, str]) -> None:
    """Write further settings at the end of a file that is there, which from now on only its owner may read.

    Raises:
        StartError: it cannot be read or written.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{path}: cannot be read: {error}") from error
    write_private(path, text + "\n" * (not text.endswith("\n")) + "\n# LLM Proxy\n" + lines(values))


def lines(values: Mapping[str, str]) -> str:
    """The values as lines of the file."""
    return "".join(f"{name}={_quoted(value)}\n" for name, value in values.items())


def _quoted(value: str) -> str:
    """The value as the file's readers understand it; quoted only where it must be, since Docker keeps the quotes."""
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def write_private(path: pathlib.Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all, in place of one that is there.

    Raises:
        StartError: it cannot be written.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.touch(mode=0o600)
        draft.write_text(text)
        draft.replace(path)
    except OSError as error:
        raise StartError(f"{path}: cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
