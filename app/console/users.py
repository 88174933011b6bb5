"""Users: list, make, change, block, delete; for administrators."""

from typing import Any, cast

from flask import Blueprint, Response, request
from werkzeug.wrappers import Response as BaseResponse

from app.api.admin_schemas import NewUser, UserChanges, UserDeletion
from app.api.auth import Door, Guard, guard
from app.api.context import asked, caller, services
from app.api.schemas import load
from app.console import turning
from app.console.keys import PAGE_SIZE, form_facts, limits_of, models_of, page_number, texts
from app.console.rendering import go, render
from app.services.callers import Role
from app.services.keys import KeyFields
from app.services.limits import NAMES as LIMITS
from app.services.users import UserFields

blueprint = Blueprint("users", __name__)

_TEXTS = {"email": "user_email", "alias": "user_alias", "role": "user_role"}


@blueprint.get("/users")
@guard(Guard.ADMIN_READ, Door.SESSION)
def list_() -> Response:
    """A page of users."""
    filters = {"user_id": turning.text("user_id"), "email": turning.text("email", 320)}
    page = page_number()
    found, total = services().access.list_users(
        caller(), page=page, size=PAGE_SIZE, user_id=filters["user_id"], email=filters["email"]
    )
    return render(
        "users.html",
        active="users",
        users=found,
        total=total,
        links=turning.numbered(page, PAGE_SIZE, total, filters),
        filters=filters,
        roles=list(Role),
        **form_facts(),
    )


@blueprint.post("/users")
@guard(Guard.ADMIN, Door.SESSION)
def create() -> Response:
    """Make a user and a first key, and show its secret."""
    body: dict[str, Any] = limits_of(request.form)
    body |= texts(request.form, {**_TEXTS, "user_id": "user_id", "duration": "duration"})
    if chosen := models_of(request.form):
        body["models"] = chosen
    fields = load(NewUser, body)
    asked(fields)
    user_id = fields.pop("user_id")
    fields.pop("auto_create_key")
    key: KeyFields = {"expires_at": fields.pop("expires_at", None)}
    user, made = services().access.new_user(caller(), user_id, cast(UserFields, fields), key)
    return render("key_secret.html", active="users", key=made, how="made", user=user)


@blueprint.get("/users/show")
@guard(Guard.ADMIN_READ, Door.SESSION)
def show() -> Response:
    """One user with the newest keys."""
    user, keys = services().access.user_info(caller(), turning.text("id") or "")
    return render(
        "user.html",
        active="users",
        user=user,
        keys=keys,
        uses=services().usage.last_uses([key["token"] for key in keys]),
        roles=list(Role),
        is_master=user["created_at"] is None,
        **form_facts(),
    )


@blueprint.post("/users/change")
@guard(Guard.ADMIN, Door.SESSION)
def change() -> BaseResponse:
    """Write what the form says of the user; what is empty there is none."""
    user_id = _user_id()
    form = request.form
    body: dict[str, Any] = {
        "user_id": user_id,
        "user_email": form.get("email", "").strip() or None,
        "user_alias": form.get("alias", "").strip() or None,
        "user_role": form.get("role", ""),
        "models": models_of(form),
        **dict.fromkeys(LIMITS),
        **limits_of(form),
    }
    return _update(body)


@blueprint.post("/users/<any(block, unblock):action>")
@guard(Guard.ADMIN, Door.SESSION)
def block(action: str) -> BaseResponse:
    """Refuse every key of the user, or accept them again."""
    return _update({"user_id": _user_id(), "blocked": action == "block"})


@blueprint.post("/users/delete")
@guard(Guard.ADMIN, Door.SESSION)
def delete() -> BaseResponse:
    """Delete the user with every key; the files by what was chosen."""
    body = {"user_ids": [_user_id()], "files": request.form.get("files", "keep")}
    if heir := request.form.get("transfer_to", "").strip():
        body["transfer_to"] = heir
    fields = load(UserDeletion, body)
    asked(fields)
    services().access.delete_users(
        caller(), fields["user_ids"], fields["files"], fields["transfer_to"]
    )
    return go("/ui/users?done=deleted")


def address(user_id: str) -> str:
    """Where a user is shown. An id may hold anything, so it is no part of the path."""
    return f"/ui/users/show?{turning.query(id=user_id)}"


def _update(body: dict[str, Any]) -> BaseResponse:
    fields = load(UserChanges, body)
    asked(fields)
    user_id = fields.pop("user_id")
    services().access.update_user(caller(), user_id, cast(UserFields, fields))
    return go(address(user_id))


def _user_id() -> str:
    return turning.plain(request.form.get("user_id", ""), 255)
