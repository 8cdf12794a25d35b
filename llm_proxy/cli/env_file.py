"""The .env file that `setup` and `quickstart` write."""

import base64
import os
import pathlib
import secrets
from collections.abc import Mapping

from llm_proxy.errors import StartError

HEADER = """\
# Settings of LLM Proxy. Keep this file to yourself: it holds secrets.
# `llm-proxy config` shows every setting with its effective value; the README explains them.

"""


def fresh_secrets() -> dict[str, str]:
    """A management token and an encryption key that nobody else has."""
    return {
        "MANAGEMENT_TOKEN": secrets.token_hex(24),
        "ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
    }


def write(path: pathlib.Path, values: Mapping[str, str], *, replace: bool = False) -> None:
    """Write the file, readable by its owner only, whole or not at all.

    Raises:
        StartError: it exists and may not be replaced, or cannot be written.
    """
    if path.exists() and not replace:
        raise StartError(f"{path} exists already. Its secrets may be in use, so it is replaced only with --force.")
    write_private(path, HEADER + "".join(f"{name}={value}\n" for name, value in values.items()))


def write_private(path: pathlib.Path, text: str) -> None:
    """Write a file that only its owner may read, in place of one that is there.

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
        raise StartError(f"{path}: cannot be written: {error}") from error
