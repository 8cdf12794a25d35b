"""Tests of the log on a real disk, and of what it does when the disk fails."""

import asyncio
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading

import pytest
from stage.disk import SimulatedDisk

from llm_proxy.events.reading import Entry, Gap, Item, Reader
from llm_proxy.events.spool import Spool

FOLDER = pathlib.Path("events")
KILLS = int(os.environ.get("SPOOL_KILLS", "8"))


def opened(disk: SimulatedDisk | None = None, folder: pathlib.Path = FOLDER, **options: object) -> Spool:
    spool = Spool(folder, ("file",), disk=disk, **options)  # type: ignore[arg-type]
    spool.open()
    return spool


def read_all(spool: Spool) -> list[Item]:
    reader, items = Reader(spool, "file"), []
    while found := reader.read(1000):
        items += found
        reader.settle(len(found))
    return items


def payloads(items: list[Item]) -> list[bytes]:
    return [item.payload for item in items if isinstance(item, Entry)]


def test_what_is_appended_is_read_in_order_by_the_next_process(tmp_path: pathlib.Path) -> None:
    spool = opened(folder=tmp_path)
    assert [spool.append(b"%d" % number) for number in range(1, 1001)] == list(range(1, 1001))
    spool.close()
    spool = opened(folder=tmp_path)
    assert read_all(spool) == [Entry(number, b"%d" % number) for number in range(1, 1001)]
    assert spool.append(b"next") == 1001
    spool.close()


def test_an_event_larger_than_what_is_read_at_once_is_read(tmp_path: pathlib.Path) -> None:
    spool = opened(folder=tmp_path)
    sent = [b"small", b"x" * 3_000_000, b"y" * 1_048_576, b"last"]
    for payload in sent:
        spool.append(payload)
    assert payloads(read_all(spool)) == sent
    spool.close()


@pytest.mark.parametrize("payload", [b"", bytes(16 * 1024 * 1024 + 1)], ids=["empty", "too large"])
def test_an_event_that_no_record_can_hold_is_lost_alone(tmp_path: pathlib.Path, payload: bytes) -> None:
    spool = opened(folder=tmp_path)
    assert (spool.append(payload), spool.lost) == (0, 1)
    spool.append(b"fine")
    assert payloads(read_all(spool)) == [b"fine"]
    spool.close()


def test_segments_that_every_sink_has_are_deleted(tmp_path: pathlib.Path) -> None:
    spool = opened(folder=tmp_path, segment_bytes=1000)
    for _ in range(20):
        spool.tick()
        spool.append(bytes(700))
        spool.append(bytes(700))
    spool.tick()
    full = len(spool.segments())
    assert full > 15
    reader = Reader(spool, "file")
    reader.read(100)
    reader.settle(39)
    spool.tick()
    assert len(spool.segments()) == full, "not before the disk knows"
    assert reader.save()
    spool.tick()
    assert len(spool.segments()) <= 2
    assert len(list(tmp_path.glob("*.seg"))) <= 3
    spool.close()


@pytest.mark.parametrize("mode", ["always", "100ms", "os"])
def test_when_an_event_is_synced(mode: str) -> None:
    disk = SimulatedDisk()
    spool = opened(disk, sync=mode)
    spool.append(b"event")
    assert spool.synced == (1 if mode == "always" else 0)
    spool.tick()
    assert spool.synced == 1
    spool.append(b"unsynced")
    for inode in disk.names.values():
        inode.lose_power(random.Random(1)) if mode == "always" else inode.sync()
    disk.crash()
    assert payloads(read_all(opened(disk))) == [b"event", b"unsynced"]


def test_a_full_disk_loses_exactly_what_is_counted() -> None:
    disk = SimulatedDisk()
    spool = opened(disk)
    kept = [number for number in range(100) if spool.append(b"%04d" % number)]
    disk.room = 50
    kept += [number for number in range(100, 200) if spool.append(b"%04d" % number)]
    assert spool.failing
    assert spool.lost == 200 - len(kept) > 90
    disk.room = None
    kept += [number for number in range(200, 300) if spool.append(b"%04d" % number)]
    assert kept[-100:] == list(range(200, 300)), "it is whole again with the first event"
    assert not spool.failing
    assert payloads(read_all(spool)) == [b"%04d" % number for number in kept]


def test_a_tail_that_cannot_be_cut_is_not_written_behind() -> None:
    disk = SimulatedDisk()
    spool = opened(disk)
    spool.append(b"first")
    disk.cut = lambda fd, size: (_ for _ in ()).throw(OSError(5, "no"))  # type: ignore[assignment]
    disk.room = 20
    assert spool.append(b"torn" * 10) == 0
    disk.room = None
    assert spool.append(b"no place for this") == 0
    spool.tick()
    assert spool.append(b"in the next segment") == 2
    del disk.cut
    assert payloads(read_all(spool)) == [b"first", b"in the next segment"]


def test_a_log_on_a_disk_that_refuses_from_the_start_heals() -> None:
    disk = SimulatedDisk()
    disk.refusing = True
    spool = opened(disk)
    assert (spool.append(b"lost"), spool.lost) == (0, 1)
    disk.refusing = False
    spool.tick()
    assert spool.append(b"kept") == 1
    assert payloads(read_all(spool)) == [b"kept"]


def test_a_backlog_above_its_cap_drops_the_oldest_and_tells_each_sink() -> None:
    spool = opened(SimulatedDisk(), backlog_bytes=10_000)
    for _ in range(500):
        spool.append(bytes(80))
        spool.tick()
    items = read_all(spool)
    [gap] = [item for item in items if isinstance(item, Gap)]
    assert gap == items[0]
    assert gap.count == spool.dropped > 0
    assert gap.count + len(payloads(items)) == 500
    assert spool.bytes_from(0) <= 10_000


def test_damage_costs_what_follows_in_its_segment_and_is_set_aside(tmp_path: pathlib.Path) -> None:
    spool = opened(folder=tmp_path, segment_bytes=1000)
    for number in range(30):
        spool.append(b"%02d" % number + bytes(98))
        spool.tick()
    spool.close()
    oldest = min(tmp_path.glob("*.seg"))
    content = bytearray(oldest.read_bytes())
    content[300] ^= 1
    oldest.write_bytes(content)
    spool = opened(folder=tmp_path)
    items = read_all(spool)
    spool.tick()
    assert items[2] == Gap(3, 9)
    assert [item.sequence for item in items if isinstance(item, Entry)] == [1, 2, *range(10, 31)]
    assert oldest.with_suffix(".bad").read_bytes() == content[232:]
    assert spool.damaged == 1
    spool.close()


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda content: content[:-3], id="torn"),
        pytest.param(lambda content: content + bytes(4096), id="a page of zeros"),
        pytest.param(lambda content: content[:-20] + b"\xff" + content[-19:], id="a flipped bit"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: b"junk" * 500, id="junk"),
    ],
)
def test_recovery_keeps_a_prefix_and_goes_on(tmp_path: pathlib.Path, harm: "type[bytes]") -> None:
    spool = opened(folder=tmp_path)
    sent = [b"event %d" % number for number in range(50)]
    for payload in sent:
        spool.append(payload)
    spool.close()
    file = next(path for path in tmp_path.glob("*.seg") if path.stat().st_size)
    file.write_bytes(harm(file.read_bytes()))
    spool = opened(folder=tmp_path)
    spool.append(b"new")
    found = payloads(read_all(spool))
    assert found[-1] == b"new"
    assert found[:-1] == sent[: len(found) - 1]
    spool.close()


def test_numbers_are_not_given_twice_when_a_delivered_event_is_lost() -> None:
    disk = SimulatedDisk()
    spool = opened(disk)
    spool.tick()
    spool.append(b"delivered, not synced")
    reader = Reader(spool, "file")
    reader.read(10)
    reader.settle(1)
    assert reader.save()
    for inode in disk.names.values():
        inode.seen = inode.durable
        inode.unsynced = []
    disk.crash()
    spool = opened(disk)
    assert spool.append(b"new") == 2
    assert payloads(read_all(spool)) == [b"new"]


async def test_readers_and_syncs_in_threads_see_every_event_once(tmp_path: pathlib.Path) -> None:
    spool = opened(folder=tmp_path, segment_bytes=20_000)
    reader, found, done = Reader(spool, "file"), [], threading.Event()

    def read() -> None:
        while not done.is_set() or reader.backlog().count:
            items = reader.read(100)
            found.extend(items)
            if items:
                reader.settle(len(items))
                reader.save()
            spool.tick()

    reading = asyncio.get_running_loop().run_in_executor(None, read)
    for number in range(20_000):
        spool.append(b"%d" % number)
        if number % 50 == 0:
            await asyncio.sleep(0)
    done.set()
    await reading
    assert found == [Entry(number + 1, b"%d" % number) for number in range(20_000)]
    spool.tick()
    assert (spool.damaged, spool.lost, spool.failures) == (0, 0, 0)
    spool.close()


APPENDER = """
import asyncio, os, pathlib, sys
from llm_proxy.events.spool import Spool

async def main():
    spool = Spool(pathlib.Path(sys.argv[1]), ("file",), segment_bytes=300_000)
    spool.open()
    keeping = asyncio.get_running_loop().create_task(spool.run())
    number = 0
    while True:
        for _ in range(20):
            number += 1
            assert spool.append(b"%s.%d " % (sys.argv[2].encode(), number) + bytes(number * 37 % 9000))
            os.write(1, b"%d\\n" % number)
        await asyncio.sleep(0)

asyncio.run(main())
"""


def test_no_event_is_lost_or_doubled_by_kill_9(tmp_path: pathlib.Path) -> None:
    chance, acknowledged = random.Random(9), set()
    for run in range(KILLS):
        arguments = [sys.executable, "-c", APPENDER, str(tmp_path), str(run)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout
            told = [process.stdout.readline() for _ in range(chance.randrange(20, 600))]
            process.send_signal(signal.SIGKILL)
            told += process.stdout.read().splitlines(keepends=True)
        acknowledged |= {f"{run}.{int(line)}" for line in told if line.endswith(b"\n")}
    spool = opened(folder=tmp_path)
    found = [payload.split(b" ")[0].decode() for payload in payloads(read_all(spool))]
    spool.close()
    assert len(found) == len(set(found)), "none is there twice"
    assert acknowledged <= set(found)
    # The one that was being reported when the process died.
    assert len(set(found) - acknowledged) <= KILLS
