"""Structured logging, with secrets removed."""

import json
import logging
import sys
from contextvars import ContextVar
from logging.handlers import WatchedFileHandler
from typing import Any

import orjson

from llm_proxy.clock import to_rfc3339
from llm_proxy.errors import SettingsError
from llm_proxy.secret import redact
from llm_proxy.settings import Settings

# The ids of the request in hand; every line carries them.
request_ids: ContextVar[tuple[str, str | None] | None] = ContextVar("request_ids", default=None)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if ids := request_ids.get():
        facts["request_id"], facts["correlation_id"] = ids
    facts |= getattr(record, "facts", {})
    return {name: value for name, value in facts.items() if value is not None}


class Ready(logging.LogRecord):
    """A record that formats as the text which it is given, for who makes lines at less cost than the logging module."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, logging.INFO, "", 0, text, None, None)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record, Ready):
            return str(record.msg)
        facts = _facts(record)
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return redact(self.line(round(record.created * 1000), record.levelname, record.name, record.getMessage(), facts))

    def line(self, ms: int, level: str, logger: str, message: str, facts: dict[str, Any]) -> str:
        """One line; secrets in its message and facts are the caller's business."""
        return _as_json({"time": to_rfc3339(ms), "level": level.lower(), "logger": logger, "message": message, **facts})


def _as_json(line: dict[str, Any]) -> str:
    try:
        return orjson.dumps(line, default=str).decode()
    except TypeError:
        # Half a surrogate pair, or a number beyond 64 bits: the line must not be lost for it.
        text = json.dumps(line, default=str, ensure_ascii=False, skipkeys=True)
        return text.encode("utf-8", "backslashreplace").decode()


class TextFormatter(logging.Formatter):
    """A line for people."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record, Ready):
            return str(record.msg)
        line = self.line(round(record.created * 1000), record.levelname, record.name, record.getMessage(), _facts(record))
        return f"{line}\n{redact(self.formatException(record.exc_info))}" if record.exc_info else line

    def line(self, ms: int, level: str, logger: str, message: str, facts: dict[str, Any]) -> str:
        """One line, without secrets."""
        told = " ".join(f"{name}={value}" for name, value in facts.items())
        line = f"{to_rfc3339(ms)} {level:7} {message} {told}".rstrip()
        # What clients send must neither forge a line nor steer a terminal.
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in redact(line))


def configure(settings: Settings) -> logging.Handler:
    """Send this process's log where the settings say; returns the handler, which the caller removes at the end.

    Raises:
        SettingsError: LOG_FILE cannot be opened.
    """
    try:
        # WatchedFileHandler opens the file anew when it was rotated away.
        handler = (
            WatchedFileHandler(settings.log_file, encoding="utf-8", errors="backslashreplace")
            if settings.log_file
            else logging.StreamHandler(sys.stderr)
        )
    except OSError as error:
        raise SettingsError(f"LOG_FILE={settings.log_file}: cannot be opened: {error}") from error
    text = settings.log_format == "text" or (settings.log_format == "auto" and not settings.log_file and sys.stderr.isatty())
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(settings.log_level.upper())
    # A line for each statement of SQL tells an operator nothing.
    for name in ("yoyo", "aiosqlite"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return handler
