""".ci/run on a machine that cannot install anything: it says what it goes without, and goes on."""

import os
import subprocess
from pathlib import Path

from stage.processes import ROOT

NOTES_ITS_NAME = '#!/bin/sh\necho "$0" >> ran\n'


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def test_without_a_network_the_tests_run_and_what_is_missing_is_said(tmp_path: Path) -> None:
    tree, path = tmp_path / "tree", tmp_path / "path"
    program(tree / ".ci" / "run", (ROOT / ".ci" / "run").read_text())
    program(tree / "tests" / "stage" / "programs.py", 'print("haproxy caddy")\n')
    for name in ("test", "check-aws"):
        program(tree / "scripts" / name, NOTES_ITS_NAME)
    program(path / "apt-get", "#!/bin/sh\nexit 100\n")
    env = {"PATH": f"{path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", str(tree / ".ci" / "run")], env=env, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "NOTE: could not install haproxy caddy, so what needs it is NOT tried" in done.stderr
    assert (tree / "ran").read_text().split() == ["scripts/test", "scripts/check-aws"]
