"""Vertex AI's tuning jobs as OpenAI's fine-tuning jobs.

Source: Google Cloud, REST reference v1, projects.locations.tuningJobs; OpenAI API reference,
Fine-tuning; read 2026-11.
"""

import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from app.errors import InvalidRequest, NotFound, NotSupported, UpstreamError
from app.objects import JOB_FINAL, FineTuningJob
from app.providers.google import batch_results as results
from app.providers.google.resources import (
    ERROR_CODES,
    count,
    end_of,
    last_part,
    not_begun,
    objects,
    part,
    state_of,
    walk,
)
from app.providers.google.storage import Bucket
from app.providers.google.tuning_rows import tuning_rows
from app.providers.google.vertex_objects import TUNING, file_id_of, object_name
from app.providers.openai_jobs import seconds
from app.providers.upstream import Upstream

_JOB_ID = re.compile("[0-9]{1,32}")
_DISPLAY = "manifold-"
_KNOWN = frozenset(
    {
        "model",
        "training_file",
        "validation_file",
        "suffix",
        "seed",
        "hyperparameters",
        "method",
        "metadata",
    }
)
_STATUS = {
    "QUEUED": "queued",
    "PENDING": "queued",
    "RUNNING": "running",
    "UPDATING": "running",
    "CANCELLING": "running",
    "PAUSED": "paused",
    "SUCCEEDED": "succeeded",
    "PARTIALLY_SUCCEEDED": "succeeded",
    "CANCELLED": "cancelled",
}
_DATASETS = {
    "training_file": "trainingDatasetUri",
    "validation_file": "validationDatasetUri",
}
# OpenAI's words for Google's; any other key goes as it is, in camel case.
_HYPERPARAMETERS = {
    "n_epochs": "epochCount",
    "learning_rate_multiplier": "learningRateMultiplier",
}


class VertexTuning:
    """The tuning jobs of one project and location; the parameters are those of VertexJobs."""

    def __init__(self, upstream: Upstream, root: str, bucket: Callable[[], Bucket]) -> None:
        self._upstream = upstream
        self._path = f"{root.rstrip('/')}/tuningJobs"
        self._bucket = bucket

    def create_job(self, body: Mapping[str, Any]) -> FineTuningJob:
        """The started job. The training rows are written in Gemini's form beside the file.

        Raises InvalidRequest naming the line that cannot be said there, NotFound for a file that
        is not there, NotSupported for a method other than `supervised`.
        """
        hyperparameters = _hyperparameters(body)
        model, suffix = str(body["model"]), body.get("suffix")
        spec: dict[str, Any] = {}
        with not_begun():
            for param, key in _DATASETS.items():
                if body.get(param):
                    spec[key] = self._rows(str(body[param]), param, model)
        if hyperparameters:
            spec["hyperParameters"] = hyperparameters
        sent = {
            "baseModel": model,
            "supervisedTuningSpec": spec,
            "tunedModelDisplayName": str(suffix) if suffix else f"{_DISPLAY}{uuid.uuid4()}",
        }
        return self._job(self._upstream.post(self._path, sent))

    def retrieve_job(self, job_id: str) -> FineTuningJob:
        """The job as it is now. Raises NotFound."""
        return self._job(self._told(job_id))

    def jobs(self) -> Iterator[FineTuningJob]:
        """The jobs whose training file is the gateway's, newest first."""
        name = self._bucket().name
        found = [
            self._job(job)
            for job in walk(self._upstream, self._path, "tuningJobs")
            if _id(job) and file_id_of(_training_uri(job), name, TUNING)
        ]
        yield from sorted(found, key=lambda job: (job["created_at"], job["id"]), reverse=True)

    def steer_job(self, job_id: str, action: Literal["cancel", "pause", "resume"]) -> FineTuningJob:
        """The job after Vertex AI took note of a cancel; one that has ended is as it was.

        Raises NotFound, and NotSupported for pause and resume.
        """
        if action != "cancel":
            raise NotSupported(f"fine-tuning jobs of this provider cannot {action}")
        refusal: UpstreamError | None = None
        try:
            self._upstream.post(f"{self._job_path(job_id)}:cancel")
        except NotFound as error:
            raise _no_job(job_id) from error
        except UpstreamError as error:
            if error.status not in (400, 409):
                raise
            # Perhaps it has ended meanwhile, or somebody else has cancelled it already.
            refusal = error
        told = self._told(job_id)
        job = self._job(told)
        if refusal and job["status"] not in JOB_FINAL and state_of(told) != "CANCELLING":
            raise refusal
        return job

    def job_page(
        self, job_id: str, what: Literal["events", "checkpoints"], after: str | None, limit: int
    ) -> dict[str, Any]:
        """A page, newest first. Google has no events: they are told by the job's times."""
        told = self._told(job_id)
        items = _events(told) if what == "events" else _checkpoints(told)
        ids = [item["id"] for item in items]
        if after is not None:
            if after not in ids:
                raise InvalidRequest(f"after is {after!r:.100}, which is not there", param="after")
            items = items[ids.index(after) + 1 :]
        page = items[:limit]
        return {"object": "list", "data": page, "has_more": len(items) > limit}

    def _rows(self, file_id: str, param: str, model: str) -> str:
        """The address of a training file's rows in Gemini's form, which are written once."""
        bucket = self._bucket()
        try:
            name = object_name(file_id, bucket.name)
            rows = name if name.endswith(TUNING) else name + TUNING
            if not _is_there(bucket, rows):
                self._write_rows(bucket, name, rows, model)
        except NotFound as error:
            raise NotFound(f"No such File object: {file_id:.200}", param=param) from error
        except InvalidRequest as error:
            error.param = param
            error.message = error.message.replace("training file", param.replace("_", " "))
            raise
        return f"gs://{bucket.name}/{rows}"

    def _write_rows(self, bucket: Bucket, name: str, rows: str, model: str) -> None:
        answer = bucket.read(name)
        try:
            lines = results.lines(answer.chunks())
            bucket.put_lines(rows, tuning_rows(lines, model), "application/jsonl")
        finally:
            answer.close()

    def _told(self, job_id: str) -> dict[str, Any]:
        try:
            return self._upstream.json("GET", self._job_path(job_id))
        except NotFound as error:
            raise _no_job(job_id) from error

    def _job_path(self, job_id: str) -> str:
        if not _JOB_ID.fullmatch(job_id):
            raise _no_job(job_id)
        return f"{self._path}/{job_id}"

    def _job(self, told: Mapping[str, Any]) -> FineTuningJob:
        """OpenAI's job."""
        job_id = _id(told)
        if not job_id:
            raise self._upstream.nonsense("answered with a job that has no id")
        bucket = self._bucket().name
        spec = part(told, "supervisedTuningSpec")
        status = _STATUS.get(state_of(told), "failed")
        is_over = status in JOB_FINAL
        suffix = str(told.get("tunedModelDisplayName") or "")
        hyperparameters = _told_hyperparameters(spec)
        stats = part(told, "tuningDataStats", "supervisedTuningDataStats")
        trained = count(stats.get("totalBillableTokenCount"))
        return {
            "id": job_id,
            "object": "fine_tuning.job",
            "created_at": seconds(told.get("createTime")) or 0,
            "error": _error(told) if status == "failed" else None,
            "fine_tuned_model": _tuned_model(told) if status == "succeeded" else None,
            "finished_at": end_of(told) if is_over else None,
            "hyperparameters": hyperparameters,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            "model": str(told.get("baseModel") or ""),
            "organization_id": "",
            "result_files": [],
            "seed": 0,
            "status": status,
            "trained_tokens": trained or None,
            "training_file": file_id_of(spec.get("trainingDatasetUri"), bucket, TUNING) or "",
            "validation_file": file_id_of(spec.get("validationDatasetUri"), bucket, TUNING),
            "suffix": None if suffix.startswith(_DISPLAY) or not suffix else suffix,
        }


def _hyperparameters(body: Mapping[str, Any]) -> dict[str, Any]:
    """Google's hyperparameters for a body's. Raises NotSupported, InvalidRequest."""
    if unknown := sorted(body.keys() - _KNOWN):
        raise NotSupported(
            f"{unknown[0]!r:.100} means nothing to this provider", param=unknown[0][:100]
        )
    method = body.get("method")
    if not isinstance(method, dict):
        method = {}
    kind = method.get("type", "supervised")
    if kind != "supervised":
        raise NotSupported(
            f"the method is {kind!r:.100}; this provider has 'supervised'", param="method"
        )
    given = part(method, "supervised", "hyperparameters") or body.get("hyperparameters") or {}
    if not isinstance(given, dict):
        raise InvalidRequest("hyperparameters must be an object", param="hyperparameters")
    return {
        _HYPERPARAMETERS.get(key, _camel(key)): value
        for key, value in given.items()
        # OpenAI's word for leaving it to the provider, which Google has none for.
        if value not in (None, "auto")
    }


def _told_hyperparameters(spec: Mapping[str, Any]) -> dict[str, Any]:
    names = {google: name for name, google in _HYPERPARAMETERS.items()}
    told = part(spec, "hyperParameters")
    found = {names.get(key, key): value for key, value in told.items()}
    if "n_epochs" in found:
        found["n_epochs"] = count(found["n_epochs"])
    return {"n_epochs": "auto", "learning_rate_multiplier": "auto", "batch_size": "auto"} | found


def _camel(key: str) -> str:
    first, *rest = key.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


def _is_there(bucket: Bucket, name: str) -> bool:
    try:
        bucket.get(name)
    except NotFound:
        return False
    return True


def _id(job: Mapping[str, Any]) -> str:
    last = last_part(job.get("name"))
    return last if _JOB_ID.fullmatch(last) else ""


def _training_uri(job: Mapping[str, Any]) -> object:
    return part(job, "supervisedTuningSpec").get("trainingDatasetUri")


def _tuned_model(job: Mapping[str, Any]) -> str | None:
    """The number of the endpoint that serves the model: chat requests go there."""
    return last_part(part(job, "tunedModel").get("endpoint")) or None


def _error(job: Mapping[str, Any]) -> dict[str, Any]:
    error = part(job, "error")
    message = error.get("message")
    return {
        "code": ERROR_CODES.get(error.get("code"), "job_failed"),
        "message": message if isinstance(message, str) and message else "the job has failed",
        "param": None,
    }


def _events(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the job's own times tell, newest first."""
    job_id, status = _id(job), _STATUS.get(state_of(job), "failed")
    created, started = seconds(job.get("createTime")), seconds(job.get("startTime"))
    ended = end_of(job) if status in JOB_FINAL else None
    said = f"The job has ended: {status}"
    if status == "failed":
        said = f"{said}: {_error(job)['message']}"
    steps = [
        ("created", created, "The job was created", "info"),
        ("started", started, "The job has started", "info"),
        ("ended", ended, said, "error" if status == "failed" else "info"),
    ]
    return [
        {
            "id": f"ftevent-{job_id}-{name}",
            "object": "fine_tuning.job.event",
            "created_at": moment,
            "level": level,
            "message": message,
            "type": "message",
            "data": {},
        }
        for name, moment, message, level in reversed(steps)
        if moment is not None
    ]


def _checkpoints(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The models of the steps in between, newest first, where the job has kept any."""
    job_id, created = _id(job), end_of(job) or 0
    return [
        {
            "id": f"ftckpt-{job_id}-{last_part(str(found.get('checkpointId') or number))}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": created,
            "fine_tuned_model_checkpoint": last_part(found.get("endpoint")),
            "fine_tuning_job_id": job_id,
            "step_number": count(found.get("step")),
            "metrics": {"step": count(found.get("step"))},
        }
        for number, found in reversed(
            list(enumerate(objects(part(job, "tunedModel").get("checkpoints")), start=1))
        )
    ]


def _no_job(job_id: str) -> NotFound:
    return NotFound(f"No such FineTuningJob object: {job_id:.200}", param="id")
