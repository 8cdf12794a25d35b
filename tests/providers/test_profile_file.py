"""The file of profiles: what is read from it, what is refused, in which words."""

import pathlib
import sys
import textwrap

import pytest

from llm_proxy.errors import SettingsError
from llm_proxy.providers.profile_file import RETIRED, load_profiles, packaged_path
from llm_proxy.providers.profiles import Auth, Profile, Profiles, Timeouts

BEARER = Auth("Authorization", "Bearer")

GOOD = """
    default_api: mine
    apis:
      mine:
        base_url: https://api.example.com/v1/
        auth: {header: Authorization, scheme: Bearer}
        allowed_endpoints: [/v1/chat/completions, /v1/files/**]
        allowed_methods: [GET, M-SEARCH]
"""


def written(folder: pathlib.Path, text: str) -> pathlib.Path:
    """A file of profiles with this text, whose first line is line 1."""
    path = folder / "profiles.yaml"
    path.write_text(textwrap.dedent(text).lstrip("\n"))
    return path


def test_a_short_file_gets_defaults(tmp_path: pathlib.Path) -> None:
    assert load_profiles(written(tmp_path, GOOD)) == Profiles(
        "mine",
        {
            "mine": Profile(
                name="mine",
                base_url="https://api.example.com/v1",
                auth=BEARER,
                allowed_endpoints=("/v1/chat/completions", "/v1/files/**"),
                allowed_methods=("GET", "M-SEARCH"),
            )
        },
    )


def test_a_full_file_is_read(tmp_path: pathlib.Path) -> None:
    full = """
        auth_for: {/v1/x: {header: X-Key}}
        cacheable_post: []
        param_whitelist: {model: [gpt-4o, "gpt-4o-*"], stream: [false], n: [1]}
        allowed_origins: [https://app.example.com, "http://localhost:3000"]
        required_headers: [Origin, X-Team]
        timeouts: {connect: 500ms, first_byte: 1m, total: 60}
        connection: {max_idle: 7, max_idle_per_host: 0}
        default_headers: {Anthropic-Version: 2023-06-01}
        default_query: {/v1/**: {api-version: 2024-10-21}}
    """
    profile = load_profiles(written(tmp_path, GOOD + full)).get("mine")
    assert profile.auth_for == {"/v1/x": Auth("X-Key")}
    assert profile.cacheable_post == ()
    assert profile.param_whitelist == {"model": ("gpt-4o", "gpt-4o-*"), "stream": ("false",), "n": ("1",)}
    assert profile.allowed_origins == ("https://app.example.com", "http://localhost:3000")
    assert profile.required_headers == ("origin", "x-team")
    assert profile.timeouts == Timeouts(connect=0.5, first_byte=60, idle=120, total=60)
    assert (profile.max_idle, profile.max_idle_per_host) == (7, 0)
    assert profile.default_headers == {"anthropic-version": "2023-06-01"}
    assert profile.default_query == {"/v1/**": {"api-version": "2024-10-21"}}


def test_merged_keys_give_way_to_a_profiles_own(tmp_path: pathlib.Path) -> None:
    text = """
        default_api: b
        apis:
          a: &a {base_url: https://a.example, auth: {header: X}, allowed_endpoints: [/a], allowed_methods: [GET]}
          b: &b {<<: *a, base_url: https://b.example}
          c: {<<: [{base_url: https://c.example}, *b], allowed_methods: [POST]}
    """
    apis = load_profiles(written(tmp_path, text)).apis
    assert [(apis[name].base_url, apis[name].allowed_methods) for name in "abc"] == [
        ("https://a.example", ("GET",)),
        ("https://b.example", ("GET",)),
        ("https://c.example", ("POST",)),
    ]


def with_line(line: str) -> str:
    """The good file with one more line in its profile, which is line 8."""
    return f"{GOOD}        {line}\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("allowed_orgins: [https://a.example]", "did you mean allowed_origins?"),
        ("zzz: 1", "zzz is not a key here; known are base_url, auth"),
        ("timeouts: {conect: 5s}", "did you mean connect?"),
        ("connection: {max: 5}", "max is not a key here"),
        ("base_url: https://twice.example", "base_url stands twice, first in line 4"),
        ("timeouts: {idle: 1s, idle: 2s}", "idle stands twice"),
        ("default_headers: {X-A: 1, x-a: 2}", "x-a stands twice"),
        ("timeouts: {idle: soon}", "apis.mine.timeouts.idle: 'soon' is not accepted. Give a duration"),
        ("timeouts: {idle: 0s}", "a duration above 0"),
        ("timeouts: 5s", "apis.mine.timeouts must be a mapping"),
        ("connection: {max_idle: -1}", "a whole number"),
        ("connection: {max_idle: [1]}", "must be a single value"),
        ("cacheable_post: /v1/x", "must be a list"),
        ("cacheable_post: [/v1/x*]", "* for one of them"),
        ("cacheable_post: [/v1/**/x]", "only at the end"),
        ("cacheable_post: [/v1/**/**]", "only at the end"),
        ("cacheable_post: [v1/x]", "a path such as"),
        ("cacheable_post: ['']", "a path such as"),
        ("cacheable_post: [/]", "a path such as"),
        ("cacheable_post: [/v1/]", "a path such as"),
        ("cacheable_post: [/v1/../x]", "a path such as"),
        ("cacheable_post: ['/v1/x?y']", "a path such as"),
        ("auth_for: {/v1//x: {header: X}}", "a path such as"),
        ("auth_for: {/v1/x: {scheme: Bearer}}", "header is missing"),
        ("auth_for: {/v1/x: {header: X Y}}", "a header's name"),
        ("auth_for: {/v1/x: {header: X, scheme: a b}}", "one word such as Bearer"),
        ("allowed_origins: []", "is empty"),
        ("allowed_origins:", "allowed_origins must be a list"),
        ("allowed_origins: [https://a.example/]", "an origin exactly"),
        ("allowed_origins: [HTTPS://a.example]", "an origin exactly"),
        ("allowed_origins: ['*']", "an origin exactly"),
        ("allowed_origins: [~]", "has no value"),
        ("required_headers: [x_team]", "a header's name"),
        ("default_headers: {Authorization: x}", "credentials"),
        ("default_headers: {Content-Length: 5}", "framing"),
        ('default_headers: {X-A: "a\\r\\nb"}', "visible ASCII"),
        ("default_headers: {X-A: !!binary aGk=}", "must be a single value"),
        ("param_whitelist: {model: []}", "is empty"),
        ("param_whitelist: {model: gpt-4o}", "must be a list"),
        ("param_whitelist: [model]", "must be a mapping"),
        ("default_query: {/v1/x: 1}", "must be a mapping"),
        ("? [a]\n        : 1", "a key of apis.mine must be a single value"),
        ("<<: 5", "must be a mapping"),
        ("api_key: sk-1234567890", "keys are given to providers and projects"),
        ("cacheable_post: [*nowhere]", "not YAML: found undefined alias"),
        ("default_query: {", "not YAML"),
        ("\tauth_for: {}", "not YAML"),
    ],
)
def test_a_bad_line_is_reported_with_its_place(tmp_path: pathlib.Path, line: str, reason: str) -> None:
    path = written(tmp_path, with_line(line))
    with pytest.raises(SettingsError) as caught:
        load_profiles(path)
    said = str(caught.value)
    assert said.startswith(f"{path}:8: ") or (said.startswith(f"{path}:9: ") and line == "default_query: {")
    assert reason in said
    assert "sk-1234567890" not in said


@pytest.mark.parametrize("key", ["endpoints", "methods", "auth_header", "timeout", "whitelist", "allowed_params", "origins"])
def test_a_predecessors_key_is_answered_with_ours(tmp_path: pathlib.Path, key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_profiles(written(tmp_path, with_line(f"{key}: 1")))
    assert f":8: apis.mine: {key} is not a key here. Use {RETIRED[key]}." in str(caught.value)


@pytest.mark.parametrize(
    ("line", "ours"),
    [
        ("timeouts: {request: 60s}", "total"),
        ("timeouts: {response_header: 60s}", "first_byte"),
        ("connection: {max_idle_conns: 1}", "max_idle"),
        ("connection: {max_idle_conns_per_host: 1}", "max_idle_per_host"),
    ],
)
def test_a_predecessors_nested_key_is_answered_with_ours(tmp_path: pathlib.Path, line: str, ours: str) -> None:
    with pytest.raises(SettingsError, match=f"Use {ours}\\."):
        load_profiles(written(tmp_path, with_line(line)))


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("base_url: https://api.example.com/v1/", f"base_url: {url}", 4, "a URL such as")
        for url in (
            "ftp://a.example",
            "https://",
            "https://me:pw@a.example",
            "https://a.example/?x=1",
            "https://a.example/#x",
            "https://a.example:99999",
            "https://a.example:0",
            '"https://a.exa mple"',
            "https://a.example\\b",
            "https://[::1",
            "a.example",
        )
    ]
    + [
        ("base_url: https://api.example.com/v1/", "base_url:", 4, "base_url has no value"),
        ("[GET, M-SEARCH]", "[get]", 7, "a method in capitals"),
        ("[GET, M-SEARCH]", "[GET, TRACE]", 7, "TRACE, TRACK and CONNECT are never"),
        ("[GET, M-SEARCH]", "[]", 7, "allowed_methods is empty"),
        ("allowed_methods: [GET, M-SEARCH]", "", 4, "allowed_methods is missing"),
        ("auth: {header: Authorization, scheme: Bearer}", "", 4, "auth is missing"),
        ("auth: {header: Authorization, scheme: Bearer}", "auth: Bearer", 5, "auth must be a mapping"),
        ("default_api: mine", "default_api: yours", 1, "there is no profile 'yours'"),
        ("default_api: mine", "", 2, "default_api is missing"),
        ("default_api: mine", "default_provider: mine", 1, "did you mean default_api?"),
        ("apis:", "providers:", 2, "Use apis."),
        ("mine:", "My Own:", 3, "a name of small letters"),
    ],
)
def test_a_bad_value_is_reported_with_its_place(tmp_path: pathlib.Path, old: str, new: str, line: int, reason: str) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(SettingsError) as caught:
        load_profiles(path)
    # A line taken out of the beginning of the file moves the others up by one.
    assert str(caught.value).startswith((f"{path}:{line}: ", f"{path}:{line - 1}: "))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        (b"", ":1: ", "the file is empty"),
        (b"# nothing\n", ":1: ", "the file is empty"),
        (b"- a\n", ":1: ", "the file must be a mapping"),
        (b"just words", ":1: ", "the file must be a mapping"),
        (b"default_api: a\n---\napis: {}\n", ":2: ", "not YAML"),
        (b"default_api: a\napis: \xff\n", ":2: ", "not UTF-8"),
        (b"default_api: a\n\napis: \x07\n", ":3: ", "a character that YAML does not admit"),
        (b"[" * 5000, ":1: ", "nested too deeply"),
        (b"default_api: a\napis: {a: &a {<<: *a}}\n", ":1: ", "an alias contains itself"),
    ],
    ids=["empty", "comment", "list", "words", "two-documents", "latin-1", "control", "deep", "cycle"],
)
def test_a_file_that_is_no_such_thing_is_refused(tmp_path: pathlib.Path, content: bytes, place: str, reason: str) -> None:
    path = tmp_path / "profiles.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_profiles(path)
    assert str(caught.value).startswith(f"{path}{place}")
    assert reason in str(caught.value)


def test_a_byte_order_mark_does_no_harm(tmp_path: pathlib.Path) -> None:
    path = written(tmp_path, GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_profiles(path).default_api == "mine"


def test_a_missing_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_profiles(tmp_path / "nowhere.yaml")


def test_a_plain_source_tree_has_the_shipped_file_too(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = packaged_path().read_bytes()
    monkeypatch.setitem(sys.modules, "llm_proxy.config", None)
    assert packaged_path().read_bytes() == installed
