"""Google's error bodies as ours: an exception for a call of our own, OpenAI's envelope for a reply.

Source: Google Cloud APIs, Errors (google.rpc.Status, ErrorInfo, RetryInfo); Cloud Storage JSON API,
error responses; read 2026-11.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from app.errors import GatewayError, NotFound, UpstreamAuthFailed, UpstreamRejected
from app.providers.upstream import clean

LONGEST_WAIT_SECONDS = 120
"""What a Retry-After may say at most: clients do not wait longer."""

_TYPE_BY_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_BUSY = (429, 503)
_BAD_KEY = frozenset({"API_KEY_INVALID", "API_KEY_EXPIRED", "API_KEY_SERVICE_BLOCKED"})
# AI Studio: "The input token count (N) exceeds the maximum number of tokens allowed (M)."; Vertex
# AI says "... but model only supports up to M" as well.
_TOO_LONG = re.compile(
    r"token count.{0,40}exceeds|exceeds the maximum number of (?:input )?tokens"
    r"|model only supports up to \d+",
    re.IGNORECASE,
)
_SECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{0,9})?)s")


@dataclass(frozen=True)
class _Said:
    """What an error body says; `name` is Google's word for the status, empty when it says none."""

    message: str
    name: str
    code: int | None
    reasons: frozenset[str]
    wait: int | None


def refusal(status: int, raw: bytes) -> GatewayError | None:
    """The error that an answer to a call of our own means: Upstream's `refusal`.

    UpstreamAuthFailed for our credential (AI Studio says so with a 400), NotFound for 404, else
    UpstreamRejected with OpenAI's type and code and Google's message; `Retry-After` (seconds) when
    Google says how long to wait.
    """
    said = _said(raw)
    if _is_our_credential(status, said):
        return UpstreamAuthFailed("the provider refused the gateway's own credential")
    error = _inside(status, said)
    if status == 404:
        return NotFound(error["message"])
    return UpstreamRejected(
        error["message"],
        status=_shown(status, said),
        type=error["type"],
        code=error["code"],
        retryable=status in _BUSY,
        headers=_wait_header(said),
    )


def envelope(status: int, raw: bytes) -> tuple[int, bytes, dict[str, str]]:
    """An inference reply's status, body in OpenAI's error envelope, and headers.

    A refused API key is a 401, as it is elsewhere: whoever reads it knows that it is ours.
    """
    said = _said(raw)
    shown = 401 if _is_our_credential(status, said) and status == 400 else _shown(status, said)
    body = json.dumps({"error": _inside(shown, said)}, ensure_ascii=False).encode()
    return shown, body, {"Content-Type": "application/json", **_wait_header(said)}


def _said(raw: bytes) -> _Said:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    # A stream without alt=sse, and AI Studio's layer for OpenAI's clients, answer with a list.
    if isinstance(value, list):
        value = value[0] if value else None
    error = value.get("error", value) if isinstance(value, dict) else None
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        error = {}
    message, name, code = (error.get(key) for key in ("message", "status", "code"))
    details = _objects(error.get("details"))
    older = _objects(error.get("errors"))
    reasons = (item.get("reason") for item in (*details, *older))
    waits = (_wait(detail.get("retryDelay")) for detail in details)
    return _Said(
        message=clean(message) if isinstance(message, str) else "",
        name=clean(name) if isinstance(name, str) else "",
        code=code if type(code) is int else None,
        reasons=frozenset(reason for reason in reasons if isinstance(reason, str)),
        wait=next((wait for wait in waits if wait is not None), None),
    )


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _wait(delay: Any) -> int | None:
    found = _SECONDS.fullmatch(delay) if isinstance(delay, str) else None
    return min(math.ceil(float(found[1])), LONGEST_WAIT_SECONDS) if found else None


def _wait_header(said: _Said) -> dict[str, str]:
    return {} if said.wait is None else {"Retry-After": str(said.wait)}


def _is_our_credential(status: int, said: _Said) -> bool:
    return status in (401, 403) or (status == 400 and bool(said.reasons & _BAD_KEY))


def _shown(status: int, said: _Said) -> int:
    """The HTTP status for the client."""
    if status < 400 and said.code is not None:
        # An error in the midst of an answer that had begun well.
        status = said.code
    if status < 400 or status > 599:
        return 502
    return 500 if status == 499 else status


def _inside(status: int, said: _Said) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = said.name.lower() or str(status)
    if status == 400 and _TOO_LONG.search(said.message):
        code = "context_length_exceeded"
    return {
        "message": said.message or f"the upstream answered with status {status}",
        "type": _TYPE_BY_STATUS.get(status, kind),
        "param": None,
        "code": code,
    }
