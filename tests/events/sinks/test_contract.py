"""Tests of the contract of sinks."""

import pathlib

import aiohttp
import pytest
from stage.sinks import sample

from llm_proxy.events.sinks import SINKS, SinkOptions


@pytest.mark.parametrize("name", SINKS)
async def test_a_sink_gives_a_verdict_for_each_event(name: str, tmp_path: pathlib.Path, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}/"
    async with aiohttp.ClientSession() as session:
        sink = SINKS[name](SinkOptions(file=str(tmp_path / "events.jsonl"), lunary_url=url, helicone_url=url), session)
        verdicts = await sink.deliver([sample(1), sample(2), sample(3)])
        await sink.close()
    assert [verdict.kind for verdict in verdicts] == (["delivered"] * 3 if name == "file" else ["away"] * 3)
