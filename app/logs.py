"""Logging: one JSON object a line on stderr."""

import datetime as dt
import functools
import json
import logging
import sys
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_encode = json.JSONEncoder(default=str, skipkeys=True).encode
# At DEBUG most of these write out addresses and bodies, and some providers carry the key in the
# address; the last one lists its plugins whenever it is imported.
_TALKATIVE = (
    "urllib3",
    "requests",
    "google",
    "msal",
    "sqlalchemy",
    "huey",
    "alembic.runtime.plugins",
)


class JsonLines(logging.Formatter):
    """A record as one line: time, level, event, logger, and every field given as `extra`.

    Whatever a field holds, the line stays one line of ASCII: JSON escapes the rest.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": f"{_second(int(record.created))}.{int(record.created % 1 * 1000):03}Z",
            "level": record.levelname,
            "event": record.getMessage(),
            "logger": record.name,
            "pid": record.process,
        }
        for name, value in vars(record).items():
            if name not in _STANDARD and name not in line:
                line[name] = value
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = self.formatException(record.exc_info)
        return _encode(line)


@functools.lru_cache(maxsize=2)
def _second(at: int) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def configure(level: str = "INFO") -> None:
    """Send every logger of this process to stderr as JSON lines. Calling it again is harmless.

    Raises ValueError for a level that logging does not know.
    """
    # Nobody is shown these, and to find them takes half of the time that a record does. Documented
    # under "Optimization".
    logging._srcfile = None
    logging.logThreads = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.setLevel(level.upper())
    for earlier in list(root.handlers):
        if isinstance(earlier.formatter, JsonLines):
            root.removeHandler(earlier)
    root.addHandler(handler)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
