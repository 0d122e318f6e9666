"""Logs: lines for people on a terminal, JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
import time

FORMATS = ("auto", "human", "json")
LEVELS = ("debug", "info", "warning", "error")

# What every record has; the rest was given as `extra`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def set_up_logs(form: str, level: str) -> None:
    """Sends all logs to standard error.

    Args:
        form: "human", "json", or "auto": human if standard error is a terminal.
        level: The lowest that is written.
    """
    if form == "auto":
        form = "human" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else HumanFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # uvicorn's start and stop messages repeat ours. Pillow writes what a photo's EXIF says (its place, its author) at
    # debug level, but what callers send is in no log.
    for name in ("uvicorn", "PIL"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, the extras, and error with its trace."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(_extras(record))
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class HumanFormatter(logging.Formatter):
    """Time of day, level, message, and the extras behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the trace of an error below it."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        extras = "".join(f"  {key}={value}" for key, value in _extras(record).items())
        line = f"{clock} {record.levelname.lower():7} {record.getMessage()}{extras}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _OWN}
