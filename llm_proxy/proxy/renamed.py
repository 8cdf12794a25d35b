"""An answer whose model bears the name that the client used."""

import re

from llm_proxy.errors import UpstreamInvalid
from llm_proxy.grammar import RawHeaders
from llm_proxy.proxy import headers
from llm_proxy.proxy.renaming import Renamer, reply_renamer
from llm_proxy.upstream import Answer

# They are about bytes that are not sent on.
_ABOUT_BYTES = frozenset({b"content-length", b"etag", b"content-md5", b"content-digest", b"repr-digest", b"digest"})
# A provider's error may name the model in its text.
LARGEST_ERROR = 256 * 1024


def with_clients_name(answer: Answer, theirs: str, ours: str) -> Answer:
    """The answer as the client may see it, where a mapping gave the provider another name than the client used.

    Raises:
        UpstreamInvalid: the answer is coded, though that was not asked for, so that nothing in it can be renamed.
    """
    coding = headers.first(answer.headers, (b"content-encoding",)) or "identity"
    if coding.strip().lower() != "identity":
        answer.abort()
        raise UpstreamInvalid("The provider's answer is compressed, though it was asked not to be.", sent=True)
    renamer = reply_renamer(headers.first(answer.headers, (b"content-type",)) or "", ours)
    if renamer is None:
        return answer
    return RenamedAnswer(answer, renamer, theirs, ours)


class RenamedAnswer:
    """See `Answer`."""

    def __init__(self, answer: Answer, renamer: Renamer, theirs: str, ours: str) -> None:
        self._answer = answer
        self._renamer = renamer
        # As a word of its own: a short name may be a part of others.
        self._theirs = re.compile(rb"(?<![\w.-])%b(?![\w.-])" % re.escape(theirs.encode()))
        self._ours = ours.encode()
        self.status = answer.status
        self.reason = answer.reason
        self.headers: RawHeaders = self._renamed_headers(theirs)

    def _renamed_headers(self, theirs: str) -> list[tuple[bytes, bytes]]:
        kept = [
            (name, self._ours if value == theirs.encode() else value)
            for name, value in self._answer.headers
            if name.lower() not in _ABOUT_BYTES
        ]
        framed = any(name.lower() == b"transfer-encoding" for name, _ in kept)
        stated = len(kept) < len(self._answer.headers) and headers.first(self._answer.headers, (b"content-length",))
        # What had a length has chunks now; either way its end is known.
        return kept if framed or not stated else [*kept, (b"Transfer-Encoding", b"chunked")]

    async def chunk(self) -> bytes:
        """See `Answer.chunk`."""
        if self.status >= 400:
            return await self._error()
        while data := await self._answer.chunk():
            if passed := self._renamer.feed(data):
                return passed
        return b""

    async def _error(self) -> bytes:
        body = bytearray()
        while len(body) < LARGEST_ERROR and (data := await self._answer.chunk()):
            body += self._renamer.feed(data)
        return self._theirs.sub(lambda _: self._ours, bytes(body))

    def close(self) -> None:
        """See `Answer.close`."""
        self._answer.close()

    def abort(self) -> None:
        """See `Answer.abort`."""
        self._answer.abort()
