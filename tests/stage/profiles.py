"""The shipped profiles, with what a test changes in them."""

import functools
from dataclasses import replace
from typing import Any

from llm_proxy import settings
from llm_proxy.context import read_profiles
from llm_proxy.providers.profiles import Profiles, Timeouts


@functools.cache
def _read() -> Profiles:
    return read_profiles(settings.load())


def shipped(*, timeouts: dict[str, float] | None = None, **changes: Any) -> Profiles:
    """Every shipped profile, with these timeouts and changes."""
    profiles = _read()
    given = {**changes, **({"timeouts": Timeouts(**timeouts)} if timeouts else {})}
    return replace(profiles, apis={name: replace(profile, **given) for name, profile in profiles.apis.items()})
