"""The key or the session of a request -> its caller, and what each view asks of a caller."""

import hmac
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from flask import Flask, Request, g, request
from werkzeug.routing import Rule

from app import ids
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

OPEN_PAGES: frozenset[str] = frozenset({"/ui/sign-in", "/ui/static/<name>"})
"""The URL rules of the console that show themselves to who is not signed in, likewise."""

View = TypeVar("View", bound=Callable[..., Any])


class Guard(Enum):
    """Whom a view serves."""

    OPEN = "nobody is asked; the rule must stand in OPEN_ROUTES or OPEN_PAGES too"
    ANY_KEY = "any key that is valid now"
    WRITE = "any key but a viewer's"
    ADMIN_READ = "proxy_admin and proxy_admin_viewer"
    ADMIN = "proxy_admin"
    METRICS = "proxy_admin, proxy_admin_viewer, and whoever has the metrics_token"


class Door(Enum):
    """How a view knows who asks."""

    KEY = "by the key in a header, and by nothing that a browser sends by itself"
    SESSION = "by the cookie of the console, and by no key"


def guard(required: Guard, door: Door = Door.KEY) -> Callable[[View], View]:
    """Mark a view with whom it serves. A view without a mark serves nobody."""

    def mark(view: View) -> View:
        view.guard = required  # type: ignore[attr-defined]  # functions take attributes
        view.door = door  # type: ignore[attr-defined]  # likewise
        return view

    return mark


def _no_session() -> Caller:
    raise NotAuthenticated("nobody can be signed in here")


def install(
    app: Flask,
    on_caller: Callable[[Caller], object] = lambda caller: None,
    signed_in: Callable[[], Caller] = _no_session,
) -> None:
    """Ask every request for its key, before its body is read, and refuse what is not allowed.

    `on_caller` is called when the caller is known; what it raises refuses the request too.
    `signed_in` answers with the caller behind the request's session, or raises NotAuthenticated.

    What is asked hangs on the view that Flask matched and will call: there is no second look at
    the path that could differ. Raises NotAuthenticated, NotPermitted, DatabaseUnavailable.
    """

    def check() -> None:
        asked = context.itself(request)
        if _is_open(asked.url_rule):
            return
        required = _guard_of(app, asked.endpoint or "")
        if required is Guard.METRICS and _has_metrics_token():
            return
        by_session = door_of(app, asked.endpoint or "") is Door.SESSION
        found = signed_in() if by_session else _holder(asked)
        g.caller = caller = found.sending(Origin(context.request_id(), asked.remote_addr))
        on_caller(caller)
        if required is None or not _serves(required, caller):
            raise NotPermitted(
                f"User {caller.display_name} may not {asked.method} {asked.url_rule}"
            )

    app.before_request(check)


def _holder(asked: Request) -> Caller:
    """Who has sent the key; the file that he wants to read is found with it, in one statement.

    What changes a file looks at it when it does: by then a body may have been waited for.
    """
    access, secret = services().access, presented_secret()
    meaning = ids.decode((asked.view_args or {}).get("file_id", ""))
    if asked.method not in ("GET", "HEAD") or not isinstance(meaning, ids.UnifiedId):
        return access.authenticate(secret)
    found, g.seen = access.authenticate_beside(secret, meaning.file_uuid)
    return found


def unguarded(app: Flask) -> list[str]:
    """The URL rules whose view has no mark, or is marked open without being listed above."""
    found = []
    for rule in app.url_map.iter_rules():
        required = _guard_of(app, rule.endpoint)
        is_listed = rule.rule in OPEN_ROUTES | OPEN_PAGES
        if required is None or (required is Guard.OPEN and not is_listed):
            found.append(rule.rule)
    return sorted(found)


def door_of(app: Flask, endpoint: str) -> Door:
    """How the view of this endpoint knows who asks."""
    return getattr(app.view_functions.get(endpoint), "door", Door.KEY)


def _is_open(rule: Rule | None) -> bool:
    return rule is None or rule.rule in OPEN_ROUTES or rule.rule in OPEN_PAGES


def _has_metrics_token() -> bool:
    """Whether this is a request with the token that is for the metrics and for nothing else."""
    token = services().settings.metrics_token
    return token is not None and hmac.compare_digest(presented_secret().encode(), token.encode())


def _guard_of(app: Flask, endpoint: str) -> Guard | None:
    return getattr(app.view_functions.get(endpoint), "guard", None)


def _serves(required: Guard, caller: Caller) -> bool:
    if required is Guard.ANY_KEY:
        return True
    if required is Guard.WRITE:
        return caller.may_write
    if required is Guard.ADMIN:
        return caller.is_admin
    # An open view whose rule is not listed is a mistake of ours, and stays shut.
    return required in (Guard.ADMIN_READ, Guard.METRICS) and caller.sees_everything


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
