"""What every answer tells browsers and caches: take it as it is, show it nowhere, keep it nowhere.

Source: OWASP HTTP Headers Cheat Sheet and REST Security Cheat Sheet; read 2026-11.
"""

from flask import Flask, Response, request

from app.api.auth import OPEN_ROUTES

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""On every answer; a view that sets one of them itself keeps its own."""


def install(app: Flask) -> None:
    """Give every answer of this app its headers."""
    app.after_request(_harden)


_NAMES = tuple((name, name.lower(), value) for name, value in HEADERS.items())


def _harden(response: Response) -> Response:
    headers = response.headers
    present = {name.lower() for name, _ in headers}
    for name, lower, value in _NAMES:
        if lower not in present:
            headers.add(name, value)
    rule = request.url_rule
    is_open = rule is not None and rule.rule in OPEN_ROUTES
    if "cache-control" in present:
        if response.cache_control.max_age is None and not is_open:
            response.cache_control.no_store = True
    elif not is_open:
        headers.add("Cache-Control", "no-store")
    return response
