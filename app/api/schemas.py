"""marshmallow schemas of file forms and queries, and how a schema's complaints are shown."""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from flask import request
from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load, validate

from app.errors import InvalidRequest
from app.objects import LISTED_PURPOSES, PURPOSES
from app.services.file_lists import ListQuery
from app.transfers import ExpiresAfter

_WHOLE = re.compile(r"-?[0-9]+")
_HOUR = 3600
_THIRTY_DAYS = 30 * 24 * _HOUR


@functools.cache
def _made(schema: type[Schema]) -> Schema:
    # Making one copies all of its fields, which takes three times as long as loading a few values.
    return schema()


def load(schema: type[Schema], data: Mapping[str, Any]) -> Any:
    """What the schema makes of the data. Raises InvalidRequest naming the first bad field."""
    try:
        return _made(schema).load(data)
    except ValidationError as error:
        path, message = _first_mistake(error.messages)
        text, _, code = message.partition("\0")
        if path == "_schema":
            raise InvalidRequest(text, code=code or None) from error
        raise InvalidRequest(f"{path}: {text}", param=path, code=code or None) from error


def _first_mistake(messages: Any) -> tuple[str, str]:
    """Where the first mistake is, as OpenAI writes it (`part_ids[0]`), and what it is."""
    path = ""
    while isinstance(messages, dict):
        name = next(iter(messages))
        path += f"[{name}]" if isinstance(name, int) else f".{name}"
        messages = messages[name]
    return path.removeprefix("."), str(messages[0] if isinstance(messages, list) else messages)


class Limit(fields.Integer):
    """A page size within OpenAI's bounds, with OpenAI's codes for what is outside of them."""

    def __init__(self, most: int, **kwargs: Any) -> None:
        super().__init__(strict=True, **kwargs)
        self.most = most

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if not (isinstance(value, str) and _WHOLE.fullmatch(value)):
            raise ValidationError(
                f"{value!r:.40} is not an integer from 1 to {self.most}\0invalid_type"
            )
        number = int(value[:20])
        if number > self.most:
            raise ValidationError(
                f"{value[:20]} is above the maximum of {self.most}\0integer_above_max_value"
            )
        if number < 1:
            raise ValidationError(
                f"{value[:20]} is below the minimum of 1\0integer_below_min_value"
            )
        return number


class UserId(fields.String):
    """One to 255 printable characters without white space at either end."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(validate=[validate.Length(1, 255), _is_printable], **kwargs)


def _is_printable(value: str) -> None:
    if not value.isprintable() or value != value.strip():
        raise ValidationError("Holds control characters, or white space at its ends.")


def _one_of(allowed: tuple[str, ...]) -> validate.OneOf:
    return validate.OneOf(allowed, error=f"{{input!r:.60}} is not one of: {', '.join(allowed)}")


class FileListQuery(Schema):
    """Query of GET /files. Source: OpenAI API reference, Files, list; read 2026-11."""

    class Meta:
        unknown = EXCLUDE

    limit = Limit(10_000, load_default=10_000)
    order = fields.String(load_default="desc", validate=_one_of(("asc", "desc")))
    after = fields.String(load_default=None)
    purpose = fields.String(load_default=None, validate=_one_of(LISTED_PURPOSES))
    user_id = UserId(load_default=None)

    @post_load
    def _make(self, data: dict[str, Any], **_: Any) -> ListQuery:
        return ListQuery(**data)


class UploadFields(Schema):
    """Fields of POST /files beside the file. Source: OpenAI API reference, Files, create."""

    class Meta:
        unknown = EXCLUDE

    purpose = fields.String(
        required=True,
        validate=_one_of(PURPOSES),
        error_messages={"required": "missing; one of: " + ", ".join(PURPOSES)},
    )


def expires_after(found: Mapping[str, list[str]]) -> ExpiresAfter | None:
    """`expires_after` from a form: bracketed or dotted fields, or one field of JSON.

    Raises InvalidRequest naming the field.
    """
    values: dict[str, Any] = {}
    is_named = False
    for name, given in found.items():
        plain = name.replace("]", "").replace("[", ".")
        head, _, key = plain.partition(".")
        if head != "expires_after":
            continue
        is_named = True
        if len(set(given)) > 1:
            raise InvalidRequest(f"{name} is given {len(given)} times", param=name)
        if not key:
            values |= _json_object(given[0])
        else:
            values[key] = given[0]
    if not is_named:
        return None
    anchor, seconds = values.get("anchor"), values.get("seconds")
    if anchor != "created_at":
        raise InvalidRequest(
            f"expires_after.anchor must be 'created_at', not {_shown(anchor)}",
            param="expires_after[anchor]",
        )
    whole = str(seconds) if isinstance(seconds, int | str) and not isinstance(seconds, bool) else ""
    if not (whole.isascii() and whole.isdigit() and _HOUR <= int(whole[:12]) <= _THIRTY_DAYS):
        raise InvalidRequest(
            f"expires_after.seconds must be {_HOUR} to {_THIRTY_DAYS}, not {_shown(seconds)}",
            param="expires_after[seconds]",
        )
    return ExpiresAfter(anchor, int(whole))


def _shown(value: Any) -> str:
    return "missing" if value is None else json.dumps(value, ensure_ascii=False)[:60]


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest("expires_after is not a JSON object", param="expires_after")
    return value


def loaded_query(schema: type[Schema]) -> Any:
    """What the schema makes of the request's query, of which it takes its own names.

    Raises InvalidRequest, also for a name that is given with two values.
    """
    found = {}
    for name in _made(schema).fields:
        values = dict.fromkeys(request.args.getlist(name))
        if len(values) > 1:
            raise InvalidRequest(f"{name} is given {len(values)} times", param=name)
        if any("\0" in value for value in values):
            # PostgreSQL cannot store one, so nothing there can have one.
            raise InvalidRequest(f"{name} holds a null byte", param=name)
        if values:
            found[name] = next(iter(values))
    return load(schema, found)
