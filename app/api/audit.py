"""Who was refused what, and who downloaded what, into the audit trail before the answer leaves."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask, Response, current_app, g, request

from app.api import accel, batches, context, files, fine_tuning, keys, uploads, users
from app.errors import GatewayError

_log = logging.getLogger("manifold")

ACTIONS: Mapping[Callable[..., Any], str] = {
    files.create: "file.upload",
    uploads.complete: "file.upload",
    files.content: "file.download",
    files.delete: "file.delete",
    batches.create: "batch.create",
    batches.cancel: "batch.cancel",
    fine_tuning.create: "fine_tuning.create",
    fine_tuning.steer: "fine_tuning.{action}",
    users.new: "user.new",
    users.update: "user.update",
    users.delete: "user.delete",
    keys.generate: "key.generate",
    keys.update: "key.update",
    keys.delete: "key.delete",
    keys.block: "key.block",
    keys.unblock: "key.unblock",
    keys.regenerate: "key.regenerate",
}
"""What a view does. Whatever it does in a transaction of ours is written down there."""

_DOWNLOAD = "file.download"
_NO_TRANSACTION = frozenset({_DOWNLOAD, "batch.cancel", "fine_tuning.{action}"})
_IDS = ("file_id", "batch_id", "job_id", "upload_id", "user_id")


def install(app: Flask, more: Mapping[Callable[..., Any], str] | None = None) -> None:
    """Write down what the services could not: a refusal has no transaction, nor has a download.

    To be installed last, for then it has its say before the answer is marked and logged. An answer
    whose row cannot be written becomes that failure. `more` are other rooms' ACTIONS.
    """
    actions = {**ACTIONS, **(more or {})}
    app.after_request(lambda response: _note(response, actions))


def _note(response: Response, actions: Mapping[Callable[..., Any], str]) -> Response:
    view: Any = current_app.view_functions.get(request.endpoint or "")
    action = actions.get(view)
    if action is None:
        return response
    caller = g.get("caller")
    is_refused = response.status_code >= 400
    # Whoever has no good key is in the log alone: he could fill the database.
    if caller is None or not (is_refused or _is_due(action)):
        return response
    if g.get("database_is_away"):
        # A second wait, as long as the first, for a row that cannot be written either.
        return response
    named = {**g.get("asked", {}), **(request.view_args or {})}
    try:
        trail = context.services().trail
        target = next((named[name] for name in _IDS if isinstance(named.get(name), str)), None)
        if action == _DOWNLOAD and not is_refused:
            size = accel.size_of(response)
            trail.jot(caller, action, target, status=response.status_code, size=size)
        else:
            trail.write(
                caller,
                action.format_map(named),
                target,
                status=response.status_code,
                fields=g.get("asked", ()),
            )
    except GatewayError as error:
        _log.error(
            "audit_failed", extra={"request_id": context.request_id(), "status": error.status}
        )
        if is_refused:
            return response
        # Takes the copy's connection along.
        response.close()
        return current_app.make_response(current_app.handle_user_exception(error))
    return response


def _is_due(action: str) -> bool:
    """Whether something was done that no transaction tells of; HEAD takes no bytes along."""
    return action in _NO_TRANSACTION and request.method != "HEAD"
