"""Provider profiles: the shipped file, matching by segments, and the reading of files good or bad."""

import pathlib
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.errors import InvalidField, SettingsError
from llm_proxy.providers.profiles import RETIRED, Auth, Profile, Profiles, Timeouts, load_profiles, matches, packaged_path

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


@pytest.fixture(scope="module")
def shipped() -> Profiles:
    return load_profiles(packaged_path())


# Matching


@pytest.mark.parametrize(
    ("pattern", "path", "admitted"),
    [
        ("/v1/models", "/v1/models", True),
        ("/v1/models", "/v1/modelsX", False),
        ("/v1/models", "/v1/models/", False),
        ("/v1/models", "/v1/models/gpt-4o", False),
        ("/v1/models", "/v2/v1/models", False),
        ("/v1/models", "/v1/models\n", False),
        ("/v1/models", "", False),
        ("/v1/a.c", "/v1/abc", False),
        ("/v1/*", "/v1/models", True),
        ("/v1/*", "/v1/", False),
        ("/v1/*", "/v1", False),
        ("/v1/*", "/v1/models/gpt-4o", False),
        ("/openai/deployments/*/embeddings", "/openai/deployments/ada/embeddings", True),
        ("/openai/deployments/*/embeddings", "/openai/deployments/a/b/embeddings", False),
        ("/openai/deployments/*/embeddings", "/openai/deployments//embeddings", False),
        ("/v1/files/**", "/v1/files", True),
        ("/v1/files/**", "/v1/files/f1", True),
        ("/v1/files/**", "/v1/files/f1/content", True),
        ("/v1/files/**", "/v1/files/", False),
        ("/v1/files/**", "/v1/files/f1/", False),
        ("/v1/files/**", "/v1/filesX", False),
        ("/v1/files/**", "/v1/filesX/f1", False),
        ("/**", "/anything/at/all", True),
        ("/**", "/", False),
    ],
)
def test_a_pattern_admits_by_whole_segments(pattern: str, path: str, admitted: bool) -> None:
    assert matches(pattern, path) is admitted


segments = st.text(st.sampled_from("abz019.-_~%:+$()[]|\\^?{}"), min_size=1, max_size=6)
paths = st.lists(segments, min_size=1, max_size=5).map(lambda parts: "/" + "/".join(parts))


@given(paths, paths)
def test_a_literal_path_admits_itself_only(pattern: str, path: str) -> None:
    assert matches(pattern, pattern)
    assert matches(pattern, path) is (pattern == path)


@given(paths, st.text(min_size=1))
def test_nothing_may_be_put_behind_a_literal_path(path: str, more: str) -> None:
    assert not matches(path, path + more)


@given(paths, segments.filter(lambda text: "/" not in text))
def test_two_stars_take_no_part_of_a_segment(path: str, more: str) -> None:
    assert matches(f"{path}/**", path)
    assert matches(f"{path}/**", f"{path}/{more}")
    assert not matches(f"{path}/**", f"{path}{more}")


@given(st.lists(segments, min_size=1, max_size=5), st.data())
def test_a_star_takes_exactly_one_segment(parts: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(parts) - 1))
    pattern = "/" + "/".join([*parts[:place], "*", *parts[place + 1 :]])
    assert matches(pattern, "/" + "/".join(parts))
    assert not matches(pattern, "/" + "/".join([*parts[:place], *parts[place + 1 :]]))
    assert not matches(pattern, "/" + "/".join([*parts, "x"]))


# The shipped file


@pytest.mark.parametrize(
    ("name", "base_url", "auth"),
    [
        ("openai", "https://api.openai.com", BEARER),
        ("anthropic", "https://api.anthropic.com", Auth("x-api-key")),
        ("azure", "", Auth("api-key")),
        ("mistral", "https://api.mistral.ai", BEARER),
        ("groq", "https://api.groq.com/openai/v1", BEARER),
        ("openrouter", "https://openrouter.ai/api/v1", BEARER),
        ("custom", "", BEARER),
    ],
)
def test_shipped_profile(shipped: Profiles, name: str, base_url: str, auth: Auth) -> None:
    profile = shipped.get(name)
    assert (profile.name, profile.base_url, profile.auth) == (name, base_url, auth)
    assert profile.timeouts == Timeouts(connect=5, first_byte=600, idle=120, total=3600)
    assert (profile.max_idle, profile.max_idle_per_host) == (100, 20)
    assert not profile.param_whitelist
    assert not profile.allowed_origins
    assert profile.admits("/v1/chat/completions")


def test_shipped_file_holds_these_profiles_and_no_other(shipped: Profiles) -> None:
    assert list(shipped.apis) == ["openai", "anthropic", "azure", "mistral", "groq", "openrouter", "custom"]
    assert shipped.default_api == "openai"


@pytest.mark.parametrize(
    "path",
    [
        *("chat/completions", "completions", "embeddings", "models", "models/gpt-4o", "responses", "responses/r1/input_items"),
        *("moderations", "images/generations", "audio/speech", "files", "files/f1/content", "uploads/u1/parts"),
        *("batches/b1/cancel", "fine_tuning/jobs/j1", "threads/t1/runs", "assistants/a1", "vector_stores/v1/files"),
    ],
)
def test_openai_admits(shipped: Profiles, path: str) -> None:
    assert shipped.get("openai").admits(f"/v1/{path}")


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v1/messages", "/v1/organization/admin_api_keys", "/v1/chat/completionsX", "/v1/evals", "/manage"],
)
def test_openai_does_not_admit(shipped: Profiles, path: str) -> None:
    assert not shipped.get("openai").admits(path)


def test_custom_has_openais_rules(shipped: Profiles) -> None:
    openai, custom = vars(shipped.get("openai")).copy(), vars(shipped.get("custom")).copy()
    for own in ("name", "base_url"):
        assert openai.pop(own) != custom.pop(own)
    assert custom == openai


@pytest.mark.parametrize(
    ("path", "auth"),
    [("/v1/messages", Auth("x-api-key")), ("/v1/models/claude", Auth("x-api-key")), ("/v1/chat/completions", BEARER)],
)
def test_anthropic_takes_bearer_for_openais_dialect(shipped: Profiles, path: str, auth: Auth) -> None:
    assert shipped.get("anthropic").admits(path)
    assert shipped.get("anthropic").auth_of(path) == auth


def test_anthropic_version_has_a_default(shipped: Profiles) -> None:
    assert shipped.get("anthropic").default_headers == {"anthropic-version": "2023-06-01"}


def test_creating_a_batch_is_not_cacheable(shipped: Profiles) -> None:
    listed = [pattern for profile in shipped.apis.values() for pattern in profile.cacheable_post]
    created = ["/v1/messages/batches", "/v1/batches", "/v1/files", "/v1/fine_tuning/jobs", "/v1/batch/jobs", "/openai/batches"]
    assert not [(pattern, path) for pattern in listed for path in created if matches(pattern, path)]


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("/openai/deployments/gpt-4o/chat/completions", {"api-version": "2024-10-21"}),
        ("/openai/files", {"api-version": "2024-10-21"}),
        ("/openai/responses", {}),
        ("/openai/v1/chat/completions", {}),
        ("/v1/chat/completions", {}),
    ],
)
def test_azure_versions_only_the_paths_that_need_one(shipped: Profiles, path: str, parameters: dict[str, str]) -> None:
    assert shipped.get("azure").admits(path)
    assert shipped.get("azure").query_defaults(path) == parameters


def test_azure_does_not_admit_the_management_of_deployments(shipped: Profiles) -> None:
    assert not shipped.get("azure").admits("/openai/deployments")
    assert not shipped.get("azure").admits("/openai/deployments/gpt-4o")


def test_every_key_is_explained_in_the_shipped_file(shipped: Profiles) -> None:
    text = packaged_path().read_text()
    own = {"name", "max_idle", "max_idle_per_host"}
    keys = (set(Profile.__dataclass_fields__) - own) | {"connection"}
    assert [key for key in sorted(keys) if f"#   {key} " not in text] == []


# Values


@pytest.mark.parametrize(("auth", "value"), [(BEARER, "Bearer KEY"), (Auth("x-api-key"), "KEY")], ids=["scheme", "bare"])
def test_auth_writes_the_key(auth: Auth, value: str) -> None:
    assert auth.value("KEY") == value


def test_an_unknown_profile_is_refused_with_the_known_names(shipped: Profiles) -> None:
    with pytest.raises(InvalidField, match="openai, anthropic, azure") as caught:
        shipped.get("opnai")
    assert caught.value.param == "provider_type"


def test_the_first_pattern_that_fits_gives_auth_and_query() -> None:
    profile = Profile(
        name="p",
        auth=Auth("a"),
        allowed_endpoints=("/**",),
        allowed_methods=("GET",),
        auth_for={"/v1/*": Auth("first"), "/v1/x": Auth("second")},
        default_query={"/v1/x": {"a": "1"}, "/v1/**": {"b": "2"}},
    )
    assert [profile.auth_of(path).header for path in ("/v1/x", "/v2")] == ["first", "a"]
    assert [profile.query_defaults(path) for path in ("/v1/x", "/v1/y", "/v2")] == [{"a": "1"}, {"b": "2"}, {}]


# Reading


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


def test_profiles_cannot_be_changed(shipped: Profiles) -> None:
    with pytest.raises(TypeError):
        shipped.apis["openai"] = shipped.get("custom")  # type: ignore[index]
    with pytest.raises(TypeError):
        shipped.get("anthropic").default_headers["x"] = "y"  # type: ignore[index]
