"""Other gateways under the same load, each installed into a folder of its own."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from benchmarks.cases import Target, chat
from benchmarks.machine import KEPT
from benchmarks.processes import free_port
from benchmarks.scene import Scene

LITELLM, PORTKEY = KEPT / "litellm", KEPT / "portkey"
INSTALL_SECONDS = 900


@dataclass(frozen=True)
class Peer:
    """A gateway: how it is installed, how it begins."""

    install: Callable[[], None]
    begin: Callable[[Scene], Target]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=INSTALL_SECONDS, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _install_litellm() -> None:
    if not (LITELLM / "bin" / "litellm").exists():
        _run(sys.executable, "-m", "venv", str(LITELLM))
        _run(str(LITELLM / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "litellm[proxy]")


def _install_portkey() -> None:
    if not (PORTKEY / "node_modules" / "@portkey-ai" / "gateway").exists():
        PORTKEY.mkdir(parents=True, exist_ok=True)
        (PORTKEY / "package.json").write_text('{"private": true}')
        _run("npm", "install", "--silent", "--prefix", str(PORTKEY), "@portkey-ai/gateway")


def _begin_litellm(scene: Scene) -> Target:
    model = {"model": "openai/gpt-4o", "api_base": f"{scene.direct('calls').url}/v1", "api_key": "sk-of-nobody"}
    config, port = scene.folder / "litellm.json", free_port()
    # YAML reads JSON.
    config.write_text(json.dumps({"model_list": [{"model_name": "gpt-4o", "litellm_params": model}]}))
    command = [str(LITELLM / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    # It does not start without a key of its own. Its list of prices is in the package; without the flag it would be fetched.
    key = f"sk-{secrets.token_hex(32)}"
    env = {
        "LITELLM_MASTER_KEY": key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "PATH": f"{LITELLM / 'bin'}:{os.environ['PATH']}",
    }
    return scene.begin("litellm", command, env, port), chat(key)


def _begin_portkey(scene: Scene) -> Target:
    port = free_port()
    program = PORTKEY / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    site = scene.begin("portkey", ["node", str(program), f"--port={port}", "--headless"], {"PORT": str(port)}, port)
    ask = chat("sk-of-nobody")
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{scene.direct('calls').url}/v1"}
    return site, replace(ask, headers={**ask.headers, **headers})


PEERS: Mapping[str, Peer] = {"LiteLLM": Peer(_install_litellm, _begin_litellm), "Portkey": Peer(_install_portkey, _begin_portkey)}


def available() -> tuple[dict[str, Callable[[Scene], Target]], list[str]]:
    """Those that could be installed, with a line for each that could not."""
    found, said = {}, []
    for name, peer in PEERS.items():
        try:
            peer.install()
            found[name] = peer.begin
        except (OSError, subprocess.SubprocessError) as error:
            reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            said.append(f"{name} is left out, it could not be installed: {reason[-1] if reason else error}")
            print(said[-1], file=sys.stderr)
    return found, said
