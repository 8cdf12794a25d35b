"""The .env file: private, whole, and read back as it was meant."""

import pathlib
import stat

import pytest
from dotenv import dotenv_values

from llm_proxy import settings
from llm_proxy.cli import env_file
from llm_proxy.errors import StartError


def mode(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_secrets_are_good_ones_and_new_each_time(tmp_path: pathlib.Path) -> None:
    one, other = env_file.fresh_secrets(), env_file.fresh_secrets()
    assert all(one[name] != other[name] for name in one)
    env_file.write(tmp_path / ".env", one)
    settings.check_serving(settings.load(overrides={"REQUIRE_ENCRYPTION_KEY": "true"}))


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "",
        "with space",
        "a#b",
        "a #b",
        "'quoted'",
        "\"both'",
        "back\\slash",
        "$HOME ${X}",
        "postgresql://u:p%23@h/n?a=1&b=2",
    ],
)
def test_a_value_is_read_back_as_it_was(tmp_path: pathlib.Path, value: str) -> None:
    path = tmp_path / ".env"
    env_file.write(path, {"DATABASE_URL": value, "LOG_LEVEL": "info"})
    assert dotenv_values(path, interpolate=False) == {"DATABASE_URL": value, "LOG_LEVEL": "info"}


def test_a_url_is_written_without_quotes_which_docker_would_keep(tmp_path: pathlib.Path) -> None:
    env_file.write(tmp_path / ".env", {"DATABASE_URL": "postgresql://u:p@h:5432/n?sslmode=require&x=1"})
    assert "\nDATABASE_URL=postgresql://u:p@h:5432/n?sslmode=require&x=1\n" in (tmp_path / ".env").read_text()


def test_the_file_is_for_its_owner_only_whatever_was_there(tmp_path: pathlib.Path) -> None:
    path = tmp_path / ".env"
    path.write_text("OLD=1\n")
    path.chmod(0o644)
    env_file.write(path, {"LOG_LEVEL": "info"})
    assert mode(path) == 0o600
    assert "OLD" not in path.read_text()
    assert list(tmp_path.iterdir()) == [path], "no draft stays"


@pytest.mark.parametrize("before", ["OTHER=1\n", "OTHER=1", ""], ids=["whole", "without a last line end", "empty"])
def test_a_file_that_is_there_keeps_what_it_says_when_it_is_extended(tmp_path: pathlib.Path, before: str) -> None:
    path = tmp_path / ".env"
    path.write_text(before)
    path.chmod(0o644)
    env_file.extend(path, {"LOG_LEVEL": "info"})
    assert path.read_text().startswith(before)
    assert dotenv_values(path) == ({"OTHER": "1"} if before else {}) | {"LOG_LEVEL": "info"}
    assert mode(path) == 0o600


@pytest.mark.parametrize("act", [env_file.write, env_file.extend])
def test_what_cannot_be_written_is_said_with_its_name(tmp_path: pathlib.Path, act: object) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / ".env"
    with pytest.raises(StartError, match=f"{path}: cannot be"):
        act(path, {"LOG_LEVEL": "info"})  # type: ignore[operator]


def test_a_folder_in_the_place_of_the_file_stays_and_leaves_no_draft(tmp_path: pathlib.Path) -> None:
    path = tmp_path / ".env"
    path.mkdir()
    with pytest.raises(StartError, match="cannot be written"):
        env_file.write(path, {"LOG_LEVEL": "info"})
    assert list(tmp_path.iterdir()) == [path]
