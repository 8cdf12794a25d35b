"""How paths join a provider's base URL, how its URLs come back."""

import pytest

from llm_proxy.proxy.urls import join, rewritten, with_defaults

OPENAI, OPENAI_V1 = "https://api.openai.com", "https://api.openai.com/v1"
GROQ, OPENROUTER = "https://api.groq.com/openai/v1", "https://openrouter.ai/api/v1"
ANTHROPIC, AZURE = "https://api.anthropic.com", "https://resource.openai.azure.com"


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        pytest.param(OPENAI, "/v1/chat/completions", f"{OPENAI}/v1/chat/completions", id="openai"),
        pytest.param(OPENAI_V1, "/v1/chat/completions", f"{OPENAI}/v1/chat/completions", id="openai-v1"),
        pytest.param(OPENAI_V1, "/v1", f"{OPENAI}/v1", id="openai-v1-bare"),
        pytest.param(OPENAI_V1, "/v1x/models", f"{OPENAI}/v1/v1x/models", id="a-segment-that-only-begins-with-v1"),
        pytest.param(OPENAI_V1, "/v1/v1/models", f"{OPENAI}/v1/v1/models", id="taken-once-only"),
        pytest.param(GROQ, "/v1/chat/completions", f"{GROQ}/chat/completions", id="groq"),
        pytest.param(OPENROUTER, "/v1/chat/completions", f"{OPENROUTER}/chat/completions", id="openrouter"),
        pytest.param(ANTHROPIC, "/v1/messages", f"{ANTHROPIC}/v1/messages", id="anthropic"),
        pytest.param(
            AZURE,
            "/openai/deployments/gpt-4o/chat/completions",
            f"{AZURE}/openai/deployments/gpt-4o/chat/completions",
            id="azure-deployments",
        ),
        pytest.param(AZURE, "/openai/v1/responses", f"{AZURE}/openai/v1/responses", id="azure-v1-path"),
        pytest.param(f"{AZURE}/openai/v1", "/v1/responses", f"{AZURE}/openai/v1/responses", id="azure-v1-base"),
        pytest.param("http://localhost:8000/x", "/v1/models", "http://localhost:8000/x/v1/models", id="a-path-is-kept"),
        pytest.param(OPENAI, "/v1/files/a%20b%2f", f"{OPENAI}/v1/files/a%20b%2f", id="escapes-as-sent"),
    ],
)
def test_a_path_joins_its_base(base: str, path: str, url: str) -> None:
    assert join(base, path) == url


@pytest.mark.parametrize(
    ("query", "defaults", "result"),
    [
        (None, {}, ""),
        ("", {}, "?"),
        ("a=1&a=2&;b=%zz", {}, "?a=1&a=2&;b=%zz"),
        (None, {"api-version": "2024-10-21"}, "?api-version=2024-10-21"),
        ("", {"api-version": "1"}, "?api-version=1"),
        ("a=1", {"api-version": "1 &x"}, "?a=1&api-version=1%20%26x"),
        ("api-version=2", {"api-version": "1"}, "?api-version=2"),
        ("a&api-version", {"api-version": "1"}, "?a&api-version"),
        ("api%2Dversion=2", {"api-version": "1"}, "?api%2Dversion=2"),
    ],
)
def test_a_query_stays_as_sent_and_gets_what_it_lacks(query: str | None, defaults: dict[str, str], result: str) -> None:
    assert with_defaults(query, defaults) == result


US = "https://proxy.example.com:8443"


@pytest.mark.parametrize(
    ("url", "base", "result"),
    [
        pytest.param(f"{OPENAI}/v1/files/f1", OPENAI, f"{US}/v1/files/f1", id="under-the-base"),
        pytest.param(f"{OPENAI}/v1/x?a=%2F&b=1#frag", OPENAI, f"{US}/v1/x?a=%2F&b=1#frag", id="query-and-fragment"),
        pytest.param(f"{OPENAI}", OPENAI, US, id="the-base-itself"),
        pytest.param(f"{OPENAI}?a=1", OPENAI, f"{US}?a=1", id="the-base-with-a-query"),
        pytest.param(f"{OPENAI_V1}/batches/b", OPENAI_V1, f"{US}/v1/batches/b", id="base-with-v1"),
        pytest.param(f"{GROQ}/batches/b", GROQ, f"{US}/v1/batches/b", id="groq"),
        pytest.param("/openai/v1/batches/b", GROQ, "/v1/batches/b", id="a-path-under-the-base"),
        pytest.param("/v1/files/f1", OPENAI, "/v1/files/f1", id="a-path"),
        pytest.param("//api.openai.com/v1/x", OPENAI, f"{US}/v1/x", id="without-scheme"),
        pytest.param("HTTPS://API.OpenAI.com:443/v1/x", OPENAI, f"{US}/v1/x", id="written-otherwise"),
        pytest.param("https://api.openai.com.evil.example/v1", OPENAI, None, id="a-longer-host"),
        pytest.param("https://evil.example/https://api.openai.com/v1", OPENAI, None, id="another-host"),
        pytest.param("https://api.openai.com:444/v1", OPENAI, None, id="another-port"),
        pytest.param("http://api.openai.com/v1", OPENAI, None, id="another-scheme"),
        pytest.param("https://api.groq.com/other", GROQ, None, id="beside-the-base-path"),
        pytest.param("https://api.groq.com/openai/v1x", GROQ, None, id="a-longer-segment"),
        pytest.param("files/f1", OPENAI, None, id="relative"),
        pytest.param("", OPENAI, None, id="empty"),
        pytest.param("http://[", OPENAI, None, id="not-a-url"),
        pytest.param("https://api.openai.com:x/v1", OPENAI, None, id="not-a-port"),
        pytest.param("mailto:a@example.com", OPENAI, None, id="another-kind"),
    ],
)
def test_a_url_under_the_base_leads_through_us(url: str, base: str, result: str | None) -> None:
    assert rewritten(url, base, US) == (result or url)


def test_without_a_host_of_ours_the_url_becomes_a_path() -> None:
    assert rewritten(f"{OPENAI}/v1/files/f1", OPENAI, "") == "/v1/files/f1"
