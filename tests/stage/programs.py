"""The programs of Debian that tests of deploy/ drive; run as a script, it names what is missing here."""

import os
import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

# The package of each.
PACKAGES = {
    "nginx": "nginx",
    "haproxy": "haproxy",
    "caddy": "caddy",
    "systemd-analyze": "systemd",
    "systemd-socket-activate": "systemd",
    # Speaks HTTP/2.
    "curl": "curl",
}
# Where Debian keeps servers, which is in nobody's path but root's.
SERVERS = "/usr/sbin:/sbin"


def found(program: str) -> str | None:
    """Where a program is, if it is here."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{SERVERS}")


def path_of(program: str) -> str:
    """Where a program is; for tests that are marked as needing it."""
    path = found(program)
    assert path, how_to_get([program])
    return path


def how_to_get(missing: list[str]) -> str:
    """What is missing, with the command that mends it."""
    return f"{', '.join(missing)} missing. Install: apt-get install --no-install-recommends {packages(missing)}"


def packages(missing: list[str]) -> str:
    """The packages of these programs, each once."""
    return " ".join(dict.fromkeys(PACKAGES[program] for program in missing))


def needs(*programs: str) -> "pytest.MarkDecorator":
    """Leaves a test out where one of the programs is missing, and says so: `pytestmark = needs("nginx")`, or as a decorator."""
    # The script below runs where nothing is installed yet.
    import pytest

    missing = [program for program in programs if not found(program)]
    return pytest.mark.skipif(bool(missing), reason=f"SKIPPED: {how_to_get(missing)}")


if __name__ == "__main__":
    if absent := [program for program in PACKAGES if not found(program)]:
        print(packages(absent) if sys.argv[1:] == ["--packages"] else f"NOTE: deploy/ is NOT tried whole: {how_to_get(absent)}")
