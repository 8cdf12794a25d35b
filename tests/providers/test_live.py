"""The profiles in force are one snapshot, replaced by a good reading only."""

from dataclasses import replace

import pytest
from stage.profiles import shipped

from llm_proxy.errors import SettingsError
from llm_proxy.providers.live import LiveProfiles
from llm_proxy.providers.profiles import Profiles


async def test_a_good_reading_replaces_the_whole_and_who_took_the_old_one_keeps_it() -> None:
    first = shipped()
    second = replace(first, default_api="groq")
    readings = iter([first, second])
    live = LiveProfiles(lambda: next(readings))
    kept = live.current
    await live.reload()
    assert (kept.default_api, live.current) == (first.default_api, second)


async def test_a_bad_reading_changes_nothing() -> None:
    readings: list[Profiles] = [shipped()]

    def read() -> Profiles:
        if not readings:
            raise SettingsError("line 7")
        return readings.pop()

    live = LiveProfiles(read)
    before = live.current
    with pytest.raises(SettingsError, match="line 7"):
        await live.reload()
    assert live.current is before
