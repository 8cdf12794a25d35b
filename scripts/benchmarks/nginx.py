"""nginx's configuration, as the provider and as the limit."""

import pathlib
from collections.abc import Mapping

COMPLETION = (
    '{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4o","choices":[{"index":0,"message":{"role":'
    '"assistant","content":"Good morning. You asked for an answer of about five hundred bytes, as a short completion has: this '
    "is one. It goes on for a while without saying much, because its length is all that counts here, and it stops as soon as "
    'that length is reached, which is now."},"finish_reason":"stop"}],'
    '"usage":{"prompt_tokens":9,"completion_tokens":61,"total_tokens":70}}'
)
MEBIBYTE = 2**20
LARGE = "/v1/files/large/content"
LISTED = "/v1/models"


def _framed(folder: pathlib.Path, name: str, servers: str) -> str:
    """A whole configuration; a master's worker would outlive us where we are killed, so there is one process."""
    temporary = " ".join(f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""
worker_processes 1; worker_rlimit_nofile 65536; daemon off; master_process off;
pid {folder / name}.pid; error_log {folder / name}.err;
{"user root;" if folder.owner() == "root" else ""}
events {{ worker_connections 32768; }}
http {{
  access_log off; {temporary}
  keepalive_requests 1000000000; keepalive_timeout 600s;
  client_max_body_size 8m; client_body_buffer_size 2m; tcp_nodelay on; sendfile on;
{servers}
}}
"""


def provider(folder: pathlib.Path, port: int) -> str:
    """A provider: a completion for every request, a list that may be cached, a large file."""
    large = folder / "files" / LARGE.lstrip("/")
    large.parent.mkdir(parents=True, exist_ok=True)
    large.write_bytes(b"x" * MEBIBYTE)
    return _framed(
        folder,
        "provider",
        f"""
  server {{
    listen 127.0.0.1:{port} backlog=4096; root {folder / "files"}; default_type application/json;
    location / {{ return 200 '{COMPLETION}'; }}
    location = {LISTED} {{ add_header Cache-Control "max-age=3600"; return 200 '{COMPLETION}'; }}
    location = {LARGE} {{ add_header Cache-Control "no-store"; }}
  }}""",
    )


def reverse_proxy(folder: pathlib.Path, name: str, ways: Mapping[int, int], streams: frozenset[int] = frozenset()) -> str:
    """A reverse proxy and nothing else.

    Args:
        ways: the port to listen on, with the provider's behind it.
        streams: those ports whose answers are passed on as they come.
    """
    servers = [
        f"""
  upstream to{there} {{ server 127.0.0.1:{there}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{here} backlog=4096;
    location / {{
      proxy_pass http://to{there}; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering {"off" if here in streams else "on"}; proxy_max_temp_file_size 0;
    }}
  }}"""
        for here, there in ways.items()
    ]
    return _framed(folder, name, "".join(servers))
