"""systemd: notifications, passed sockets."""

import contextlib
import os
import socket

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


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def passed_sockets() -> dict[str, socket.socket]:
    """The listening sockets that systemd passed, by name; without one they are called after their place (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = {}
    for place in range(_number("LISTEN_FDS")):
        passed = socket.socket(fileno=FIRST_PASSED + place)
        passed.setblocking(False)
        passed.set_inheritable(False)
        found[names[place] if place < len(names) and names[place] else str(place)] = passed
    return found
