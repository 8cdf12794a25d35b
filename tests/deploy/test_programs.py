"""Where a program that tests drive is missing, the run says so and how to get it."""

import subprocess
import sys
from pathlib import Path

import pytest
from stage import programs

SCRIPT = Path(programs.__file__)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [],
            "NOTE: deploy/ is NOT tried whole: nginx, haproxy, caddy, systemd-analyze",
        ),
        (["--packages"], "nginx haproxy caddy systemd"),
    ],
    ids=["for people", "for apt-get"],
)
def test_what_is_missing_is_named_by_a_script_that_needs_nothing_installed(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    source = SCRIPT.read_text().replace(programs.SERVERS, str(tmp_path))
    # -I: without our packages, as on a bare machine.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", source, *arguments],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(said)


def test_a_test_that_needs_a_missing_program_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "SERVERS", str(tmp_path))
    mark = programs.needs("haproxy", "systemd-analyze").mark
    assert mark.args == (True,)
    assert mark.kwargs["reason"].endswith("Install: apt-get install --no-install-recommends haproxy systemd")
