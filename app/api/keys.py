"""/key/*: make, change, delete, block, renew, show and list keys."""

from typing import Any, cast

from flask import Blueprint

from app.api import once
from app.api.admin_schemas import (
    KeyChanges,
    KeyDeletion,
    KeyListQuery,
    KeyQuery,
    KeyReference,
    NewKey,
    Renewal,
    read_body,
    read_query,
)
from app.api.auth import Guard, guard
from app.api.context import caller, services
from app.services.keys import KeyFields

blueprint = Blueprint("keys", __name__)


@blueprint.post("/key/generate")
@guard(Guard.WRITE)
@once.single
def generate() -> dict[str, Any]:
    """The new key; the only answer, beside a renewal's, that holds a secret."""
    fields = cast(KeyFields, read_body(NewKey))
    return {**services().access.generate_key(caller(), fields)}


@blueprint.post("/key/update")
@guard(Guard.WRITE)
def update() -> dict[str, Any]:
    """The key as changed."""
    body = read_body(KeyChanges)
    name = body.pop("key")
    return {**services().access.update_key(caller(), name, cast(KeyFields, body))}


@blueprint.post("/key/delete")
@guard(Guard.WRITE)
def delete() -> dict[str, Any]:
    """The hashes of the keys that are gone."""
    body = read_body(KeyDeletion)
    named = [*body.get("keys", []), *([body["key"]] if "key" in body else [])]
    aliases = body.get("key_aliases", [])
    return {"deleted_keys": services().access.delete_keys(caller(), named, aliases)}


@blueprint.post("/key/block")
@guard(Guard.WRITE)
def block() -> dict[str, Any]:
    """The key, refused from now on."""
    name, alias_only = _named(read_body(KeyReference))
    return {**services().access.block_key(caller(), name, alias_only=alias_only)}


@blueprint.post("/key/unblock")
@guard(Guard.ADMIN)
def unblock() -> dict[str, Any]:
    """The key, accepted again."""
    name, alias_only = _named(read_body(KeyReference))
    return {**services().access.unblock_key(caller(), name, alias_only=alias_only)}


@blueprint.post("/key/regenerate")
@guard(Guard.WRITE)
@once.single
def regenerate() -> dict[str, Any]:
    """The same key with a new secret."""
    body = read_body(Renewal)
    name, alias_only = _named(body)
    return {
        **services().access.regenerate_key(
            caller(), name, body.get("grace_until"), alias_only=alias_only
        )
    }


@blueprint.get("/key/info")
@guard(Guard.ANY_KEY)
def info() -> dict[str, Any]:
    """A key, the calling one when none is named. `key` is its hash."""
    query = read_query(KeyQuery)
    access = services().access
    if query:
        name, alias_only = _named(query)
        key = access.key_info(caller(), name, alias_only=alias_only)
    else:
        key = access.key_info(caller())
    return {"key": key["token"], "info": key}


@blueprint.get("/key/list")
@guard(Guard.ANY_KEY)
def list_() -> dict[str, Any]:
    """One page of keys, newest first."""
    query = read_query(KeyListQuery)
    keys, total = services().access.list_keys(caller(), **query)
    return {
        "keys": keys,
        "total_count": total,
        "current_page": query["page"],
        "size": query["size"],
        "total_pages": -(-total // query["size"]),
    }


def _named(fields: dict[str, Any]) -> tuple[str, bool]:
    """What a key is called, and whether that can only be its alias."""
    return (fields["key"], False) if "key" in fields else (fields["key_alias"], True)
