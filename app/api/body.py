"""A JSON body, read once and bounded."""

import json
from typing import Any

from flask import request

from app.api.context import itself, services
from app.errors import InvalidRequest, TooLarge
from app.json_spans import is_too_deep, too_deep

MB = 1024 * 1024


def read(limit: int | None = None) -> bytes:
    """The request's body. Raises TooLarge over the limit, naming it and the size.

    `limit` is in bytes, `max_request_size_mb` of the settings unless it is given.
    """
    if limit is None:
        limit = services().settings.max_request_size_mb * MB
    asked = itself(request)
    declared = asked.content_length
    if declared is not None and declared > limit:
        raise TooLarge(f"the request has {declared} bytes, {limit} bytes are allowed")
    # One more: Werkzeug cuts a chunked body off at the maximum without a word.
    asked.max_content_length = limit + 1
    # A request that is done once is read twice: as what is asked for, and as the view wants it.
    raw = asked.get_data(cache="Idempotency-Key" in asked.headers)
    if len(raw) > limit:
        raise TooLarge(f"the request has more than the {limit} bytes allowed")
    return raw


def json_object(limit: int | None = None) -> dict[str, Any]:
    """The JSON object of the body. Raises InvalidRequest for anything else, TooLarge as `read`."""
    return _parsed(read(limit))


def optional_object() -> dict[str, Any]:
    """The JSON object that old clients and curl send with GET and DELETE, {} for none.

    Raises InvalidRequest when there is a body that is no JSON object.
    """
    environ = request.environ
    if "CONTENT_LENGTH" not in environ and "HTTP_TRANSFER_ENCODING" not in environ:
        return {}
    raw = read()
    return _parsed(raw) if raw.strip() else {}


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode(json.detect_encoding(raw), "surrogatepass")
        if is_too_deep(text.encode("utf-8", "surrogatepass")):
            raise too_deep("the request body")
        value = json.loads(text, parse_constant=_refuse_constant)
    # A body in no known encoding is a ValueError too.
    except ValueError as error:
        raise InvalidRequest("the request body is not valid JSON", code="invalid_json") from error
    if not isinstance(value, dict):
        raise InvalidRequest("the request body must be a JSON object", code="invalid_json")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
