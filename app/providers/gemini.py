"""Gemini through Google AI Studio: the Files API, Gemini models, batches."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema

from app import json_spans
from app.errors import ContentNotAvailable, InvalidRequest, NotFound
from app.objects import Batch
from app.providers import openai_style
from app.providers.google import generate
from app.providers.google.batch_rows import studio_rows
from app.providers.google.errors import refusal
from app.providers.google.files_api import CANONICAL, FilesApi, plain_id, stored
from app.providers.google.studio_jobs import StudioJobs
from app.providers.params import is_address, is_header_text
from app.providers.protocol import (
    NO_FILES,
    BatchRequest,
    Operation,
    Place,
    Provider,
    StoredFile,
)
from app.providers.upstream import Upstream
from app.providers.wire.jsonl import Row
from app.settings import Deployment
from app.transfers import AttachedFile, Cancellation, Download, Reply, Upload

_KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
_OPENAI_OPERATIONS = {Operation.CHAT, Operation.EMBEDDINGS}


class GeminiParams(Schema):
    class Meta:
        unknown = RAISE

    api_key = fields.String(
        load_default=None,
        validate=is_header_text,
        metadata={"description": "an AI Studio key; else `GEMINI_API_KEY` or `GOOGLE_API_KEY`"},
    )
    api_base = fields.String(
        load_default=CANONICAL,
        validate=is_address,
        metadata={"description": "the address of the API"},
    )
    api_version = fields.String(
        load_default="v1beta",
        validate=validate.OneOf(("v1beta", "v1")),
        metadata={"description": "of the API"},
    )
    openai_compatible = fields.Boolean(
        load_default=False,
        metadata={
            "description": "send chats and embeddings without files to Google's own OpenAI surface"
        },
    )

    @validates_schema
    def has_a_key(self, data: dict[str, Any], **_: object) -> None:
        """There must be a key, here or in the environment."""
        if not data["api_key"] and not any(os.environ.get(name) for name in _KEYS):
            raise ValidationError(f"missing: give it here, or set {_KEYS[0]}", "api_key")


class Gemini(Provider):
    """One project's key.

    Source: Gemini API reference v1beta, Files, models, batches; read 2026-11.
    """

    name = "gemini"
    operations = frozenset(
        {Operation.FILES, Operation.CHAT, Operation.EMBEDDINGS, Operation.BATCHES}
    )
    processes_first = True
    takes_openai_rows = False
    environment = {"api_key": _KEYS}
    Params = GeminiParams

    def __init__(self, deployment: Deployment, place: Place) -> None:
        super().__init__(deployment, place)
        given = self.params
        self._key = given["api_key"] or next(
            os.environ[name] for name in _KEYS if os.environ.get(name)
        )
        self._version = given["api_version"]
        base = given["api_base"].rstrip("/")
        for ending in ("/openai", "/v1beta", "/v1"):
            # What people write there who know OpenAI's or LiteLLM's form of it.
            base = base.removesuffix(ending)
        self._base = base
        self._upstream = Upstream(
            base,
            # In a header, never in the address, which ends up in logs.
            headers=lambda: {"x-goog-api-key": self._key},
            deployment=deployment,
            pool_size=place.pool_size,
            refusal=refusal,
        )
        self._for_openai = Upstream(
            f"{base}/{self._version}/openai",
            headers=lambda: {"Authorization": f"Bearer {self._key}"},
            deployment=deployment,
            pool_size=place.pool_size,
            refusal=refusal,
        )
        self._files = FilesApi(self._upstream, self._version)
        self._batches = StudioJobs(self._upstream, self._version, self._files)

    # Files

    def id_of(self, key: str) -> str | None:
        return key

    def upload(self, upload: Upload) -> StoredFile:
        return self._files.put(upload, upload.key or os.urandom(16).hex())

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self._base,)

    def retrieve(self, file_id: str) -> StoredFile:
        made = self._batches.output(file_id)
        return made if made is not None else stored(self._files.get(file_id))

    def files(self, purpose: str | None = None) -> Iterator[StoredFile]:
        # Google keeps no purpose, so a list of one purpose has every file.
        for told in self._files.list():
            yield stored(told, purpose or "user_data")

    def content(
        self,
        file_id: str,
        byte_range: str | None = None,
        cancellation: Cancellation | None = None,
    ) -> Download:
        made = self._batches.output_content(file_id, cancellation)
        if made is not None:
            return made
        self._files.get(file_id)
        raise ContentNotAvailable(
            "Google AI Studio does not give files back; set general_settings.keep_content to keep "
            "what is uploaded",
            param="id",
        )

    def delete(self, file_id: str) -> None:
        if self._batches.delete_output(file_id):
            return
        try:
            name = plain_id(file_id)
        except NotFound:
            return
        self._files.delete(name)

    # Inference

    def infer(
        self,
        operation: Operation,
        body: bytes,
        upstream_model: str,
        cancellation: Cancellation,
        files: Mapping[str, AttachedFile] = NO_FILES,
    ) -> Reply:
        if operation not in _OPENAI_OPERATIONS:
            raise self._unsupported(operation)
        if self.params["openai_compatible"] and not generate.has_files(body):
            document = json_spans.parse(body, [("model",)])
            named = document.render(dict.fromkeys(document.at([("model",)]), upstream_model))
            return openai_style.infer(self._for_openai, f"/{operation.value}", named, cancellation)
        name = upstream_model.removeprefix("models/")
        if not name or name in (".", ".."):
            raise InvalidRequest(f"{upstream_model!r:.100} is no model's name", param="model")
        resource = f"/{self._version}/models/{quote(name, safe='')}"
        return generate.infer(
            self._upstream,
            lambda method: f"{resource}:{method}",
            operation,
            body,
            model=upstream_model,
            attach=lambda file_id: self._attached(file_id, files),
            cancellation=cancellation,
            platform="ai_studio",
        )

    def _attached(self, file_id: str, files: Mapping[str, AttachedFile]) -> tuple[str, str]:
        """Where Google reads a file, and as what."""
        known = files.get(file_id)
        if known is None:
            # An address that the caller wrote himself: Google would read it with our rights.
            raise InvalidRequest(
                f"{file_id!r:.100} is no file of yours; upload it and give its id",
                param="file_id",
            )
        kind = known.mime_type or str(self._files.get(file_id).get("mimeType") or "")
        return self._files.uri(file_id, self._base), kind

    # Batches

    def batch_rows(self, rows: Iterable[Row | bytes], model: str) -> Iterator[bytes]:
        return studio_rows(rows, model)

    def create_batch(self, request: BatchRequest) -> Batch:
        return self._batches.create_batch(request)

    def retrieve_batch(self, batch_id: str) -> Batch:
        return self._batches.retrieve_batch(batch_id)

    def batches(self) -> Iterator[Batch]:
        return self._batches.batches()

    def cancel_batch(self, batch_id: str) -> Batch:
        return self._batches.cancel_batch(batch_id)
