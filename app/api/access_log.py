"""One structured line a request, written when its last byte is gone; never a secret."""

import logging
import time
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, g, request

from app.api import accel, context

log = logging.getLogger("manifold.request")
_PREFIX = 12


def install(app: Flask) -> None:
    """Log every request of this app."""
    app.before_request(_begin)
    app.after_request(_prepare)


def _begin() -> None:
    g.begun = time.perf_counter()


def _prepare(response: Response) -> Response:
    caller = g.get("caller")
    rule = request.url_rule
    line: dict[str, Any] = {
        "request_id": context.request_id(),
        "method": request.method,
        "route": rule.rule if rule else None,
        "status": response.status_code,
        "key": caller.key_hash[:_PREFIX] if caller else None,
        "remote": request.remote_addr,
        **g.get("notes", {}),
    }
    begun = g.get("begun", time.perf_counter())
    counter = _Counted(response)

    def write() -> None:
        line["ms"] = round((time.perf_counter() - begun) * 1000, 1)
        line["bytes_out"] = counter.size
        if counter.is_cut_off:
            line["cut_off"] = True
        log.info("request", extra=line)

    response.call_on_close(write)
    return response


class _Counted:
    """Counts the bytes of a response; a streamed one as they go out."""

    def __init__(self, response: Response) -> None:
        self.size = 0
        self.is_cut_off = False
        if response.is_streamed:
            self.is_cut_off = True
            response.response = self._through(response.response)
        else:
            self.size = accel.size_of(response) or 0

    def _through(self, chunks: Any) -> Iterator[bytes]:
        for chunk in chunks:
            self.size += len(chunk)
            yield chunk
        self.is_cut_off = False
