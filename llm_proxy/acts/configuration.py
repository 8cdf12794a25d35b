"""Acts on the configuration as a whole."""

from typing import Any

from llm_proxy import master_keys, providers
from llm_proxy.acts import acting
from llm_proxy.audit import Who
from llm_proxy.changes import version
from llm_proxy.clock import to_rfc3339
from llm_proxy.context import Context, reload_or_log
from llm_proxy.errors import ApiError, SettingsError


async def shown(context: Context) -> dict[str, Any]:
    """The version of what is stored, with the time of the last change; the time is null before the first."""
    number, at = await version(context.database)
    return {"version": number, "timestamp": to_rfc3339(at) if at else None}


async def reload(context: Context, who: Who) -> dict[str, Any]:
    """Read profiles and providers anew in every instance; a bad file changes nothing anywhere."""
    problem = await _problem(context)
    async with acting(context, who, "config.reload") as act:
        if problem:
            raise ApiError("invalid_profiles", f"The profiles stay as they were. {problem}")
        act.changed("reload", "")
    # The change has started the same here; the answer must not come before its end.
    await reload_or_log(context)
    return {
        **await shown(context),
        "providers_count": await providers.count_enabled(context.database),
        "credentials_count": await master_keys.count_enabled(context.database),
    }


async def _problem(context: Context) -> str | None:
    try:
        await context.live_profiles.read()
    except SettingsError as error:
        return str(error)
    return None
