"""Row-level errors of a batch: what its error and output files say, as far as one can look."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

MOST_BYTES = 8 * 1024 * 1024
MOST_ROWS = 200
_LONGEST_LINE = 1024 * 1024


@dataclass(frozen=True)
class RowError:
    """A row that failed, by the caller's own `custom_id`."""

    custom_id: str
    status: int | None
    code: str
    message: str


@dataclass(frozen=True)
class RowErrors:
    """Those that were found; `is_all` says whether everything was read."""

    rows: tuple[RowError, ...]
    is_all: bool


def read(chunks: Iterable[bytes]) -> RowErrors:
    """The errors among the lines of a batch's error or output file.

    Source: OpenAI API reference, Batch, request output; read 2026-11.
    """
    found: list[RowError] = []
    size = 0
    for line in _lines(chunks):
        size += len(line)
        if size > MOST_BYTES or len(found) == MOST_ROWS or len(line) > _LONGEST_LINE:
            return RowErrors(tuple(found), is_all=False)
        error = _error(line)
        if error is not None:
            found.append(error)
    return RowErrors(tuple(found), is_all=True)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
        if len(rest) > _LONGEST_LINE:
            break
    yield rest


def _error(line: bytes) -> RowError | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    response = _object(row.get("response"))
    status = response.get("status_code")
    told = _object(row.get("error")) or _object(_object(response.get("body")).get("error"))
    if not told and not (isinstance(status, int) and status >= 400):
        return None
    return RowError(
        custom_id=_text(row.get("custom_id")),
        status=status if isinstance(status, int) and status >= 100 else None,
        code=_text(told.get("code") or told.get("type")),
        message=_text(told.get("message")) or "no message",
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return str(value)[:500] if isinstance(value, str | int) else ""
