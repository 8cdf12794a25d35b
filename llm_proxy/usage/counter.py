"""Counting calls' tokens in a thread of its own, piece by piece, so that no call waits for it."""

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import orjson

from llm_proxy.usage import NO_USAGE, Usage
from llm_proxy.usage.counting import Completion, Uncountable, pieces_of, read_prompt
from llm_proxy.usage.encodings import Encoder, encoding_of, load

log = logging.getLogger(__name__)

# Of a stream, so much is collected before the thread is told of it, for telling costs as much as many chunks do.
BATCH = 4096
# What a call may have waiting for the thread; beyond it the thread does not keep up, and the call is not counted.
LARGEST_BACKLOG = 1024 * 1024
# The same of all calls together.
LARGEST_BACKLOG_OF_ALL = 32 * 1024 * 1024
# The request is decoded at one go, in which no other thread runs.
LARGEST_REQUEST = 8 * 1024 * 1024
# A call has the thread for so long before the next one gets it.
SLICE_SECONDS = 0.005

MOST_PROVIDERS = 10_000


class Counting:
    """The thread that counts, with what was learnt of providers.

    Args:
        load: gives the tokenizer by its name; it may take its time, in the thread.
    """

    def __init__(self, load: Callable[[str], Encoder] = load) -> None:
        self.load = load
        self.lock = threading.Lock()
        self.backlog = 0
        self._thread = ThreadPoolExecutor(1, "counting")
        self._stated: dict[tuple[str, bool], bool] = {}
        self._complained = False

    def counter(self, model: str, request: bytes) -> "Counter":
        """A counter for one call."""
        return Counter(self, encoding_of(model), request)

    def expects_usage(self, provider: str, asked: bool) -> bool:
        """Whether the provider is going to state the usage at the end of a stream, `asked` to or not."""
        return self._stated.get((provider, asked), asked)

    def learn(self, provider: str, asked: bool, stated: bool) -> None:
        """A stream of the provider has ended, the usage in it or not."""
        if len(self._stated) >= MOST_PROVIDERS:
            self._stated.clear()
        self._stated[provider, asked] = stated

    def submit(self, step: Callable[[], None]) -> None:
        """Let the thread do this when it comes to it."""
        # Once the process stops, nobody asks for the result any more.
        with contextlib.suppress(RuntimeError):
            self._thread.submit(step)

    def complain(self, error: BaseException) -> None:
        """Counting failed, which no call must notice; every further failure would have the same reason."""
        if not self._complained:
            self._complained = True
            log.error("tokens are not counted, so that usage_source is none where a provider states no usage", exc_info=error)

    def close(self) -> None:
        """End the thread after the step it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Counter:
    """Counts one call; nothing raises.

    The loop hands payloads over, the thread takes them. While `_busy`, the state of the counting is the thread's alone;
    the loop sets it, the thread takes it back, both under the lock.
    """

    __slots__ = (
        "_backlog",
        "_busy",
        "_completion",
        "_counting",
        "_ended",
        "_handed",
        "_name",
        "_over",
        "_progress",
        "_prompt_tokens",
        "_request",
        "_size",
        "_usage",
        "_waiting",
    )

    def __init__(self, counting: Counting, name: str, request: bytes) -> None:
        self._counting = counting
        self._name = name
        self._request = request
        self._waiting: list[bytes] = []
        self._size = 0
        self._handed: deque[tuple[Iterable[bytes], int]] = deque()
        self._backlog = 0
        self._busy = False
        self._over = len(request) > LARGEST_REQUEST
        self._prompt_tokens: int | None = None
        self._completion: Completion | None = None
        self._usage: Usage | None = None
        self._ended: Future[None] | None = None
        self._progress = self._work()

    def start(self) -> None:
        """Begin with the prompt, while the reply is on its way."""
        self._hand_over((), 0)

    def feed(self, payload: bytes) -> None:
        """Takes the data of one event."""
        self._waiting.append(payload)
        self._size += len(payload)
        if self._size >= BATCH:
            self._hand_over(self._waiting, self._size)
            self._waiting, self._size = [], 0

    async def settle(self, seconds: float, payloads: Iterable[bytes] = ()) -> None:
        """Wait for the last piece, but not for longer than this; what is not counted by then will not be.

        Args:
            payloads: more of the reply, which may still have to be split; that is done in the thread.
        """
        ended: Future[None] = Future()
        # A future that runs cannot be cancelled by who waits for it.
        ended.set_running_or_notify_cancel()
        self._hand_over(itertools.chain(self._waiting, payloads), self._size, ended)
        if not self._over:
            await asyncio.wait([asyncio.wrap_future(ended)], timeout=seconds)
        if self._usage is None:
            self.drop()

    def drop(self) -> None:
        """Nobody wants to know any more."""
        self._over = True
        self._waiting, self._size = [], 0
        with self._counting.lock:
            self._handed.clear()
            self._counting.backlog -= self._backlog
            self._backlog = 0

    def usage(self) -> Usage:
        """What is counted so far; after `settle` the whole, or nothing."""
        if self._usage is not None:
            return self._usage
        if self._over or self._completion is None or not (self._completion.begun or self._waiting):
            return NO_USAGE
        with self._counting.lock:
            idle = not self._busy
        if idle and self._completion.waiting <= BATCH:
            return self._counted_here(self._completion)
        return self._made(self._completion.settled)

    def _counted_here(self, completion: Completion) -> Usage:
        """What is left takes less time than telling the thread of it."""
        payloads, self._waiting, self._size = self._waiting, [], 0
        try:
            for payload in payloads:
                _take(completion, payload)
            return self._made(completion.total()) if completion.begun else NO_USAGE
        except Uncountable:
            return NO_USAGE

    def _hand_over(self, payloads: Iterable[bytes], size: int, ended: "Future[None] | None" = None) -> None:
        counting = self._counting
        if self._over or self._backlog + size > LARGEST_BACKLOG or counting.backlog + size > LARGEST_BACKLOG_OF_ALL:
            self.drop()
            return
        with counting.lock:
            self._handed.append((payloads, size))
            self._ended = ended
            self._backlog += size
            counting.backlog += size
            idle, self._busy = not self._busy, True
        if idle:
            counting.submit(self._step)

    def _step(self) -> None:
        """A slice of the work, in the thread."""
        until = time.perf_counter() + SLICE_SECONDS
        try:
            while not self._over:
                if next(self._progress) and self._rests():
                    return
                if time.perf_counter() > until:
                    self._counting.submit(self._step)
                    return
        except Uncountable:
            self.drop()
        except BaseException as error:
            # A tokenizer that panics raises what is no Exception. Said before the call goes on without the count.
            self._counting.complain(error)
            self.drop()
        if self._ended:
            self._ended.set_result(None)

    def _rests(self) -> bool:
        """Whether there is nothing to do for now; when the reply has ended, the result is there then."""
        with self._counting.lock:
            self._busy = bool(self._handed) or self._ended is not None
            if self._handed or self._ended is None:
                return not self._busy
        if self._completion and self._completion.begun:
            self._usage = self._made(self._completion.total())
        self._ended.set_result(None)
        return True

    def _work(self) -> Iterator[bool]:
        """Counts, a piece at each step; gives True when it has done all there is for now."""
        count = self._counting.load(self._name)
        prompt, self._request = read_prompt(self._request), b""
        tokens = prompt.fixed
        for piece in itertools.chain.from_iterable(map(pieces_of, prompt.texts)):
            tokens += count(piece)
            yield False
        completion = Completion(count)
        self._prompt_tokens, self._completion = tokens, completion
        while True:
            for payload in self._taken():
                _take(completion, payload)
                yield False
            yield True

    def _taken(self) -> Iterable[bytes]:
        with self._counting.lock:
            payloads, size = self._handed.popleft() if self._handed else ((), 0)
            self._backlog -= size
            self._counting.backlog -= size
        return payloads

    def _made(self, completion_tokens: int) -> Usage:
        prompt_tokens = self._prompt_tokens or 0
        return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, source="counted")


def _take(completion: Completion, payload: bytes) -> None:
    try:
        completion.take(orjson.loads(payload))
    except orjson.JSONDecodeError:
        # `[DONE]` is no JSON; what else is none holds no words either.
        return
