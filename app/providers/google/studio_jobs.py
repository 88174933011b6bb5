"""AI Studio's batches as OpenAI's: created from a file of rows, their results as two files.

Source: Gemini API reference, Batch Mode; read 2026-11.
"""

import json
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.errors import NotFound, NotSupported, UpstreamAuthFailed, UpstreamError
from app.objects import BATCH_FINAL, Batch
from app.providers.google import batch_results as results
from app.providers.google.batch_results import Result
from app.providers.google.batch_rows import CHAT, EMBEDDINGS, ENDPOINTS
from app.providers.google.files_api import FilesApi, plain_id
from app.providers.google.resources import count, end_of, last_part, objects, part, walk
from app.providers.openai_jobs import seconds
from app.providers.protocol import BatchRequest, StoredFile
from app.providers.upstream import Answer, Upstream
from app.providers.wire.jsonl import openai_url
from app.transfers import Cancellation, Download

Kind = Literal["output", "errors"]

_JOB_ID = re.compile("[A-Za-z0-9_-]{1,64}")
_FILE = re.compile("batch-([A-Za-z0-9_-]{1,64})-(output|errors)")
_STATE = re.compile("(BATCH|JOB)_STATE_")
_STATUS = {
    "PENDING": "validating",
    "QUEUED": "validating",
    "RUNNING": "in_progress",
    "SUCCEEDED": "completed",
    "PARTIALLY_SUCCEEDED": "completed",
    "FAILED": "failed",
    "CANCELLING": "cancelling",
    "CANCELLED": "cancelled",
    "EXPIRED": "expired",
}
_LIFETIME_SECONDS = 48 * 3600
_REMEMBERED = 256


@dataclass
class _Outcome:
    """What one pass over the results has found; sizes in bytes."""

    output: int = 0
    errors: int = 0
    completed: int = 0
    failed: int = 0


class StudioJobs:
    """The batches of one project."""

    def __init__(self, upstream: Upstream, version: str, files: FilesApi) -> None:
        self._upstream = upstream
        self._version = version
        self._files = files
        self._guard = threading.Lock()
        self._outcomes: OrderedDict[str, _Outcome] = OrderedDict()

    def create_batch(self, request: BatchRequest) -> Batch:
        """The started batch."""
        endpoint = openai_url(request.endpoint)
        if endpoint not in ENDPOINTS:
            raise NotSupported(
                f"batches of this provider take the endpoints {', '.join(ENDPOINTS)}, "
                f"not {request.endpoint!r:.100}",
                param="endpoint",
            )
        if request.output_expires_after is not None:
            raise NotSupported(
                "this provider's output files live for 48 hours; leave output_expires_after out",
                param="output_expires_after",
            )
        if not request.model:
            raise NotSupported(
                "nobody knows which model this file is for; upload it through the gateway",
                param="input_file_id",
            )
        method = "batchGenerateContent" if endpoint == CHAT else "asyncBatchEmbedContent"
        name = f"files/{plain_id(request.input_file_id)}"
        body = {
            "batch": {
                "displayName": f"manifold-{uuid.uuid4()}",
                "inputConfig": {"fileName": name},
            }
        }
        model = request.model.removeprefix("models/")
        answer = self._upstream.post(f"/{self._version}/models/{model}:{method}", body)
        return self._batch(answer, endpoint=endpoint, input_file_id=request.input_file_id)

    def retrieve_batch(self, batch_id: str) -> Batch:
        """The batch as it is now; once it has ended, with its files and its counts."""
        told = self._told(batch_id)
        return self._batch(told, outcome=self._outcome(told))

    def cancel_batch(self, batch_id: str) -> Batch:
        """The batch after Google took note; one that has ended is as it was."""
        refusal: UpstreamError | None = None
        try:
            self._upstream.post(f"{self._path(batch_id)}:cancel")
        except (NotFound, UpstreamAuthFailed) as error:
            raise _no_batch(batch_id) from error
        except UpstreamError as error:
            if error.status not in (400, 409):
                raise
            refusal = error
        batch = self.retrieve_batch(batch_id)
        if batch["status"] in (*BATCH_FINAL, "cancelling"):
            return batch
        if refusal is not None:
            raise refusal
        # It takes a moment until the state says so.
        return {**batch, "status": "cancelling", "cancelling_at": int(time.time())}

    def batches(self) -> Iterator[Batch]:
        """Every batch of the project, newest first; those that have ended are `finalizing` here."""
        everything = walk(self._upstream, f"/{self._version}/batches", "operations")
        found = [self._batch(told) for told in everything]
        yield from sorted(found, key=lambda batch: (batch["created_at"], batch["id"]), reverse=True)

    # Files

    def output(self, file_id: str) -> StoredFile | None:
        """One of a batch's two files, None for an id that no such file has. Raises NotFound."""
        named = _named(file_id)
        if named is None:
            return None
        job_id, kind = named
        told = self._told(job_id)
        outcome = self._outcome(told)
        size = getattr(outcome, kind) if outcome else 0
        if not size:
            raise NotFound(f"No such File object: {file_id}", param="id")
        ended_at = end_of(_metadata(told)) or 0
        return StoredFile(
            id=file_id,
            filename=f"batch_{job_id}_{'output' if kind == 'output' else 'error'}.jsonl",
            purpose="batch_output",
            size=size,
            created_at=ended_at,
            expires_at=ended_at + _LIFETIME_SECONDS if ended_at else None,
        )

    def output_content(
        self, file_id: str, cancellation: Cancellation | None = None
    ) -> Download | None:
        """The bytes of one of a batch's two files, otherwise as `output`."""
        named = _named(file_id)
        if named is None:
            return None
        job_id, kind = named
        told = self._told(job_id)
        opened = _Opened()
        found = (
            each.line
            for each in self._results(told, opened, cancellation)
            if each.is_error == (kind == "errors")
        )
        first = next(found, None)
        if first is None:
            opened.close()
            raise NotFound(f"No such File object: {file_id}", param="id")

        def chunks() -> Iterator[bytes]:
            yield first
            yield from found

        with self._guard:
            known = self._outcomes.get(job_id)
        return Download(chunks(), getattr(known, kind) if known else None, close=opened.close)

    def delete_output(self, file_id: str) -> bool:
        """Whether the id is that of a batch's file. What both files are made of goes with the
        last one that has lines; Google removes it after 48 hours anyway."""
        named = _named(file_id)
        if named is None:
            return False
        try:
            told = self._told(named[0])
        except NotFound:
            return True
        outcome = self._outcome(told)
        made = _results_file(told)
        if made is not None and (outcome is None or not (outcome.output and outcome.errors)):
            self._files.delete(made)
        return True

    # Results

    def _outcome(self, told: Mapping[str, Any]) -> _Outcome | None:
        """What an ended batch has given, from one pass over it; None while it runs."""
        job_id = last_part(told.get("name"))
        if _status(told) not in BATCH_FINAL:
            return None
        with self._guard:
            if (known := self._outcomes.get(job_id)) is not None:
                return known
        outcome = _Outcome()
        opened = _Opened()
        try:
            for found in self._results(told, opened, None):
                if found.is_error:
                    outcome.errors += len(found.line)
                    outcome.failed += 1
                else:
                    outcome.output += len(found.line)
                    outcome.completed += 1
        except NotFound:
            # The results have expired, or were deleted.
            return _Outcome()
        finally:
            opened.close()
        with self._guard:
            self._outcomes[job_id] = outcome
            while len(self._outcomes) > _REMEMBERED:
                self._outcomes.popitem(last=False)
        return outcome

    def _results(
        self, told: Mapping[str, Any], opened: "_Opened", cancellation: Cancellation | None
    ) -> Iterator[Result]:
        metadata = _metadata(told)
        job = results.Job(
            last_part(told.get("name")),
            last_part(metadata.get("model")),
            seconds(metadata.get("createTime")) or 0,
        )
        for raw in self._raw(told, opened, cancellation):
            if raw.strip() and (found := results.result(raw, job)) is not None:
                yield found

    def _raw(
        self, told: Mapping[str, Any], opened: "_Opened", cancellation: Cancellation | None
    ) -> Iterator[bytes]:
        made = _results_file(told)
        if made is not None:
            path = f"/{self._version}/files/{plain_id(made)}:download?alt=media"
            answer = self._upstream.stream("GET", path, cancellation=cancellation)
            try:
                self._upstream.raise_for(answer)
            except UpstreamAuthFailed as error:
                raise NotFound("the batch's results are gone", param="id") from error
            opened.begin(answer)
            yield from results.lines(answer.chunks())
            return
        inlined = part(_output(told), "inlinedResponses")
        for response in objects(inlined.get("inlinedResponses")):
            key = part(response, "metadata").get("key")
            yield json.dumps({"key": key, **response}).encode()

    # Rows

    def _told(self, batch_id: str) -> dict[str, Any]:
        try:
            return self._upstream.json("GET", self._path(batch_id))
        except (NotFound, UpstreamAuthFailed) as error:
            raise _no_batch(batch_id) from error

    def _path(self, batch_id: str) -> str:
        if not _JOB_ID.fullmatch(batch_id):
            raise _no_batch(batch_id)
        return f"/{self._version}/batches/{batch_id}"

    def _batch(
        self,
        told: Mapping[str, Any],
        *,
        endpoint: str | None = None,
        input_file_id: str | None = None,
        outcome: _Outcome | None = None,
    ) -> Batch:
        job_id = last_part(told.get("name"))
        if not _JOB_ID.fullmatch(job_id):
            raise self._upstream.nonsense("answered with a batch that has no id")
        metadata = _metadata(told)
        status = _status(told)
        if status in BATCH_FINAL and outcome is None:
            status = "finalizing"
        ended_at = end_of(metadata) if status in BATCH_FINAL else None
        kind = str(metadata.get("@type", ""))
        read_from = part(metadata, "inputConfig").get("fileName")
        created_at = seconds(metadata.get("createTime")) or 0
        return {
            "id": job_id,
            "object": "batch",
            "endpoint": endpoint or (EMBEDDINGS if "Embed" in kind else ""),
            "errors": _errors(told) if status == "failed" else None,
            "input_file_id": input_file_id or str(read_from or "").removeprefix("files/"),
            "completion_window": "24h",
            "status": status,
            "output_file_id": _file_id(job_id, "output") if outcome and outcome.output else None,
            "error_file_id": _file_id(job_id, "errors") if outcome and outcome.errors else None,
            "created_at": created_at,
            "in_progress_at": seconds(metadata.get("startTime")),
            "expires_at": created_at + _LIFETIME_SECONDS if created_at else None,
            "finalizing_at": end_of(metadata) if status in ("finalizing", "completed") else None,
            "completed_at": ended_at if status == "completed" else None,
            "failed_at": ended_at if status == "failed" else None,
            "expired_at": ended_at if status == "expired" else None,
            "cancelling_at": None,
            "cancelled_at": ended_at if status == "cancelled" else None,
            "request_counts": _counts(metadata, outcome),
            "metadata": None,
            "model": last_part(metadata.get("model")),
        }


class _Opened:
    """What one reader reads; `close` ends it."""

    def __init__(self) -> None:
        self._answer: Answer | None = None

    def begin(self, answer: Answer) -> None:
        """From now on `close` ends this answer."""
        self._answer = answer

    def close(self) -> None:
        """End whatever is being read."""
        if self._answer is not None:
            self._answer.close()


def _metadata(told: Mapping[str, Any]) -> dict[str, Any]:
    return part(told, "metadata")


def _status(told: Mapping[str, Any]) -> str:
    state = _STATE.sub("", str(_metadata(told).get("state") or "PENDING"))
    if "error" in told and told.get("done"):
        return _STATUS.get(state, "failed") if state in ("CANCELLED", "EXPIRED") else "failed"
    return _STATUS.get(state, "failed")


def _output(told: Mapping[str, Any]) -> dict[str, Any]:
    return part(told, "metadata", "output") or part(told, "response")


def _results_file(told: Mapping[str, Any]) -> str | None:
    found = _output(told).get("responsesFile")
    return found if isinstance(found, str) and found else None


def _file_id(job_id: str, kind: Kind) -> str:
    return f"batch-{job_id}-{kind}"


def _named(file_id: str) -> tuple[str, Kind] | None:
    found = _FILE.fullmatch(file_id)
    return (found[1], "output" if found[2] == "output" else "errors") if found else None


def _counts(metadata: Mapping[str, Any], outcome: _Outcome | None) -> Any:
    if outcome is not None and outcome.completed + outcome.failed:
        total = outcome.completed + outcome.failed
        return {"total": total, "completed": outcome.completed, "failed": outcome.failed}
    stats = part(metadata, "batchStats")
    return {
        "total": count(stats.get("requestCount")),
        "completed": count(stats.get("successfulRequestCount")),
        "failed": count(stats.get("failedRequestCount")),
    }


def _errors(told: Mapping[str, Any]) -> dict[str, Any]:
    message = part(told, "error").get("message") or "the batch failed"
    return {
        "object": "list",
        "data": [{"code": "batch_failed", "message": str(message), "param": None, "line": None}],
    }


def _no_batch(batch_id: str) -> NotFound:
    return NotFound(f"No such Batch object: {batch_id:.200}", param="id")
