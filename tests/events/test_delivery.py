"""A claimed folder is delivered to its end, then given back or removed."""

import asyncio
import pathlib

import aiohttp
import pytest
from stage.house import settings_for
from stage.logs import left_behind, lines_of, samples

from llm_proxy.events import dispatcher
from llm_proxy.events.dead_letters import DeadLetters
from llm_proxy.events.delivery import Delivery
from llm_proxy.events.instances import claim_dead, claim_own
from llm_proxy.events.sinks import SINKS, options_of


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "FLUSH", 0.01)


async def test_the_log_of_a_dead_instance_is_emptied_and_removed(tmp_path: pathlib.Path) -> None:
    settings = settings_for(tmp_path)
    root = pathlib.Path(settings.event_dir)
    folder = left_behind(root, *(events := samples(1, 2, 3)), sinks=("file",))
    async with aiohttp.ClientSession() as session:
        sinks = {"file": SINKS["file"](options_of(settings), session)}
        [claim] = claim_dead(root)
        delivery = Delivery(claim, settings, sinks, DeadLetters(root / "dead.jsonl"))
        await delivery.start(appending=False)
        async with asyncio.timeout(10):
            await delivery.emptied()
        assert delivery.stats["file"].delivered == 3
        await delivery.close(1, remove=True)
        await sinks["file"].close()
    assert [event["id"] for event in lines_of(tmp_path / "events.jsonl")] == [event["id"] for event in events]
    assert not folder.exists()


def open_files() -> int:
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


async def test_closed_before_it_could_open_it_leaves_nothing_open(tmp_path: pathlib.Path) -> None:
    settings, before = settings_for(tmp_path), open_files()
    delivery = Delivery(claim_own(tmp_path, "a"), settings, {}, DeadLetters(tmp_path / "dead.jsonl"))
    await delivery.close(1)
    await delivery.close(1, remove=True)
    delivery._open(True)
    assert open_files() <= before
    claim_own(tmp_path, "a").release()
    assert not (tmp_path / "a-2").exists()


@pytest.mark.parametrize(("sync", "interval"), [("50ms", 0.05), ("2s", 2.0), ("always", 0.1), ("os", 0.1)])
async def test_the_log_is_synced_as_often_as_the_setting_says(tmp_path: pathlib.Path, sync: str, interval: float) -> None:
    claim = claim_own(tmp_path, "a")
    delivery = Delivery(claim, settings_for(tmp_path, EVENT_SYNC=sync), {}, DeadLetters(tmp_path / "dead.jsonl"))
    assert delivery._interval == interval
    await delivery.close(1)
