"""`/admin/v1`, as both sites serve it: its routes."""

from aiohttp import web

from llm_proxy.admin_v1 import checks, configuration, master_keys, providers
from llm_proxy.requests import Route, add_guarded

_NAMES = ("master-keys", "credentials")
_MASTER_KEYS: tuple[Route, ...] = (
    ("POST", "", master_keys.create),
    ("GET", "/{id}", master_keys.get),
    ("PUT", "/{id}", master_keys.update),
    ("DELETE", "/{id}", master_keys.delete),
    ("POST", "/{id}/rotate", master_keys.rotate),
    ("PATCH", "/{id}/status", master_keys.set_status),
)
ROUTES: tuple[Route, ...] = (
    ("GET", "/admin/v1/providers", providers.find),
    ("POST", "/admin/v1/providers", providers.create),
    ("GET", "/admin/v1/providers/{id}", providers.get),
    ("PUT", "/admin/v1/providers/{id}", providers.update),
    ("DELETE", "/admin/v1/providers/{id}", providers.delete),
    ("PATCH", "/admin/v1/providers/{id}/status", providers.set_status),
    ("GET", "/admin/v1/master-keys", master_keys.find),
    ("GET", "/admin/v1/credentials", master_keys.find_credentials),
    *((method, f"/admin/v1/{name}{path}", serve) for name in _NAMES for method, path, serve in _MASTER_KEYS),
    ("GET", "/admin/v1/config/version", configuration.version),
    ("POST", "/admin/v1/config/reload", configuration.reload),
    ("POST", "/admin/v1/auth/validate", configuration.validate),
    ("POST", "/admin/v1/health/check", checks.check),
    ("GET", "/admin/v1/health/providers/{id}", checks.check_one),
)


def add_routes(app: web.Application) -> None:
    """Add every route to a site's application."""
    add_guarded(app, ROUTES)
