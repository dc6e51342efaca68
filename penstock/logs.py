"""JSON logs on stderr: one object a line, with the trace id when there is one; never a payload, a key or anything of a
person.
"""

import logging
import sys
from datetime import UTC, datetime

import orjson

_FIELDS = ("topic", "partition", "offset", "code", "trace_id", "port", "model", "version", "provider", "view")


class JsonLines(logging.Formatter):
    """``stage`` and ``slot`` are on every line."""

    def __init__(self, stage: str, slot: int) -> None:
        super().__init__()
        self._always = {"stage": stage, "slot": slot}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._always,
        }
        line |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def set_up(stage: str, slot: int, level: str) -> None:
    """Sends everything that is logged to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(stage, slot))
    logging.basicConfig(level=level, handlers=[handler], force=True)
