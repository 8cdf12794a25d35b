"""Wheels of this tree, as releases that differ."""

import pathlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping

import aiohttp

from llm_proxy import __version__
from stage.processes import ROOT

BUILD = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"


def build(folder: pathlib.Path) -> pathlib.Path:
    """A wheel of the tree as it is."""
    copied = folder / "tree"
    for part in ("llm_proxy", "sql", "config", "web", "deploy/systemd"):
        shutil.copytree(ROOT / part, copied / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copied)
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=copied, check=True, timeout=60, capture_output=True)
    [wheel] = folder.glob("*.whl")
    return wheel


def release(wheel: pathlib.Path, version: str, changes: Mapping[str, str]) -> pathlib.Path:
    """The same wheel under another version; `changes` are appended to its files, those that are not there are made."""
    made = wheel.with_name(f"llm_proxy-{version}-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as source:
        files = {name: source.read(name) for name in source.namelist() if not name.endswith("/RECORD")}
    for name, text in changes.items():
        files[name] = files.get(name, b"") + text.encode()
    old, new = f"llm_proxy-{__version__}.dist-info", f"llm_proxy-{version}.dist-info"
    for name in ("llm_proxy/__init__.py", f"{old}/METADATA"):
        files[name] = files[name].replace(__version__.encode(), version.encode(), 1)
    renamed = {name.replace(old, new): data for name, data in files.items()}
    record = "".join(f"{name},,\n" for name in (*renamed, f"{new}/RECORD"))
    with zipfile.ZipFile(made, "w") as target:
        for name, data in {**renamed, f"{new}/RECORD": record.encode()}.items():
            target.writestr(name, data)
    return made


def installed_packages(folder: pathlib.Path) -> pathlib.Path:
    """A folder for PYTHONPATH: every package that the tests have, save this project itself."""
    folder.mkdir()
    for path in pathlib.Path(aiohttp.__file__).parents[1].iterdir():
        if "llm_proxy" not in path.name and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    return folder
