"""What the process shares, opened in order, closed in reverse."""

import asyncio
import contextlib
import functools
import logging
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from redis.asyncio import Redis
from redis.exceptions import RedisError

from llm_proxy import logs, systemd
from llm_proxy.audit import AuditLog, Who, event_of
from llm_proxy.cache.http import HttpCache, open_cache
from llm_proxy.changes import Change, ChangeFeed
from llm_proxy.db import Database, open_database
from llm_proxy.db.timed import TimedDatabase
from llm_proxy.deadlines import Deadlines
from llm_proxy.errors import DatabaseUnavailable, Overtaken, SettingsError
from llm_proxy.events.bus import Bus
from llm_proxy.events.pipeline import Pipeline, open_pipeline
from llm_proxy.events.recent import RecentEvents
from llm_proxy.events.recorders import CallLog, measure
from llm_proxy.failures import Failures
from llm_proxy.history import History, open_history
from llm_proxy.limits.limiter import Limiter, open_limiter
from llm_proxy.limits.quota import Quota
from llm_proxy.limits.rates import Bounds, KnownLimits
from llm_proxy.metrics import Metrics
from llm_proxy.news import open_news
from llm_proxy.operators import Operators, name_of
from llm_proxy.peers import Network, parse_networks
from llm_proxy.providers import Provider, ProviderCache
from llm_proxy.providers.breaker import Breakers, State
from llm_proxy.providers.listed import ListedModels
from llm_proxy.providers.live import LiveProfiles
from llm_proxy.providers.profile_file import load_profiles, packaged_path
from llm_proxy.providers.profiles import Profiles
from llm_proxy.providers.retries import RetryBudget
from llm_proxy.providers.statistics import KnownLabels, ProviderCollector
from llm_proxy.redis_client import eviction_warning, open_redis
from llm_proxy.retention import expire_tokens
from llm_proxy.running import RunningCalls
from llm_proxy.sessions import Session, Sessions
from llm_proxy.settings import Settings
from llm_proxy.tasks import Tasks
from llm_proxy.token_cache import TokenCache
from llm_proxy.tokens import get as get_token
from llm_proxy.upstream import Upstream, open_upstream
from llm_proxy.usage.counter import Counting
from llm_proxy.vault import Vault

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.25
# Failed calls of one address within a minute, before those with an unknown token are not even looked up.
STRANGERS_FAILURES = 60
RELOAD = Change("reload", "")


@dataclass
class Context:
    """The one object that sites, CLI and end-to-end tests work with."""

    settings: Settings
    database: Database
    vault: Vault
    live_profiles: LiveProfiles
    changes: ChangeFeed
    tokens: TokenCache
    providers: ProviderCache
    quota: Quota
    limits: KnownLimits
    limiter: Limiter
    strangers: Failures
    audit: AuditLog
    operators: Operators
    bus: Bus
    metrics: Metrics
    counting: Counting
    events: Pipeline
    recent: RecentEvents
    history: History
    running: RunningCalls
    deadlines: Deadlines
    upstream: Upstream
    redis: Redis | None
    cache: HttpCache
    tasks: Tasks
    trusted_proxies: tuple[Network, ...]
    # Whether this process serves the admin site and no calls: those, and what is known of them, are another's.
    alone: bool = False
    started_at: float = field(default_factory=time.monotonic)
    draining: bool = False
    stopping: bool = False
    active: int = 0
    sessions: Sessions = field(init=False)
    breakers: Breakers = field(init=False)
    retries: RetryBudget = field(init=False)
    labels: KnownLabels = field(init=False)
    listed_models: ListedModels = field(default_factory=ListedModels)

    def __post_init__(self) -> None:
        self.sessions = Sessions(
            self.database, self.operators.fingerprints, lambda session, reason: _on_session_end(self, session, reason)
        )
        self.breakers = Breakers(lambda provider_id, state, reason: _on_breaker(self, provider_id, state, reason))
        self.retries = RetryBudget(lambda: self.active)
        self.labels = KnownLabels(self.providers, self.settings.provider_suffix)

    @property
    def profiles(self) -> Profiles:
        """The profiles in force; a call takes what it needs of them once, and keeps that."""
        return self.live_profiles.current

    async def reload(self) -> None:
        """Read the profiles anew, and with them every provider; a bad file changes nothing.

        Raises:
            SettingsError: the file cannot be used.
        """
        self.metrics.reloaded.set(0)
        await self.live_profiles.reload()
        self.metrics.reloaded.set(1)
        # What was read meanwhile was judged by the profiles of before.
        self.providers.on_change(RELOAD)

    def on_hangup(self) -> None:
        """SIGHUP: open rotated files anew, read the profiles again."""
        self.reopen()
        self.tasks.start("reload of the profiles", systemd.while_reloading(reload_or_log(self)))

    def reopen(self) -> None:
        """Open the files anew that another program may have rotated away."""
        self.audit.reopen()
        self.events.reopen()


def read_profiles(settings: Settings) -> Profiles:
    """The operator's profiles, or the packaged ones when there is no such file.

    Raises:
        SettingsError: the file cannot be used.
    """
    path = pathlib.Path(settings.api_config_path)
    named = "API_CONFIG_PATH" in settings.sources
    profiles = load_profiles(path if named or path.exists() else packaged_path())
    default = settings.default_api_provider or profiles.default_api
    if default not in profiles.apis:
        raise SettingsError(f"DEFAULT_API_PROVIDER={default}: there is no such profile. Known are {', '.join(profiles.apis)}.")
    return replace(profiles, default_api=default)


def _reader(settings: Settings, profiles: Profiles | Callable[[], Profiles] | None) -> Callable[[], Profiles]:
    if profiles is None:
        return lambda: read_profiles(settings)
    return (lambda: profiles) if isinstance(profiles, Profiles) else profiles


def _open_logs(stack: AsyncExitStack, settings: Settings, bus: Bus) -> None:
    handler = logs.configure(settings)
    stack.callback(handler.close)
    stack.callback(logging.getLogger().removeHandler, handler)
    stack.callback(bus.catch_up)
    calls = CallLog(handler, bus.catch_up)
    bus.read_late_by(calls.add, calls.write)
    for warning in settings.warnings:
        log.warning("settings: %s", warning)


async def _open_redis(stack: AsyncExitStack, settings: Settings) -> Redis | None:
    if not settings.redis_url:
        return None
    return await stack.enter_async_context(open_redis(settings.redis_url, settings.redis_pool_size))


async def _open_limiter(stack: AsyncExitStack, settings: Settings, redis: Redis | None, metrics: Metrics) -> Limiter:
    def switched(to: str) -> None:
        metrics.limiter_switches.labels(to).inc()
        metrics.limiter_degraded.set(to != "redis")

    return await stack.enter_async_context(
        open_limiter(
            redis if settings.distributed_rate_limit_enabled else None,
            settings.distributed_rate_limit_prefix,
            fallback=settings.distributed_rate_limit_fallback,
            switched=switched,
        )
    )


async def _open_history(stack: AsyncExitStack, settings: Settings, database: Database, bus: Bus, metrics: Metrics) -> History:
    return await stack.enter_async_context(open_history(database, bus, metrics.usage_lost.inc, settings.usage_retention_days))


def _open_recent(settings: Settings, bus: Bus) -> RecentEvents:
    recent = RecentEvents(nameless=settings.observability_capture == "none")
    if settings.observability_enabled:
        bus.read_by(recent.add)
    return recent


def _known_limits(settings: Settings) -> KnownLimits:
    most = settings.distributed_rate_limit_max if settings.distributed_rate_limit_enabled else 0
    return KnownLimits(
        Bounds(rate_limit_per_minute=settings.rate_limit_per_minute, max_parallel=settings.rate_limit_parallel),
        (most, settings.distributed_rate_limit_window),
        settings.token_cache_size,
    )


def _deadlines(stack: AsyncExitStack) -> Deadlines:
    deadlines = Deadlines()
    stack.callback(deadlines.close)
    return deadlines


def _audit_log(settings: Settings, database: Database) -> AuditLog:
    return AuditLog(
        database,
        enabled=settings.audit_enabled,
        file=settings.audit_log_file,
        retention_days=settings.audit_retention_days,
    )


async def _warn_of_eviction(redis: Redis) -> None:
    # A Redis that is away now is told of by those who need it.
    with contextlib.suppress(RedisError, OSError):
        if warning := await eviction_warning(redis):
            log.warning("%s", warning)


@asynccontextmanager
async def open_context(
    settings: Settings, profiles: Profiles | Callable[[], Profiles] | None = None, pool: Sequence[Provider] = ()
) -> AsyncIterator[Context]:
    """Open everything one process shares.

    Args:
        profiles: they, or what this reads, stand in for the file.
        pool: stands beside the shared pool of the database.

    Raises:
        StartError: something cannot be opened; the text says what to do.
    """
    async with AsyncExitStack() as stack:
        tasks, bus, metrics, counting = Tasks(), Bus(), Metrics(), Counting()
        _open_logs(stack, settings, bus)
        live = LiveProfiles(_reader(settings, profiles))
        trusted = parse_networks(settings.trusted_proxies)
        database = TimedDatabase(await stack.enter_async_context(open_database(settings)), metrics.db_query.observe)
        vault = Vault(settings.encryption_key)
        upstream = await stack.enter_async_context(open_upstream(settings))
        redis = await _open_redis(stack, settings)
        stack.callback(counting.close)
        cache = await stack.enter_async_context(open_cache(settings, redis, metrics.cache_switched))
        bus.read_late_by(cache.count)
        events = await stack.enter_async_context(open_pipeline(settings, bus, metrics, redis))
        limiter = await _open_limiter(stack, settings, redis, metrics)
        context = Context(
            settings=settings,
            database=database,
            vault=vault,
            live_profiles=live,
            changes=ChangeFeed(database),
            tokens=TokenCache(database, vault, settings.token_cache_size),
            providers=ProviderCache(database, vault, lambda: live.current, pool),
            quota=Quota(database),
            limits=_known_limits(settings),
            limiter=limiter,
            strangers=Failures(STRANGERS_FAILURES),
            audit=_audit_log(settings, database),
            operators=Operators(settings.management_token),
            bus=bus,
            metrics=metrics,
            counting=counting,
            events=events,
            recent=_open_recent(settings, bus),
            history=await _open_history(stack, settings, database, bus, metrics),
            running=RunningCalls(),
            deadlines=_deadlines(stack),
            upstream=upstream,
            redis=redis,
            cache=cache,
            tasks=tasks,
            trusted_proxies=trusted,
        )
        stack.push_async_callback(context.audit.close)
        stack.push_async_callback(_settle, context)
        stack.push_async_callback(tasks.close)
        await _start(context)
        await _spread_news(stack, context)
        yield context


async def _spread_news(stack: AsyncExitStack, context: Context) -> None:
    if context.redis:
        news = await stack.enter_async_context(open_news(context.settings, context.changes.catch_up))
        context.changes.tell_by(news.tell)


async def _start(context: Context) -> None:
    context.bus.read_late_by(functools.partial(measure, context.metrics, context.labels))
    context.metrics.registry.catch_up = context.bus.catch_up
    context.metrics.registry.register(ProviderCollector(context.providers, context.breakers))
    listeners: list[Callable[[Change], None]] = [
        context.tokens.on_change,
        context.providers.on_change,
        context.listed_models.on_change,
        context.quota.on_change,
        context.cache.on_change,
        lambda change: _forget_deleted(context, change),
        lambda change: _reload_if_asked(context, change),
        lambda change: _end_overtaken(context, change),
    ]
    for listener in listeners:
        context.changes.listen(listener)
    await context.changes.start()
    context.tasks.start("changes", context.changes.follow())
    # A cache may be evicted, what is counted or yet to be delivered may not.
    keeps = context.settings.distributed_rate_limit_enabled or context.settings.llm_proxy_event_bus == "redis-streams"
    if context.redis and keeps:
        context.tasks.start("check of what Redis evicts", _warn_of_eviction(context.redis))
    context.tasks.start("quota", context.quota.flush())
    context.tasks.start("audit", context.audit.write())
    context.tasks.start("audit retention", context.audit.expire())
    context.tasks.start("token retention", expire_tokens(context.database, context.settings.token_retention_days))


def _on_breaker(context: Context, provider_id: str, state: State, reason: str) -> None:
    """Tell operators of a provider that is left alone, or taken back; loudly, when it is its key that is wrong."""
    level = {"bad_key": logging.ERROR, "closed": logging.INFO}.get(state, logging.WARNING)
    log.log(level, "provider %s: its breaker is %s, since %s", provider_id, state, reason)
    if state == "bad_key":
        facts = {"outcome": "failure", "reason": reason, "details": {"provider_id": provider_id}}
        context.audit.append(event_of(Who("system"), "provider.key_refused", **facts))


def _on_session_end(context: Context, session: Session, reason: str) -> None:
    """Put a session that has ended by itself into the audit log, under its operator and the address where it began."""
    context.audit.append(event_of(Who(name_of(session.management_hash), session.client_ip), "admin.session_end", reason=reason))


def _forget_deleted(context: Context, change: Change) -> None:
    if change.kind == "provider" and change.payload.get("deleted"):
        context.breakers.forget(change.ref)


def _reload_if_asked(context: Context, change: Change) -> None:
    if change.kind == "reload":
        context.tasks.start("reload of the profiles", reload_or_log(context))


async def reload_or_log(context: Context) -> None:
    """Reload; there is nobody to tell of a bad file but the log."""
    try:
        await context.reload()
    except SettingsError as error:
        log.error("the profiles stay as they were: %s", error)
    else:
        log.info("the profiles were read anew: %s", ", ".join(context.profiles.apis))


async def _settle(context: Context) -> None:
    try:
        await context.quota.settle()
    except DatabaseUnavailable:
        log.error("request counts since the last flush are lost: the database does not answer")


def _end_overtaken(context: Context, change: Change) -> None:
    """End the running calls that a change may have revoked, once the database confirms it."""
    for token_id in {call.token_id for call in context.running.concerned_by(change)}:
        context.tasks.start(f"check of the running calls of token {token_id}", _end_if_overtaken(context, token_id))


async def _end_if_overtaken(context: Context, token_id: str) -> None:
    while True:
        try:
            token = await get_token(context.database, token_id)
            break
        except DatabaseUnavailable:
            # The change is certain, so the question stands until there is an answer.
            await asyncio.sleep(RETRY_SECONDS)
    error = token.overtaken() if token else Overtaken("token_inactive", "This token was deleted.")
    if error:
        for call in context.running.concerned_by(Change("token", token_id)):
            call.end(error)
