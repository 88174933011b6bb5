"""Keys: list, make, block, renew, delete; a secret is shown once, by the answer that made it."""

import hmac
from typing import Any, cast

from flask import Blueprint, Response, request
from werkzeug.wrappers import Response as BaseResponse

from app.api.admin_schemas import NewKey, Renewal
from app.api.auth import Door, Guard, guard
from app.api.context import asked, caller, services
from app.api.schemas import load
from app.console import turning
from app.console.rendering import go, render
from app.errors import InvalidRequest
from app.services.keys import KeyFields, KeyObject
from app.services.limits import NAMES as LIMITS

blueprint = Blueprint("keys", __name__)

PAGE_SIZE = 50
DURATIONS = (("", "never"), ("1d", "in 1 day"), ("7d", "in 7 days"), ("30d", "in 30 days"),
             ("90d", "in 90 days"), ("365d", "in 1 year"))  # fmt: skip
GRACES = (("", "at once"), ("1h", "in 1 hour"), ("24h", "in 24 hours"), ("7d", "in 7 days"))
LIMIT_LABELS = {
    "rpm_limit": "Requests a minute",
    "upload_rpm_limit": "Uploads a minute",
    "max_parallel_requests": "Requests at a time",
    "max_files": "Files",
    "max_bytes_stored": "Bytes stored",
}


@blueprint.get("/keys")
@guard(Guard.ANY_KEY, Door.SESSION)
def list_() -> Response:
    """A page of keys: one's own, everybody's for those who see everything."""
    me = caller()
    filters = {
        "user_id": turning.text("user_id") if me.sees_everything else None,
        "alias": turning.text("alias"),
    }
    page = page_number()
    found, total = services().access.list_keys(
        me, page=page, size=PAGE_SIZE, user_id=filters["user_id"], alias=filters["alias"]
    )
    return render(
        "keys.html",
        active="keys",
        keys=found,
        total=total,
        uses=services().usage.last_uses([key["token"] for key in found]),
        links=turning.numbered(page, PAGE_SIZE, total, filters),
        filters=filters,
        may_make=_may_make(),
        **form_facts(),
    )


@blueprint.post("/keys")
@guard(Guard.WRITE, Door.SESSION)
def create() -> Response:
    """Make a key and show its secret."""
    body = limits_of(request.form)
    body |= texts(request.form, {"alias": "key_alias", "duration": "duration"})
    if chosen := models_of(request.form):
        body["models"] = chosen
    if caller().is_admin and (user_id := request.form.get("user_id", "").strip()):
        body["user_id"] = user_id
    fields = load(NewKey, body)
    asked(fields)
    return _with_secret(services().access.generate_key(caller(), cast(KeyFields, fields)), "made")


@blueprint.get("/keys/<token>")
@guard(Guard.ANY_KEY, Door.SESSION)
def show(token: str) -> Response:
    """One key, by its hash."""
    key = _found(token)
    me = caller()
    return render(
        "key.html",
        active="keys",
        key=key,
        used_at=services().usage.last_uses([key["token"]]).get(key["token"]),
        limit_labels=LIMIT_LABELS,
        graces=GRACES,
        is_this=hmac.compare_digest(key["token"], me.key_hash),
        may_change=me.may_write,
    )


@blueprint.post("/keys/<token>/<any(block, unblock):action>")
@guard(Guard.WRITE, Door.SESSION)
def block(token: str, action: str) -> BaseResponse:
    """Refuse the key from now on, or accept it again; the latter is an administrator's."""
    key = _found(token)
    access = services().access
    change = access.block_key if action == "block" else access.unblock_key
    change(caller(), key["token"])
    return go(f"/ui/keys/{key['token']}")


@blueprint.post("/keys/<token>/regenerate")
@guard(Guard.WRITE, Door.SESSION)
def regenerate(token: str) -> Response:
    """Give the key a new secret and show it."""
    key = _found(token)
    body = {"key": key["token"], **texts(request.form, {"grace_period": "grace_period"})}
    fields = load(Renewal, body)
    asked(fields)
    made = services().access.regenerate_key(caller(), key["token"], fields.get("grace_until"))
    return _with_secret(made, "renewed")


@blueprint.post("/keys/<token>/delete")
@guard(Guard.WRITE, Door.SESSION)
def delete(token: str) -> BaseResponse:
    """Delete the key."""
    services().access.delete_keys(caller(), [_found(token)["token"]])
    return go("/ui/keys?done=deleted")


def form_facts() -> dict[str, Any]:
    """What the forms for keys and users offer."""
    return {
        "model_names": services().router.model_names(caller()),
        "durations": DURATIONS,
        "limit_labels": LIMIT_LABELS,
        "done": request.args.get("done"),
    }


def limits_of(form: Any) -> dict[str, Any]:
    """The limits that a form sets; one that is left empty is none. Raises InvalidRequest."""
    found: dict[str, Any] = {}
    for name in LIMITS:
        text = form.get(name, "").strip()
        if not text:
            continue
        if not (text.isascii() and text.isdigit()):
            raise InvalidRequest(f"{LIMIT_LABELS[name]}: {text[:40]!r} is not a number", param=name)
        found[name] = int(text[:20])
    return found


def models_of(form: Any) -> list[str]:
    """The models that are ticked, and those that are typed with commas between them."""
    typed = form.get("more_models", "").split(",")
    names = [name.strip() for name in (*form.getlist("models"), *typed)]
    return list(dict.fromkeys(name for name in names if name))


def texts(form: Any, names: dict[str, str]) -> dict[str, str]:
    """The fields that are filled in, under the API's names for them."""
    found = {theirs: form.get(ours, "").strip() for ours, theirs in names.items()}
    return {name: value for name, value in found.items() if value}


def page_number() -> int:
    """The page that the query asks for; the first for what is none."""
    text = request.args.get("page", "1")
    return max(1, int(text)) if text.isascii() and text.isdigit() and len(text) < 7 else 1


def _found(token: str) -> KeyObject:
    return services().access.key_info(caller(), turning.plain(token, 64))


def _may_make() -> bool:
    me = caller()
    return me.is_admin or (me.may_write and me.user_id is not None)


def _with_secret(key: KeyObject, how: str) -> Response:
    return render("key_secret.html", active="keys", key=key, how=how)
