"""What the document says of each route, by method and path; one that is missing is a mistake."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from marshmallow import Schema

from app.api import admin_schemas as admin
from app.api import job_schemas as jobs
from app.api.reference import answers, requests
from app.api.schemas import FileListQuery
from app.api.uploads import CompleteFields
from app.providers.protocol import Operation

JSON = "application/json"
FORM = "multipart/form-data"
EVENTS = "text/event-stream"
ANY = "*/*"

_FILE = ("permission_denied", "not_found")
_ASKS_UPSTREAM = ("upstream_error", "upstream_auth_failed", "upstream_timeout")
_BY_NAME = ("ambiguous_routing", "model_not_found", "provider_not_found", "forbidden_parameter")
_MAKES = (*_BY_NAME, "routing_required", "model_access_denied")
_LIST = ("invalid_type", "integer_above_max_value", "integer_below_min_value", *_BY_NAME)
_ONCE = ("idempotency_in_progress", "idempotency_key_used", "idempotency_key_reused")
_JSON = ("invalid_json", "request_too_large")


@dataclass(frozen=True)
class Described:
    """A route. `errors` are names of `app.api.error_codes` beside those that every route has."""

    tag: str
    summary: str
    answer: type[Schema] | None
    text: str = ""
    body: type[Schema] | None = None
    media: str = JSON
    query: type[Schema] | None = None
    query_names: tuple[str, ...] = ()
    header_names: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    answer_media: tuple[str, ...] = (JSON,)
    answer_headers: tuple[str, ...] = ()
    statuses: Mapping[int, str] | None = None
    """Other answers than 200, with what they mean; they have the same body."""
    asks_upstream: bool = False
    is_once: bool = False
    """Whether `Idempotency-Key` makes it happen once."""
    selects: bool = False
    """Whether a selector says where it goes."""
    examples: Mapping[str, Any] | None = None

    @property
    def error_names(self) -> tuple[str, ...]:
        """All that this route adds to the errors that every route has."""
        found = self.errors
        if self.is_once:
            found += _ONCE
        if self.asks_upstream:
            found += _ASKS_UPSTREAM
        if self.body is not None and self.media == JSON:
            found += _JSON
        return tuple(dict.fromkeys(found))


TAGS: Mapping[str, str] = {
    "Files": "Upload once, use everywhere: one id for every model that the file is for.",
    "Uploads": "Large files in parts of at most 64 MB.",
    "Batches": "Many requests in one file, answered within a day.",
    "Fine-tuning": "Jobs that make a model of your own.",
    "Inference": "Relayed to a deployment that holds every file of the request.",
    "Models": "What the calling key may use.",
    "Users": "Those who own keys and files.",
    "Keys": "What requests carry; only hashes of them are stored.",
    "Operation": "For probes, monitoring and this reference.",
}

_PAGING = (
    "From the database, without asking a provider, but for `model` and `custom_llm_provider`, "
    "which show an administrator the account as its provider does. The next page begins `after` "
    "the last id of this one."
)

_UPLOAD = Described(
    "Files",
    "Upload a file",
    answers.File,
    text="Goes to every account of every named model at the same time, or to one account, or to a "
    "provider's API, as the selector asks: see the three ways above. A file with the purpose "
    "`batch` is checked line by line before anything is sent.",
    body=requests.UploadForm,
    media=FORM,
    selects=True,
    is_once=True,
    asks_upstream=True,
    errors=(
        *_MAKES,
        "invalid_form",
        "missing_required_parameter",
        "empty_file",
        "invalid_json_line",
        "duplicate_custom_id",
        "url_mismatch",
        "unsupported_operation",
        "request_too_large",
        "file_too_large",
        "too_many_rows",
        "storage_limit_exceeded",
        "file_limit_exceeded",
        "storage_full",
    ),
    examples={
        "for two models": {
            "purpose": "user_data",
            "target_model_names": "gpt-4o, llama",
            "file": "%PDF-1.7 ...",
        },
        "for one account": {"purpose": "user_data", "model": "gpt-4o", "file": "%PDF-1.7 ..."},
        "by provider": {
            "purpose": "batch",
            "custom_llm_provider": "openai",
            "file": '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", '
            '"body": {"model": "gpt-4o", "messages": []}}',
        },
    },
)

_DELETE_FILE = Described(
    "Files",
    "Delete a file",
    answers.DeletedFile,
    text="Answers when every copy is gone. From the first attempt on the file is unusable.",
    selects=True,
    asks_upstream=True,
    errors=(*_FILE, "file_in_use", "delete_incomplete"),
)

_STEER = Described(
    "Fine-tuning",
    "Cancel a job",
    answers.FineTuningJob,
    selects=True,
    asks_upstream=True,
    errors=(*_FILE, *_BY_NAME, "unsupported_operation", "conflict"),
)

_CHECK_JOB = Described(
    "Fine-tuning",
    "List a job's events",
    answers.FineTuningEventPage,
    query=jobs.JobListQuery,
    selects=True,
    asks_upstream=True,
    errors=(*_FILE, *_LIST, "unsupported_operation"),
)

_MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is in this file?"},
            {"type": "file", "file": {"file_id": "file-abc123"}},
        ],
    }
]
_BODIES: Mapping[Operation, Mapping[str, Any]] = {
    Operation.CHAT: {
        "with a file": {"model": "gpt-4o", "messages": _MESSAGES},
        "as a stream": {
            "model": "gpt-4o",
            "messages": [{"role": "user", "content": "Hello!"}],
            "stream": True,
        },
    },
    Operation.COMPLETIONS: {"plain": {"model": "gpt-4o", "prompt": "Once upon a time"}},
    Operation.EMBEDDINGS: {"plain": {"model": "gpt-4o", "input": "a text"}},
    Operation.RESPONSES: {
        "with a file": {
            "model": "gpt-4o",
            "input": [
                {
                    "role": "user",
                    "content": [{"type": "input_file", "file_id": "file-abc123"}],
                }
            ],
        }
    },
}


def _inference(operation: Operation, summary: str) -> Described:
    can_stream = operation is not Operation.EMBEDDINGS
    return Described(
        "Inference",
        summary,
        answers.INFERRED[operation],
        text="The body goes to the provider byte for byte, but for the model's name and file ids; "
        "so does the answer to you. A deployment that is overloaded or gone is passed over before "
        "the first byte."
        + (
            " With `stream: true` the answer is OpenAI's server-sent events, as they arrive."
            if can_stream
            else ""
        ),
        body=requests.INFERENCE[operation],
        selects=True,
        asks_upstream=True,
        answer_media=(JSON, EVENTS) if can_stream else (JSON,),
        answer_headers=("llm-provider",),
        errors=(
            *_FILE,
            *_BY_NAME,
            "model_access_denied",
            "missing_required_parameter",
            "unsupported_operation",
            "file_not_available",
            "file_expired",
            "file_too_large_to_inline",
            "file_not_ready",
        ),
        examples=_BODIES[operation],
    )


_CHAT = _inference(Operation.CHAT, "Create a chat completion")
_COMPLETIONS = _inference(Operation.COMPLETIONS, "Create a completion")
_EMBEDDINGS = _inference(Operation.EMBEDDINGS, "Create embeddings")
_RESPONSES = _inference(Operation.RESPONSES, "Create a response")

_NEW_BATCH = {
    "input_file_id": "file-abc123",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
    "metadata": {"night": "1"},
}
_BLOCK = Described(
    "Keys",
    "Block a key",
    answers.Key,
    text="It is refused from its very next request on.",
    body=admin.KeyReference,
    errors=("not_found", "conflict"),
)

OPERATIONS: Mapping[str, Described] = {
    "POST /v1/files": _UPLOAD,
    "GET /v1/files": Described(
        "Files",
        "List files",
        answers.FilePage,
        text=_PAGING,
        query=FileListQuery,
        selects=True,
        asks_upstream=True,
        errors=(*_LIST, "model_access_denied"),
    ),
    "GET /v1/files/{file_id}": Described(
        "Files",
        "Retrieve a file",
        answers.File,
        query_names=("include_copies",),
        selects=True,
        asks_upstream=True,
        errors=(*_FILE, *_BY_NAME),
    ),
    "GET /v1/files/{file_id}/content": Described(
        "Files",
        "Download a file",
        None,
        text="Streamed from a ready copy. The answer has the type that the file was uploaded with, "
        "and is always a download.",
        header_names=("Range",),
        selects=True,
        asks_upstream=True,
        answer_media=(ANY,),
        answer_headers=("Content-Disposition", "Accept-Ranges"),
        statuses={206: "The part that `Range` asks for."},
        errors=(
            *_FILE,
            *_BY_NAME,
            "file_expired",
            "content_not_available",
            "range_not_satisfiable",
        ),
    ),
    "DELETE /v1/files/{file_id}": _DELETE_FILE,
    "POST /v1/files/{file_id}/delete": replace(
        _DELETE_FILE,
        summary="Delete a file, for clients without DELETE",
    ),
    "POST /v1/uploads": Described(
        "Uploads",
        "Begin a large file",
        answers.Upload,
        text="Its parts may come in any order, several at a time, within an hour.",
        body=requests.UploadAnnouncement,
        selects=True,
        is_once=True,
        errors=(*_MAKES, "file_too_large", "storage_limit_exceeded", "file_limit_exceeded"),
        examples={
            "a film": {
                "purpose": "user_data",
                "filename": "film.mp4",
                "bytes": 104857600,
                "mime_type": "video/mp4",
                "target_model_names": "gpt-4o",
            }
        },
    ),
    "POST /v1/uploads/{upload_id}/parts": Described(
        "Uploads",
        "Add a part",
        answers.UploadPart,
        body=requests.PartForm,
        media=FORM,
        is_once=True,
        errors=(
            *_FILE,
            "invalid_form",
            "request_too_large",
            "file_too_large",
            "upload_completed",
            "upload_cancelled",
            "upload_expired",
            "upload_completing",
            "storage_full",
        ),
        examples={"a part": {"data": "64 MB at most"}},
    ),
    "POST /v1/uploads/{upload_id}/complete": Described(
        "Uploads",
        "Complete a large file",
        answers.Upload,
        text="The parts become one file, in the order in which they are named.",
        body=CompleteFields,
        is_once=True,
        selects=True,
        asks_upstream=True,
        errors=(
            *_FILE,
            *_MAKES,
            "md5_mismatch",
            "parts_lost",
            "upload_cancelled",
            "upload_expired",
            "upload_completing",
            "invalid_json_line",
            "storage_full",
        ),
        examples={"two parts": {"part_ids": ["part_1", "part_2"]}},
    ),
    "POST /v1/uploads/{upload_id}/cancel": Described(
        "Uploads",
        "Cancel a large file",
        answers.Upload,
        errors=(*_FILE, "upload_completed", "upload_expired", "upload_completing"),
    ),
    "POST /v1/batches": Described(
        "Batches",
        "Create a batch",
        answers.Batch,
        text="Goes to an account that holds the input file, and stays there. The batch's id is of "
        "the kind that the file's is.",
        body=jobs.NewBatchBody,
        selects=True,
        is_once=True,
        asks_upstream=True,
        errors=(
            *_FILE,
            *_MAKES,
            "missing_required_parameter",
            "unsupported_operation",
            "file_not_available",
            "file_expired",
            "file_not_ready",
            "url_mismatch",
            "invalid_json_line",
        ),
        examples={"of a stored file": _NEW_BATCH},
    ),
    "GET /v1/batches": Described(
        "Batches",
        "List batches",
        answers.BatchPage,
        text=_PAGING,
        query=jobs.JobListQuery,
        selects=True,
        asks_upstream=True,
        errors=(*_LIST, "model_access_denied", "not_found"),
    ),
    "GET /v1/batches/{batch_id}": Described(
        "Batches",
        "Retrieve a batch",
        answers.Batch,
        query_names=("include_state",),
        selects=True,
        asks_upstream=True,
        errors=(*_FILE, *_BY_NAME, "unsupported_operation"),
    ),
    "POST /v1/batches/{batch_id}/cancel": Described(
        "Batches",
        "Cancel a batch",
        answers.Batch,
        text="Repeating it does no harm.",
        selects=True,
        asks_upstream=True,
        errors=(*_FILE, *_BY_NAME, "unsupported_operation", "conflict"),
    ),
    "POST /v1/fine_tuning/jobs": Described(
        "Fine-tuning",
        "Create a job",
        answers.FineTuningJob,
        text="`model` says where it goes; beside `custom_llm_provider` it is that provider's own "
        "name. What else the provider knows is passed on.",
        body=jobs.NewJobBody,
        selects=True,
        is_once=True,
        asks_upstream=True,
        errors=(
            *_FILE,
            *_MAKES,
            "missing_required_parameter",
            "unsupported_operation",
            "file_not_available",
            "file_expired",
            "file_not_ready",
            "invalid_json_line",
        ),
        examples={"of a stored file": {"model": "gpt-4o", "training_file": "file-abc123"}},
    ),
    "GET /v1/fine_tuning/jobs": Described(
        "Fine-tuning",
        "List jobs",
        answers.FineTuningJobPage,
        text=_PAGING,
        query=jobs.JobListQuery,
        selects=True,
        asks_upstream=True,
        errors=(*_LIST, "model_access_denied", "not_found"),
    ),
    "GET /v1/fine_tuning/jobs/{job_id}": Described(
        "Fine-tuning",
        "Retrieve a job",
        answers.FineTuningJob,
        query_names=("include_state",),
        selects=True,
        asks_upstream=True,
        errors=(*_FILE, *_BY_NAME, "unsupported_operation"),
    ),
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": _STEER,
    "POST /v1/fine_tuning/jobs/{job_id}/pause": replace(_STEER, summary="Pause a job"),
    "POST /v1/fine_tuning/jobs/{job_id}/resume": replace(_STEER, summary="Resume a job"),
    "GET /v1/fine_tuning/jobs/{job_id}/events": _CHECK_JOB,
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": replace(
        _CHECK_JOB,
        summary="List a job's checkpoints",
        answer=answers.FineTuningCheckpointPage,
        query=jobs.CheckpointsQuery,
    ),
    "POST /v1/chat/completions": _CHAT,
    "POST /v1/completions": _COMPLETIONS,
    "POST /v1/embeddings": _EMBEDDINGS,
    "POST /v1/responses": _RESPONSES,
    "POST /v1/engines/{model}/chat/completions": _CHAT,
    "POST /v1/engines/{model}/completions": _COMPLETIONS,
    "POST /v1/engines/{model}/embeddings": _EMBEDDINGS,
    "POST /openai/deployments/{model}/chat/completions": _CHAT,
    "POST /openai/deployments/{model}/completions": _COMPLETIONS,
    "POST /openai/deployments/{model}/embeddings": _EMBEDDINGS,
    "GET /v1/models": Described(
        "Models", "List models", answers.ModelPage, text="All of them, on one page."
    ),
    "GET /v1/models/{model}": Described(
        "Models", "Retrieve a model", answers.Model, errors=("model_not_found_404",)
    ),
    "GET /model/info": Described(
        "Models",
        "List deployments",
        answers.DeploymentInfos,
        text="Without addresses and credentials.",
    ),
    "GET /model_group/info": Described("Models", "List model groups", answers.ModelGroups),
    "POST /user/new": Described(
        "Users",
        "Create a user",
        answers.UserWithKey,
        text="With a first key, whose secret is shown this once, unless `auto_create_key` is "
        "false.",
        body=admin.NewUser,
        is_once=True,
        errors=("conflict",),
        examples={
            "with a key for 30 days": {
                "user_id": "lea",
                "models": ["gpt-4o"],
                "duration": "30d",
                "max_bytes_stored": 10_000_000_000,
            }
        },
    ),
    "POST /user/update": Described(
        "Users",
        "Change a user",
        answers.User,
        text="A field that is left out stays as it is; null clears.",
        body=admin.UserChanges,
        errors=("not_found", "conflict"),
        examples={"other limits": {"user_id": "lea", "max_files": 1000, "rpm_limit": None}},
    ),
    "POST /user/delete": Described(
        "Users",
        "Delete users",
        answers.DeletedUsers,
        text="Their keys go with them; `files` says what becomes of what they own.",
        body=admin.UserDeletion,
        errors=("not_found", "conflict"),
        examples={"keep the files": {"user_ids": ["lea"], "files": "keep"}},
    ),
    "GET /user/info": Described(
        "Users",
        "Show a user",
        answers.UserInfo,
        text="The calling one when none is named.",
        query=admin.UserQuery,
        errors=("not_found",),
    ),
    "GET /user/list": Described("Users", "List users", answers.UserPage, query=admin.UserListQuery),
    "POST /key/generate": Described(
        "Keys",
        "Create a key",
        answers.KeyWithSecret,
        text="Users make keys for themselves, within what their own key may. The secret is shown "
        "this once.",
        body=admin.NewKey,
        is_once=True,
        errors=("conflict",),
        examples={"for a program": {"key_alias": "nightly", "models": ["gpt-4o"]}},
    ),
    "POST /key/update": Described(
        "Keys",
        "Change a key",
        answers.Key,
        text="A field that is left out stays as it is; null clears.",
        body=admin.KeyChanges,
        errors=("not_found", "conflict"),
        examples={"by its alias": {"key": "nightly", "duration": "1w"}},
    ),
    "POST /key/delete": Described(
        "Keys",
        "Delete keys",
        answers.DeletedKeys,
        body=admin.KeyDeletion,
        errors=("not_found", "conflict"),
        examples={"two of them": {"key_aliases": ["nightly", "weekly"]}},
    ),
    "POST /key/block": _BLOCK,
    "POST /key/unblock": replace(_BLOCK, summary="Unblock a key", text=""),
    "POST /key/regenerate": Described(
        "Keys",
        "Renew a key's secret",
        answers.KeyWithSecret,
        text="Everything else stays as it is. The old secret works for as long as `grace_period` "
        "says.",
        body=admin.Renewal,
        is_once=True,
        errors=("not_found", "conflict"),
        examples={"with a day to change over": {"key": "nightly", "grace_period": "1d"}},
    ),
    "GET /key/info": Described(
        "Keys",
        "Show a key",
        answers.KeyInfo,
        text="The calling one when none is named.",
        query=admin.KeyQuery,
        errors=("not_found", "conflict"),
    ),
    "GET /key/list": Described(
        "Keys", "List keys", answers.KeyPage, query=admin.KeyListQuery, errors=("not_found",)
    ),
    "GET /health/liveness": Described("Operation", "Is the process alive?", answers.Liveness),
    "GET /health/readiness": Described(
        "Operation",
        "Can requests be served?",
        answers.Readiness,
        statuses={503: "The database does not answer."},
        answer_headers=("Retry-After",),
    ),
    "GET /health": Described(
        "Operation",
        "How is the gateway?",
        answers.Health,
        statuses={503: "The database does not answer."},
    ),
    "GET /metrics": Described(
        "Operation",
        "Metrics, for Prometheus",
        None,
        text="With an administrator's key, or with `metrics_token` as the key.",
        answer_media=("text/plain",),
    ),
    "GET /openapi.json": Described(
        "Operation", "This document", answers.Open, text="The same for everybody."
    ),
    "GET /": Described(
        "Operation", "This reference, in the browser", None, answer_media=("text/html",)
    ),
    "GET /reference/{asset}": Described(
        "Operation",
        "What the page is made of",
        None,
        answer_media=(ANY,),
        errors=("not_found",),
    ),
}
