"""systemd: notifications, passed sockets."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable

FIRST_PASSED = 3


def notify(state: str) -> None:
    """Tell systemd a state such as READY=1 (sd_notify(3)).

    Without NOTIFY_SOCKET, or with nobody listening there, nothing is done: who serves needs no one who watches.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(state.encode())


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear WATCHDOG=1: half its deadline, or None when it does not (sd_watchdog_enabled(3))."""
    usec = _number("WATCHDOG_USEC")
    return usec / 2_000_000 if usec and os.environ.get("WATCHDOG_PID") in (None, "", str(os.getpid())) else None


async def feed_watchdog() -> None:
    """Tell systemd again and again that the loop still turns, as long as it wants to hear that."""
    every = watchdog_seconds()
    while every:
        notify("WATCHDOG=1")
        await asyncio.sleep(every)


async def while_reloading(work: Awaitable[None]) -> None:
    """Have systemd show that settings are read anew while that is done (Type=notify-reload wants the time, too)."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        await work
    finally:
        notify("READY=1")


def stopping(seconds: float) -> None:
    """Tell systemd that the process stops, and how long that may take, whatever the unit says."""
    notify("STOPPING=1")
    notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def passed_sockets() -> dict[str, socket.socket]:
    """The listening sockets that systemd passed, by name, in their order (sd_listen_fds(3)).

    One without a name is called after its place, and so is one whose name another has already: all sockets of a unit have
    the same.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = {}
    for place in range(_number("LISTEN_FDS")):
        passed = socket.socket(fileno=FIRST_PASSED + place)
        passed.setblocking(False)
        passed.set_inheritable(False)
        name = names[place] if place < len(names) else ""
        found[str(place) if not name or name in found else name] = passed
    return found
