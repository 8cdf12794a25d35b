"""Ready code with which a token can be tried at once."""

import ipaddress
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

OPENAI_MODEL, ANTHROPIC_MODEL = "gpt-4o-mini", "claude-haiku-4-5"


class Snippet(NamedTuple):
    """Code in one language."""

    title: str
    code: str


def proxy_address(bound: str, wildcard: bool, visited: str) -> str:
    """Where applications reach the proxy.

    Args:
        bound: the proxy site's URL as it listens.
        wildcard: whether it listens on every address of this machine.
        visited: the Host by which the admin site was reached; of a proxy on every address it is the best name there is.
    """
    host = urlsplit(f"//{visited}").hostname
    if not wildcard or not host:
        return bound
    name = f"[{host}]" if _is_ipv6(host) else host
    return f"http://{name}:{urlsplit(bound).port}"


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def model_for(allowed: Sequence[str], dialect: str) -> str:
    """A model that the token may use, as far as that can be known."""
    known = [name for name in allowed if "*" not in name and name.isprintable() and not set(name) & set("\"'\\")]
    return known[0] if known else ANTHROPIC_MODEL if dialect == "anthropic" else OPENAI_MODEL


def snippets(address: str, token: str, model: str, dialect: str) -> list[Snippet]:
    """curl, Python and Node for a token."""
    make = _anthropic if dialect == "anthropic" else _openai
    return [Snippet(*pair) for pair in make(address, token, model)]


def _openai(address: str, token: str, model: str) -> list[tuple[str, str]]:
    curl = f"""curl {address}/v1/chat/completions \\
  -H "Authorization: Bearer {token}" \\
  -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'"""
    python = f"""# pip install openai
from openai import OpenAI

client = OpenAI(
    base_url="{address}/v1",
    api_key="{token}",
)
answer = client.chat.completions.create(
    model="{model}",
    messages=[{{"role": "user", "content": "Hello"}}],
)
print(answer.choices[0].message.content)"""
    node = f"""// Save it as try.mjs, then: node try.mjs
const answer = await fetch("{address}/v1/chat/completions", {{
  method: "POST",
  headers: {{
    "Authorization": "Bearer {token}",
    "Content-Type": "application/json",
  }},
  body: JSON.stringify({{ model: "{model}", messages: [{{ role: "user", content: "Hello" }}] }}),
}});
console.log((await answer.json()).choices[0].message.content);"""
    return [("curl", curl), ("Python", python), ("Node", node)]


def _anthropic(address: str, token: str, model: str) -> list[tuple[str, str]]:
    curl = f"""curl {address}/v1/messages \\
  -H "x-api-key: {token}" \\
  -H "anthropic-version: 2023-06-01" \\
  -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "max_tokens": 256, "messages": [{{"role": "user", "content": "Hello"}}]}}'"""
    python = f"""# pip install anthropic
from anthropic import Anthropic

client = Anthropic(
    base_url="{address}",
    api_key="{token}",
)
answer = client.messages.create(
    model="{model}",
    max_tokens=256,
    messages=[{{"role": "user", "content": "Hello"}}],
)
print(answer.content[0].text)"""
    node = f"""// Save it as try.mjs, then: node try.mjs
const answer = await fetch("{address}/v1/messages", {{
  method: "POST",
  headers: {{
    "x-api-key": "{token}",
    "anthropic-version": "2023-06-01",
    "Content-Type": "application/json",
  }},
  body: JSON.stringify({{ model: "{model}", max_tokens: 256, messages: [{{ role: "user", content: "Hello" }}] }}),
}});
console.log((await answer.json()).content[0].text);"""
    return [("curl", curl), ("Python", python), ("Node", node)]
