"""Forms that only our own pages can send: a token bound to the session, and the browser's word.

Source: OWASP Cross-Site Request Forgery Prevention Cheat Sheet (signed double submit, fetch
metadata); read 2026-11.
"""

import hashlib
import hmac
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from flask import current_app, request

from app.errors import NotPermitted

FIELD = "csrf_token"
HEADER = "X-CSRF-Token"
SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
MAX_FORM_BYTES = 256 * 1024

View = TypeVar("View", bound=Callable[..., Any])


def token_of(secret: str) -> str:
    """The token of the forms that whoever has this cookie is shown."""
    return hmac.new(secret.encode(), b"manifold console form", hashlib.sha256).hexdigest()


def in_its_form(view: View) -> View:
    """Mark a view that reads its own form, and asks `require` for the token before it does more."""
    view.reads_its_form = True  # type: ignore[attr-defined]  # functions take attributes
    return view


def check(secret: str) -> None:
    """Refuse a request that changes something and was not sent by a page of ours.

    To be called when the caller is known, before the view. Raises NotPermitted.
    """
    if request.method in SAFE:
        return
    refuse_other_sites()
    sent = request.headers.get(HEADER)
    view = current_app.view_functions.get(request.endpoint or "")
    if not getattr(view, "reads_its_form", False):
        # Werkzeug reads no more of a form than this.
        request.max_content_length = MAX_FORM_BYTES
        sent = request.form.get(FIELD) if sent is None else sent
    elif sent is None:
        return
    require(secret, sent)


def require(secret: str, sent: str | None) -> None:
    """Raise NotPermitted unless this is the token for the forms of this session."""
    wanted = token_of(secret)
    if not sent or not hmac.compare_digest(sent.encode("utf-8", "replace"), wanted.encode()):
        raise NotPermitted(
            "this form is not of your session, perhaps because you have signed in again since; "
            "load the page anew and try again",
            code="csrf",
        )


def refuse_other_sites() -> None:
    """Raise NotPermitted when the browser says that another site's page has sent this."""
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    is_other = site not in (None, "same-origin", "none")
    if site is None and origin is not None:
        is_other = urlsplit(origin).netloc != request.host
    if is_other:
        raise NotPermitted("another site has sent this", code="csrf")
