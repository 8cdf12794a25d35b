"""A question of the playground on its way through the proxy's own address, like any application's."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import orjson

from llm_proxy import __version__
from llm_proxy.admin.live import TICK_SECONDS
from llm_proxy.chats import Answer, Dialect, Messages, Problem, problem_of
from llm_proxy.context import Context
from llm_proxy.errors import UpstreamError, UpstreamInvalid
from llm_proxy.providers.profiles import Auth, Profile, Timeouts
from llm_proxy.secret import Secret
from llm_proxy.upstream import Answer as Reply
from llm_proxy.upstream import Request
from llm_proxy.usage import Usage

# Of an answer's bytes so many are shown, of its text so many are taken: it is to fit into a form again, where one may take three.
MOST_RAW = 64 * 1024
MOST_TEXT = 128 * 1024
MOST_WAITING = 16
HIDDEN = "(hidden)"
# How we call ourselves: no connection is kept, which a stop would wait for; how long an answer may take is the call's business.
PROFILE = Profile(name="playground", auth=Auth("authorization"), allowed_endpoints=(), allowed_methods=(), max_idle=0)
PATIENCE = Timeouts(connect=5.0, first_byte=7200.0)
END = b""

Arrival = Reply | bytes | UpstreamError


@dataclass(frozen=True)
class Question:
    """What is asked, by whom.

    Attributes:
        url: where the proxy listens; with REUSE_PORT another process may answer there, which knows the same tokens.
        host: the name by which it is asked for; empty for that of `url`.
    """

    url: str
    host: str
    token: Secret
    dialect: Dialect
    model: str
    system: str
    messages: Messages

    @property
    def path(self) -> str:
        """The path that is called."""
        return self.dialect.path(self.model)

    @property
    def body(self) -> bytes:
        """The body that is sent."""
        return orjson.dumps(self.dialect.body(self.model, self.system, self.messages))

    def _headers(self, token: str) -> Mapping[str, str]:
        """The headers with this token in its place."""
        return {
            **self.dialect.headers(token),
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            # So that the bytes of the answer can be read by people.
            "Accept-Encoding": "identity",
            "User-Agent": f"llm-proxy-playground/{__version__}",
        }

    @property
    def request(self) -> Request:
        """The call, at this address and no other."""
        return Request(
            "POST",
            self.url + self.path,
            [(name.encode(), value.encode()) for name, value in self._headers(self.token.reveal()).items()],
            self.body,
            len(self.body),
            PROFILE,
            PATIENCE,
            trusted=True,
            on_sent=lambda: None,
            host=self.host,
        )

    @property
    def shown(self) -> str:
        """The request as it is sent, but for the token."""
        lines = {"Host": self.host or urlsplit(self.url).netloc, **self._headers(HIDDEN)}
        head = "\n".join([f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items())])
        return f"{head}\n\n{orjson.dumps(orjson.loads(self.body), option=orjson.OPT_INDENT_2).decode()}"


@dataclass
class Outcome:
    """What came of a question; it is whole once `ask` has ended.

    Attributes:
        status: that of the answer, 0 when there was none.
        head: the answer's status line and headers.
        raw: the first bytes of its body.
        size: of the whole body.
        text_size: of the text, in bytes as well.
        is_stream: whether the answer is one; errors are not.
        first_seconds: until the first text came, None when none did.
    """

    text: str = ""
    status: int = 0
    head: str = ""
    raw: bytes = field(default=b"", repr=False)
    size: int = 0
    text_size: int = 0
    is_stream: bool = False
    first_seconds: float | None = None
    seconds: float = 0.0
    usage: Usage | None = None
    problem: Problem | None = None

    def begin(self, reply: Reply) -> None:
        """Its head has come."""
        fields = [f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in reply.headers]
        self.status, self.head = reply.status, "\n".join([f"HTTP/1.1 {reply.status} {reply.reason}".rstrip(), *fields])
        kind = next((value for name, value in reply.headers if name.lower() == b"content-type"), b"")
        self.is_stream = reply.status == 200 and kind.lower().startswith(b"text/event-stream")

    def keep(self, chunk: bytes) -> None:
        """Bytes of its body have come."""
        self.size += len(chunk)
        self.raw += chunk[: max(0, MOST_RAW - len(self.raw))]

    def say(self, piece: str) -> None:
        """Text of it has come."""
        self.text += piece
        self.text_size += len(piece.encode())

    @property
    def is_full(self) -> bool:
        """Whether no more of it is wanted."""
        return self.text_size > MOST_TEXT or (not self.is_stream and self.size > MOST_RAW)

    @property
    def rate(self) -> float | None:
        """Tokens a second from the first text to the end; of an answer in one piece, from the request on."""
        if not self.usage or not self.usage.completion_tokens or self.first_seconds is None:
            return None
        lasted = self.seconds - self.first_seconds
        return self.usage.completion_tokens / (lasted if lasted > 0.01 else max(self.seconds, 0.001))

    @property
    def shown(self) -> str:
        """The answer's head and what was kept of its bytes."""
        return f"{self.head}\n\n{self.raw.decode(errors='replace')}" if self.head else ""


async def ask(context: Context, question: Question, outcome: Outcome) -> AsyncGenerator[str, None]:
    """The pieces of the answer's text as they come; an empty one where there is none for a moment.

    Left before its end, it ends the call, as any client that leaves does.
    """
    began, answer = time.perf_counter(), None
    arrived: asyncio.Queue[Arrival] = asyncio.Queue(MOST_WAITING)
    call = context.tasks.start("a question of the playground", _call(context, question, arrived))
    try:
        while (item := await _next(arrived)) != END and not outcome.is_full:
            piece = ""
            if isinstance(item, UpstreamError):
                outcome.problem = _broken(outcome, question.url, item)
                break
            if isinstance(item, bytes):
                outcome.keep(item)
                piece = answer.feed(item) if answer else ""
            elif item:
                outcome.begin(item)
                answer = Answer(question.dialect) if outcome.is_stream else None
            if piece and outcome.first_seconds is None:
                outcome.first_seconds = time.perf_counter() - began
            outcome.say(piece)
            yield piece
    finally:
        call.cancel()
    outcome.seconds = time.perf_counter() - began
    _judge(outcome, answer)


async def _next(arrived: asyncio.Queue[Arrival]) -> Arrival | None:
    """What arrives next, None when nothing does for a moment."""
    try:
        async with asyncio.timeout(TICK_SECONDS):
            return await arrived.get()
    except TimeoutError:
        return None


async def _call(context: Context, question: Question, arrived: asyncio.Queue[Arrival]) -> None:
    """The answer's head, its bytes, and at the end that, or why there is no end."""
    try:
        answer = await context.upstream.open(question.request)
        try:
            await arrived.put(answer)
            while chunk := await answer.chunk():
                await arrived.put(chunk)
        finally:
            answer.abort()
        await arrived.put(END)
    except UpstreamError as error:
        await arrived.put(error)


def _judge(outcome: Outcome, answer: Answer | None) -> None:
    """Say what is wrong with what has come."""
    if answer:
        outcome.usage = answer.usage.result()
    found = answer.problem if answer else problem_of(outcome.raw)
    if found:
        outcome.problem = found
    elif outcome.problem:
        pass
    elif answer is None:
        outcome.problem = Problem("", f"The answer, with status {outcome.status}, is no stream; its bytes are shown below.")
    elif outcome.is_full:
        outcome.problem = Problem("", f"The answer is longer than the {MOST_TEXT // 1024} KiB that the playground takes.")
    elif not answer.usage.finished:
        outcome.problem = Problem("", "The stream ended without its end: the answer is not whole.")
    elif not outcome.text:
        outcome.problem = Problem("", "The answer holds no text; its bytes are shown below.")


def _broken(outcome: Outcome, url: str, error: UpstreamError) -> Problem:
    if outcome.status:
        return Problem("", "The stream broke off: the answer is not whole.")
    if isinstance(error, UpstreamInvalid):
        return Problem("", f"What answers at {url} is no LLM Proxy.")
    return Problem("", f"The proxy cannot be reached at {url}, where it should listen (LISTEN_ADDR).")
