"""The breaker: when it opens, whom it lets probe, what it believes."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from llm_proxy.providers import Provider
from llm_proxy.providers.breaker import Attempt, Breaker, Breakers, State
from llm_proxy.secret import Secret

NOW = 1_800_000_000.0


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class House:
    """A breaker with its clock, and what was told of it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.told: list[tuple[State, str]] = []
        self.breaker = Breaker(lambda state, reason: self.told.append((state, reason)), self.clock)

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.begin().failed("refused")

    def states(self) -> list[State]:
        return [state for state, _ in self.told]

    def probe_after(self, seconds: float) -> Attempt:
        """The probe, which comes exactly when the time is over."""
        self.clock.now += seconds - 0.01
        assert not self.breaker.admits()
        self.clock.now += 0.02
        return self.breaker.begin()


@pytest.fixture
def house() -> House:
    return House()


def test_five_failures_in_a_row_open_it_four_do_not(house: House) -> None:
    house.fail(4)
    house.breaker.begin().answered(404)
    house.fail(4)
    assert (house.breaker.state, house.told) == ("closed", [])
    house.fail()
    assert (house.breaker.state, house.breaker.retry_after) == ("open", 10)
    assert house.told == [("open", "5 failures in a row, at last: refused")]


def test_more_than_half_of_twenty_within_ten_seconds_open_it(house: House) -> None:
    def one(*, failed: bool) -> None:
        attempt = house.breaker.begin()
        attempt.failed("slow") if failed else attempt.succeeded()

    for number in range(20):
        one(failed=bool(number % 2))
    assert house.breaker.state == "closed", "half is not more than half"
    house.clock.now += 10
    for number in range(18):
        one(failed=number % 3 != 0)
    assert house.breaker.state == "closed", "those before are forgotten, and these are too few"
    one(failed=False)
    one(failed=True)
    assert house.breaker.state == "open"
    assert house.told == [("open", "13 of 20 calls failed within 10 s, at last: slow")]


def test_it_opens_for_twice_as_long_after_each_failed_probe_and_begins_anew_when_one_went_well(house: House) -> None:
    house.fail(5)
    for seconds in (10, 20, 40, 80, 160, 300, 300):
        probe = house.probe_after(seconds)
        assert (house.breaker.state, house.breaker.admits(), house.breaker.retry_after) == ("half-open", False, 1)
        probe.answered(502)
    house.probe_after(300).answered(200)
    assert house.states() == ["open", "closed"]
    house.fail(5)
    assert house.breaker.retry_after == 10


def cancelled(attempt: Attempt) -> None:
    with contextlib.suppress(KeyboardInterrupt), attempt:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "end",
    [cancelled, Attempt.abandoned, lambda attempt: attempt.answered(429, "1")],
    ids=["cancelled", "abandoned", "asked-to-pause"],
)
def test_the_slot_of_a_probe_is_given_back_however_it_ends(house: House, end: Callable[[Attempt], Any]) -> None:
    house.fail(5)
    end(house.probe_after(10))
    house.clock.now += 1
    assert (house.breaker.state, house.breaker.admits()) == ("half-open", True)


def test_failures_that_arrive_while_it_is_open_do_not_double_it(house: House) -> None:
    slow = [house.breaker.begin() for _ in range(20)]
    house.fail(5)
    for attempt in slow[:10]:
        attempt.failed("late")
    probe = house.probe_after(10)
    slow[10].failed("late")
    assert house.breaker.retry_after == 1
    probe.succeeded()
    for attempt in slow[11:]:
        attempt.failed("late")
    assert house.breaker.state == "closed", "what began before the probe says nothing after it"


def test_calls_that_went_well_before_it_opened_do_not_close_it(house: House) -> None:
    slow = house.breaker.begin()
    house.fail(5)
    slow.succeeded()
    assert house.breaker.state == "open"


def test_only_the_first_outcome_counts(house: House) -> None:
    for _ in range(10):
        with house.breaker.begin() as attempt:
            attempt.answered(200)
            attempt.failed("the answer broke off")
    assert house.breaker.state == "closed"


def test_a_refused_key_is_bad_at_once_and_probed(house: House) -> None:
    house.breaker.begin().answered(401)
    assert house.told == [("bad_key", "the provider answered 401 to its key")]
    house.probe_after(10).answered(401)
    house.probe_after(20).failed("refused")
    assert (house.breaker.state, house.states()) == ("bad_key", ["bad_key"])
    house.probe_after(40).answered(404)
    assert (house.breaker.state, house.states()) == ("closed", ["bad_key", "closed"])


def test_403_shows_a_provider_that_works_and_says_nothing_of_its_key(house: House) -> None:
    house.fail(4)
    house.breaker.begin().answered(403)
    house.fail(4)
    assert house.breaker.state == "closed"
    house.fail()
    house.probe_after(10).answered(403)
    assert (house.breaker.state, house.states()) == ("closed", ["open", "closed"])
    house.breaker.begin().answered(401)
    house.probe_after(10).answered(403)
    assert (house.breaker.state, house.breaker.admits()) == ("bad_key", True), "the next call probes it again"


@pytest.mark.parametrize("status", [401, 429])
def test_what_only_refuses_may_be_asked_where_no_other_is_left_and_takes_no_slot(house: House, status: int) -> None:
    house.breaker.begin().answered(status, "3600")
    assert (house.breaker.admits(), house.breaker.answers) == (False, True)
    house.breaker.begin().answered(200)
    house.clock.now += 300
    assert house.breaker.admits()
    house.fail(5)
    if status == 429:
        assert (house.breaker.admits(), house.breaker.answers) == (False, False), "one that fails is not asked"


def test_a_probe_holds_its_slot_for_ten_seconds_at_most(house: House) -> None:
    house.fail(5)
    slow = house.probe_after(10)
    house.clock.now += 9.9
    assert not house.breaker.admits()
    house.clock.now += 0.1
    house.breaker.begin().succeeded()
    slow.failed("late")
    assert house.breaker.state == "closed", "the probe after it has the word"


def test_a_key_refused_while_it_is_open_is_bad_without_doubling(house: House) -> None:
    slow = house.breaker.begin()
    house.fail(5)
    slow.answered(401)
    assert (house.breaker.state, house.breaker.retry_after, house.states()) == ("bad_key", 10, ["open", "bad_key"])


def test_another_key_is_tried_at_once_and_the_old_one_speaks_no_more(house: House) -> None:
    slow = [house.breaker.begin() for _ in range(2)]
    house.breaker.begin().answered(401)
    house.breaker.key_changed()
    slow[0].answered(401)
    slow[1].answered(429)
    assert (house.breaker.state, house.breaker.admits()) == ("closed", True)
    assert house.told[-1] == ("closed", "the key was changed")


def test_a_good_key_is_not_called_bad_by_calls_of_the_key_before(house: House) -> None:
    slow = house.breaker.begin()
    house.breaker.key_changed()
    slow.answered(401)
    assert house.breaker.state == "closed"


def test_a_key_that_a_probe_found_good_is_not_called_bad_by_earlier_calls(house: House) -> None:
    slow = house.breaker.begin()
    house.breaker.begin().answered(401)
    house.probe_after(10).succeeded()
    slow.answered(401)
    assert house.breaker.state == "closed"


def test_another_key_does_not_mend_a_provider_that_fails(house: House) -> None:
    house.fail(5)
    house.breaker.key_changed()
    assert house.breaker.state == "open"


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("", 15),
        ("7", 7),
        ("0", 15),
        ("-1", 15),
        ("soon", 15),
        ("86400", 300),
        ("9" * 100, 300),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60),
        ("Fri, 15 Jan 2027 07:01:00 GMT", 15),
        ("Fri, 15 Jan 2038 08:01:00 GMT", 300),
    ],
)
def test_429_cools_for_what_was_asked(house: House, said: str, seconds: float) -> None:
    house.breaker.begin().answered(429, said, NOW)
    assert (house.breaker.state, house.breaker.retry_after) == ("cooling", seconds)
    house.clock.now += seconds
    assert (house.breaker.state, house.breaker.admits()) == ("closed", True)


def test_429_without_a_word_cools_twice_as_long_each_time_until_a_call_goes_well(house: House) -> None:
    for seconds in (15, 30, 60, 120, 240, 300, 300):
        house.breaker.begin().answered(429)
        assert house.breaker.retry_after == seconds
        house.clock.now += seconds
    house.breaker.begin().succeeded()
    house.breaker.begin().answered(429)
    assert house.breaker.retry_after == 15


def test_429s_of_calls_under_way_make_a_pause_longer_only_by_what_they_were_told(house: House) -> None:
    slow = [house.breaker.begin() for _ in range(4)]
    house.breaker.begin().answered(429)
    slow[0].answered(429)
    slow[1].answered(429, "3")
    assert house.breaker.retry_after == 15
    slow[2].answered(429, "60")
    assert (house.breaker.retry_after, house.states()) == (60, ["cooling"])
    slow[3].succeeded()
    house.clock.now += 60
    house.breaker.begin().answered(429)
    assert house.breaker.retry_after == 30, "a call that began before the pause does not show that it is over"


def test_429_is_no_failure_and_mends_none(house: House) -> None:
    house.fail(4)
    for _ in range(30):
        house.breaker.begin().answered(429, "1")
        house.clock.now += 1
    assert house.breaker.state == "closed"
    house.fail()
    assert house.breaker.state == "open"


def provider(id: str = "p1", key: str = "sk-one", updated_at: int = 1) -> Provider:
    return Provider(
        id=id,
        project_id=None,
        name=id,
        provider_type="openai",
        api_base="",
        api_key=Secret(key),
        weight=1,
        provider_params={},
        is_enabled=True,
        created_at=1,
        updated_at=updated_at,
    )


def test_a_reload_resets_nothing_and_one_bad_key_shuts_no_neighbour() -> None:
    told: list[str] = []
    breakers = Breakers(lambda id, state, reason: told.append(f"{id} {state}"), Clock())
    breakers.of(provider()).begin().answered(401)
    assert breakers.of(provider(updated_at=2)).state == "bad_key"
    assert breakers.of(provider("p2")).state == "closed"
    assert {id: breaker.state for id, breaker in breakers} == {"p1": "bad_key", "p2": "closed"}
    breakers.forget("p1")
    assert breakers.of(provider()).state == "closed"
    assert told == ["p1 bad_key"]


def test_a_new_key_is_known_as_one_and_an_old_snapshot_does_not_bring_the_old_one_back() -> None:
    breakers = Breakers(lambda id, state, reason: None, Clock())
    breakers.of(provider()).begin().answered(401)
    assert breakers.of(provider(key="sk-two", updated_at=2)).state == "closed"
    breakers.of(provider(key="sk-two", updated_at=2)).begin().answered(401)
    assert breakers.of(provider(key="sk-one", updated_at=1)).state == "bad_key"


class BreakerMachine(RuleBasedStateMachine):
    """The rules as the specification says them, beside the breaker; time passes in whole seconds.

    Attributes:
        running: the attempts under way, each with whether it began since the breaker closed.
        past: the outcomes since it closed, with their second.
    """

    kind: type[Breaker] = Breaker

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = self.kind(lambda state, reason: None, self.clock)
        self.running: list[tuple[Attempt, int]] = []
        self.probe: Attempt | None = None
        self.past: list[tuple[float, bool]] = []
        self.open_until: float | None = None
        self.openings = self.closings = 0
        self.cool_until = self.probe_until = 0.0

    def open(self) -> None:
        self.open_until = self.clock.now + min(10 * 2**self.openings, 300)
        self.openings += 1
        self.past = []

    def take(self, data: st.DataObject) -> tuple[Attempt, bool, bool]:
        """An attempt that is to end: whether it is the probe, and whether its outcome is believed while closed."""
        attempt, closings = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        was_probe = attempt is self.probe
        if was_probe:
            self.probe = None
        return attempt, was_probe, self.open_until is None and closings == self.closings

    def count(self, *, failed: bool) -> None:
        self.past.append((self.clock.now, failed))
        recent = [failed for at, failed in self.past if at > self.clock.now - 10]
        if [failed for _, failed in self.past[-5:]] == [True] * 5 or (len(recent) >= 20 and sum(recent) * 2 > len(recent)):
            self.open()

    @precondition(lambda self: self.breaker.admits())
    @rule(times=st.sampled_from([1, 5, 20]))
    def begin(self, times: int) -> None:
        for _ in range(times if self.open_until is None else 1):
            attempt = self.breaker.begin()
            self.running.append((attempt, self.closings))
            if self.open_until is not None:
                assert self.probe is None or self.clock.now >= self.probe_until, "one probe at a time"
                self.probe, self.probe_until = attempt, self.clock.now + 10

    @rule(seconds=st.sampled_from([1, 2, 5, 10, 20, 300]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @precondition(lambda self: self.running)
    @rule(data=st.data(), failed=st.booleans(), times=st.sampled_from([1, 5, 20]))
    def end(self, data: st.DataObject, failed: bool, times: int) -> None:
        for _ in range(min(times, len(self.running))):
            attempt, was_probe, believed = self.take(data)
            attempt.answered(503 if failed else 200)
            if was_probe and failed:
                self.open()
            elif was_probe:
                self.open_until, self.openings, self.past = None, 0, []
                self.closings += 1
            elif believed:
                self.count(failed=failed)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        self.take(data)[0].abandoned()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), seconds=st.integers(1, 400))
    def be_asked_to_pause(self, data: st.DataObject, seconds: int) -> None:
        self.take(data)[0].answered(429, str(seconds))
        self.cool_until = max(self.cool_until, self.clock.now + min(seconds, 300))

    @invariant()
    def it_admits_what_it_should(self) -> None:
        now = self.clock.now
        probing = self.probe is not None and now < self.probe_until
        shut = self.open_until is not None and (now < self.open_until or probing)
        assert self.breaker.admits() == (not shut and now >= self.cool_until)
        if self.open_until is not None:
            assert self.breaker.state == ("open" if now < self.open_until else "half-open")
        else:
            assert self.breaker.state == ("cooling" if now < self.cool_until else "closed")


class LosesItsProbe(Breaker):
    """A seeded bug: a probe that is given up keeps its slot."""

    def _take_back_probe(self, attempt: Attempt) -> bool:
        return attempt is self._probe


class BelievesLateFailures(Breaker):
    """A seeded bug: a failure that arrives while it is open opens it anew."""

    def _counts(self, attempt: Attempt) -> bool:
        return True


def run(kind: type[Breaker], examples: int) -> None:
    machine = type("Machine", (BreakerMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=True,
            report_multiple_bugs=False,
            # What is found is not made smaller, which would take a minute.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_it_keeps_its_rules_in_any_order_of_calls_and_outcomes() -> None:
    run(Breaker, 60)


@pytest.mark.parametrize("kind", [LosesItsProbe, BelievesLateFailures])
def test_the_machine_finds_a_seeded_bug(kind: type[Breaker]) -> None:
    with pytest.raises(AssertionError):
        run(kind, 500)


def test_status_tells_people_what_a_breaker_is_and_why() -> None:
    clock = Clock()
    breakers = Breakers(lambda id, state, reason: None, clock)
    assert breakers.status(provider()) == ("closed", None)
    assert list(breakers) == []
    breakers.of(provider()).begin().answered(429, "30")
    assert breakers.status(provider()) == ("cooling", "the provider answered 429, so it is left alone for 30 s")
    clock.now += 31
    assert breakers.status(provider()) == ("closed", None)
    breakers.of(provider()).begin().answered(401)
    assert breakers.status(provider()) == ("bad_key", "the provider answered 401 to its key")
    assert breakers.status(provider(key="sk-two", updated_at=2)) == ("closed", None)


def test_a_pause_does_not_hide_why_a_breaker_is_open(house: House) -> None:
    late = house.breaker.begin()
    house.fail(5)
    late.answered(429, "5")
    assert house.breaker.state == "open"
    assert house.breaker.reason.startswith("5 failures in a row")
