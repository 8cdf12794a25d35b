"""Real gateways with the files of deploy/gateway in front of a test's own instances."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stage.postgres import free_port
from stage.processes import ROOT
from stage.programs import path_of

FOLDER = ROOT / "deploy" / "gateway"


@dataclass(frozen=True)
class Instance:
    """Where both sites of an instance are."""

    proxy: str
    admin: str


@dataclass(frozen=True)
class Places:
    """What a gateway is told of this machine.

    Attributes:
        folder: it writes there only.
        certificate: a file with its certificate and key, for localhost.
    """

    folder: Path
    certificate: Path
    instances: Sequence[Instance]
    tls: int
    clear: int


def _replaced(name: str, *pairs: tuple[str, str]) -> str:
    """A file as it is shipped, its addresses and paths those of this machine."""
    text = (FOLDER / name).read_text()
    for shipped, here in pairs:
        assert shipped in text, f"{name} has no {shipped!r} any more"
        text = text.replace(shipped, here)
    return text


def _caddy(places: Places) -> str:
    def several(site: str) -> str:
        return " ".join(urlsplit(getattr(one, site)).netloc for one in places.instances)

    return _replaced(
        "Caddyfile",
        ("http://llm.example.com {", f"http://localhost:{places.clear} {{"),
        ("\nllm.example.com {", f"\nhttps://localhost:{places.tls} {{\n\ttls {places.certificate} {places.certificate}"),
        ("llm.example.com", "localhost"),
        ("https://{host}{uri}", f"https://{{host}}:{places.tls}{{uri}}"),
        ("127.0.0.1:8080", several("proxy")),
        ("127.0.0.1:8081", several("admin")),
    )


def _nginx(places: Places) -> str:
    def several(site: str) -> str:
        return " max_fails=1 fail_timeout=2s; server ".join(urlsplit(getattr(one, site)).netloc for one in places.instances)

    return _replaced(
        "nginx.conf",
        ("user www-data;", f"user {'root' if os.geteuid() == 0 else 'nobody'};"),
        ("/run/nginx.pid", str(places.folder / "pid")),
        ("/var/log/nginx", str(places.folder)),
        ("/etc/ssl/llm-proxy/fullchain.pem", str(places.certificate)),
        ("/etc/ssl/llm-proxy/privkey.pem", str(places.certificate)),
        ("listen 80;", f"listen 127.0.0.1:{places.clear};"),
        ("listen 443 ", f"listen 127.0.0.1:{places.tls} "),
        ("llm.example.com", "localhost"),
        ("127.0.0.1:8080", several("proxy")),
        ("127.0.0.1:8081", several("admin")),
    )


def _haproxy(places: Places) -> str:
    def several(site: str) -> str:
        servers = enumerate(urlsplit(getattr(one, site)).netloc for one in places.instances)
        return "\n    ".join(f"server number{number} {address}" for number, address in servers)

    return _replaced(
        "haproxy.cfg",
        ("    user haproxy\n    group haproxy\n    chroot /var/lib/haproxy\n", ""),
        ("/etc/haproxy/llm-proxy.pem", str(places.certificate)),
        ("bind :80\n", f"bind 127.0.0.1:{places.clear}\n"),
        ("bind :443 ", f"bind 127.0.0.1:{places.tls} "),
        ("llm.example.com", "localhost"),
        # A test has less patience.
        ("inter 1s", "inter 100ms"),
        ("server one 127.0.0.1:8080", several("proxy")),
        ("server one 127.0.0.1:8081", several("admin")),
    )


@dataclass(frozen=True)
class Kind:
    """A program that may stand in front; `{file}` and `{folder}` in its arguments are filled in."""

    write: Callable[[Places], str]
    check: tuple[str, ...]
    run: tuple[str, ...]


CADDY_FILE = ("--adapter", "caddyfile", "--config", "{file}")
KINDS = {
    "caddy": Kind(_caddy, ("validate", *CADDY_FILE), ("run", *CADDY_FILE)),
    "nginx": Kind(
        _nginx,
        ("-t", "-c", "{file}", "-p", "{folder}", "-e", "{folder}/error.log"),
        ("-c", "{file}", "-p", "{folder}", "-e", "{folder}/error.log", "-g", "daemon off;"),
    ),
    "haproxy": Kind(_haproxy, ("-c", "-f", "{file}"), ("-db", "-f", "{file}")),
}


class Gateway:
    """A gateway that runs; `url` is its one address, `clear` the one without TLS."""

    def __init__(self, name: str, places: Places) -> None:
        self.name, self._places, self._kind = name, places, KINDS[name]
        self._file = places.folder / "config"
        self._file.write_text(self._kind.write(places))
        self.url, self.clear = f"https://localhost:{places.tls}", f"http://localhost:{places.clear}"

    @property
    def ends_what_broke(self) -> bool:
        """Whether this is a Caddy before 2.8: it ends neatly what its upstream did not."""
        if self.name != "caddy":
            return False
        said = subprocess.run([path_of(self.name), "version"], capture_output=True, text=True, check=True).stdout
        return tuple(map(int, re.findall(r"\d+", said)[:2])) < (2, 8)

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [path_of(self.name), *(part.format(file=self._file, folder=self._places.folder) for part in arguments)]

    @property
    def _env(self) -> dict[str, str]:
        # Caddy keeps its things there, and is told what to do through the socket.
        folder = str(self._places.folder)
        return {"HOME": folder, "XDG_DATA_HOME": folder, "XDG_CONFIG_HOME": folder, "CADDY_ADMIN": f"unix/{folder}/admin"}

    def check(self) -> "subprocess.CompletedProcess[str]":
        """What the program itself says of the file."""
        return subprocess.run(self._command(self._kind.check), env=self._env, capture_output=True, text=True, check=False)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it for the length of the block."""
        with (self._places.folder / "output").open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *self._command(self._kind.run),
                cwd=self._places.folder,
                env=self._env,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(30):
                while not (_listens(self._places.tls) and _listens(self._places.clear)):
                    assert process.returncode is None, (self._places.folder / "output").read_text()
                    await asyncio.sleep(0.02)
            yield
        finally:
            # Orderly stops wait for connections; nothing is lost with these. Workers would outlive the process that made them.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def gateway(name: str, folder: Path, certificate: Path, *instances: Instance) -> Gateway:
    """A gateway on free ports, not yet running."""
    folder.mkdir(exist_ok=True)
    return Gateway(name, Places(folder, certificate, instances, free_port(), free_port()))
