"""Pages: templates with what each of them shows, their headers, and errors as pages."""

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, g, make_response, redirect, render_template, request
from werkzeug.exceptions import HTTPException
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.wrappers import Response as BaseResponse

import app
from app.api import context, errors
from app.console import cookies, csrf, formats
from app.errors import GatewayError, NotAuthenticated
from app.services.callers import Caller

STATIC = Path(__file__).parent / "static"

_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

POLL = "X-Manifold-Poll"
"""Sent by a page's script that asks for the page anew, without anybody's doing."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""Nothing comes from elsewhere, nothing stands inside a page, and no page inside another."""

_TITLES = {
    400: "That did not work",
    403: "Not yours to do",
    404: "Not found",
    405: "Not possible",
    409: "Not now",
    413: "Too large",
    429: "Too many requests",
    503: "The database does not answer",
    507: "No room",
}
_LOCAL = re.compile(r"/ui(/[\w./-]*)?(\?[\w.&=%+-]*)?", re.ASCII)


def render(template: str, status: int = 200, **shown: Any) -> Response:
    """A page, with the names that every template knows."""
    caller: Caller | None = g.get("caller")
    session = cookies.session_token()
    page = make_response(
        render_template(
            f"console/{template}",
            me=caller,
            csrf_field=csrf.FIELD,
            csrf_token=csrf.token_of(session) if session else "",
            version=app.__version__,
            **shown,
        ),
        status,
    )
    page.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return page


def go(path: str) -> BaseResponse:
    """See another page of ours; what was sent is not sent there again."""
    return redirect(path, 303)


def wants_json() -> bool:
    """Whether a script asks, and not somebody's click."""
    accepted = request.accept_mimetypes
    return accepted["application/json"] > accepted["text/html"]


def is_poll() -> bool:
    """Whether the page's own script asks for it anew."""
    return POLL in request.headers


def local(path: str | None) -> str:
    """A path of the console to go on to, its first page for anything else."""
    return path if path and _LOCAL.fullmatch(path) else "/ui/"


@dataclass(frozen=True)
class Static:
    """A file that pages load; `digest` changes with its content."""

    content: bytes
    kind: str
    digest: str


@cache
def static_files() -> dict[str, Static]:
    """The style sheet, the script and the picture, by name; a few KB, read once."""
    found = {}
    for path in STATIC.iterdir():
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:12]
        found[path.name] = Static(content, _KINDS[path.suffix], digest)
    return found


def asset(name: str) -> str:
    """Where a static file is, with its content in the address so that browsers may keep it."""
    return f"/ui/static/{name}?v={static_files()[name].digest}"


def install(blueprint: Blueprint) -> None:
    """Give the templates their filters, and let errors of this room be pages."""
    for name in ("size", "number", "moment", "absolute", "relative", "duration", "role", "owner"):
        blueprint.add_app_template_filter(getattr(formats, name), f"as_{name}")
    blueprint.add_app_template_global(asset, "asset")
    blueprint.add_app_template_global(formats.share, "share")
    blueprint.register_error_handler(GatewayError, _of_the_gateway)
    blueprint.register_error_handler(HTTPException, _of_http)
    blueprint.register_error_handler(Exception, _unexpected)


def _of_the_gateway(error: GatewayError) -> BaseResponse:
    told = errors.envelope_of(error)
    if wants_json():
        return told
    if isinstance(error, NotAuthenticated):
        return _sign_in_first()
    page = _error_page(error.status, error.message, error.code)
    page.headers.extend(error.headers)
    return page


def _sign_in_first() -> BaseResponse:
    path = "/ui/sign-in"
    if request.method == "GET" and request.path != "/ui/":
        wanted = request.full_path.removesuffix("?")
        if local(wanted) == wanted:
            path = f"/ui/sign-in?{urlencode({'next': wanted})}"
    response = go(path)
    if cookies.session_token():
        cookies.forget(response)
    return response


def _of_http(error: HTTPException) -> BaseResponse:
    told = errors.of_http(error)
    status = told.status_code
    if wants_json() or 300 <= status < 400:
        return told
    page = _error_page(status, error.description or HTTP_STATUS_CODES[status], None)
    if "Allow" in told.headers:
        page.headers["Allow"] = told.headers["Allow"]
    return page


def _unexpected(error: Exception) -> BaseResponse:
    told = errors.unexpected(error)
    return told if wants_json() else _error_page(500, "Something went wrong on our side.", None)


def _error_page(status: int, message: str, code: str | None) -> Response:
    return render(
        "error.html",
        status,
        title=_TITLES.get(status, "Something went wrong"),
        message=message,
        code=code,
        request_id=context.request_id(),
    )
