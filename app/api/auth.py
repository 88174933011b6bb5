"""The key of a request -> its caller, and what each view asks of a caller."""

import hmac
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Any, TypeVar

from flask import Flask, current_app, g, request

from app.api import context
from app.api.context import services
from app.errors import NotAuthenticated, NotPermitted
from app.services.callers import Caller, Origin

OPEN_ROUTES: frozenset[str] = frozenset(
    {
        "/health/liveliness",
        "/health/liveness",
        "/health/readiness",
        # The API reference says what the source says, to everybody the same.
        "/",
        "/openapi.json",
        "/reference/<asset>",
    }
)
"""The URL rules that need no key; there is no other way to open one."""

View = TypeVar("View", bound=Callable[..., Any])


class Guard(Enum):
    """Whom a view serves."""

    OPEN = "nobody is asked; the rule must stand in OPEN_ROUTES too"
    ANY_KEY = "any key that is valid now"
    WRITE = "any key but a viewer's"
    ADMIN_READ = "proxy_admin and proxy_admin_viewer"
    ADMIN = "proxy_admin"
    METRICS = "proxy_admin, proxy_admin_viewer, and whoever has the metrics_token"


def guard(required: Guard) -> Callable[[View], View]:
    """Mark a view with whom it serves. A view without a mark serves nobody."""

    def mark(view: View) -> View:
        view.guard = required  # type: ignore[attr-defined]  # functions take attributes
        return view

    return mark


def install(app: Flask, on_caller: Callable[[Caller], object] = lambda caller: None) -> None:
    """Ask every request for its key, before its body is read, and refuse what is not allowed.

    `on_caller` is called when the caller is known; what it raises refuses the request too.

    What is asked hangs on the view that Flask matched and will call: there is no second look at
    the path that could differ. Raises NotAuthenticated, NotPermitted, DatabaseUnavailable.
    """

    def check() -> None:
        if _is_open() or _is_scraper():
            return
        g.caller = caller = _identified()
        on_caller(caller)
        _require_served(caller)

    app.before_request(check)


def unguarded(app: Flask) -> list[str]:
    """The URL rules whose view has no mark, or is marked open without being in OPEN_ROUTES."""
    found = []
    for rule in app.url_map.iter_rules():
        required = _guard_of(app, rule.endpoint)
        if required is None or (required is Guard.OPEN and rule.rule not in OPEN_ROUTES):
            found.append(rule.rule)
    return sorted(found)


def _is_open() -> bool:
    rule = request.url_rule
    return rule is None or rule.rule in OPEN_ROUTES


def _is_scraper() -> bool:
    """Whether this is a request for the metrics, with the token that is for nothing else."""
    if _guard_of(current_app, request.endpoint or "") is not Guard.METRICS:
        return False
    token = services().settings.metrics_token
    return token is not None and hmac.compare_digest(presented_secret().encode(), token.encode())


def _identified() -> Caller:
    caller = services().access.authenticate(presented_secret())
    return replace(caller, origin=Origin(context.request_id(), request.remote_addr))


def _require_served(caller: Caller) -> None:
    required = _guard_of(current_app, request.endpoint or "")
    if required is None or not _serves(required, caller):
        raise NotPermitted(
            f"User {caller.display_name} may not {request.method} {request.url_rule}"
        )


def _guard_of(app: Flask, endpoint: str) -> Guard | None:
    return getattr(app.view_functions.get(endpoint), "guard", None)


def _serves(required: Guard, caller: Caller) -> bool:
    return {
        # An open view whose rule is not listed is a mistake of ours, and stays shut.
        Guard.OPEN: False,
        Guard.ANY_KEY: True,
        Guard.WRITE: caller.may_write,
        Guard.ADMIN_READ: caller.sees_everything,
        Guard.ADMIN: caller.is_admin,
        Guard.METRICS: caller.sees_everything,
    }[required]


def presented_secret() -> str:
    """The first key of the request. Raises NotAuthenticated when there is none."""
    headers = request.headers
    scheme, _, bearer = headers.get("Authorization", "").strip().partition(" ")
    for secret in (
        _without_bearer(headers.get("x-litellm-api-key", "")),
        bearer.strip() if scheme.lower() == "bearer" else "",
        headers.get("api-key", "").strip(),
        headers.get("x-api-key", "").strip(),
    ):
        if secret:
            return secret
    raise NotAuthenticated(
        "no API key: send it as 'Authorization: Bearer sk-...'",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _without_bearer(value: str) -> str:
    value = value.strip()
    return value[7:].strip() if value[:7].lower() == "bearer " else value
