"""Logging of the node: a line of text or of JSON for each event, to stderr.

Events are fixed words with numbers and codes beside them. Prompt text, token ids and access tokens are never given to
it. Knows nothing about what the events mean.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, event, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return json.dumps({
            "time": _time(record), "level": record.levelname.lower(), "logger": record.name,
            "event": record.getMessage(), **_fields(record),
        }, default=str)  # fmt: skip


class TextFormatter(logging.Formatter):
    """`time level event key=value ...`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = "".join(f" {k}={v}" for k, v in _fields(record).items())
        return f"{_time(record)} {record.levelname.lower():7} {record.getMessage()}{fields}"


def configure(*, as_json: bool, level: str) -> None:
    """Send the node's own events to stderr; other libraries speak from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("ssd_cloud").setLevel(level.upper())


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {k: v for k, v in vars(record).items() if k not in _STANDARD}
