"""The settings table: one field of `Settings` is one setting."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_proxy.secret import Secret
from llm_proxy.settings.values import (
    one_of,
    parse_address,
    parse_bool,
    parse_count,
    parse_database_url,
    parse_duration,
    parse_encryption_keys,
    parse_event_sync,
    parse_int,
    parse_list,
    parse_path,
    parse_redis_url,
    parse_secret,
    parse_secrets,
    parse_size,
    parse_text,
    parse_url,
    some_of,
)

SINKS = ("file", "lunary", "helicone")


def setting(group: str, parse: Callable[[str], Any], default: str, help: str, *aliases: str) -> Any:
    """One row of the table: a dataclass field whose default is written as an operator would write it."""
    return dataclasses.field(
        default=parse(default),
        metadata={"group": group, "parse": parse, "default": default, "help": help, "aliases": aliases},
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The effective settings; durations are seconds, sizes bytes. One field is one setting of the same name in capitals."""

    listen_addr: str = setting("sites", parse_address, ":8080", "Where the proxy listens.")
    admin_ui_listen_addr: str = setting(
        "sites", parse_address, "127.0.0.1:8081", "Where the admin site listens; loopback unless you say otherwise."
    )
    admin_ui_enabled: bool = setting("sites", parse_bool, "true", "Serve the admin site.")
    shutdown_timeout: float = setting("sites", parse_duration, "30s", "How long running calls may take to finish at a stop.")
    drain_delay: float = setting(
        "sites",
        parse_duration,
        "0s",
        "How long /ready says 503 at a stop while calls are still accepted; 5s behind a load balancer.",
    )
    trusted_proxies: tuple[str, ...] = setting(
        "sites", parse_list, "", "Networks (CIDR) of your own proxies: their X-Forwarded-For and X-Forwarded-Proto count."
    )
    allowed_hosts: tuple[str, ...] = setting("sites", parse_list, "", "Host names that are answered; empty for any.")
    sse_keepalive: float = setting(
        "sites", parse_duration, "15s", "Silence on an event stream after which a comment line is sent; 0 for never."
    )
    reuse_port: bool = setting("sites", parse_bool, "false", "Let several processes listen on the same port (SO_REUSEPORT).")
    max_request_bytes: int = setting("sites", parse_size, "32MiB", "The largest request body.")
    max_concurrent_requests: int = setting("sites", parse_count, "10000", "Calls in flight, above which 503 is answered.")

    management_token: tuple[Secret, ...] = setting(
        "secrets",
        parse_secrets,
        "",
        "The operator's credential for /manage and the admin site, 32 characters or more; several, separated by commas, "
        "while rotating.",
        "ADMIN_KEY",
    )
    encryption_key: tuple[Secret, ...] = setting(
        "secrets",
        parse_encryption_keys,
        "",
        "Encrypts provider keys at rest: base64 of 32 random bytes; several while rotating, newest first.",
    )
    require_encryption_key: bool = setting("secrets", parse_bool, "false", "Refuse to start without ENCRYPTION_KEY.")
    metrics_token: Secret = setting(  # noqa: RUF009
        "secrets", parse_secret, "", "Bearer token for /metrics; without one the proxy site serves it to loopback only."
    )

    db_driver: str = setting(
        "database", one_of("sqlite", "postgres"), "sqlite", "The database; DATABASE_URL alone implies postgres."
    )
    database_path: str = setting("database", parse_text, "data/llm-proxy.db", "The SQLite file.")
    database_url: Secret = setting(  # noqa: RUF009
        "database", parse_database_url, "", "The PostgreSQL database, postgresql://user:password@host:5432/name.", "DB_URL"
    )
    database_pool_size: int = setting("database", parse_count, "10", "Connections to PostgreSQL.")

    api_config_path: str = setting(
        "providers", parse_text, "config/api_providers.yaml", "The provider profiles; the packaged file when this one is absent."
    )
    default_api_provider: str = setting("providers", parse_text, "", "The profile of new projects, over the file's default_api.")
    provider_suffix: str = setting(
        "providers", parse_text, "", "A name that models may have in front: with `acme`, `acme/gpt-4` means `gpt-4`."
    )
    upstream_max_attempts: int = setting(
        "providers", parse_count, "3", "At how many providers a call is tried while none has begun to work on it."
    )
    request_timeout_secs: float = setting(
        "providers", parse_duration, "0", "Replaces first_byte and idle of every profile; 0 for the profile's own."
    )
    ttft_timeout_secs: float = setting(
        "providers", parse_duration, "0", "Bounds the time to the first body byte of a stream; 0 for none."
    )
    verify_ssl: bool = setting("providers", parse_bool, "true", "Verify the certificates of providers.")
    ssl_cert_file: str = setting("providers", parse_text, "", "Further certificate authorities (PEM) for providers.")
    allow_private_upstreams: bool = setting(
        "providers", parse_bool, "false", "Admit http and private addresses as base URLs given through an API (local models)."
    )

    redis_url: Secret = setting(  # noqa: RUF009
        "redis", parse_redis_url, "", "Redis or Valkey, redis://user:password@host:6379/0, or rediss:// with TLS."
    )
    redis_addr: str = setting("redis", parse_text, "", "host:port of Redis, in place of REDIS_URL.")
    redis_db: int = setting("redis", parse_int, "0", "The database behind REDIS_ADDR.")
    redis_pool_size: int = setting("redis", parse_count, "10", "Connections to Redis.")

    token_cache_size: int = setting("limits", parse_count, "10000", "Tokens kept in memory.")
    token_retention_days: int = setting(
        "limits", parse_int, "0", "Days after which tokens that expired or were revoked are deleted; 0 keeps them."
    )
    rate_limit_per_minute: int = setting(
        "limits", parse_int, "0", "Requests a minute of a token where neither it nor its project says; 0 for any number."
    )
    rate_limit_parallel: int = setting(
        "limits", parse_int, "0", "Calls at a time of a token where neither it nor its project says; 0 for any number."
    )
    distributed_rate_limit_enabled: bool = setting(
        "limits", parse_bool, "false", "Count rate limits in Redis, so that instances share them."
    )
    distributed_rate_limit_prefix: str = setting(
        "limits", parse_text, "ratelimit:", "What the names of their keys in Redis begin with."
    )
    distributed_rate_limit_max: int = setting(
        "limits", parse_int, "0", "Requests of each token in DISTRIBUTED_RATE_LIMIT_WINDOW, a further limit; 0 for none."
    )
    distributed_rate_limit_window: float = setting("limits", parse_duration, "1m", "The span of DISTRIBUTED_RATE_LIMIT_MAX.")
    distributed_rate_limit_fallback: bool = setting(
        "limits",
        parse_bool,
        "true",
        "While Redis is away each instance enforces the limits by itself, so at most limit times instances; false answers 503.",
    )

    http_cache_enabled: bool = setting("cache", parse_bool, "true", "Answer from the cache what HTTP allows (RFC 9111).")
    http_cache_backend: str = setting("cache", one_of("in-memory", "redis"), "in-memory", "Where answers are kept.")
    http_cache_default_ttl: float = setting(
        "cache", parse_duration, "300s", "How long the answer to a POST that its client lets be cached is fresh."
    )
    http_cache_max_object_bytes: int = setting("cache", parse_size, "1MiB", "The largest body that is kept.")
    http_cache_max_bytes: int = setting("cache", parse_size, "64MiB", "What the cache in memory may hold.")
    http_cache_shared: bool = setting(
        "cache",
        parse_bool,
        "false",
        "Let projects with the same providers share answers, and then keep only those that are marked public.",
    )
    redis_cache_key_prefix: str = setting(
        "cache", parse_text, "llmproxy:cache:", "What the names of the cache's keys in Redis begin with."
    )

    observability_enabled: bool = setting("events", parse_bool, "true", "Keep an event of every call, and deliver it.")
    observability_capture: str = setting(
        "events",
        one_of("none", "metadata", "bodies"),
        "metadata",
        "What events hold: bodies, the request and the reply too; none, not even the client's address and user agent.",
    )
    observability_max_request_body_bytes: int = setting("events", parse_size, "64KiB", "How much of a request is captured.")
    observability_max_response_body_bytes: int = setting("events", parse_size, "256KiB", "How much of a reply is captured.")
    observability_buffer_size: int = setting(
        "events", parse_count, "1000", "Events that wait for a live tail, at most 1000; it says how many it did not see."
    )
    llm_proxy_event_bus: str = setting(
        "events",
        one_of("in-memory", "redis-streams"),
        "in-memory",
        "redis-streams: events go from the log on to Redis, where `llm-proxy dispatcher` delivers those of all instances.",
    )
    redis_stream_key: str = setting("events", parse_text, "llm-proxy-events", "The stream of events in Redis.")
    redis_consumer_group: str = setting(
        "events", parse_text, "llm-proxy", "What the names of the stream's groups, one for each sink, begin with."
    )
    event_dir: str = setting("events", parse_text, "data/events", "The log of events, a folder for each instance.")
    event_sinks: tuple[str, ...] = setting(
        "events", some_of(*SINKS), "", "Where events are delivered: file, lunary, helicone; empty keeps them in EVENT_DIR only."
    )
    event_file: str = setting("events", parse_text, "data/events.jsonl", "The file of the sink `file`.")
    event_sync: str = setting(
        "events",
        parse_event_sync,
        "100ms",
        "How often the log is synced to the disk; or always, or os to leave it to the system.",
    )
    event_backlog_bytes: int = setting("events", parse_size, "1GiB", "What the log may hold; above it the oldest events go.")
    dispatcher_batch_size: int = setting("events", parse_count, "100", "Events that go to a sink at once.")
    lunary_api_key: Secret = setting("events", parse_secret, "", "The key of the sink `lunary`.")  # noqa: RUF009
    lunary_url: str = setting("events", parse_url, "https://api.lunary.ai", "Where Lunary is.")
    helicone_api_key: Secret = setting("events", parse_secret, "", "The key of the sink `helicone`.")  # noqa: RUF009
    helicone_url: str = setting("events", parse_url, "https://api.worker.helicone.ai", "Where Helicone is.")

    audit_enabled: bool = setting("audit", parse_bool, "true", "Keep the audit log.")
    audit_log_file: str = setting("audit", parse_text, "", "Also append audit events to this file, as JSON lines.")
    audit_retention_days: int = setting("audit", parse_int, "0", "Days after which audit events are deleted; 0 keeps them.")

    usage_retention_days: int = setting(
        "usage", parse_int, "90", "Days after which the history of usage (GET /manage/usage) is deleted; 0 keeps it."
    )

    log_level: str = setting("logs", one_of("debug", "info", "warning", "error"), "info", "The least level that is logged.")
    log_format: str = setting("logs", one_of("auto", "json", "text"), "auto", "JSON, or text; auto is text on a terminal.")
    log_file: str = setting("logs", parse_text, "", "Append the log to this file instead of standard error.")

    enable_metrics: bool = setting("metrics", parse_bool, "true", "Serve Prometheus metrics.")
    metrics_path: str = setting("metrics", parse_path, "/metrics", "Where metrics are served.")

    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    warnings: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @property
    def ships(self) -> bool:
        """Whether events go on to Redis."""
        return self.observability_enabled and self.llm_proxy_event_bus == "redis-streams"

    @property
    def delivers(self) -> bool:
        """Whether events go to sinks from here."""
        return self.observability_enabled and not self.ships


TABLE = tuple(field for field in dataclasses.fields(Settings) if field.metadata)
