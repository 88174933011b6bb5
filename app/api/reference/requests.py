"""marshmallow schemas of bodies that the views read by hand: forms that stream, and inference.

They describe such a body; nothing is loaded by them.
"""

from marshmallow import EXCLUDE, INCLUDE, Schema, fields, validate

from app.api.schemas import UploadFields
from app.api.uploads import AnnouncedFields
from app.providers.protocol import Operation

_BINARY = {"type": "string", "format": "binary"}


def _selector() -> fields.Raw:
    """A selector in JSON: a text, or a list of texts; null says nothing."""
    texts = {"type": ["string", "null"]}
    return fields.Raw(allow_none=True, metadata={"type": ["string", "array"], "items": texts})


class UploadForm(UploadFields):
    """Form of POST /files."""

    class Meta:
        unknown = EXCLUDE

    target_model_names = fields.String()
    model = fields.String()
    custom_llm_provider = fields.String()
    file = fields.Raw(required=True, metadata=_BINARY)
    expires_after_anchor = fields.String(
        data_key="expires_after[anchor]", validate=validate.Equal("created_at")
    )
    expires_after_seconds = fields.Integer(
        data_key="expires_after[seconds]", validate=validate.Range(3600, 2_592_000)
    )


class FileExpiry(Schema):
    """When the file ends."""

    class Meta:
        unknown = EXCLUDE

    anchor = fields.String(required=True, validate=validate.Equal("created_at"))
    seconds = fields.Integer(required=True, validate=validate.Range(3600, 2_592_000))


class UploadAnnouncement(AnnouncedFields):
    """Body of POST /uploads."""

    class Meta:
        unknown = EXCLUDE

    target_model_names = _selector()
    model = _selector()
    custom_llm_provider = _selector()
    expires_after = fields.Nested(FileExpiry, allow_none=True)


class PartForm(Schema):
    """Form of POST /uploads/{upload_id}/parts."""

    class Meta:
        unknown = EXCLUDE

    data = fields.Raw(required=True, metadata=_BINARY)


class _Passed(Schema):
    class Meta:
        unknown = INCLUDE

    model = _selector()
    custom_llm_provider = _selector()


class ChatBody(_Passed):
    """OpenAI's chat completion body: passed on byte for byte, but for model and file ids."""

    messages = fields.List(fields.Dict(), required=True)
    stream = fields.Boolean(allow_none=True)


class CompletionBody(_Passed):
    """OpenAI's completion body."""

    prompt = fields.Raw(metadata={"examples": ["Once upon a time"]})
    stream = fields.Boolean(allow_none=True)


class EmbeddingsBody(_Passed):
    """OpenAI's embeddings body."""

    input = fields.Raw(metadata={"examples": ["a text"]})


class ResponsesBody(_Passed):
    """OpenAI's responses body."""

    input = fields.Raw(metadata={"examples": ["Say hello."]})
    stream = fields.Boolean(allow_none=True)


INFERENCE: dict[Operation, type[Schema]] = {
    Operation.CHAT: ChatBody,
    Operation.COMPLETIONS: CompletionBody,
    Operation.EMBEDDINGS: EmbeddingsBody,
    Operation.RESPONSES: ResponsesBody,
}
