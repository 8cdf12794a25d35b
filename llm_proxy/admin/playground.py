"""What the playground keeps in memory for a while: its own tokens, answers for browsers without scripts."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llm_proxy.admin.asking import Outcome, Question
from llm_proxy.chats import Messages
from llm_proxy.secret import Secret

# Of each token of the playground.
TOKEN_MINUTES, TOKEN_REQUESTS = 10, 20
# It is used until a minute before its end.
TOKEN_SECONDS = (TOKEN_MINUTES - 1) * 60
TALK_SECONDS = 15 * 60
MOST_TALKS = 40
MOST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Talk:
    """A conversation up to its last answer.

    Attributes:
        form: what was filled in, without the token.
        messages: those that the conversation goes on from.
    """

    form: Mapping[str, str]
    messages: Messages
    question: Question
    outcome: Outcome

    @property
    def size(self) -> int:
        """About how many bytes it holds."""
        said = sum(len(one["content"]) for one in self.messages)
        return said + sum(map(len, self.form.values())) + len(self.question.body) + len(self.outcome.text) + len(self.outcome.raw)


@dataclass
class _Lent:
    token: Secret
    until: float
    left: int


class Playground:
    """Each session has its own; nothing of it is stored.

    Args:
        clock: seconds that only ever grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lent: dict[tuple[str, str], _Lent] = {}
        self._talks: OrderedDict[tuple[str, str], tuple[float, Talk]] = OrderedDict()

    def token_of(self, session: str, project_id: str) -> Secret | None:
        """The token with which this session asks for a project once more; None when it is time for a new one."""
        self._lent = {key: lent for key, lent in self._lent.items() if lent.left and self._clock() < lent.until}
        lent = self._lent.get((session, project_id))
        if lent is None:
            return None
        lent.left -= 1
        return lent.token

    def lend(self, session: str, project_id: str, token: Secret) -> None:
        """A token that was just made, for its first question."""
        self._lent[session, project_id] = _Lent(token, self._clock() + TOKEN_SECONDS, TOKEN_REQUESTS - 1)

    def forget(self, token: Secret) -> None:
        """A token was refused, so that the next question gets another."""
        self._lent = {key: lent for key, lent in self._lent.items() if lent.token is not token}

    def keep(self, session: str, talk: Talk) -> str:
        """Keep a conversation until it is too old, or there are too many; returns its id."""
        id = secrets.token_urlsafe(16)
        self._talks[session, id] = (self._clock() + TALK_SECONDS, talk)
        self._sweep()
        return id

    def find(self, session: str, id: str) -> Talk | None:
        """A conversation of this session."""
        self._sweep()
        _, talk = self._talks.get((session, id), (0.0, None))
        return talk

    def _sweep(self) -> None:
        sizes = {key: talk.size for key, (_, talk) in self._talks.items()}
        for key, (until, _) in list(self._talks.items()):
            if self._clock() >= until or len(sizes) > MOST_TALKS or sum(sizes.values()) > MOST_BYTES:
                del self._talks[key], sizes[key]
