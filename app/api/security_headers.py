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


def _harden(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    rule = request.url_rule
    is_kept = response.cache_control.max_age is not None
    if not is_kept and (rule is None or rule.rule not in OPEN_ROUTES):
        response.cache_control.no_store = True
    return response
