"""Schemas of the bodies and queries about users and keys, and how such a request is read."""

import calendar
import datetime as dt
import json
import re
import unicodedata
from typing import Any

from flask import request
from marshmallow import Schema, ValidationError, fields, post_load, validate, validates_schema

from app.api import body, context
from app.api.schemas import UserId, load
from app.errors import InvalidRequest
from app.services.callers import Role

MAX_BODY_BYTES = 1024 * 1024
MAX_METADATA_BYTES = 64 * 1024
MAX_PAGE = 1_000_000
MAX_LIMIT = 2**31 - 1
MAX_BYTES = 2**63 - 1

_MAX_NESTING = 32
_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d|w|mo)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_EMPTY: dict[str, type] = {"models": list, "metadata": dict, "blocked": bool}


def read_body(schema: type[Schema]) -> dict[str, Any]:
    """The JSON body as the schema wants it.

    Raises InvalidRequest naming the field, TooLarge above 1 MB.
    """
    loaded: dict[str, Any] = load(schema, body.json_object(MAX_BODY_BYTES))
    context.asked(loaded)
    return loaded


def read_query(schema: type[Schema]) -> dict[str, Any]:
    """The query as the schema wants it. Raises InvalidRequest naming the parameter."""
    for name, values in request.args.lists():
        if len(values) > 1:
            raise InvalidRequest(f"{name} is given {len(values)} times", param=name)
    loaded: dict[str, Any] = load(schema, request.args.to_dict())
    return loaded


class Flag(fields.Field[bool]):
    """true or false and nothing that looks like one, so that what is written reads back."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("Not a boolean: true or false.")
        return value


class Text(fields.String):
    """One to `longest` characters, none of them a control character or half a surrogate pair."""

    def __init__(self, longest: int = 255, **kwargs: Any) -> None:
        super().__init__(validate=[validate.Length(1, longest), _is_text], **kwargs)


class Metadata(fields.Field[dict[str, Any]]):
    """A JSON object of at most 64 KB that any database can store."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValidationError("Not a JSON object.")
        if _nesting(value) > _MAX_NESTING:
            raise ValidationError(f"Nested more than {_MAX_NESTING} levels deep.")
        try:
            size = len(json.dumps(value, allow_nan=False))
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValidationError("Holds half a surrogate pair.") from error
        except ValueError as error:
            raise ValidationError("Holds a number that is out of range.") from error
        if size > MAX_METADATA_BYTES:
            raise ValidationError(f"Larger than {MAX_METADATA_BYTES} bytes.")
        return value


class End(fields.Field[dt.datetime]):
    """A duration from now on (`30s 30m 30h 30d 1w 1mo`) -> the moment at which it ends."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> dt.datetime:
        match = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if match is None or int(match[1]) == 0:
            raise ValidationError("Not a duration such as 30s, 30m, 30h, 30d, 1w or 1mo.")
        now = dt.datetime.now(dt.UTC)
        try:
            if match[2] == "mo":
                return _months_later(now, int(match[1]))
            return now + dt.timedelta(**{_UNITS[match[2]]: int(match[1])})
        except (OverflowError, ValueError) as error:
            raise ValidationError("That is too far in the future.") from error


def _months_later(moment: dt.datetime, months: int) -> dt.datetime:
    """The same day so many months later, or that month's last day."""
    years, month = divmod(moment.month - 1 + months, 12)
    year = moment.year + years
    if year > dt.MAXYEAR:
        raise OverflowError
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return moment.replace(year=year, month=month + 1, day=day)


def _is_text(value: str) -> None:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise ValidationError("Holds control characters.")


def _is_email(value: str) -> None:
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", value):
        raise ValidationError("Not an e-mail address.")


def _is_alias(value: str) -> None:
    # It would be taken for a secret or a hash wherever a key can be named by all three.
    if value.startswith("sk-") or re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValidationError("Looks like a key or its hash.")


def _nesting(value: Any) -> int:
    """How many levels of objects and arrays; counted without recursion."""
    depth = 0
    level = [value]
    while level:
        containers = [item for item in level if isinstance(item, dict | list)]
        depth += bool(containers)
        level = [
            inner
            for item in containers
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _email(**kwargs: Any) -> Text:
    field = Text(320, **kwargs)
    field.validators.append(_is_email)
    return field


def _alias(**kwargs: Any) -> Text:
    field = Text(allow_none=True, **kwargs)
    field.validators.append(_is_alias)
    return field


def _models() -> fields.List[str]:
    return fields.List(Text(), allow_none=True, validate=validate.Length(max=1000))


def _limit(most: int = MAX_LIMIT) -> fields.Integer:
    return fields.Integer(strict=True, allow_none=True, validate=validate.Range(0, most))


class _Changes(Schema):
    """A body whose explicit nulls clear. The limits are those of `app.services.limits.Limits`."""

    rpm_limit = _limit()
    upload_rpm_limit = _limit()
    max_parallel_requests = _limit()
    max_files = _limit()
    max_bytes_stored = _limit(MAX_BYTES)

    @post_load
    def _clear(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {
            name: _EMPTY[name]() if value is None and name in _EMPTY else value
            for name, value in data.items()
        }


class UserChanges(_Changes):
    """Body of /user/update."""

    user_id = UserId(required=True)
    user_email = _email(attribute="email", allow_none=True)
    user_alias = Text(attribute="alias", allow_none=True)
    user_role = fields.String(
        attribute="role", validate=validate.OneOf([role.value for role in Role])
    )
    models = _models()
    metadata = Metadata(allow_none=True)
    blocked = Flag(allow_none=True)


class NewUser(UserChanges):
    """Body of /user/new."""

    user_id = UserId(allow_none=True, load_default=None)
    key_alias = _alias()
    duration = End(attribute="expires_at", allow_none=True)
    auto_create_key = Flag(load_default=True)


class UserDeletion(Schema):
    """Body of /user/delete."""

    user_ids = fields.List(UserId(), validate=validate.Length(1, 1000))
    user_id = UserId()
    files = fields.String(
        load_default="keep", validate=validate.OneOf(["keep", "transfer", "delete"])
    )
    transfer_to = UserId(load_default=None, allow_none=True)

    @validates_schema
    def _names_somebody(self, data: dict[str, Any], **_: Any) -> None:
        if "user_ids" not in data and "user_id" not in data:
            raise ValidationError("Missing data for required field.", "user_ids")


class NewKey(_Changes):
    """Body of /key/generate."""

    user_id = UserId(allow_none=True)
    key_alias = _alias(attribute="alias")
    models = _models()
    metadata = Metadata(allow_none=True)
    duration = End(attribute="expires_at", allow_none=True)
    blocked = Flag(allow_none=True)


class KeyChanges(NewKey):
    """Body of /key/update; `key` is a secret, a hash or an alias."""

    key = Text(1024, required=True)


class KeyQuery(Schema):
    """Query of /key/info."""

    key = Text(1024)
    key_alias = Text()

    @validates_schema
    def _names_it_once(self, data: dict[str, Any], **_: Any) -> None:
        if "key" in data and "key_alias" in data:
            raise ValidationError("Name the key once: by key or by key_alias.", "key_alias")


class KeyReference(KeyQuery):
    """Body of /key/block and /key/unblock."""

    @validates_schema
    def _names_some_key(self, data: dict[str, Any], **_: Any) -> None:
        if "key" not in data and "key_alias" not in data:
            raise ValidationError("Missing data for required field.", "key")


class Renewal(KeyReference):
    """Body of /key/regenerate."""

    grace_period = End(attribute="grace_until", allow_none=True)


class KeyDeletion(Schema):
    """Body of /key/delete."""

    key = Text(1024)
    keys = fields.List(Text(1024), validate=validate.Length(1, 1000))
    key_aliases = fields.List(Text(), validate=validate.Length(1, 1000))

    @validates_schema
    def _names_some_key(self, data: dict[str, Any], **_: Any) -> None:
        if not data:
            raise ValidationError("Missing data for required field.", "keys")


class UserQuery(Schema):
    """Query of /user/info."""

    user_id = UserId()


class Paging(Schema):
    """The part of a query that names a page; `page_size` is LiteLLM's other name for `size`."""

    page = fields.Integer(load_default=1, validate=validate.Range(1, MAX_PAGE))
    size = fields.Integer(validate=validate.Range(1, 100))
    page_size = fields.Integer(validate=validate.Range(1, 100))

    @post_load
    def _one_size(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        other = data.pop("page_size", 25)
        data.setdefault("size", other)
        return data


class UserListQuery(Paging):
    """Query of /user/list."""

    user_id = UserId()
    user_email = Text(320, attribute="email")
    role = fields.String(validate=validate.OneOf([role.value for role in Role]))


class KeyListQuery(Paging):
    """Query of /key/list."""

    user_id = UserId()
    key_alias = Text(attribute="alias")
