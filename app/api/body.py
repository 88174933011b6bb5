"""A JSON body, read once and bounded."""

import json
from typing import Any

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge

from app.api.context import services
from app.errors import InvalidRequest, TooLarge

MB = 1024 * 1024


def read() -> bytes:
    """The request's body. Raises TooLarge over `max_request_size_mb`, naming limit and size."""
    limit = services().settings.max_request_size_mb * MB
    declared = request.content_length
    if declared is not None and declared > limit:
        raise TooLarge(f"the request has {declared} bytes, {limit} bytes are allowed")
    request.max_content_length = limit
    try:
        return request.get_data(cache=False)
    except RequestEntityTooLarge as error:
        raise TooLarge(f"the request has more than the {limit} bytes allowed") from error


def optional_object() -> dict[str, Any]:
    """The JSON object that old clients and curl send with GET and DELETE, {} for none.

    Raises InvalidRequest when there is a body that is no JSON object.
    """
    if not request.content_length and "chunked" not in request.headers.get("Transfer-Encoding", ""):
        return {}
    raw = read()
    if not raw.strip():
        return {}
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("the request body is not valid JSON", code="invalid_json") from error
    if not isinstance(value, dict):
        raise InvalidRequest("the request body must be a JSON object", code="invalid_json")
    return value
