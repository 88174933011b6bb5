"""Any exception -> OpenAI's error envelope; what every response carries."""

import logging

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import ClientDisconnected, HTTPException, MethodNotAllowed
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.wrappers import Response as BaseResponse

from app import signals
from app.api import context
from app.errors import (
    DatabaseUnavailable,
    GatewayError,
    StorageFull,
    UpstreamError,
    UpstreamRejected,
)

_log = logging.getLogger("manifold")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_CODES = {
    413: "request_too_large",
    416: "range_not_satisfiable",
    500: "internal_error",
}
_OF_THE_BODY = frozenset({"content-type", "content-length"})


def install(app: Flask) -> None:
    """Let every error of this app leave in the envelope and every response with its request id."""
    app.register_error_handler(GatewayError, envelope_of)
    app.register_error_handler(HTTPException, of_http)
    app.register_error_handler(Exception, unexpected)
    app.after_request(_mark)


def _mark(response: Response) -> Response:
    response.headers["x-request-id"] = context.request_id()
    if response.status_code == 401:
        response.headers.setdefault("WWW-Authenticate", "Bearer")
    return response


def envelope_of(error: GatewayError) -> Response:
    """The error in its envelope, and in the log where an operator should know of it."""
    signals.tell().refused(None if isinstance(error, UpstreamRejected) else error.code)
    body = error.body()
    for name in ("message", "param"):
        # Both repeat what was sent, where JSON can say half a surrogate pair and UTF-8 cannot.
        if text := body["error"][name]:
            body["error"][name] = text.encode("utf-8", "backslashreplace").decode()
    response = jsonify(body)
    response.status_code = error.status
    response.headers.extend(error.headers)
    if isinstance(error, UpstreamError):
        if error.provider:
            response.headers["llm-provider"] = error.provider
        if error.deployment:
            context.note(deployment=error.deployment)
        _log.warning(
            "upstream_failed",
            extra={
                "request_id": context.request_id(),
                "provider": error.provider,
                "deployment": error.deployment,
                "status": error.status,
                "code": error.code,
            },
        )
    elif isinstance(error, DatabaseUnavailable | StorageFull):
        g.database_is_away = isinstance(error, DatabaseUnavailable)
        log_outage(error)
    return response


def log_outage(error: GatewayError) -> None:
    """The operator's alarm: the error's code as the event, with the driver's words as reason."""
    _log.error(
        error.code,
        extra={
            "request_id": context.request_id(),
            "path": request.path,
            "reason": _first_line(error.__cause__),
        },
    )


def _first_line(cause: BaseException | None) -> str:
    """What happened, without the statement and its parameters, which hold what users sent."""
    told = getattr(cause, "orig", None) or cause
    return f"{type(told).__name__}: {told}".partition("\n")[0] if told else ""


def of_http(error: HTTPException) -> BaseResponse:
    """What Flask and Werkzeug refuse, in the envelope."""
    if error.response is not None:
        return error.get_response(request.environ)
    # Validation is 400 here; 422 is what other frameworks say for it.
    status = 400 if error.code in (None, 422) else error.code
    code = _CODES.get(status) or HTTP_STATUS_CODES[status].lower().replace(" ", "_")
    signals.tell().refused(code)
    response = _envelope(
        status,
        _words(error, status),
        _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        code,
    )
    for name, value in error.get_headers(request.environ):
        if name.lower() not in _OF_THE_BODY:
            response.headers.add(name, value)
    return response


def _words(error: HTTPException, status: int) -> str:
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or ()))
        return f"{request.method} is not allowed for {request.path}; allowed: {allowed}"
    if isinstance(error, ClientDisconnected):
        return "the request ended before its body was complete"
    if error.description != type(error).description:
        return error.description or HTTP_STATUS_CODES[status]
    # Werkzeug's own words are made for a browser's page.
    return {
        400: "the request could not be understood",
        404: f"no such route: {request.method} {request.path}",
        413: "the request is larger than this route allows",
        415: "this content type is not understood here; send application/json or a form",
        500: "internal error",
    }.get(status, HTTP_STATUS_CODES[status].lower())


def unexpected(error: Exception) -> Response:
    """A fault of ours: logged with its traceback, and told without it."""
    _log.error(
        "unexpected_error",
        exc_info=error,
        extra={
            "request_id": context.request_id(),
            "method": request.method,
            "path": request.path,
        },
    )
    signals.tell().refused("internal_error")
    return _envelope(500, "internal error", "server_error", "internal_error")


def _envelope(status: int, message: str, type: str, code: str) -> Response:
    body = {"error": {"message": message, "type": type, "param": None, "code": code}}
    response = jsonify(body)
    response.status_code = status
    return response
