"""Files: list, upload, one file with its copies, download, delete."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, cast

from flask import Blueprint, Response, request
from werkzeug.wrappers import Response as BaseResponse

from app.api import files as api
from app.api import metering
from app.api.auth import Door, Guard, guard
from app.api.context import caller, services
from app.console import cookies, csrf, snippets, turning, uploading
from app.console.rendering import go, render, wants_json
from app.errors import GatewayError
from app.objects import LISTED_PURPOSES, PURPOSES
from app.services.browse import FileQuery, FileView
from app.services.router import Hints

blueprint = Blueprint("files", __name__)

EXPIRIES = (
    ("", "never"),
    ("3600", "after 1 hour"),
    ("86400", "after 1 day"),
    ("604800", "after 7 days"),
    ("2592000", "after 30 days"),
)
PURPOSE_NAMES = {
    "user_data": "user_data: for chats",
    "batch": "batch: requests",
    "fine-tune": "fine-tune: examples",
}
STATUSES = (("processed", "Ready"), ("uploaded", "Uploading"), ("error", "Missing or expired"))
_LOOKED_AFTER = 5
"""How many unfinished files of a list are asked for at their upstreams, each time it is shown."""
_ORDER = {"uploading": 0, "missing": 1, "expired": 2, "deleting": 3, "ready": 4}


@blueprint.get("/files")
@guard(Guard.ANY_KEY, Door.SESSION)
def list_() -> Response:
    """A page of files, and the form for another one."""
    return _listed()


@blueprint.post("/files")
@guard(Guard.WRITE, Door.SESSION)
@metering.begins_upload
@csrf.in_its_form
def create() -> BaseResponse | tuple[dict[str, str], int]:
    """Store a file and show it; a script is told where it is."""
    session = cookies.session_token() or ""

    def require(token: str | None) -> None:
        if csrf.HEADER not in request.headers:
            csrf.require(session, token)

    page = f"/ui/files/{uploading.stored(require, csrf.FIELD)}"
    return ({"location": page}, 201) if wants_json() else go(page)


@blueprint.get("/files/<uuid:file_id>")
@guard(Guard.ANY_KEY, Door.SESSION)
def show(file_id: Any) -> Response:
    """One file: where its copies are, and how to use it."""
    found = _found(file_id)
    if found.status == "uploaded":
        # Asks those upstreams that are still at work on it.
        services().files.retrieve(caller(), found.id, Hints())
        found = _found(file_id)
    models = list(dict.fromkeys(copy["model"] for copy in found.copies if copy["model"]))
    return render(
        "file.html",
        active="files",
        file=found,
        models=_by_model(found),
        is_own=found.owner == caller().owner,
        may_delete=caller().may_write and (caller().is_admin or found.owner == caller().owner),
        snippets=snippets.of_file(
            request.host_url.rstrip("/"),
            found.id,
            found.filename,
            found.purpose,
            models[0] if models else "your-model",
        ),
    )


@blueprint.get("/files/<uuid:file_id>/content")
@guard(Guard.ANY_KEY, Door.SESSION)
def content(file_id: Any) -> Response:
    """The bytes, as something to be saved and never as something to be shown."""
    response = api.content(_found(file_id).id)
    response.headers["Content-Type"] = "application/octet-stream"
    return response


@blueprint.post("/files/<uuid:file_id>/delete")
@guard(Guard.WRITE, Door.SESSION)
def delete(file_id: Any) -> BaseResponse:
    """Remove every copy."""
    found = _found(file_id)
    services().files.delete(caller(), found.id, Hints())
    return go("/ui/files?done=deleted")


def _found(file_id: Any) -> FileView:
    return services().browse.file(caller(), str(file_id))


def _listed() -> Response:
    me = caller()
    filters = {
        "name": turning.text("name"),
        "purpose": turning.text("purpose"),
        "model": turning.text("model"),
        "status": turning.text("status"),
        "user_id": turning.text("user_id") if me.sees_everything else None,
    }
    known = filters["status"] in {value for value, _ in STATUSES}
    query = FileQuery(
        name=filters["name"],
        purpose=filters["purpose"] if filters["purpose"] in LISTED_PURPOSES else None,
        model=filters["model"],
        status=cast(Literal["processed", "uploaded", "error"], filters["status"])
        if known
        else None,
        user_id=filters["user_id"],
    )
    turn = turning.asked()
    shown = services().browse.files(me, query, turn)
    if _looked_after(shown.items):
        shown = services().browse.files(me, query, turn)
    settings = services().settings
    names = services().router.model_names(me)
    return render(
        "files.html",
        active="files",
        files=[(file, _by_model(file)) for file in shown.items],
        links=turning.links(shown, filters),
        filters=filters,
        is_filtered=any(filters.values()),
        is_live=any(file.status == "uploaded" for file in shown.items),
        purposes=_purposes(),
        listed_purposes=LISTED_PURPOSES,
        statuses=STATUSES,
        expiries=EXPIRIES,
        model_names=names,
        default_names=settings.default_target_model_names or names[:1],
        max_file_size_mb=settings.max_file_size_mb,
        done=request.args.get("done"),
    )


def _looked_after(files: Sequence[FileView]) -> bool:
    """Whether an upstream was asked how far it is with some of these files."""
    waiting = [file for file in files if file.status == "uploaded"][:_LOOKED_AFTER]
    for file in waiting:
        # What an upstream does not say now is asked again when the page is.
        with suppress(GatewayError):
            services().files.retrieve(caller(), file.id, Hints())
    return bool(waiting)


def _purposes() -> list[tuple[str, str]]:
    """The purposes of an upload, those that people mean most often first."""
    first = list(PURPOSE_NAMES)
    names = [*first, *(name for name in PURPOSES if name not in first)]
    return [(name, PURPOSE_NAMES.get(name, name)) for name in names]


def _by_model(file: FileView) -> list[dict[str, Any]]:
    """One badge a model: ready when a copy is, else the state of what comes nearest to it."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for copy in file.copies:
        groups.setdefault(copy["model"] or copy.get("provider") or "account", []).append(copy)
    badges = []
    for name, copies in groups.items():
        states = [copy["state"] for copy in copies]
        state = "ready" if "ready" in states else min(states, key=lambda s: _ORDER.get(s, 9))
        badges.append({"name": name, "state": state, "copies": copies})
    return badges


def own_batch_files(limit: int = 100) -> list[FileView]:
    """The caller's own newest files that a batch can be made of."""
    me, turn = caller(), replace(turning.asked(), at=None, newer=False, size=limit)
    query = FileQuery(user_id=me.user_id, purpose="batch")
    found = services().browse.files(me, query, turn).items
    return [file for file in found if file.owner == me.owner]
