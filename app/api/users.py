"""/user/*: make, change, delete, show and list users."""

from typing import Any, cast

from flask import Blueprint

from app.api import once
from app.api.admin_schemas import (
    NewUser,
    UserChanges,
    UserDeletion,
    UserListQuery,
    UserQuery,
    read_body,
    read_query,
)
from app.api.auth import Guard, guard
from app.api.context import caller, services
from app.services.keys import KeyFields
from app.services.users import UserFields

blueprint = Blueprint("users", __name__)

_NO_KEY = {"key": None, "key_name": None, "token": None, "expires": None, "key_alias": None}


@blueprint.post("/user/new")
@guard(Guard.ADMIN)
@once.single
def new() -> dict[str, Any]:
    """The new user, with his first key unless `auto_create_key` is false."""
    body = read_body(NewUser)
    user_id = body.pop("user_id")
    wants_key = body.pop("auto_create_key")
    # The user's own list bounds his first key; a copy of it would not follow when it is changed.
    key: KeyFields = {
        "alias": body.pop("key_alias", None),
        "expires_at": body.pop("expires_at", None),
    }
    user, made = services().access.new_user(
        caller(), user_id, cast(UserFields, body), key if wants_key else None
    )
    return {**(made or _NO_KEY), **user}


@blueprint.post("/user/update")
@guard(Guard.ADMIN)
def update() -> dict[str, Any]:
    """The user as changed."""
    body = read_body(UserChanges)
    user_id = body.pop("user_id")
    return {**services().access.update_user(caller(), user_id, cast(UserFields, body))}


@blueprint.post("/user/delete")
@guard(Guard.ADMIN)
def delete() -> dict[str, Any]:
    """Who is gone, and how many keys and files went with them."""
    body = read_body(UserDeletion)
    user_ids = [*body.get("user_ids", []), *([body["user_id"]] if "user_id" in body else [])]
    deleted = services().access.delete_users(caller(), user_ids, body["files"], body["transfer_to"])
    return {
        "deleted_users": list(deleted.user_ids),
        "deleted_keys": deleted.keys,
        "deleted_files": len(deleted.file_ids),
        "files": body["files"],
    }


@blueprint.get("/user/info")
@guard(Guard.ANY_KEY)
def info() -> dict[str, Any]:
    """A user and his newest keys."""
    user, keys = services().access.user_info(caller(), read_query(UserQuery).get("user_id"))
    return {"user_id": user["user_id"], "user_info": user, "keys": keys}


@blueprint.get("/user/list")
@guard(Guard.ANY_KEY)
def list_() -> dict[str, Any]:
    """One page of users, newest first."""
    query = read_query(UserListQuery)
    users, total = services().access.list_users(caller(), **query)
    return {
        "users": users,
        "total": total,
        "page": query["page"],
        "size": query["size"],
        "page_size": query["size"],
        "total_pages": -(-total // query["size"]),
    }
