"""/uploads: create, parts, complete, cancel."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from flask import Blueprint
from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load, validate

from app.api import body, once, target
from app.api.auth import Guard, guard
from app.api.context import caller, note, services
from app.api.form import spooled_form
from app.api.schemas import UploadFields, expires_after, load
from app.errors import InvalidRequest
from app.file_names import clean_filename, mime_type, plain_type
from app.services.uploads import (
    MAX_PARTS,
    PART_BYTES,
    Announced,
    UploadObject,
    UploadPartObject,
)

blueprint = Blueprint("uploads", __name__)


def _is_mime_type(value: str) -> None:
    if plain_type(value) is None:
        raise ValidationError(f"{value!r:.60} is not a MIME type such as 'application/pdf'")


class AnnouncedFields(UploadFields):
    """Body of POST /uploads. Source: OpenAI API reference, Uploads, create; read 2026-11."""

    filename = fields.String(required=True, validate=validate.Length(min=1))
    mime_type = fields.String(required=True, validate=_is_mime_type)
    bytes = fields.Integer(required=True, strict=True, validate=validate.Range(min=1))

    @post_load
    def _make(self, data: dict[str, Any], **_: Any) -> Announced:
        filename = clean_filename(data["filename"])
        return Announced(
            filename=filename,
            mime_type=mime_type(data["mime_type"], filename),
            purpose=data["purpose"],
            bytes=data["bytes"],
        )


class CompleteFields(Schema):
    """Body of POST /uploads/{id}/complete. Source: OpenAI API reference, Uploads, complete."""

    class Meta:
        unknown = EXCLUDE

    part_ids = fields.List(
        fields.String(), required=True, validate=validate.Length(min=1, max=MAX_PARTS)
    )
    md5 = fields.String(
        load_default=None,
        allow_none=True,
        validate=validate.Regexp(r"[0-9a-fA-F]{32}\Z", error="{input!r:.60} is not an md5 in hex"),
    )


@blueprint.post("/uploads")
@guard(Guard.WRITE)
@once.single
def create(**_: str) -> UploadObject:
    """A pending upload; its file will go where this request's selector asks for."""
    given = body.optional_object()
    selector = target.hints(given).selector()
    announced: Announced = load(AnnouncedFields, given)
    expiry = given.get("expires_after")
    if expiry is not None:
        found = expires_after({"expires_after": [json.dumps(expiry)]})
        announced = replace(announced, expires_after=found)
    return services().uploads.create(caller(), announced, selector)


@blueprint.post("/uploads/<upload_id>/parts")
@guard(Guard.WRITE)
def add_part(upload_id: str, **_: str) -> UploadPartObject:
    """The new part; its bytes go to the gateway's disk as they arrive."""
    uploads = services().uploads
    folder = uploads.part_folder(caller(), upload_id)
    with spooled_form(lambda: folder, file_field="data", max_file_bytes=PART_BYTES) as form:
        spooled = form.file
        if spooled is None:
            raise InvalidRequest("the form has no file part named 'data'", param="data")
        if spooled.size == 0:
            raise InvalidRequest("the part is empty", param="data")
        note(bytes_in=spooled.size)
        path = spooled.source
        assert isinstance(path, Path)  # noqa: S101  # as it was asked for

        def make(_: str) -> UploadPartObject:
            return uploads.add_part(caller(), upload_id, path, spooled.size, spooled.sha256)

        return once.once(lambda: (spooled.sha256,), make)


@blueprint.post("/uploads/<upload_id>/complete")
@guard(Guard.WRITE)
@once.single
def complete(upload_id: str, **_: str) -> UploadObject:
    """The completed upload, with its file."""
    given = body.optional_object()
    hints = target.hints(given)
    wanted = load(CompleteFields, given)
    return services().uploads.complete(
        caller(), upload_id, wanted["part_ids"], hints, wanted["md5"]
    )


@blueprint.post("/uploads/<upload_id>/cancel")
@guard(Guard.WRITE)
def cancel(upload_id: str, **_: str) -> UploadObject:
    """The cancelled upload."""
    return services().uploads.cancel(caller(), upload_id)
