"""The two cookies: a session's token, and what the sign-in form is tied to before there is one."""

import secrets

from flask import g, request
from werkzeug.wrappers import Response

from app.services.sessions import LIFETIME

_SESSION = "manifold_session"
_FORM = "manifold_sign_in"
_FORM_SECONDS = 3600


def session_token() -> str | None:
    """The token of the session that this browser says it has."""
    return request.cookies.get(_named(_SESSION))


def keep_session(response: Response, token: str) -> None:
    """Let the browser have a new session's token, and no script of any page see it."""
    _set(response, _SESSION, token, int(LIFETIME.total_seconds()))
    _drop(response, _FORM)


def forget(response: Response) -> None:
    """Let the browser forget its session."""
    _drop(response, _SESSION)


def form_secret() -> str:
    """What the sign-in form's token is made from; a new one when the browser has none."""
    if "sign_in_secret" not in g:
        g.sign_in_secret = request.cookies.get(_named(_FORM)) or secrets.token_urlsafe(32)
    return str(g.sign_in_secret)


def keep_form_secret(response: Response) -> None:
    """Let the browser have it for as long as somebody may take to sign in."""
    _set(response, _FORM, form_secret(), _FORM_SECONDS)


def _named(name: str) -> str:
    # No other host, not even one above or below ours, can set a cookie of such a name; browsers
    # take one over TLS only, and for all paths.
    return f"__Host-{name}" if request.is_secure else name


def _set(response: Response, name: str, value: str, seconds: int) -> None:
    response.set_cookie(
        _named(name),
        value,
        max_age=seconds,
        path=_path(),
        secure=request.is_secure,
        httponly=True,
        samesite="Lax",
    )


def _drop(response: Response, name: str) -> None:
    response.delete_cookie(
        _named(name), path=_path(), secure=request.is_secure, httponly=True, samesite="Lax"
    )


def _path() -> str:
    return "/" if request.is_secure else "/ui"
