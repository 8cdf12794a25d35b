"""An operator is known by a management token; guesses are few."""

import pytest

from llm_proxy.errors import ApiError
from llm_proxy.operators import FAILURES, Operators
from llm_proxy.secret import Secret

GOOD, OTHER = "management-token-one-of-good-length", "management-token-two-of-good-length"
HOME, AWAY = "192.0.2.1", "192.0.2.2"


class Clock:
    """Time that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def operators(clock: Clock) -> Operators:
    return Operators([Secret(GOOD), Secret(OTHER)], clock)


def refused(operators: Operators, authorization: str, address: str = HOME) -> ApiError:
    with pytest.raises(ApiError) as caught:
        operators.recognise(authorization, address)
    return caught.value


@pytest.mark.parametrize("authorization", [f"Bearer {GOOD}", f"bearer {GOOD}", f"BEARER   {GOOD} "])
def test_good_token_is_recognised(operators: Operators, authorization: str) -> None:
    assert operators.recognise(authorization, HOME).startswith("operator:")


def test_each_token_has_a_name_of_its_own_that_does_not_give_it_away(operators: Operators) -> None:
    names = [operators.recognise(f"Bearer {token}", HOME) for token in (GOOD, OTHER, GOOD)]
    assert names[0] == names[2] != names[1]
    assert not [name for name in names if "token" in name]


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param("", id="none"),
        pytest.param("Bearer", id="no token"),
        pytest.param("Bearer ", id="empty token"),
        pytest.param(GOOD, id="no scheme"),
        pytest.param(f"Basic {GOOD}", id="another scheme"),
        pytest.param(f"Bearer {GOOD}x", id="longer"),
        pytest.param(f"Bearer {GOOD[:-1]}", id="shorter"),
        pytest.param(f"Bearer {GOOD.upper()}", id="other case"),
        pytest.param(f"Bearer {GOOD},{OTHER}", id="both"),
        pytest.param("Bearer gr\u00fc\u00dfe", id="not ASCII"),
        pytest.param("Bearer \udce9", id="not UTF-8"),
    ],
)
def test_anything_else_is_refused(operators: Operators, authorization: str) -> None:
    error = refused(operators, authorization)
    assert (error.code, error.headers) == ("invalid_management_token", {"WWW-Authenticate": "Bearer"})


def test_without_tokens_nobody_is_an_operator() -> None:
    assert refused(Operators([]), "Bearer ").code == "invalid_management_token"


def test_token_beyond_ascii_is_recognised_as_the_parser_gives_it() -> None:
    raw = "Schlüssel-der-Verwaltung-lang-genug"
    assert Operators([Secret(raw)]).recognise("Bearer " + raw.encode().decode("ascii", "surrogateescape"), HOME)


def test_many_failures_lock_the_address_even_for_the_good_token(operators: Operators) -> None:
    codes = [refused(operators, "Bearer wrong").code for _ in range(FAILURES)]
    assert codes == ["invalid_management_token"] * FAILURES
    error = refused(operators, f"Bearer {GOOD}")
    assert (error.code, error.headers["Retry-After"]) == ("too_many_failures", "60")
    assert operators.recognise(f"Bearer {GOOD}", AWAY)


def test_lock_ends_a_minute_after_the_first_failure(operators: Operators, clock: Clock) -> None:
    for _ in range(FAILURES):
        refused(operators, "Bearer wrong")
        clock.now += 1
    clock.now = 1059.5
    error = refused(operators, f"Bearer {GOOD}")
    assert (error.code, error.headers["Retry-After"]) == ("too_many_failures", "1")
    clock.now = 1060
    assert operators.recognise(f"Bearer {GOOD}", HOME)
    assert refused(operators, "Bearer wrong").code == "invalid_management_token"
    assert refused(operators, f"Bearer {GOOD}").code == "too_many_failures"


def test_attempts_while_locked_do_not_prolong_the_lock(operators: Operators, clock: Clock) -> None:
    for _ in range(FAILURES * 3):
        refused(operators, "Bearer wrong")
    clock.now += 60
    assert operators.recognise(f"Bearer {GOOD}", HOME)


def test_success_is_no_failure(operators: Operators) -> None:
    for _ in range(FAILURES * 2):
        operators.recognise(f"Bearer {GOOD}", HOME)
    assert refused(operators, "Bearer wrong").code == "invalid_management_token"
