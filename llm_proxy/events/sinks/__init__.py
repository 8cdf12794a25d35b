"""Where events are delivered to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp

from llm_proxy.events.sinks.contract import Sink
from llm_proxy.events.sinks.file import FileSink
from llm_proxy.events.sinks.helicone import HeliconeSink
from llm_proxy.events.sinks.lunary import LunarySink
from llm_proxy.secret import Secret
from llm_proxy.settings import Settings

NO_KEY = Secret("")


@dataclass(frozen=True, kw_only=True)
class SinkOptions:
    """What the sinks need to know.

    Attributes:
        file_bytes: the size at which the file begins anew.
        file_count: how many earlier files are kept.
    """

    file: str = "data/events.jsonl"
    file_bytes: int = 64 * 1024 * 1024
    file_count: int = 5
    lunary_url: str = "https://api.lunary.ai/v1/runs/ingest"
    lunary_api_key: Secret = NO_KEY
    helicone_url: str = "https://api.worker.helicone.ai/custom/v1/log"
    helicone_api_key: Secret = NO_KEY


SINKS: Mapping[str, Callable[[SinkOptions, aiohttp.ClientSession], Sink]] = {
    "file": lambda options, session: FileSink(options.file, options.file_bytes, options.file_count),
    "lunary": lambda options, session: LunarySink(session, options.lunary_url, options.lunary_api_key),
    "helicone": lambda options, session: HeliconeSink(session, options.helicone_url, options.helicone_api_key),
}


def options_of(settings: Settings) -> SinkOptions:
    """What the settings say of the sinks."""
    return SinkOptions(
        file=settings.event_file,
        lunary_url=settings.lunary_url.rstrip("/") + "/v1/runs/ingest",
        lunary_api_key=settings.lunary_api_key,
        helicone_url=settings.helicone_url.rstrip("/") + "/custom/v1/log",
        helicone_api_key=settings.helicone_api_key,
    )
