"""The files with which systemd runs the program."""

import contextlib
import os
import pathlib
import pwd
import re
import shutil
import sys
from collections.abc import Mapping
from importlib import resources

from dotenv import dotenv_values

from llm_proxy.cli import env_file
from llm_proxy.errors import StartError
from llm_proxy.settings import Settings, parse_address

USER = "llm-proxy"
# What the units say, and what `scripts/install` keeps pointed at the version in use.
PROGRAM = "/opt/llm-proxy/current/bin/llm-proxy"
SETTINGS = "etc/llm-proxy/llm-proxy.env"
STATE = "/var/lib/llm-proxy"
# What the units' sandbox hides from the service.
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
IN_STATE = {"DATABASE_PATH": "llm-proxy.db", "EVENT_DIR": "events", "EVENT_FILE": "events.jsonl"}
HEADER = """\
# Settings of LLM Proxy under systemd; the README explains them. Secrets have files of their own, beside this one in
# credentials/: MANAGEMENT_TOKEN, ENCRYPTION_KEY, and as needed METRICS_TOKEN, DATABASE_URL, REDIS_URL, LUNARY_API_KEY,
# HELICONE_API_KEY. After a change: systemctl restart llm-proxy.service; after one of the addresses, first
# llm-proxy setup --systemd && systemctl daemon-reload && systemctl restart llm-proxy.socket

"""


def write(root: pathlib.Path, program: pathlib.Path, given: Mapping[str, str]) -> list[pathlib.Path]:
    """Write units, settings and secrets below `root`; settings and secrets that are there stay as they are.

    Args:
        given: settings by name, for the files that are not there yet.

    Returns:
        The files that were written, units among them always.

    Raises:
        StartError: one cannot be written, or the service could not run the program.
    """
    if str(program).startswith(tuple(f"{folder}/" for folder in HIDDEN)):
        raise StartError(f"The service's sandbox cannot see {program}. Install the program elsewhere, such as below /opt.")
    secrets = {"DATABASE_URL": given["DATABASE_URL"]} if "DATABASE_URL" in given else {}
    settings = {name: value for name, value in given.items() if name not in secrets}
    written = [
        *_write_settings(root / SETTINGS, {**_usual(stored_elsewhere=bool(secrets)), **settings}),
        *_write_secrets(root / SETTINGS, {**env_file.fresh_secrets(), **secrets}),
    ]
    sockets = _sockets(root / SETTINGS)
    for unit in sorted(path.name for path in resources.files("llm_proxy.units").iterdir() if _is_unit(path.name)):
        text = resources.files("llm_proxy.units").joinpath(unit).read_text().replace(PROGRAM, str(program))
        path = root / "etc/systemd/system" / unit
        _write_unit(path, _listening(text, sockets[unit]) if unit in sockets else text)
        written.append(path)
    return written


def user_exists() -> bool:
    """Whether the user is there as whom the service runs."""
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True


def own_program() -> pathlib.Path:
    """The command that runs now, as a unit may name it."""
    beside = pathlib.Path(sys.executable).with_name("llm-proxy")
    return beside if beside.exists() else pathlib.Path(shutil.which("llm-proxy") or sys.argv[0]).absolute()


def _is_unit(name: str) -> bool:
    return name.endswith((".service", ".socket"))


def _usual(*, stored_elsewhere: bool) -> dict[str, str]:
    """Where the program listens, and where it keeps what it keeps: in the folder that systemd makes for it."""
    default = Settings()
    return {
        "LISTEN_ADDR": default.listen_addr,
        "ADMIN_UI_LISTEN_ADDR": default.admin_ui_listen_addr,
        **{name: f"{STATE}/{file}" for name, file in IN_STATE.items() if not (stored_elsewhere and name == "DATABASE_PATH")},
    }


def _write_settings(path: pathlib.Path, values: Mapping[str, str]) -> list[pathlib.Path]:
    if path.exists():
        return []
    env_file.write(path, values, header=HEADER)
    path.parent.chmod(0o755)
    # The service reads it itself, with the names of settings that it does not know told in its log.
    with contextlib.suppress(LookupError, PermissionError):
        shutil.chown(path, group=USER)
        path.chmod(0o640)
    return [path]


def _write_secrets(settings: pathlib.Path, values: Mapping[str, str]) -> list[pathlib.Path]:
    folder = settings.parent / "credentials"
    folder.mkdir(mode=0o700, exist_ok=True)
    missing = {folder / name: value for name, value in values.items() if not (folder / name).exists()}
    for path, value in missing.items():
        env_file.write_private(path, f"{value}\n")
    return list(missing)


def _sockets(settings: pathlib.Path) -> dict[str, list[str]]:
    """What the socket units listen on in place of the program; each instance has an admin site of its own."""
    values = {name: value for name, value in dotenv_values(settings, interpolate=False).items() if value}
    default = Settings()
    try:
        proxy = _stream(parse_address(values.get("LISTEN_ADDR", default.listen_addr)))
        admin = _stream(parse_address(values.get("ADMIN_UI_LISTEN_ADDR", default.admin_ui_listen_addr)))
    except ValueError as error:
        raise StartError(f"{settings}: an address is not accepted. Give {error}.") from error
    served = values.get("ADMIN_UI_ENABLED", "true").lower() not in ("false", "0", "no")
    both = {"llm-proxy.socket": [proxy, admin], "llm-proxy@.socket": [proxy, "127.0.0.1:1808%i"]}
    return {unit: streams if served else streams[:1] for unit, streams in both.items()}


def _stream(address: str) -> str:
    """An address as systemd writes it: without a host, a port alone listens on all of IPv4 and IPv6."""
    host, _, port = address.rpartition(":")
    return f"{'127.0.0.1' if host == 'localhost' else host}:{port}" if host else port


def _listening(text: str, streams: list[str]) -> str:
    """The text of a socket unit with these addresses in place of its own."""
    kept = re.sub(r"^ListenStream=.*\n", "", text, flags=re.MULTILINE)
    lines = "".join(f"ListenStream={stream}\n" for stream in streams)
    return kept.replace("[Socket]\n", f"[Socket]\n{lines}", 1)


def _write_unit(path: pathlib.Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text)
        draft.chmod(0o644)
        draft.replace(path)
    except OSError as error:
        raise StartError(f"{path}: cannot be written: {error.strerror or error}.") from error
