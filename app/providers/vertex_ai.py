"""Google Vertex AI: files in a Cloud Storage bucket, Gemini models, batches and tuning."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from marshmallow import RAISE, Schema, fields, validate

from app import json_spans
from app.errors import InvalidRequest, NotFound, NotSupported, RangeNotSatisfiable
from app.objects import Batch, FineTuningJob
from app.providers import openai_style
from app.providers.google import generate
from app.providers.google.batch_rows import vertex_rows
from app.providers.google.credentials import Credentials, check_credentials
from app.providers.google.errors import refusal
from app.providers.google.storage import Bucket
from app.providers.google.vertex_jobs import VertexJobs
from app.providers.google.vertex_objects import (
    FOLDER,
    ROWS,
    TUNING,
    file_id_of,
    is_key,
    object_name,
)
from app.providers.google.vertex_tuning import VertexTuning
from app.providers.openai_jobs import seconds
from app.providers.params import is_address
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

STORAGE = "https://storage.googleapis.com"
DEFAULT_LOCATION = "us-central1"
_OCTETS = "application/octet-stream"
_SHAPED = re.compile(
    r"(?P<base>.*?)/(?P<version>v[0-9][a-z0-9]*)"
    r"(?:/projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)(?:/(?P<resource>[^:]+).*)?)?/?"
)
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/-]*")
_NAME = validate.Regexp(r"[A-Za-z0-9][A-Za-z0-9:._-]*\Z", error="is no name of Google's")


class VertexParams(Schema):
    class Meta:
        unknown = RAISE

    vertex_project = fields.String(
        load_default=None,
        validate=_NAME,
        metadata={"description": "the Google Cloud project; else that of the credentials"},
    )
    vertex_location = fields.String(
        load_default=None,
        validate=_NAME,
        metadata={"description": "a region, `global`, `us` or `eu`; else us-central1"},
    )
    vertex_credentials = fields.Raw(
        load_default=None,
        validate=check_credentials,
        metadata={"description": "a credentials file's path, or its text; else the machine's own"},
    )
    gcs_bucket_name = fields.String(
        load_default=None,
        validate=_NAME,
        metadata={"description": "where files are; there are no batches and no tuning without"},
    )
    bucket_name = fields.String(
        load_default=None, validate=_NAME, metadata={"description": "the same"}
    )
    gcs_api_base = fields.String(
        load_default=None,
        validate=is_address,
        metadata={
            "description": "the address of Cloud Storage, for emulators and private endpoints"
        },
    )
    api_base = fields.String(
        load_default=None,
        validate=is_address,
        metadata={
            "description": "the address of Vertex AI; a host, or as long as that of an endpoint"
        },
    )
    api_version = fields.String(
        load_default="v1",
        validate=validate.OneOf(("v1", "v1beta1")),
        metadata={"description": "of the API"},
    )
    openai_compatible = fields.Boolean(
        load_default=False,
        metadata={"description": "send chats without files to Google's own OpenAI surface"},
    )


class VertexAI(Provider):
    """One project and location. The upstream model is a publisher's model, or the number of a
    tuned model's endpoint.

    Source: Google Cloud, Vertex AI REST reference v1, and Generative AI on Vertex AI; read 2026-11.
    """

    name = "vertex_ai"
    aliases = ("vertex_ai_beta",)
    operations = frozenset(
        {
            Operation.FILES,
            Operation.CHAT,
            Operation.EMBEDDINGS,
            Operation.BATCHES,
            Operation.FINE_TUNING,
        }
    )
    takes_openai_rows = False
    shared_params = (
        "vertex_project",
        "vertex_location",
        "vertex_credentials",
        "gcs_bucket_name",
        "bucket_name",
        "gcs_api_base",
    )
    environment = {
        "vertex_project": ("VERTEXAI_PROJECT", "GOOGLE_CLOUD_PROJECT"),
        "vertex_location": ("VERTEXAI_LOCATION",),
        "vertex_credentials": ("VERTEXAI_CREDENTIALS",),
        "gcs_bucket_name": ("GCS_BUCKET_NAME", "GCS_BATCH_BUCKET_NAME"),
    }
    Params = VertexParams

    def __init__(self, deployment: Deployment, place: Place) -> None:
        super().__init__(deployment, place)
        given = self.params
        shaped = _shape(given["api_base"] or "")
        self._version = shaped.get("version") or given["api_version"]
        self._resource = shaped.get("resource")
        self._project = (
            shaped.get("project")
            or given["vertex_project"]
            or _environment("VERTEXAI_PROJECT", "GOOGLE_CLOUD_PROJECT")
        )
        self._location = (
            shaped.get("location")
            or given["vertex_location"]
            or _environment("VERTEXAI_LOCATION")
            or DEFAULT_LOCATION
        )
        self._credentials = Credentials(
            given["vertex_credentials"] or _environment("GCS_PATH_SERVICE_ACCOUNT"), deployment
        )
        self._upstream = Upstream(
            shaped.get("base") or given["api_base"] or _host(self._location),
            headers=self._credentials.headers,
            deployment=deployment,
            pool_size=place.pool_size,
            refusal=refusal,
        )
        self._storage = Upstream(
            given["gcs_api_base"] or _emulator() or STORAGE,
            headers=self._credentials.headers,
            deployment=deployment,
            pool_size=place.pool_size,
            refusal=refusal,
        )
        self._jobs: VertexJobs | None = None
        self._tuning: VertexTuning | None = None

    # Files

    @property
    def account(self) -> str:
        # Whatever project, location and credentials a model has: files are where the bucket is.
        name = self._bucket_name()
        return f"{self.params['gcs_api_base'] or ''} {name}" if name else super().account

    def id_of(self, key: str) -> str | None:
        return key

    def is_ours(self, file_id: str) -> bool:
        # Such an id is an object in the gateway's own folder, and nothing else.
        return is_key(file_id)

    def upload(self, upload: Upload) -> StoredFile:
        bucket = self._bucket()
        sent = upload.original or upload
        key = upload.key or os.urandom(16).hex()
        metadata = {"filename": sent.filename, "purpose": sent.purpose}
        if upload.model:
            metadata["model"] = upload.model
        made = bucket.put(FOLDER + key, sent.open, sent.size, sent.mime_type or _OCTETS, metadata)
        if upload.original is not None:
            bucket.put(FOLDER + key + ROWS, upload.open, upload.size, "application/jsonl")
        return _stored(made, key)

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self._upstream.base_url, self._storage.base_url)

    def retrieve(self, file_id: str) -> StoredFile:
        if (made := self._batches.output(file_id)) is not None:
            return made
        bucket = self._bucket()
        name = object_name(file_id, bucket.name)
        found = _stored(bucket.get(name), file_id)
        if found.purpose == "batch" and name.startswith(FOLDER):
            try:
                bucket.get(name + ROWS)
            except NotFound:
                # A crash came between the two objects.
                return StoredFile(
                    **{**vars(found), "status": "error", "status_details": "its rows are missing"}
                )
        return found

    def files(self, purpose: str | None = None) -> Iterator[StoredFile]:
        bucket = self._bucket()
        for found in bucket.list(FOLDER):
            key = file_id_of(f"gs://{bucket.name}/{found.get('name')}", bucket.name, "")
            if key is None:
                continue
            file = _stored(found, key)
            if purpose in (None, file.purpose):
                yield file

    def content(
        self,
        file_id: str,
        byte_range: str | None = None,
        cancellation: Cancellation | None = None,
    ) -> Download:
        made = self._batches.output_content(file_id, cancellation)
        if made is not None:
            return made
        bucket = self._bucket()
        # The answer to several ranges is a multipart body of its own; the whole may be given too.
        single = byte_range if byte_range and "," not in byte_range else None
        answer = bucket.open(object_name(file_id, bucket.name), single, cancellation)
        if answer.status == 416:
            answer.close()
            sized = answer.headers.get("content-range")
            raise RangeNotSatisfiable(
                f"the range {byte_range!r} is outside of the file",
                headers={"Content-Range": sized} if sized else None,
            )
        self._storage.raise_for(answer)
        part = answer.headers.get("content-range") if answer.status == 206 else None
        return Download(answer.chunks(), answer.length, part, answer.close)

    def delete(self, file_id: str) -> None:
        if self._batches.delete_output(file_id):
            return
        bucket = self._bucket()
        try:
            name = object_name(file_id, bucket.name)
            purpose = _stored(bucket.get(name), file_id).purpose
        except NotFound:
            return
        # The main object goes last: as long as it is there, the others are known.
        beside = {"batch": ROWS, "fine-tune": TUNING}.get(purpose)
        if beside is not None and name.startswith(FOLDER):
            bucket.delete(name + beside)
        bucket.delete(name)

    # Inference

    def infer(
        self,
        operation: Operation,
        body: bytes,
        upstream_model: str,
        cancellation: Cancellation,
        files: Mapping[str, AttachedFile] = NO_FILES,
    ) -> Reply:
        if operation not in self.operations - {Operation.FILES}:
            raise self._unsupported(operation)
        wants_openai = self.params["openai_compatible"] and operation == Operation.CHAT
        if wants_openai and not generate.has_files(body):
            path = f"{self._root}/endpoints/openapi/chat/completions"
            named = _with_model(body, f"google/{upstream_model}")
            return openai_style.infer(self._upstream, path, named, cancellation)
        resource = self._model_path(upstream_model)
        return generate.infer(
            self._upstream,
            lambda method: f"{resource}:{method}",
            operation,
            body,
            model=upstream_model,
            attach=lambda file_id: self._attached(file_id, files),
            cancellation=cancellation,
            platform="vertex_ai",
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
        bucket = self._bucket()
        try:
            name = object_name(file_id, bucket.name)
            kind = known.mime_type or str(bucket.get(name).get("contentType") or _OCTETS)
        except NotFound as error:
            raise InvalidRequest(error.message, param="file_id", code="not_found") from error
        return f"gs://{bucket.name}/{name}", kind

    # Jobs

    def batch_rows(self, rows: Iterable[Row | bytes], model: str) -> Iterator[bytes]:
        return vertex_rows(rows, model)

    def create_batch(self, request: BatchRequest) -> Batch:
        return self._batches.create_batch(request)

    def retrieve_batch(self, batch_id: str) -> Batch:
        return self._batches.retrieve_batch(batch_id)

    def batches(self) -> Iterator[Batch]:
        return self._batches.batches()

    def cancel_batch(self, batch_id: str) -> Batch:
        return self._batches.cancel_batch(batch_id)

    def create_job(self, body: Mapping[str, Any]) -> FineTuningJob:
        return self._tunings.create_job(body)

    def retrieve_job(self, job_id: str) -> FineTuningJob:
        return self._tunings.retrieve_job(job_id)

    def jobs(self) -> Iterator[FineTuningJob]:
        return self._tunings.jobs()

    def steer_job(self, job_id: str, action: Literal["cancel", "pause", "resume"]) -> FineTuningJob:
        return self._tunings.steer_job(job_id, action)

    def job_page(
        self, job_id: str, what: Literal["events", "checkpoints"], after: str | None, limit: int
    ) -> dict[str, Any]:
        return self._tunings.job_page(job_id, what, after, limit)

    @property
    def _batches(self) -> VertexJobs:
        # Kept, since it remembers what it has measured. Made late: the project may be the
        # credentials' own, which are read at the first request.
        if self._jobs is None:
            named = {self.deployment.upstream_model: self._resource} if self._resource else None
            self._jobs = VertexJobs(self._upstream, self._root, self._bucket, named)
        return self._jobs

    @property
    def _tunings(self) -> VertexTuning:
        if self._tuning is None:
            self._tuning = VertexTuning(self._upstream, self._root, self._bucket)
        return self._tuning

    # Places

    @property
    def _root(self) -> str:
        project = self._project or self._credentials.project()
        if not project:
            raise NotSupported("no Google project: set vertex_project for this deployment")
        return f"/{self._version}/projects/{quote(project, safe='')}/locations/{self._location}"

    def _model_path(self, model: str) -> str:
        """Where a model's methods are."""
        if self._resource is not None and model == self.deployment.upstream_model:
            return f"{self._root}/{self._resource}"
        name = model.removeprefix("gemini/")
        if not _MODEL.fullmatch(name) or ".." in name:
            raise InvalidRequest(f"{model!r:.100} is no model's name", param="model")
        if name.startswith("projects/"):
            return f"/{self._version}/{name}"
        if name.startswith(("publishers/", "endpoints/")):
            return f"{self._root}/{name}"
        if name.isdigit():
            return f"{self._root}/endpoints/{name}"
        return f"{self._root}/publishers/google/models/{quote(name, safe='@')}"

    def _bucket_name(self) -> str | None:
        given = self.params
        return (
            given["gcs_bucket_name"]
            or given["bucket_name"]
            or _environment("GCS_BUCKET_NAME", "GCS_BATCH_BUCKET_NAME")
        )

    def _bucket(self) -> Bucket:
        name = self._bucket_name()
        if not name:
            raise NotSupported(
                "this deployment has no bucket for files: set gcs_bucket_name for it or in "
                "files_settings, or GCS_BUCKET_NAME in the environment"
            )
        return Bucket(self._storage, name)


def _shape(api_base: str) -> dict[str, str]:
    """What an address with a version or a resource in its path says; {} for a plain one."""
    found = urlsplit(api_base)
    shape = _SHAPED.fullmatch(found.path)
    if shape is None:
        return {}
    said = {key: value for key, value in shape.groupdict().items() if value}
    said["base"] = f"{found.scheme}://{found.netloc}{shape['base'] or ''}"
    return said


def _host(location: str) -> str:
    """The service's host for a location.

    Source: Google Cloud, Vertex AI locations; read 2026-11.
    """
    if location == "global":
        return "https://aiplatform.googleapis.com"
    if location in ("us", "eu"):
        return f"https://aiplatform.{location}.rep.googleapis.com"
    return f"https://{location}-aiplatform.googleapis.com"


def _environment(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _emulator() -> str | None:
    """The address that an emulator's users set, with or without a scheme."""
    address = _environment("STORAGE_EMULATOR_HOST")
    if address is None or "://" in address:
        return address
    return f"http://{address}"


def _with_model(body: bytes, model: str) -> bytes:
    document = json_spans.parse(body, [("model",)])
    return document.render(dict.fromkeys(document.at([("model",)]), model))


def _stored(found: Mapping[str, Any], file_id: str) -> StoredFile:
    metadata = found.get("metadata")
    told = metadata if isinstance(metadata, Mapping) else {}
    size = str(found.get("size", ""))
    return StoredFile(
        id=file_id,
        filename=str(told.get("filename") or str(found.get("name", "")).rpartition("/")[2]),
        purpose=str(told.get("purpose") or "user_data"),
        size=int(size) if size.isdigit() else None,
        created_at=seconds(found.get("timeCreated")) or 0,
    )
