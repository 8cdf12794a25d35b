"""The machine of a run: its tools, its cores, what it is."""

import datetime
import functools
import os
import pathlib
import platform
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
# Kept between runs, and ignored by git.
KEPT = ROOT / ".bench"
PACKAGES = {"nginx": "nginx-light", "wrk": "wrk", "taskset": "util-linux"}


def program(name: str) -> str:
    """Where a program is; Debian keeps nginx where only root looks."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if not found:
        package = PACKAGES.get(name, name)
        sys.exit(f"{name} is needed, and is not on PATH. On Debian: apt-get install {package}")
    return found


@functools.cache
def cores() -> tuple[int, int]:
    """The core of what is measured, the core of everything else; asked first before this process is bound to one."""
    free = sorted(os.sched_getaffinity(0))
    if len(free) < 2:
        sys.exit("Two cores are needed: one for what is measured, one for the load.")
    return free[0], free[1]


@functools.cache
def real_time() -> tuple[str, ...]:
    """What stands before a command so that other work on the machine disturbs it less; nothing where that is not allowed."""
    words = ("chrt", "-r", "10")
    try:
        allowed = subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    return words if allowed else ()


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except FileNotFoundError:
        return "?"
    return (done.stdout + done.stderr).strip()


def _processor() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def facts() -> dict[str, str]:
    """What a figure means little without."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _said("git", "describe", "--always", "--dirty"),
        "processor": f"{_processor()}, {os.cpu_count()} cores, {memory} GiB",
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
        "nginx": _said(program("nginx"), "-v").rpartition("/")[2],
        "priority": "real-time" if real_time() else "ordinary",
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
    }
