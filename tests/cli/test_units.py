"""`llm-proxy setup --systemd`: units, settings and secrets that belong together."""

import pathlib
import stat
from importlib import resources

import pytest
from dotenv import dotenv_values

from llm_proxy import settings
from llm_proxy.cli import units

from .conftest import Cli

PACKAGED = {path.name: path.read_text() for path in resources.files("llm_proxy.units").iterdir() if units._is_unit(path.name)}
PROGRAM = "/srv/proxy/bin/llm-proxy"


def setup(cli: Cli, root: pathlib.Path, *arguments: str) -> str:
    done = cli("setup", "--systemd", "--root", str(root), "--program", PROGRAM, *arguments)
    assert done.code == 0, done.err
    return done.out


def tree(root: pathlib.Path) -> dict[str, tuple[int, str]]:
    return {
        str(path.relative_to(root)): (stat.S_IMODE(path.stat().st_mode), path.read_text())
        for path in root.rglob("*")
        if path.is_file()
    }


def test_units_of_the_package_start_the_named_program_with_settings_and_secrets_that_suffice(
    cli: Cli, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, found = setup(cli, tmp_path / "root"), tree(tmp_path / "root")
    assert {name: text for name, (_, text) in found.items() if name.startswith("etc/systemd/system/")} == {
        f"etc/systemd/system/{name}": text.replace(units.PROGRAM, PROGRAM) for name, text in PACKAGED.items()
    }
    assert all(f"{tmp_path}/root/{name}\n" in said for name in found)
    credentials = tmp_path / "root/etc/llm-proxy/credentials"
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o700
    assert {name: mode for name, (mode, _) in found.items() if "credentials" in name} == {
        "etc/llm-proxy/credentials/MANAGEMENT_TOKEN": 0o600,
        "etc/llm-proxy/credentials/ENCRYPTION_KEY": 0o600,
    }
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    loaded = settings.load(str(tmp_path / "root" / units.SETTINGS))
    settings.check_serving(loaded)
    assert loaded.encryption_key and not loaded.warnings
    assert (loaded.database_path, loaded.event_dir, loaded.event_file) == (
        "/var/lib/llm-proxy/llm-proxy.db",
        "/var/lib/llm-proxy/events",
        "/var/lib/llm-proxy/events.jsonl",
    )


def test_a_second_run_changes_nothing_of_the_operator_s(cli: Cli, tmp_path: pathlib.Path) -> None:
    setup(cli, tmp_path)
    (tmp_path / units.SETTINGS).write_text("LOG_LEVEL=debug\n")
    before = tree(tmp_path)
    said = setup(cli, tmp_path, "--addr", ":9")
    assert tree(tmp_path) == before
    assert "credentials" not in said and units.SETTINGS not in said


def listened(root: pathlib.Path, unit: str) -> list[str]:
    text = (root / "etc/systemd/system" / unit).read_text()
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith("ListenStream=")]


@pytest.mark.parametrize(
    ("lines", "streams"),
    [
        pytest.param("", ["8080", "127.0.0.1:8081"], id="by default"),
        pytest.param("LISTEN_ADDR=:9000\nADMIN_UI_LISTEN_ADDR=localhost:9001", ["9000", "127.0.0.1:9001"], id="elsewhere"),
        pytest.param("LISTEN_ADDR=[::1]:9000\nADMIN_UI_ENABLED=no", ["[::1]:9000"], id="no admin site"),
    ],
)
def test_systemd_listens_where_the_settings_say(cli: Cli, tmp_path: pathlib.Path, lines: str, streams: list[str]) -> None:
    (tmp_path / units.SETTINGS).parent.mkdir(parents=True)
    (tmp_path / units.SETTINGS).write_text(lines)
    setup(cli, tmp_path)
    assert listened(tmp_path, "llm-proxy.socket") == streams
    assert listened(tmp_path, "llm-proxy@.socket") == [streams[0], "127.0.0.1:1808%i"][: len(streams)]


def test_the_url_of_a_database_is_a_secret(cli: Cli, tmp_path: pathlib.Path) -> None:
    setup(cli, tmp_path, "--database-url", "postgresql://u:p@h/n", "--addr", "127.0.0.1:9000")
    assert (tmp_path / "etc/llm-proxy/credentials/DATABASE_URL").read_text() == "postgresql://u:p@h/n\n"
    values = dotenv_values(tmp_path / units.SETTINGS)
    assert values.keys() == {"LISTEN_ADDR", "ADMIN_UI_LISTEN_ADDR", "EVENT_DIR", "EVENT_FILE"}
    assert values["LISTEN_ADDR"] == "127.0.0.1:9000"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(("--program", "/home/me/bin/llm-proxy", "--root", "."), 1, "cannot see /home/me", id="hidden program"),
        pytest.param(("--program", PROGRAM, "--root", "/dev/null"), 1, "cannot be written", id="nowhere to write"),
        pytest.param(("--force",), 2, "none of --env", id="with what it does not do"),
    ],
)
def test_what_cannot_be_done_is_named(cli: Cli, tmp_path: pathlib.Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = cli("setup", "--systemd", *arguments)
    assert done.code == code
    assert says in done.err
    assert not any(tmp_path.iterdir())


def test_below_the_real_root_the_user_comes_first(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "USER", "nobody-has-this-name")
    done = cli("setup", "--systemd", "--program", PROGRAM)
    assert done.code == 1
    assert "useradd --system" in done.err


def test_without_a_name_the_units_start_the_program_that_wrote_them() -> None:
    assert units.own_program().name == "llm-proxy"
    assert units.own_program().is_absolute()
