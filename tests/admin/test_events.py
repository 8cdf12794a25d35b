"""The delivery of events is shown, with what was refused and why."""

from pathlib import Path

from stage.house import House
from stage.visitor import Visitor

from llm_proxy.admin.events import NEWEST, newest_letters
from llm_proxy.events.dead_letters import FILE, DeadLetters


async def test_sinks_and_dead_letters_are_shown(house: House, visitor: Visitor) -> None:
    page = await visitor.get("/admin/events")
    assert "None: every sink took what it was given" in page.text and "file" in page.text
    letters = DeadLetters(Path(house.context.settings.event_dir) / FILE)
    await letters.add("lunary", "400: <b>no</b>", event={"id": "event-1"})
    await letters.add("lunary", "gone", gap={"count": 1200})
    await letters.add("lunary", "odd", event="text")
    page = await visitor.get("/admin/events")
    for shown in ("event-1", "400: <b>no</b>", "1\u202f200 events", "unreadable"):
        assert shown in page.text.replace("1 200", "1\u202f200"), shown


async def test_only_the_newest_letters_are_shown(tmp_path: Path) -> None:
    times = iter(range(NEWEST + 5))
    letters = DeadLetters(tmp_path / FILE, lambda: 1000 * next(times))
    for number in range(NEWEST + 5):
        await letters.add("file", str(number), event={"id": str(number)})
    found = newest_letters(tmp_path)
    assert [letter["reason"] for letter in found] == [str(number) for number in reversed(range(5, NEWEST + 5))]
    assert newest_letters(tmp_path / "nowhere") == []
