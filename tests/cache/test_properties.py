"""What holds of the cache's rules for every request, response and clock."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.cache import Entry, Hit, StaleWhileRevalidate, rules

NOW = 1_800_000_000.0

unhurried = settings(deadline=None, max_examples=300)

names = st.sampled_from(["Foo", "Bar", "Baz"])
words = st.text("abc123", min_size=1, max_size=3)
directives = st.lists(
    st.sampled_from(
        [
            "public",
            "private",
            "max-age=5",
            "max-age=90",
            "s-maxage=30",
            "max-age=a",
            "must-revalidate",
            "no-cache",
            'x="max-age=99"',
        ]
    ),
    max_size=4,
)
wishes = st.lists(st.sampled_from(["max-age=20", "min-fresh=10", "no-cache", "foo", "only-if-cached"]), max_size=3)
others = st.lists(st.sampled_from([(b"ETag", b'"a"'), (b"Age", b"3"), (b"Date", b"x"), (b"Expires", b"0"), (b"Vary", b"Foo")]))


def stored(headers: list[tuple[bytes, bytes]], asked: list[tuple[bytes, bytes]] | None = None) -> Entry | None:
    lookup = rules.read_request("GET", asked or [])
    terms = rules.may_store(lookup, 200, headers, NOW, default_ttl=300)
    if terms is None:
        return None
    response = (200, "", headers)
    return rules.entry_of(terms, lookup, response, b"0123456789", project="p", path="/", request_time=NOW, response_time=NOW)


@unhurried
@given(directives, others, wishes, st.floats(-200, 200))
def test_a_hit_is_never_older_than_its_lifetime(
    said: list[str], more: list[tuple[bytes, bytes]], wished: list[str], passed: float
) -> None:
    entry = stored([(b"Cache-Control", ", ".join(said).encode()), *more])
    if entry is None:
        return
    lookup = rules.read_request("GET", [(b"Cache-Control", ", ".join(wished).encode())])
    decision = rules.decide([entry], lookup, NOW + passed)
    assert not isinstance(decision, StaleWhileRevalidate)
    if isinstance(decision, Hit):
        lifetimes = {"max-age=5": 5, "max-age=90": 90, "max-age=a": 0}
        stated = 30 if "s-maxage=30" in said else min(lifetimes[directive] for directive in said if directive in lifetimes)
        age = 3 if (b"Age", b"3") in more else 0
        assert abs(passed) + age < stated
        assert "no-cache" not in [*said, *wished]
        if "max-age=20" in wished:
            assert abs(passed) + age <= 20


@unhurried
@given(directives, others, st.integers(0, 4), st.sampled_from(["no-store", "No-Store", "NO-STORE", "no-store=1"]))
def test_no_store_is_never_stored(said: list[str], more: list[tuple[bytes, bytes]], place: int, spelling: str) -> None:
    said = [*said[:place], spelling, *said[place:]]
    assert stored([(b"Cache-Control", ",".join(said).encode()), *more]) is None
    assert stored([*more, (b"cache-control", b"max-age=60"), (b"Cache-Control", ",".join(said).encode())]) is None


@unhurried
@given(directives, others)
def test_nothing_is_stored_for_a_request_that_says_no_store(said: list[str], more: list[tuple[bytes, bytes]]) -> None:
    headers = [(b"Cache-Control", ", ".join(["max-age=60", *said]).encode()), *more]
    assert stored(headers, [(b"Cache-Control", b"no-store")]) is None


parts = st.text(max_size=8)


@unhurried
@given(parts, parts, parts, parts, st.none() | parts, st.none() | parts)
def test_two_partitions_never_share_a_key(
    one: str, other: str, path: str, its_path: str, query: str | None, its_query: str | None
) -> None:
    if one != other:
        assert rules.primary_key(one, "GET", path, query) != rules.primary_key(other, "GET", its_path, its_query)


@unhurried
@given(st.lists(names), st.dictionaries(names, words), st.dictionaries(names, words))
def test_a_request_is_answered_by_what_was_stored_for_one_like_it(
    vary: list[str], first: dict[str, str], second: dict[str, str]
) -> None:
    entry = stored(
        [(b"Cache-Control", b"max-age=60"), (b"Vary", ", ".join(vary).encode())],
        [(name.encode(), value.encode()) for name, value in first.items()],
    )
    assert entry is not None
    lookup = rules.read_request("GET", [(name.lower().encode(), value.encode()) for name, value in second.items()])
    alike = all(first.get(name) == second.get(name) for name in vary)
    assert isinstance(rules.decide([entry], lookup, NOW), Hit) is alike


@unhurried
@given(st.integers(0, 12), st.none() | st.integers(0, 12))
def test_a_range_is_what_it_is_of_the_body(first: int, last: int | None) -> None:
    entry = stored([(b"Cache-Control", b"max-age=60")])
    assert entry is not None
    lookup = rules.read_request("GET", [(b"Range", f"bytes={first}-{'' if last is None else last}".encode())])
    served = rules.serve(entry, lookup, NOW)
    if served.status == 206:
        assert served.body == entry.body[first : None if last is None else last + 1]
    else:
        assert first >= len(entry.body) or (last is not None and first > last)


@unhurried
@given(directives, others, st.floats(0, 200))
def test_a_validated_response_keeps_its_body_and_gets_no_older(
    said: list[str], more: list[tuple[bytes, bytes]], passed: float
) -> None:
    entry = stored([(b"Cache-Control", b"max-age=60"), (b"ETag", b'"v"')])
    assert entry is not None
    lookup = rules.read_request("GET", [])
    came = [(b"Cache-Control", ", ".join(said).encode()), *more]
    after, _ = rules.freshened(entry, lookup, came, request_time=NOW + passed, response_time=NOW + passed)
    assert after.body == entry.body
    assert after.conditions == entry.conditions
    if not any(name == b"Age" for name, _ in more):
        assert after.age(NOW + passed) == 0
