"""marshmallow schemas of batch and fine-tuning bodies and of their lists' queries.

Source: OpenAI API reference, Batch and Fine-tuning; read 2026-11.
"""

import json
from typing import Any

from marshmallow import EXCLUDE, INCLUDE, Schema, ValidationError, fields, post_load, validate

from app.api import body
from app.api.schemas import Limit
from app.errors import InvalidRequest
from app.services.batches import NewBatch
from app.services.job_lists import JobQuery
from app.transfers import ExpiresAfter

_HOUR = 3600
_THIRTY_DAYS = 30 * 24 * _HOUR


def json_object() -> dict[str, Any]:
    """The request's JSON object, which is kept and shown again as it was sent.

    Raises InvalidRequest for what no database keeps: NUL, and half a surrogate pair.
    """
    found = body.json_object()
    text = json.dumps(found, ensure_ascii=False)
    if "\\u0000" in text or text.encode("utf-8", "replace").decode() != text:
        raise InvalidRequest(
            "the request body holds a null byte or half a surrogate pair", code="invalid_json"
        )
    return found


class Metadata(fields.Field[dict[str, str]]):
    """Up to 16 pairs of text; keys of up to 64, values of up to 512 characters."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> dict[str, str]:
        if not isinstance(value, dict):
            raise ValidationError("must be an object of text values")
        if len(value) > 16:
            raise ValidationError(f"has {len(value)} pairs; 16 are allowed")
        for key, text in value.items():
            if not isinstance(text, str):
                raise ValidationError(f"the value of {key[:64]!r} must be text")
            if not 0 < len(key) <= 64:
                raise ValidationError(f"the key {key[:70]!r} must have 1 to 64 characters")
            if len(text) > 512:
                raise ValidationError(
                    f"the value of {key!r} has {len(text)} characters; 512 are allowed"
                )
        return value


class Expiry(Schema):
    """`output_expires_after`."""

    anchor = fields.String(required=True, validate=validate.OneOf(["created_at"]))
    seconds = fields.Integer(
        required=True, strict=True, validate=validate.Range(_HOUR, _THIRTY_DAYS)
    )

    @post_load
    def _make(self, data: dict[str, Any], **_: Any) -> ExpiresAfter:
        return ExpiresAfter(**data)


class NewBatchBody(Schema):
    """Body of POST /batches."""

    class Meta:
        unknown = EXCLUDE

    input_file_id = fields.String(required=True)
    endpoint = fields.String(required=True)
    completion_window = fields.String(required=True, validate=validate.OneOf(["24h"]))
    metadata = Metadata(load_default=None, allow_none=True)
    output_expires_after = fields.Nested(Expiry, load_default=None, allow_none=True)

    @post_load
    def _make(self, data: dict[str, Any], **_: Any) -> NewBatch:
        return NewBatch(**data)


class NewJobBody(Schema):
    """Body of POST /fine_tuning/jobs; what the provider knows and we do not goes through."""

    class Meta:
        unknown = INCLUDE

    model = fields.String(required=True, validate=validate.Length(1, 512))
    training_file = fields.String(required=True)
    validation_file = fields.String(allow_none=True)
    suffix = fields.String(allow_none=True, validate=validate.Length(1, 64))
    seed = fields.Integer(allow_none=True, strict=True, validate=validate.Range(0, 2147483647))
    method = fields.Dict(allow_none=True)
    hyperparameters = fields.Dict(allow_none=True)
    integrations = fields.List(fields.Dict(), allow_none=True, validate=validate.Length(max=5))
    metadata = Metadata(allow_none=True)


class JobListQuery(Schema):
    """Query of a list of batches, jobs or events."""

    class Meta:
        unknown = EXCLUDE

    limit = Limit(100, load_default=20)
    after = fields.String(load_default=None)
    user_id = fields.String(load_default=None)

    @post_load
    def _make(self, data: dict[str, Any], **_: Any) -> JobQuery:
        return JobQuery(**data)


class CheckpointsQuery(JobListQuery):
    """Query of a job's checkpoints, of which OpenAI shows ten."""

    limit = Limit(100, load_default=10)
