"""The blueprint of everything under /ui, and what the factory needs to know of it."""

from collections.abc import Callable, Mapping
from typing import Any

from flask import Blueprint, Response, current_app, request
from werkzeug.wrappers import Response as BaseResponse

from app.api import metering
from app.api.auth import OPEN_PAGES, Door, Guard, guard
from app.console import (
    batches,
    cookies,
    csrf,
    deployments,
    files,
    keys,
    overview,
    rendering,
    signing_in,
    tuning,
    users,
)
from app.errors import NotFound
from app.services.callers import Caller

blueprint = Blueprint("console", __name__, url_prefix="/ui", template_folder="templates")

ACTIONS: Mapping[Callable[..., Any], str] = {
    files.create: "file.upload",
    files.content: "file.download",
    files.delete: "file.delete",
    batches.create: "batch.create",
    batches.cancel: "batch.cancel",
    tuning.create: "fine_tuning.create",
    tuning.steer: "fine_tuning.{action}",
    users.create: "user.new",
    users.change: "user.update",
    users.block: "user.update",
    users.delete: "user.delete",
    keys.create: "key.generate",
    keys.block: "key.{action}",
    keys.regenerate: "key.regenerate",
    keys.delete: "key.delete",
}
"""What a view does, for the audit trail."""

_ROOMS = (files, batches, tuning, keys, users, deployments, overview, signing_in)
_READ_AGAIN = frozenset({files.list_, files.show, batches.list_, tuning.list_, deployments.list_})
"""What a page's own script may ask for again without being counted: it costs a look or two at the
database, and would use up what somebody may ask for in a minute."""


def count(caller: Caller) -> None:
    """Count a request for the limits of its caller. Raises as `metering.begin`."""
    view = current_app.view_functions.get(request.endpoint or "")
    if not (view in _READ_AGAIN and rendering.is_poll()):
        metering.begin(caller)


@blueprint.get("/")
@guard(Guard.ANY_KEY, Door.SESSION)
def start() -> BaseResponse:
    """The first page is the files'."""
    return rendering.go("/ui/files")


@blueprint.get("/<path:rest>")
@guard(Guard.ANY_KEY, Door.SESSION)
def nothing(rest: str) -> Response:
    """No page; who is not signed in is told nothing of that."""
    raise NotFound(f"there is no page {rest[:100]!r} here")


@blueprint.before_request
def _only_our_forms() -> None:
    # The sign-in form has no session yet, and a token of its own.
    if request.url_rule is not None and request.url_rule.rule not in OPEN_PAGES:
        csrf.check(cookies.session_token() or "")


rendering.install(blueprint)
for _room in _ROOMS:
    blueprint.register_blueprint(_room.blueprint)
