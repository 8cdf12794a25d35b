"""Logs of events, made and read by tests."""

import pathlib
from typing import Any

import orjson

from llm_proxy.events.browsing import documents, logs
from llm_proxy.events.instances import claim_own
from llm_proxy.events.spool import Spool
from stage.sinks import sample


def left_behind(root: pathlib.Path, *events: dict[str, Any], name: str = "gone", sinks: tuple[str, ...] = ()) -> pathlib.Path:
    """The log of an instance that is no more; returns its folder."""
    claim = claim_own(root, name)
    spool = Spool(claim.folder, sinks)
    spool.open()
    for event in events:
        assert spool.append(orjson.dumps(event))
    spool.close()
    claim.release()
    return claim.folder


def samples(*numbers: int) -> list[dict[str, Any]]:
    """Events of these numbers."""
    return [sample(number) for number in numbers]


def logged(root: pathlib.Path) -> list[dict[str, Any]]:
    """Every event in every log."""
    return [document for folder in logs(root) for document, _ in documents(folder)]


def lines_of(path: pathlib.Path) -> list[dict[str, Any]]:
    """The events that the file sink wrote; a line that it is just writing counts once it is whole."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [orjson.loads(line) for line in whole.splitlines()]
