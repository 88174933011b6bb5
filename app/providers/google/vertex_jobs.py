"""Vertex AI's batch prediction jobs as OpenAI's batches.

Source: Google Cloud, REST reference v1, projects.locations.batchPredictionJobs, and Batch
inference with Gemini; read 2026-11.
"""

import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from app.errors import InvalidRequest, NotFound, NotSupported, UpstreamError
from app.objects import BATCH_FINAL, Batch
from app.providers.google import batch_results as results
from app.providers.google.batch_rows import CHAT, EMBEDDINGS, ENDPOINTS
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
from app.providers.google.vertex_objects import (
    LITELLM,
    OUTPUTS,
    ROWS,
    file_id_of,
    object_name,
    rows_name,
    within,
)
from app.providers.google.vertex_outputs import Ended, Kind, Outcome, Outputs, file_id, file_of
from app.providers.openai_jobs import seconds
from app.providers.protocol import BatchRequest, StoredFile
from app.providers.upstream import Upstream
from app.providers.wire.jsonl import openai_url
from app.transfers import Cancellation, Download

_JOB_ID = re.compile("[0-9]{1,32}")
_ENDPOINT = re.compile(
    "(?:(?:(?P<parent>projects/[^/]+/locations/[^/]+)/)?endpoints/)?(?P<number>[0-9]+)"
)
_ENDPOINT_LABEL = "manifold_endpoint"
_ENDPOINT_LABELS = {CHAT: "chat_completions", EMBEDDINGS: "embeddings"}
_FIRST_BYTES = 16

_STATUS = {
    "QUEUED": "validating",
    "PENDING": "validating",
    "RUNNING": "in_progress",
    "PAUSED": "in_progress",
    "UPDATING": "in_progress",
    "SUCCEEDED": "completed",
    "PARTIALLY_SUCCEEDED": "completed",
    "FAILED": "failed",
    "CANCELLING": "cancelling",
    "CANCELLED": "cancelled",
    "EXPIRED": "expired",
}


class VertexJobs:
    """The batches of one project and location. `root` is their path, with the API's version:
    `/v1/projects/p/locations/l`. `bucket` gives the account's bucket, or raises NotSupported.
    `resources` says what an upstream model is there, where its name does not say it: `endpoints/5`.
    """

    def __init__(
        self,
        upstream: Upstream,
        root: str,
        bucket: Callable[[], Bucket],
        resources: Mapping[str, str] | None = None,
    ) -> None:
        self._resources = resources or {}
        self._upstream = upstream
        self._root = root.rstrip("/")
        self._path = f"{self._root}/batchPredictionJobs"
        self._bucket = bucket
        self._outputs = Outputs(bucket)

    def create_batch(self, request: BatchRequest) -> Batch:
        """The started batch. Raises NotFound for an input file that is not there."""
        endpoint = openai_url(request.endpoint)
        if endpoint not in ENDPOINTS:
            raise NotSupported(
                f"batches of this provider take the endpoints {', '.join(ENDPOINTS)}, "
                f"not {request.endpoint!r:.100}",
                param="endpoint",
            )
        if request.output_expires_after is not None:
            raise NotSupported(
                "output files of this provider do not expire; leave output_expires_after out",
                param="output_expires_after",
            )
        bucket = self._bucket()
        rows = rows_name(request.input_file_id, bucket.name)
        with not_begun():
            self._check_rows(bucket, rows, request, endpoint)
            model = self._resource(request.model or self._model_of(bucket, request.input_file_id))
        folder = f"{OUTPUTS}{uuid.uuid4().hex}"
        body = {
            "displayName": f"manifold-{uuid.uuid4()}",
            "model": model,
            "inputConfig": {
                "instancesFormat": "jsonl",
                "gcsSource": {"uris": [f"gs://{bucket.name}/{rows}"]},
            },
            "outputConfig": {
                "predictionsFormat": "jsonl",
                "gcsDestination": {"outputUriPrefix": f"gs://{bucket.name}/{folder}"},
            },
            "labels": {_ENDPOINT_LABEL: _ENDPOINT_LABELS[endpoint]},
        }
        return self._batch(self._upstream.post(self._path, body), request.input_file_id)

    def retrieve_batch(self, batch_id: str) -> Batch:
        """The batch as it is now; once it has ended, with its files and its counts."""
        return self._whole(self._job(batch_id))

    def cancel_batch(self, batch_id: str) -> Batch:
        """The batch after Vertex AI took note; one that has ended is as it was."""
        path = f"{self._job_path(batch_id)}:cancel"
        refusal: UpstreamError | None = None
        try:
            self._upstream.post(path)
        except NotFound as error:
            raise _no_batch(batch_id) from error
        except UpstreamError as error:
            if error.status not in (400, 409):
                raise
            # Perhaps it has ended meanwhile, or somebody else has cancelled it already.
            refusal = error
        batch = self.retrieve_batch(batch_id)
        if batch["status"] in (*BATCH_FINAL, "cancelling"):
            return batch
        if refusal is not None:
            raise refusal
        # It takes a moment until the state says so.
        return {**batch, "status": "cancelling", "cancelling_at": int(time.time())}

    def batches(self) -> Iterator[Batch]:
        """The batches whose input is the gateway's, newest first.

        One that has ended is `finalizing` here, since its files are found by reading them.
        """
        bucket = self._bucket()
        found: list[Batch] = []
        for job in walk(self._upstream, self._path, "batchPredictionJobs"):
            if _name_id(job) and file_id_of(_input_uri(job), bucket.name, ROWS):
                found.append(self._batch(job))
        yield from sorted(found, key=lambda batch: (batch["created_at"], batch["id"]), reverse=True)

    def output(self, name: str) -> StoredFile | None:
        """One of a batch's two files, None for an id that no such file has. Raises NotFound."""
        named = file_of(name)
        return self._outputs.stored(self._ended(*named), named[1]) if named else None

    def output_content(
        self, name: str, cancellation: Cancellation | None = None
    ) -> Download | None:
        """The bytes of one of a batch's two files, otherwise as `output`."""
        named = file_of(name)
        if named is None:
            return None
        return self._outputs.content(self._ended(*named), named[1], cancellation)

    def delete_output(self, name: str) -> bool:
        """Remove one of a batch's two files, the other stays; whether the id is such a file's."""
        named = file_of(name)
        if named is None:
            return False
        try:
            ended = self._ended(*named)
        except NotFound:
            return True
        self._outputs.delete(ended, named[1])
        return True

    def _ended(self, job_id: str, kind: Kind) -> Ended:
        try:
            ended = self._end_of(self._job(job_id))
        except NotFound:
            ended = None
        if ended is None:
            raise NotFound(f"No such File object: {file_id(job_id, kind)}", param="id")
        return ended

    def _job(self, batch_id: str) -> dict[str, Any]:
        try:
            return self._upstream.json("GET", self._job_path(batch_id))
        except NotFound as error:
            raise _no_batch(batch_id) from error

    def _job_path(self, batch_id: str) -> str:
        if not _JOB_ID.fullmatch(batch_id):
            raise _no_batch(batch_id)
        return f"{self._path}/{batch_id}"

    def _check_rows(self, bucket: Bucket, rows: str, request: BatchRequest, endpoint: str) -> None:
        """Look at the first bytes of the rows: whether they are there, and what they ask for."""
        try:
            answer = bucket.read(rows, f"bytes=0-{_FIRST_BYTES - 1}")
        except NotFound as error:
            raise NotFound(
                f"No such File object: {request.input_file_id}", param="input_file_id"
            ) from error
        except UpstreamError as error:
            if error.status != 416:
                raise
            raise InvalidRequest("the input file has no rows", param="input_file_id") from error
        try:
            # One more than there is: so the connection is read to the answer's end, and kept.
            begin = answer.read(_FIRST_BYTES + 1)
        finally:
            answer.close()
        told = {b'{"request"': CHAT, b'{"key"': EMBEDDINGS}
        asked = next((url for start, url in told.items() if begin.startswith(start)), endpoint)
        if asked != endpoint:
            raise InvalidRequest(
                f"the rows of the file ask for {asked}, not for {endpoint}",
                param="endpoint",
                code="url_mismatch",
            )

    def _model_of(self, bucket: Bucket, file_id: str) -> str:
        name = object_name(file_id, bucket.name)
        told = (bucket.get(name).get("metadata") or {}).get("model")
        if not told:
            # LiteLLM has the model in the object's name.
            found = re.fullmatch(rf"{LITELLM}(publishers/[^/]+/models/[^/]+)/.+", name)
            told = found[1] if found else None
        if not told:
            raise InvalidRequest(
                "nothing says for which model the file's rows are; upload it for one",
                param="input_file_id",
            )
        return str(told)

    def _resource(self, model: str) -> str:
        """What Vertex AI calls a model here.

        A number is a tuned model's endpoint, which chat requests go to; batches want the model
        that is deployed there.
        """
        named = self._resources.get(model, model).removeprefix("gemini/")
        endpoint = _ENDPOINT.fullmatch(named)
        if endpoint is None:
            is_whole = named.startswith(("projects/", "publishers/"))
            return named if is_whole else f"publishers/google/models/{named}"
        version, parent = self._root.lstrip("/").split("/", 1)
        parent = endpoint["parent"] or parent
        try:
            told = self._upstream.json("GET", f"/{version}/{parent}/endpoints/{endpoint['number']}")
        except NotFound:
            # It may be the model's own number.
            told = {}
        deployed = objects(told.get("deployedModels"))
        found = deployed[0].get("model") if deployed else None
        return str(found) if found else f"{parent}/models/{endpoint['number']}"

    def _whole(self, job: Mapping[str, Any]) -> Batch:
        ended = self._end_of(job)
        outcome = self._outputs.outcome(ended) if ended is not None else None
        return self._batch(job, outcome=outcome, is_read=True)

    def _end_of(self, job: Mapping[str, Any]) -> Ended | None:
        """What is to be known of a job whose results can be read, None while it runs."""
        state = state_of(job)
        if _STATUS.get(state, "failed") not in BATCH_FINAL:
            return None
        bucket = self._bucket()
        folder = within(part(job, "outputInfo").get("gcsOutputDirectory"), bucket.name)
        rows = within(_input_uri(job), bucket.name)
        if folder is None:
            # It has written nothing. What the gateway asked for is a folder of this job alone.
            destination = part(job, "outputConfig", "gcsDestination")
            folder = within(destination.get("outputUriPrefix"), bucket.name)
            if folder is None or not folder.startswith(OUTPUTS):
                return None
        if rows is None:
            return None
        return Ended(
            job=results.Job(_name_id(job), _model_name(job), seconds(job.get("createTime")) or 0),
            state=state,
            folder=folder.rstrip("/"),
            rows=rows,
            ended_at=end_of(job) or 0,
        )

    def _batch(
        self,
        job: Mapping[str, Any],
        input_file_id: str | None = None,
        *,
        outcome: Outcome | None = None,
        is_read: bool = False,
    ) -> Batch:
        """OpenAI's batch. `is_read` says that a job which has ended was looked through."""
        job_id = _name_id(job)
        if not job_id:
            raise self._upstream.nonsense("answered with a job that has no id")
        status = _STATUS.get(state_of(job), "failed")
        if status in BATCH_FINAL and not is_read:
            status = "finalizing"
        bucket_name = self._bucket().name
        label = part(job, "labels").get(_ENDPOINT_LABEL)
        ended_at = end_of(job) if status in BATCH_FINAL else None
        updated_at = seconds(job.get("updateTime"))
        return {
            "id": job_id,
            "object": "batch",
            "endpoint": next((u for u, known in _ENDPOINT_LABELS.items() if known == label), ""),
            "errors": _errors(job) if status == "failed" else None,
            "input_file_id": input_file_id or file_id_of(_input_uri(job), bucket_name, ROWS) or "",
            "completion_window": "24h",
            "status": status,
            "output_file_id": _file(job_id, "output", outcome),
            "error_file_id": _file(job_id, "errors", outcome),
            "created_at": seconds(job.get("createTime")) or 0,
            "in_progress_at": seconds(job.get("startTime")),
            "expires_at": None,
            "finalizing_at": end_of(job) if status in ("finalizing", "completed") else None,
            "completed_at": ended_at if status == "completed" else None,
            "failed_at": ended_at if status == "failed" else None,
            "expired_at": ended_at if status == "expired" else None,
            "cancelling_at": updated_at if status == "cancelling" else None,
            "cancelled_at": ended_at if status == "cancelled" else None,
            "request_counts": _counts(job, outcome),
            "metadata": None,
            "model": _model_name(job),
            **({"usage": _usage(outcome.usage)} if outcome and outcome.usage else {}),  # type: ignore[typeddict-item]  # a key that may be left out
        }


def _input_uri(job: Mapping[str, Any]) -> object:
    uris = part(job, "inputConfig", "gcsSource").get("uris")
    return uris[0] if isinstance(uris, list) and len(uris) == 1 else None


def _name_id(job: Mapping[str, Any]) -> str:
    last = last_part(job.get("name"))
    return last if _JOB_ID.fullmatch(last) else ""


def _model_name(job: Mapping[str, Any]) -> str:
    # A tuned model's name ends in its version.
    return last_part(job.get("model")).partition("@")[0]


def _file(job_id: str, kind: Kind, outcome: Outcome | None) -> str | None:
    return file_id(job_id, kind) if outcome is not None and outcome.sizes[kind] else None


def _counts(job: Mapping[str, Any], outcome: Outcome | None) -> Any:
    """OpenAI's counts: of the results once they were read, until then what Vertex AI says."""
    if outcome is not None and outcome.completed + outcome.failed:
        completed, failed, rest = outcome.completed, outcome.failed, 0
    else:
        told = part(job, "completionStats")
        completed, failed, rest = (
            count(told.get(f"{name}Count")) for name in ("successful", "failed", "incomplete")
        )
    return {"total": completed + failed + rest, "completed": completed, "failed": failed}


def _usage(tokens: Mapping[str, int]) -> dict[str, Any]:
    return {
        "input_tokens": tokens["input_tokens"],
        "input_tokens_details": {"cached_tokens": tokens["cached_tokens"]},
        "output_tokens": tokens["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": tokens["reasoning_tokens"]},
        "total_tokens": tokens["total_tokens"],
    }


def _errors(job: Mapping[str, Any]) -> dict[str, Any]:
    error = part(job, "error")
    message = error.get("message")
    first = {
        "code": ERROR_CODES.get(error.get("code"), "batch_failed"),
        "message": message if isinstance(message, str) and message else "the batch has failed",
        "param": None,
        "line": None,
    }
    return {"object": "list", "data": [first]}


def _no_batch(batch_id: str) -> NotFound:
    return NotFound(f"No such Batch object: {batch_id:.200}", param="id")
