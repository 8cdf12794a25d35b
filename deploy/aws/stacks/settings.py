"""What the tasks are told, in the settings of llm-proxy."""

from stacks.options import Options

PROXY_PORT = 8080
ADMIN_PORT = 8081
DISPATCHER_PORT = 8082

# Fargate lets a task have two minutes between SIGTERM and SIGKILL, no more.
STOP_TIMEOUT = 120
# ECS takes a task out of the balancer before it sends SIGTERM; this is for what was on its way all the same.
DRAIN_DELAY = 5
# For what comes after the calls: last words of those that are cut, the log of events synced and shipped.
MARGIN = 15
SHUTDOWN_TIMEOUT = STOP_TIMEOUT - DRAIN_DELAY - MARGIN
# The balancer must not cut a call that the task itself would still wait for.
DEREGISTRATION_DELAY = STOP_TIMEOUT
# Above the 600 s for which a profile waits for an answer that does not stream, so that the proxy answers 504 itself; streams are
# never silent for longer than SSE_KEEPALIVE. Below the 3660 s for which the proxy keeps idle connections of TRUSTED_PROXIES, or
# the balancer would send calls into closed ones.
IDLE_TIMEOUT = 3600

# Where deploy/aws/Dockerfile puts the certificates of Amazon's databases.
DATABASE_CA = "/etc/ssl/rds.pem"
# libpq's own: DATABASE_URL names no password, so that it need not be put together from a secret.
DATABASE_PASSWORD = "PGPASSWORD"

# What outlives the stacks: a SecureString each, under /NAME/ in the parameter store. `deploy` makes the first one.
ENCRYPTION_KEY = "ENCRYPTION_KEY"
SINK_KEYS = {"lunary": "LUNARY_API_KEY", "helicone": "HELICONE_API_KEY"}
# What the stacks make: a secret each.
GENERATED = ("MANAGEMENT_TOKEN", "METRICS_TOKEN")


def parameter(options: Options, name: str) -> str:
    """The name of a secret in the parameter store."""
    return f"/{options.name}/{name}"


def database_url(user: str, host: str, port: str, name: str) -> str:
    """The database, without its password; the server must show a certificate of its own name."""
    return f"postgresql://{user}@{host}:{port}/{name}?sslmode=verify-full&sslrootcert={DATABASE_CA}"


def redis_url(password: str, host: str, port: str) -> str:
    """Redis over TLS, with its password: redis-py reads none from elsewhere."""
    return f"rediss://:{password}@{host}:{port}/0"


def of_proxy(options: Options, database: str) -> dict[str, str]:
    """The settings of a proxy's task, without secrets.

    The cache stays in each task's memory: Redis must evict nothing, and answers would compete with limits and events for it.
    """
    return {
        "LISTEN_ADDR": f":{PROXY_PORT}",
        "ADMIN_UI_LISTEN_ADDR": f":{ADMIN_PORT}",
        "DATABASE_URL": database,
        "REQUIRE_ENCRYPTION_KEY": "true",
        # Only the balancer can connect, by the security group; its addresses change within the VPC.
        "TRUSTED_PROXIES": options.vpc_cidr,
        "DRAIN_DELAY": f"{DRAIN_DELAY}s",
        "DISTRIBUTED_RATE_LIMIT_ENABLED": "true",
        **_shared(options),
    }


def of_dispatcher(options: Options) -> dict[str, str]:
    """The settings of a dispatcher's task, without secrets."""
    return _shared(options)


def of_migration(database: str) -> dict[str, str]:
    """The settings of the migration's task, without secrets."""
    return {"DATABASE_URL": database, "LOG_FORMAT": "json"}


def _shared(options: Options) -> dict[str, str]:
    bus = "redis-streams" if options.sinks else "in-memory"
    return {
        "LOG_FORMAT": "json",
        "SHUTDOWN_TIMEOUT": f"{SHUTDOWN_TIMEOUT}s",
        "EVENT_DIR": "/data/events",
        "LLM_PROXY_EVENT_BUS": bus,
        **options.settings,
    }
