"""What is limited, as values: rates, parallel slots, the decision on a request."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from llm_proxy.errors import ApiError
from llm_proxy.limits.window import Window

MILLISECOND = 1_000_000
SECOND = 1000 * MILLISECOND
MINUTE = 60 * SECOND
# A second, a minute and a window of the token, a second and a minute of its project.
MOST_RATES = 5
# A call may end at any time, so there is no knowing when a slot becomes free.
WAIT_FOR_SLOT = SECOND


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `limit` requests in any `span` nanoseconds.

    Attributes:
        key: what it is counted under; keys of one project share a hash tag, so that one Redis node holds them all.
    """

    key: str
    limit: int
    span: int


@dataclass(frozen=True, slots=True)
class Slots:
    """At most `limit` calls at the same time."""

    key: str
    limit: int


@dataclass(frozen=True, slots=True)
class Limits:
    """All that one request has to fit into, besides its quota."""

    rates: tuple[Rate, ...] = ()
    slots: tuple[Slots, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rates or self.slots)


class Bounded(Protocol):
    """A row with limits, such as a project's; None stands for what is behind it, 0 for none."""

    @property
    def rate_limit(self) -> int | None:
        """Requests a second."""

    @property
    def rate_limit_per_minute(self) -> int | None:
        """Requests a minute."""

    @property
    def max_parallel(self) -> int | None:
        """Calls at the same time."""


class LimitedToken(Bounded, Protocol):
    """A token's row, as far as limits go."""

    @property
    def id(self) -> str:
        """The token's id."""

    @property
    def project_id(self) -> str:
        """Its project's id."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits by themselves, such as those of the settings."""

    rate_limit: int | None = None
    rate_limit_per_minute: int | None = None
    max_parallel: int | None = None


def limits_of(token: LimitedToken, project: Bounded, default: Bounds, distributed: tuple[int, float] = (0, 60.0)) -> Limits:
    """What a token's requests have to fit into.

    Args:
        project: its limits are shared by its tokens; they also stand in where the token has none of its own.
        default: what a token gets when neither it nor its project says anything.
        distributed: how many requests in how many seconds each token may make, where limits are counted in Redis; 0 for any.
    """
    own, shared = f"{{{token.project_id}}}:token:{token.id}", f"{{{token.project_id}}}:project"
    rates = (
        Rate(f"{own}:second", _own(token.rate_limit, project.rate_limit, default.rate_limit), SECOND),
        Rate(
            f"{own}:minute",
            _own(token.rate_limit_per_minute, project.rate_limit_per_minute, default.rate_limit_per_minute),
            MINUTE,
        ),
        Rate(f"{own}:window", distributed[0], round(distributed[1] * SECOND)),
        Rate(f"{shared}:second", project.rate_limit or 0, SECOND),
        Rate(f"{shared}:minute", project.rate_limit_per_minute or 0, MINUTE),
    )
    slots = (
        Slots(f"{own}:parallel", _own(token.max_parallel, project.max_parallel, default.max_parallel)),
        Slots(f"{shared}:parallel", project.max_parallel or 0),
    )
    return Limits(tuple(rate for rate in rates if rate.limit), tuple(slot for slot in slots if slot.limit))


class TokenOfProject(LimitedToken, Protocol):
    """A token's row, with the limits of its project."""

    @property
    def project_rate_limit(self) -> int | None:
        """Requests a second of all the project's tokens."""

    @property
    def project_rate_limit_per_minute(self) -> int | None:
        """Requests a minute of all the project's tokens."""

    @property
    def project_max_parallel(self) -> int | None:
        """Calls of all the project's tokens at the same time."""


class KnownLimits:
    """The limits of tokens, worked out once for each row.

    Args:
        default, distributed: as `limits_of` takes them.
        most: how many tokens are remembered.
    """

    def __init__(self, default: Bounds, distributed: tuple[int, float], most: int) -> None:
        self._default = default
        self._distributed = distributed
        self._most = max(1, most)
        self._known: dict[str, tuple[TokenOfProject, Limits]] = {}

    def of(self, token: TokenOfProject) -> Limits:
        """What the token's requests have to fit into; a row that was read anew is a new object."""
        known = self._known.get(token.id)
        if known and known[0] is token:
            return known[1]
        if len(self._known) >= self._most:
            self._known.clear()
        project = Bounds(token.project_rate_limit, token.project_rate_limit_per_minute, token.project_max_parallel)
        limits = limits_of(token, project, self._default, self._distributed)
        self._known[token.id] = (token, limits)
        return limits


def _own(token: int | None, project: int | None, default: int | None) -> int:
    if token is not None:
        return token
    # A token that takes over its project's limit cannot exceed it before the project does, so it is counted once.
    return 0 if project is not None else default or 0


@dataclass(slots=True)
class Receipt:
    """What a granted request took, to be given back or released once.

    Attributes:
        id: under which its slots are held.
        entries: its places in the windows of this process.
        numbers: its places in the windows in Redis, one for each rate, or none.
    """

    id: str
    limits: Limits
    entries: list[tuple[Window, int]] = field(default_factory=list)
    numbers: tuple[int, ...] = ()


class Standing(NamedTuple):
    """How far a rate is used up; `reset` is when the whole limit is free again, in nanoseconds from now."""

    limit: int
    remaining: int
    reset: int

    def headers(self) -> dict[str, str]:
        """The rate for the client, on any answer."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": duration(self.reset),
        }

    def without_one(self) -> "Standing":
        """The same once the request that found it was given back."""
        remaining = min(self.remaining + 1, self.limit)
        return self._replace(remaining=remaining, reset=0 if remaining == self.limit else self.reset)


@dataclass(slots=True)
class Decision:
    """Whether a request fits.

    Attributes:
        wait: nanoseconds until it would fit if nobody else came; 0 when it is granted.
        standing: the tightest rate, None without any.
        full: whether a slot is missing.
        receipt: what was taken, until it is given back or released.
    """

    wait: int = 0
    standing: Standing | None = None
    full: bool = False
    receipt: Receipt | None = None

    @property
    def granted(self) -> bool:
        """Whether the request may go on."""
        return not self.wait

    def headers(self) -> dict[str, str]:
        """The tightest rate for the client, on any answer; a refusal also says when to come again."""
        headers = self.standing.headers() if self.standing else {}
        if self.wait:
            headers["Retry-After"] = str(_ceil(self.wait, SECOND))
            headers["retry-after-ms"] = str(_ceil(self.wait, MILLISECOND))
        return headers

    def refusal(self) -> ApiError:
        """The answer to a request that was not granted."""
        what = "Too many calls of this token or its project are in flight" if self.full else "Requests come too fast"
        return ApiError(
            "rate_limit_exceeded",
            f"{what}. Try again in {duration(self.wait)}, or ask for a higher limit.",
            headers=self.headers(),
        )


def tightest(standings: list[Standing]) -> Standing | None:
    """The rate with the fewest requests left; of several, the one that takes longest to be free again."""
    return min(standings, key=lambda each: (each.remaining, -each.reset), default=None)


def duration(nanoseconds: int) -> str:
    """A duration as OpenAI's headers write it, rounded up to a millisecond: `17ms`, `8.64s`, `6m0s`, `1h0m5.5s`."""
    milliseconds = _ceil(nanoseconds, MILLISECOND)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{f'{hours}h' if hours else ''}{f'{minutes}m' if hours or minutes else ''}{seconds}s"


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit)
