"""One structured line a request, written when its last byte is gone; never a secret."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flask import Flask, Response, g, request

from app import signals
from app.api import accel, context
from app.services.callers import Caller
from app.signals import Answered, Request

log = logging.getLogger("manifold.request")
_PREFIX = 12


Ended = Callable[[Caller | None, Mapping[str, Any]], object]
"""Called with who has asked, and with the line, when the last byte is gone."""


def install(app: Flask, *on_end: Ended) -> None:
    """Log every request of this app, and tell others that it has ended."""
    app.before_request(_begin)
    app.after_request(lambda response: _prepare(response, on_end))
    app.teardown_request(_leave)


def _begin() -> None:
    ours, asked = context.itself(g), context.itself(request)
    ours.begun = time.perf_counter()
    ours.told = signals.tell().begun(asked.method, asked.headers.get)


def _leave(_error: BaseException | None) -> None:
    told: Request | None = g.get("told")
    if told is not None:
        told.left()


def _prepare(response: Response, on_end: Sequence[Ended]) -> Response:
    ours, asked = context.itself(g), context.itself(request)
    caller = ours.get("caller")
    rule = asked.url_rule
    line: dict[str, Any] = {
        "request_id": context.request_id(),
        "method": asked.method,
        "route": rule.rule if rule else None,
        "status": response.status_code,
        "key": caller.key_hash[:_PREFIX] if caller else None,
        "remote": asked.remote_addr,
        **ours.get("notes", {}),
    }
    begun = ours.get("begun", time.perf_counter())
    counter = _Counted(response)

    told: Request = ours.told
    line.update(told.facts)
    length = asked.content_length

    def write() -> None:
        seconds = time.perf_counter() - begun
        line["ms"] = round(seconds * 1000, 1)
        line["bytes_out"] = counter.size
        told.over(
            Answered(
                line["route"],
                line["method"],
                response.status_code,
                seconds,
                # Of a body without a length that of the file in it is known, if there was one.
                length if length is not None else line.get("bytes_in", 0),
                counter.size,
                is_cut_off=counter.is_cut_off,
            )
        )
        if counter.is_cut_off:
            line["cut_off"] = True
        log.info("request", extra=line)
        for tell in on_end:
            tell(caller, line)

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
