"""A provider that streams: each chunk a write of its own, at a steady pace."""

import argparse
import asyncio
import json
import re
from typing import Any

import uvloop

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nTransfer-Encoding: chunked\r\n\r\n"
TICK = 0.001
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
WORDS = ("The", " proxy", " passes", " on", " what", " it", " gets,", " as", " it", " comes.")


def _event(delta: dict[str, str], finish: str | None = None, usage: dict[str, int] | None = None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    last = {"choices": [], "usage": usage} if usage else {"choices": choices}
    event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", **last}
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def chunks(count: int, silent: bool) -> list[bytes]:
    """The chunks of an answer as they stand on the wire, the end of the body with the last one.

    Args:
        silent: say no usage.
    """
    usage = {"prompt_tokens": 9, "completion_tokens": count - 3, "total_tokens": count + 6}
    events = [_event({"content": WORDS[number % len(WORDS)]}) for number in range(count - 3)]
    events += [_event({}, "stop"), _event({}, usage=None if silent else usage), b"data: [DONE]\n\n"]
    framed = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    return [*framed[:-1], framed[-1] + b"0\r\n\r\n"]


class Wheel:
    """Gives every stream its next chunk once in each turn, spread over the turn so that they do not all come at once."""

    def __init__(self, every: int, answer: list[bytes]) -> None:
        self._slots: list[list[Stream]] = [[] for _ in range(every)]
        self._at = 0
        self._next = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.answer = answer

    def begin(self) -> None:
        """Turn from now on."""
        self._next = asyncio.get_running_loop().time()
        self._tick()

    def add(self, stream: "Stream") -> None:
        """A stream that begins now: its chunks come at this place of every turn."""
        self._slots[self._at - 1].append(stream)

    def _tick(self) -> None:
        slot, self._at = self._slots[self._at], (self._at + 1) % len(self._slots)
        if slot:
            slot[:] = [stream for stream in slot if stream.go_on()]
        self._next += TICK
        self._timer = asyncio.get_running_loop().call_at(self._next, self._tick)

    def end(self) -> None:
        """Turn no more."""
        if self._timer:
            self._timer.cancel()


class Stream(asyncio.Protocol):
    """A connection: every request is answered by the same stream."""

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel
        self._got = b""
        self._sent = 0
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: Any) -> None:
        """See asyncio; uvloop's transports do not descend from its classes."""
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Begin to answer when the request is whole; the next one comes only after the answer."""
        self._got += data
        head, blank, body = self._got.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if blank and len(body) >= (int(length[1]) if length else 0) and self._transport:
            self._got, self._sent = b"", 0
            self._transport.write(HEAD)
            self._wheel.add(self)

    def go_on(self) -> bool:
        """Send the next chunk; whether there is another."""
        if self._transport is None:
            return False
        answer = self._wheel.answer
        self._transport.write(answer[self._sent])
        self._sent += 1
        return self._sent < len(answer)


async def serve(port: int, every: int, answer: list[bytes]) -> None:
    """Serve until the process is ended."""
    loop, wheel = asyncio.get_running_loop(), Wheel(every, answer)
    server = await loop.create_server(lambda: Stream(wheel), "127.0.0.1", port, backlog=4096)
    wheel.begin()
    await server.serve_forever()


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--every", type=int, required=True, help="milliseconds from one chunk of a stream to its next")
    parser.add_argument("--chunks", type=int, required=True)
    parser.add_argument("--silent", action="store_true", help="say no usage")
    asked = parser.parse_args()
    uvloop.run(serve(asked.port, asked.every, chunks(asked.chunks, asked.silent)))


if __name__ == "__main__":
    main()
