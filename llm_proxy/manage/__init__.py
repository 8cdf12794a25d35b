"""The management API on the proxy site: its routes."""

from aiohttp import web

from llm_proxy.manage import audit, cache, documents, events, projects, providers, tokens, usage
from llm_proxy.requests import Route, add_guarded

ROUTES: tuple[Route, ...] = (
    ("GET", "/manage/projects", projects.find),
    ("POST", "/manage/projects", projects.create),
    ("GET", "/manage/projects/{id}", projects.get),
    ("PATCH", "/manage/projects/{id}", projects.update),
    ("DELETE", "/manage/projects/{id}", projects.delete),
    ("POST", "/manage/projects/{id}/tokens/revoke", projects.revoke_tokens),
    ("GET", "/manage/projects/{id}/providers", providers.find),
    ("POST", "/manage/projects/{id}/providers", providers.create),
    ("GET", "/manage/projects/{id}/providers/{provider_id}", providers.get),
    ("PATCH", "/manage/projects/{id}/providers/{provider_id}", providers.update),
    ("DELETE", "/manage/projects/{id}/providers/{provider_id}", providers.delete),
    ("GET", "/manage/tokens", tokens.find),
    ("POST", "/manage/tokens", tokens.create),
    ("GET", "/manage/tokens/{id}", tokens.get),
    ("PATCH", "/manage/tokens/{id}", tokens.update),
    ("DELETE", "/manage/tokens/{id}", tokens.delete),
    ("GET", "/manage/audit", audit.find),
    ("GET", "/manage/audit/{id}", audit.get),
    ("GET", "/manage/cache", cache.stats),
    ("POST", "/manage/cache/purge", cache.purge),
    ("GET", "/manage/events/stats", events.stats),
    ("GET", "/manage/usage", usage.find),
    ("GET", "/manage/version", documents.version),
)


def add_routes(app: web.Application) -> None:
    """Add every route to the proxy site's application."""
    add_guarded(app, ROUTES)
    app.router.add_get("/manage/openapi.yaml", documents.openapi)
