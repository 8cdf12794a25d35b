"""systemd: notifications, passed sockets."""

import os
import socket

FIRST_PASSED = 3


def notify(state: str) -> None:
    """Tell systemd a state such as READY=1; without NOTIFY_SOCKET nothing is done (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(state.encode())


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear WATCHDOG=1: half its deadline, or None when it does not (sd_watchdog_enabled(3))."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    return int(usec) / 2_000_000 if usec.isdigit() and int(usec) else None


def passed_sockets() -> dict[str, socket.socket]:
    """The listening sockets that systemd passed, by name; unnamed ones are called after their place, `0`, `1` (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = {}
    for place in range(count):
        passed = socket.socket(fileno=FIRST_PASSED + place)
        passed.setblocking(False)
        found[names[place] if place < len(names) and names[place] else str(place)] = passed
    return found
