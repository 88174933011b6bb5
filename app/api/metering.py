"""Each request counted for the limits of its key and user, until its last byte is gone."""

from collections.abc import Callable
from typing import Any, TypeVar

from flask import Flask, Response, current_app, g, request

from app.api import files, uploads
from app.api.context import services
from app.services.callers import Caller

View = TypeVar("View", bound=Callable[..., Any])

UPLOADS: frozenset[Callable[..., Any]] = frozenset({files.create, uploads.create})
"""The views that begin a new file; its parts are parts of one upload."""


def begins_upload(view: View) -> View:
    """Mark a view of another room as one of these."""
    view.begins_upload = True  # type: ignore[attr-defined]  # functions take attributes
    return view


def install(app: Flask) -> None:
    """Let every request that `begin` has counted end."""
    app.after_request(_hand_on)
    app.teardown_request(_end)


def begin(caller: Caller) -> None:
    """Count this request. Raises RateLimited, DatabaseUnavailable."""
    if caller.limited:
        view = current_app.view_functions.get(request.endpoint or "")
        is_upload = view in UPLOADS or getattr(view, "begins_upload", False)
        g.metered = services().meter.begin(caller, is_upload=is_upload)


def _hand_on(response: Response) -> Response:
    metered = g.pop("metered", None)
    if metered is not None:
        response.call_on_close(metered.close)
    return response


def _end(_error: BaseException | None) -> None:
    """Close what no response has taken over."""
    metered = g.pop("metered", None)
    if metered is not None:
        metered.close()
