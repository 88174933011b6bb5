"""marshmallow schemas of what the gateway answers; they describe it, nothing is dumped by them.

Those of our own objects are closed, so that a field which is added must be added here. Those of
what an upstream tells are open, for whatever else it says is passed on.
Source: OpenAI API reference; read 2026-11.
"""

from marshmallow import INCLUDE, RAISE, Schema, fields, validate

from app.objects import LISTED_PURPOSES
from app.providers.protocol import Operation
from app.services.callers import Role


class Closed(Schema):
    """An object of ours."""

    class Meta:
        unknown = RAISE


class Open(Schema):
    """An object that may have more than we know of."""

    class Meta:
        unknown = INCLUDE


def _always(value: str | bool) -> validate.Equal:
    return validate.Equal(value)


def _text(**more: object) -> fields.String:
    return fields.String(required=True, **more)  # type: ignore[arg-type]  # marshmallow's keywords


def _maybe_text() -> fields.String:
    return fields.String(required=True, allow_none=True)


def _number() -> fields.Integer:
    return fields.Integer(required=True)


def _maybe_number() -> fields.Integer:
    return fields.Integer(required=True, allow_none=True)


def _flag() -> fields.Boolean:
    return fields.Boolean(required=True)


class ErrorDetails(Closed):
    """The inside of the envelope."""

    message = _text()
    type = _text()
    param = _maybe_text()
    code = fields.Raw(required=True, allow_none=True, metadata={"type": ["string", "integer"]})


class Error(Closed):
    """Every error, from whichever part of the gateway."""

    error = fields.Nested(ErrorDetails, required=True)


# Files


class Copy(Closed):
    """Where a copy of a file is; what follows `expires_at` is shown to administrators alone."""

    model = _maybe_text()
    state = _text(
        validate=validate.OneOf(["uploading", "ready", "missing", "expired", "deleting", "deleted"])
    )
    expires_at = _maybe_number()
    deployment = fields.String()
    provider = fields.String()
    provider_file_id = fields.String(allow_none=True)
    attempts = fields.Integer()
    last_error = fields.String(allow_none=True)


class File(Closed):
    """A file. Source: OpenAI API reference, the file object."""

    id = _text()
    object = _text(validate=_always("file"))
    bytes = _number()
    created_at = _number()
    expires_at = _maybe_number()
    filename = _text()
    purpose = _text(metadata={"examples": ["user_data"], "x-known": list(LISTED_PURPOSES)})
    status = _text(validate=validate.OneOf(["uploaded", "processed", "error"]))
    status_details = _maybe_text()
    copies = fields.List(fields.Nested(Copy))


class DeletedFile(Closed):
    """Confirmation that no copy is left."""

    id = _text()
    object = _text(validate=_always("file"))
    deleted = fields.Boolean(required=True, validate=_always(True))


class _Page(Closed):
    object = _text(validate=_always("list"))
    first_id = _maybe_text()
    last_id = _maybe_text()
    has_more = _flag()


class FilePage(_Page):
    """A page of files; the next one begins `after` its `last_id`."""

    data = fields.List(fields.Nested(File), required=True)


class Upload(Closed):
    """A large file that is sent in parts."""

    id = _text()
    object = _text(validate=_always("upload"))
    bytes = _number()
    created_at = _number()
    expires_at = _number()
    filename = _text()
    purpose = _text()
    status = _text(validate=validate.OneOf(["pending", "completed", "cancelled", "expired"]))
    file = fields.Nested(File, required=True, allow_none=True)


class UploadPart(Closed):
    """A part of an upload."""

    id = _text()
    object = _text(validate=_always("upload.part"))
    created_at = _number()
    upload_id = _text()


# Batches and fine-tuning


class GatewayState(Closed):
    """How the gateway is doing with a batch or a job."""

    state = _text(validate=validate.OneOf(["intended", "active", "final", "lost", "void"]))
    deployment = _maybe_text()
    looks = _number()
    last_error = _maybe_text()


class RequestCounts(Open):
    """How many rows there are, and how many are done."""

    total = _number()
    completed = _number()
    failed = _number()


class Batch(Open):
    """A batch. Source: OpenAI API reference, the batch object."""

    id = _text()
    object = _text(validate=_always("batch"))
    endpoint = _text()
    errors = fields.Dict(required=True, allow_none=True)
    input_file_id = _text()
    completion_window = _text()
    status = _text(metadata={"examples": ["in_progress"]})
    output_file_id = _maybe_text()
    error_file_id = _maybe_text()
    created_at = _number()
    in_progress_at = _maybe_number()
    expires_at = _maybe_number()
    finalizing_at = _maybe_number()
    completed_at = _maybe_number()
    failed_at = _maybe_number()
    expired_at = _maybe_number()
    cancelling_at = _maybe_number()
    cancelled_at = _maybe_number()
    request_counts = fields.Nested(RequestCounts, required=True)
    metadata = fields.Dict(required=True, allow_none=True)
    usage = fields.Dict()
    model = fields.String()
    gateway = fields.Nested(GatewayState)


class BatchPage(_Page):
    """A page of batches, newest first."""

    data = fields.List(fields.Nested(Batch), required=True)


class FineTuningJob(Open):
    """A fine-tuning job. Source: OpenAI API reference, the fine-tuning job object."""

    id = _text()
    object = _text(validate=_always("fine_tuning.job"))
    created_at = _number()
    error = fields.Dict(required=True, allow_none=True)
    fine_tuned_model = _maybe_text()
    finished_at = _maybe_number()
    hyperparameters = fields.Dict(required=True, allow_none=True)
    model = _text()
    organization_id = _text()
    result_files = fields.List(fields.String(), required=True)
    seed = _number()
    status = _text(metadata={"examples": ["running"]})
    trained_tokens = _maybe_number()
    training_file = _text()
    validation_file = _maybe_text()
    gateway = fields.Nested(GatewayState)


class FineTuningJobPage(Closed):
    """A page of fine-tuning jobs, newest first; the next one begins `after` the last id."""

    object = _text(validate=_always("list"))
    data = fields.List(fields.Nested(FineTuningJob), required=True)
    has_more = _flag()


class FineTuningEvent(Open):
    """Something that happened to a job, as the provider tells it."""

    id = fields.String()
    object = fields.String()
    created_at = fields.Integer()
    level = fields.String()
    message = fields.String()


class FineTuningEventPage(Open):
    """A page of events, newest first."""

    object = _text(validate=_always("list"))
    data = fields.List(fields.Nested(FineTuningEvent), required=True)
    has_more = _flag()


class FineTuningCheckpoint(Open):
    """A model that a job made on its way, as the provider tells it."""

    id = fields.String()
    object = fields.String()
    created_at = fields.Integer()
    fine_tuned_model_checkpoint = fields.String()
    fine_tuning_job_id = fields.String()
    metrics = fields.Dict()
    step_number = fields.Integer()


class FineTuningCheckpointPage(Open):
    """A page of checkpoints, newest first."""

    object = _text(validate=_always("list"))
    data = fields.List(fields.Nested(FineTuningCheckpoint), required=True)
    has_more = _flag()


# Inference: as the upstream answers


class _Inferred(Open):
    id = _text()
    object = _text()
    model = _text()
    usage = fields.Dict(allow_none=True)


class ChatCompletion(_Inferred):
    """Source: OpenAI API reference, the chat completion object."""

    created = _number()
    choices = fields.List(fields.Dict(), required=True)


class Completion(_Inferred):
    """Source: OpenAI API reference, the completion object."""

    created = _number()
    choices = fields.List(fields.Dict(), required=True)


class Embeddings(Open):
    """Source: OpenAI API reference, create embeddings."""

    object = _text()
    data = fields.List(fields.Dict(), required=True)
    model = _text()
    usage = fields.Dict(allow_none=True)


class ModelResponse(_Inferred):
    """Source: OpenAI API reference, the response object."""

    output = fields.List(fields.Dict(), required=True)


INFERRED: dict[Operation, type[Schema]] = {
    Operation.CHAT: ChatCompletion,
    Operation.COMPLETIONS: Completion,
    Operation.EMBEDDINGS: Embeddings,
    Operation.RESPONSES: ModelResponse,
}


# Models


class Model(Closed):
    """A model name that this key may use."""

    id = _text()
    object = _text(validate=_always("model"))
    created = _number()
    owned_by = _text()


class ModelPage(_Page):
    """All models on one page."""

    data = fields.List(fields.Nested(Model), required=True)


class DeploymentParams(Closed):
    """How a deployment is called; no address and no credential."""

    model = _text()
    custom_llm_provider = _text()
    weight = fields.Float(required=True)


class DeploymentModelInfo(Open):
    """`model_info` of the configuration."""

    id = _text()


class DeploymentInfo(Closed):
    """A deployment behind a model name."""

    model_name = _maybe_text()
    litellm_params = fields.Nested(DeploymentParams, required=True)
    model_info = fields.Nested(DeploymentModelInfo, required=True)


class DeploymentInfos(Closed):
    """The deployments behind the models of this key."""

    data = fields.List(fields.Nested(DeploymentInfo), required=True)


class ModelGroup(Closed):
    """Who serves a model name."""

    model_group = _text()
    providers = fields.List(fields.String(), required=True)
    mode = _maybe_text()
    deployments = _number()


class ModelGroups(Closed):
    """One entry for each model name."""

    data = fields.List(fields.Nested(ModelGroup), required=True)


# Users and keys


class _Limits(Closed):
    rpm_limit = _maybe_number()
    upload_rpm_limit = _maybe_number()
    max_parallel_requests = _maybe_number()
    max_files = _maybe_number()
    max_bytes_stored = _maybe_number()


class Key(_Limits):
    """A key, without its secret."""

    token = _text()
    key_name = _text()
    key_alias = _maybe_text()
    user_id = _maybe_text()
    models = fields.List(fields.String(), required=True)
    metadata = fields.Dict(required=True)
    blocked = _flag()
    expires = _maybe_text()
    created_at = _text()
    updated_at = _text()
    created_by = _text()


class KeyWithSecret(Key):
    """A new key, or one with a new secret, which is shown this once."""

    key = _text(metadata={"examples": ["sk-Xy7..."]})


class KeyInfo(Closed):
    """A key; `key` is its hash."""

    key = _text()
    info = fields.Nested(Key, required=True)


class KeyPage(Closed):
    """A page of keys, newest first."""

    keys = fields.List(fields.Nested(Key), required=True)
    total_count = _number()
    current_page = _number()
    size = _number()
    total_pages = _number()


class DeletedKeys(Closed):
    """The hashes of the keys that are gone."""

    deleted_keys = fields.List(fields.String(), required=True)


class User(_Limits):
    """A user."""

    user_id = _text()
    user_email = _maybe_text()
    user_alias = _maybe_text()
    user_role = _text(validate=validate.OneOf([role.value for role in Role]))
    models = fields.List(fields.String(), required=True)
    metadata = fields.Dict(required=True)
    blocked = _flag()
    created_at = _maybe_text()
    updated_at = _maybe_text()


class UserWithKey(User):
    """A new user and his first key; all of the key's own fields are null without one."""

    key = fields.String(required=True, allow_none=True, metadata={"examples": ["sk-Xy7..."]})
    key_name = _maybe_text()
    token = _maybe_text()
    expires = _maybe_text()
    key_alias = _maybe_text()
    created_by = fields.String()


class UserInfo(Closed):
    """A user and his newest keys, 100 at most."""

    user_id = _text()
    user_info = fields.Nested(User, required=True)
    keys = fields.List(fields.Nested(Key), required=True)


class UserPage(Closed):
    """A page of users, newest first."""

    users = fields.List(fields.Nested(User), required=True)
    total = _number()
    page = _number()
    size = _number()
    page_size = _number()
    total_pages = _number()


class DeletedUsers(Closed):
    """Who is gone, and what went with them."""

    deleted_users = fields.List(fields.String(), required=True)
    deleted_keys = _number()
    deleted_files = _number()
    files = _text(validate=validate.OneOf(["keep", "transfer", "delete"]))


# Health


class Liveness(Closed):
    """The process answers."""

    status = _text(validate=_always("alive"))


class Readiness(Closed):
    """Whether requests can be served."""

    status = _text(validate=validate.OneOf(["healthy", "unhealthy"]))
    db = _text(validate=validate.OneOf(["connected", "disconnected"]))


class Health(Readiness):
    """How the gateway is; the last two are shown to administrators alone."""

    version = _text()
    warnings = fields.List(fields.String())
    resting = fields.List(fields.String())
