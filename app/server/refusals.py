"""Answers to what never reached the application, and the end of a connection after them."""

import json
import socket
import time
import uuid
from typing import Any

from gunicorn.http import errors as refused

from app.server import limits


class SlowHeadError(Exception):
    """The request's head did not arrive in time."""


class Refusing:
    """A worker of gunicorn's that answers such requests in our envelope."""

    log: Any

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Answer what never reached the application, or broke its server side, and close."""
        request_id = f"req_{uuid.uuid4().hex}"
        status, code, message = _answer(exc)
        extra = {"request_id": request_id, "status": status, "client": addr[0] if addr else ""}
        if status == 500:
            self.log.error("unexpected_error", exc_info=exc, extra=extra)
        else:
            # The offending line itself may hold a key.
            self.log.warning("refused: %s", type(exc).__name__, extra=extra)
        kind = "server_error" if status >= 500 else "invalid_request_error"
        error = {"message": message, "type": kind, "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
            "Connection: close\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"{HARDENING}"
            f"X-Request-Id: {request_id}\r\n\r\n"
        )
        try:
            client.sendall(head.encode() + body)
        except OSError:
            self.log.debug("the client left before it could be told")


# What app.api.security_headers puts on every answer of the application.
HARDENING = (
    "X-Content-Type-Options: nosniff\r\n"
    "X-Frame-Options: DENY\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\n"
    "Content-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\n"
    "Cache-Control: no-store\r\n"
)
_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    414: "URI Too Long",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
}


def _answer(exc: Exception) -> tuple[int, str, str]:
    """Status, code and message of a refusal; a fault of ours is an internal error."""
    for kinds, answer in _ANSWERS:
        if isinstance(exc, kinds):
            return answer
    return _OURS


def linger(sock: Any) -> None:
    """Read on for a while after a last answer.

    Closing while the client still sends makes the kernel reset the connection, and a reset takes
    the answer away from a client that has not read it yet: an upload that is refused with 401
    would look like a broken network.
    """
    end = time.monotonic() + limits.LINGER_SECONDS
    try:
        sock.shutdown(socket.SHUT_WR)
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(min(left, limits.LINGER_IDLE_SECONDS))
            if not sock.recv(65536):
                return
    except OSError:
        return


_OURS = (500, "internal_error", "internal error")
# The first line that fits counts: those of a response are subclasses of those of a request.
_ANSWERS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], tuple[int, str, str]], ...] = (
    (
        (
            refused.InvalidResponseHeader,
            refused.InvalidResponseHeaderName,
            refused.ConfigurationProblem,
        ),
        _OURS,
    ),
    (
        SlowHeadError,
        (
            408,
            "request_timeout",
            f"the request's line and headers took longer than {limits.HEAD_SECONDS} seconds",
        ),
    ),
    (
        refused.LimitRequestLine,
        (
            414,
            "uri_too_long",
            f"the request's first line is longer than {limits.LINE_BYTES} bytes",
        ),
    ),
    (
        refused.LimitRequestHeaders,
        (
            431,
            "headers_too_large",
            f"more than {limits.HEADERS} headers, or one of more than {limits.HEADER_BYTES} bytes",
        ),
    ),
    (
        refused.ExpectationFailed,
        (417, "expectation_failed", "only `Expect: 100-continue` is understood"),
    ),
    (
        refused.UnsupportedTransferCoding,
        (
            501,
            "unsupported_transfer_coding",
            "only the transfer coding `chunked` is understood",
        ),
    ),
    (
        (refused.InvalidHeader, refused.InvalidHeaderName, refused.ObsoleteFolding),
        (400, "bad_request", "a header of the request is malformed"),
    ),
    (
        refused.InvalidHTTPVersion,
        (400, "bad_request", "this version of HTTP is not understood"),
    ),
    (refused.ParseException, (400, "bad_request", "this is not a valid HTTP request")),
)
