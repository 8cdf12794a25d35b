"""Provider profiles: the shipped file, matching by segments, and the reading of files good or bad."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.errors import InvalidField
from llm_proxy.providers.profile_file import load_profiles, packaged_path
from llm_proxy.providers.profiles import Auth, Profile, Profiles, Timeouts, matches

BEARER = Auth("Authorization", "Bearer")


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
    assert (profile.max_idle, profile.max_idle_per_host) == (1000, 500)
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


def fields_of(profile: Profile) -> Iterator[tuple[str, Any]]:
    return ((field.name, getattr(profile, field.name)) for field in dataclasses.fields(profile))


def test_custom_has_openais_rules(shipped: Profiles) -> None:
    openai, custom = (dict(fields_of(shipped.get(name))) for name in ("openai", "custom"))
    for own in ("name", "base_url"):
        assert openai.pop(own) != custom.pop(own)
    assert custom == openai


@pytest.mark.parametrize(
    ("path", "auth"),
    [("/v1/messages", Auth("x-api-key")), ("/v1/models/claude", Auth("x-api-key")), ("/v1/chat/completions", BEARER)],
)
def test_anthropic_takes_bearer_for_openais_dialect(shipped: Profiles, path: str, auth: Auth) -> None:
    assert shipped.get("anthropic").admits(path)
    assert shipped.get("anthropic").at(path).auth == auth


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
    assert shipped.get("azure").at(path).query_defaults == parameters


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
    assert [profile.at(path).auth.header for path in ("/v1/x", "/v2")] == ["first", "a"]
    assert [profile.at(path).query_defaults for path in ("/v1/x", "/v1/y", "/v2")] == [{"a": "1"}, {"b": "2"}, {}]


def test_profiles_cannot_be_changed(shipped: Profiles) -> None:
    with pytest.raises(TypeError):
        shipped.apis["openai"] = shipped.get("custom")  # type: ignore[index]
    with pytest.raises(TypeError):
        shipped.get("anthropic").default_headers["x"] = "y"  # type: ignore[index]
