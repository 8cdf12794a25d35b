"""An answer whose model bears the name that the client used."""

import json
import math
import re
from collections.abc import Mapping

from llm_proxy.errors import UpstreamInvalid
from llm_proxy.grammar import RawHeaders
from llm_proxy.proxy import headers
from llm_proxy.proxy.renaming import JsonRenamer, Renamer, reply_renamer
from llm_proxy.upstream import Answer, Take, fields_of

_ABOUT_BYTES = headers.DIGESTS | {b"content-length", b"etag"}
# A provider's error may name the model in its text.
LARGEST_ERROR = 256 * 1024


def with_clients_name(answer: Answer, theirs: str, ours: str) -> Answer:
    """The answer as the client may see it, where a mapping gave the provider another name than the client used.

    Raises:
        UpstreamInvalid: the answer is coded, though that was not asked for, so that nothing in it can be renamed.
    """
    codings = [value.strip().lower() for name, value in answer.headers if name.lower() == b"content-encoding"]
    if any(coding not in (b"", b"identity") for coding in codings):
        answer.abort()
        raise UpstreamInvalid("The provider's answer is compressed, though it was asked not to be.", sent=True)
    return RenamedAnswer(answer, _renamer(answer, ours), theirs, ours)


def _renamer(answer: Answer, ours: str) -> Renamer | None:
    """What renames in the body; of an error, and of what bears no type, nothing is certain but that it may name the model."""
    content_type = headers.first(answer.headers, (b"content-type",))
    uncertain = answer.status >= 400 or not content_type
    return reply_renamer(content_type or "", ours) or (JsonRenamer(ours) if uncertain else None)


class RenamedAnswer:
    """See `Answer`."""

    def __init__(self, answer: Answer, renamer: Renamer | None, theirs: str, ours: str) -> None:
        self._answer = answer
        self._renamer = renamer
        self._ours = json.dumps(ours)[1:-1].encode()
        written = json.dumps(theirs)[1:-1]
        # The client's name goes first, as the provider's may be a part of it.
        spellings = [self._ours, *(each.encode() for each in (theirs, written, written.replace("/", r"\/")))]
        # As a word of its own: a short name may be a part of others.
        self._theirs = re.compile(rb"(?<![\w.-])(?:%b)(?![\w.-])" % b"|".join(map(re.escape, spellings)))
        self._error = bytearray()
        self.status = answer.status
        self.reason = answer.reason
        self.headers: RawHeaders = self._renamed_headers(theirs.encode(), ours.encode())
        self.fields: Mapping[bytes, bytes] = fields_of(self.headers)

    def _renamed_headers(self, theirs: bytes, ours: bytes) -> list[tuple[bytes, bytes]]:
        renamed = [(name, ours if value == theirs else value) for name, value in self._answer.headers]
        if self._renamer is None:
            return renamed
        kept = [(name, value) for name, value in renamed if name.lower() not in _ABOUT_BYTES]
        framed = any(name.lower() == b"transfer-encoding" for name, _ in kept)
        stated = len(kept) < len(renamed) and headers.first(renamed, (b"content-length",))
        # What had a length has chunks now; either way its end is known.
        return kept if framed or not stated else [*kept, (b"Transfer-Encoding", b"chunked")]

    def ready(self) -> bytes:
        """See `Answer.ready`; what must be renamed is waited for."""
        return self._answer.ready() if self._renamer is None else b""

    async def chunk(self, patience: float = math.inf) -> bytes:
        """See `Answer.chunk`."""
        if self._renamer is None:
            return await self._answer.chunk(patience)
        if self.status >= 400:
            return await self._whole_error(self._renamer, patience)
        while data := await self._answer.chunk(patience):
            if passed := self._renamer.feed(data):
                return passed
        return b""

    async def flow(self, take: Take, patience: float = math.inf) -> bool:
        """See `Answer.flow`; of an error, all is waited for, since the name may stand anywhere in it."""
        if self._renamer is None:
            return await self._answer.flow(take, patience)
        if self.status >= 400:
            while data := await self.chunk(patience):
                if take(data):
                    return False
            return True
        feed = self._renamer.feed
        return await self._answer.flow(lambda piece, _=b"": bool(passed := feed(piece)) and take(passed), patience)

    async def _whole_error(self, renamer: Renamer, patience: float) -> bytes:
        # Who waits may stop and wait again, so what came is kept until it is given.
        while len(self._error) < LARGEST_ERROR and (data := await self._answer.chunk(patience)):
            self._error += renamer.feed(data)
        body = bytes(self._error)
        self._error.clear()
        return self._theirs.sub(lambda _: self._ours, body)

    def abort(self) -> None:
        """See `Answer.abort`."""
        self._answer.abort()
