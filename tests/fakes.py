"""FakeProvider: an account in memory, which passes the provider contract like the real ones."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from marshmallow import INCLUDE, Schema

from app.errors import GatewayError, NotFound
from app.objects import Batch, FineTuningJob
from app.providers.openai_jobs import batch_of, job_of
from app.providers.protocol import (
    NO_FILES,
    BatchRequest,
    Operation,
    Place,
    Provider,
    StoredFile,
)
from app.providers.wire.byte_range import part_of
from app.settings import Deployment
from app.transfers import AttachedFile, Cancellation, Download, Reply, Upload
from tests.builders import make_deployment, make_place, make_upload


class AnyParams(Schema):
    class Meta:
        unknown = INCLUDE


@dataclass(frozen=True)
class Call:
    """One call of a method: its name and what it was called with."""

    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _Failure:
    error: GatewayError
    method: str | None
    is_late: bool


class FakeProvider(Provider):
    """Does what it is told, remembers what it was asked, and fails when told to.

    `contents` and `stored` are the account, by file id. `upload_delay` is in seconds. `replies`
    are given to inference requests in turn; without any, a chat completion is.
    """

    name = "fake"
    operations = frozenset(
        {
            Operation.FILES,
            Operation.CHAT,
            Operation.COMPLETIONS,
            Operation.EMBEDDINGS,
            Operation.BATCHES,
            Operation.FINE_TUNING,
        }
    )
    Params = AnyParams

    def __init__(
        self,
        deployment: Deployment | None = None,
        place: Place | None = None,
        *,
        upload_delay: float = 0.0,
    ) -> None:
        super().__init__(deployment or make_deployment(provider="fake"), place or make_place())
        self.upload_delay = upload_delay
        self.calls: list[Call] = []
        self.contents: dict[str, bytes] = {}
        self.stored: dict[str, StoredFile] = {}
        self.replies: list[Reply] = []
        self.remote_batches: dict[str, Batch] = {}
        self.remote_jobs: dict[str, FineTuningJob] = {}
        self.during_upload: Callable[[], None] = lambda: None
        """Called in the middle of every upload."""
        self.expires_in: int | None = None
        """Seconds that an uploaded file lives here, whatever anybody asked for."""
        self.is_keyed = False
        """Whether files are named by the key of their upload."""
        self._failures: list[_Failure] = []
        self._lock = threading.Lock()

    @property
    def account(self) -> str:
        """Every fake is an account of its own."""
        return self.deployment.id

    def fail_next(
        self, *errors: GatewayError, method: str | None = None, after_doing: bool = False
    ) -> None:
        """Raise these from the next calls of `method`, or of any.

        With `after_doing` the call does its work first, as when an answer is lost on its way.
        """
        with self._lock:
            self._failures += [_Failure(error, method, after_doing) for error in errors]

    def called(self, method: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of a method so far."""
        with self._lock:
            return [call.arguments for call in self.calls if call.method == method]

    def change(self, file_id: str, **changes: Any) -> None:
        """Let the upstream change a file, as `change(id, status="error")`."""
        with self._lock:
            self.stored[file_id] = replace(self.stored[file_id], **changes)

    def upload(self, upload: Upload) -> StoredFile:
        failure = self._called("upload", upload)
        with upload.open() as source:
            content = source.read()
        time.sleep(self.upload_delay)
        self.during_upload()
        now = int(time.time())
        expiry = upload.expires_after.seconds if upload.expires_after else self.expires_in
        key = upload.key if self.is_keyed else uuid.uuid4().hex
        stored = StoredFile(
            id=f"file-{key}",
            filename=upload.filename,
            purpose=upload.purpose,
            size=len(content),
            created_at=now,
            expires_at=now + expiry if expiry is not None else None,
        )
        with self._lock:
            self.contents[stored.id] = content
            self.stored[stored.id] = stored
        _raise(failure)
        return stored

    def id_of(self, key: str) -> str | None:
        return f"file-{key}" if self.is_keyed else None

    def lose(self, file_id: str) -> None:
        """Let the upstream forget a file."""
        with self._lock:
            self.stored.pop(file_id, None)
            self.contents.pop(file_id, None)

    def retrieve(self, file_id: str) -> StoredFile:
        self._called("retrieve", file_id)
        return self._found(file_id)

    def files(self, purpose: str | None = None) -> Iterator[StoredFile]:
        self._called("files", purpose)
        with self._lock:
            everything = list(self.stored.values())
        return iter([file for file in everything if purpose in (None, file.purpose)])

    def content(
        self,
        file_id: str,
        byte_range: str | None = None,
        cancellation: Cancellation | None = None,
    ) -> Download:
        self._called("content", file_id, byte_range)
        self._found(file_id)
        whole = self.contents[file_id]
        part = part_of(byte_range, len(whole))
        if part is None:
            return Download(iter((whole,)), len(whole))
        chunk = whole[part.start : part.start + part.length]
        return Download(iter((chunk,)), part.length, part.content_range)

    def delete(self, file_id: str) -> None:
        failure = self._called("delete", file_id)
        with self._lock:
            self.stored.pop(file_id, None)
            self.contents.pop(file_id, None)
        _raise(failure)

    def create_batch(self, request: BatchRequest) -> Batch:
        failure = self._called("create_batch", request)
        self._found(request.input_file_id)
        batch = batch_of(
            {
                "id": f"batch_{uuid.uuid4().hex}",
                "endpoint": request.endpoint,
                "input_file_id": request.input_file_id,
                "completion_window": request.completion_window,
                "created_at": int(time.time()),
                "metadata": request.metadata,
            }
        )
        with self._lock:
            self.remote_batches[batch["id"]] = batch
        _raise(failure)
        return batch

    def retrieve_batch(self, batch_id: str) -> Batch:
        _raise(self._called("retrieve_batch", batch_id))
        batch: Batch = _known(self.remote_batches, batch_id)
        return batch

    def batches(self) -> Iterator[Batch]:
        self._called("batches")
        return iter(reversed(list(self.remote_batches.values())))

    def cancel_batch(self, batch_id: str) -> Batch:
        failure = self._called("cancel_batch", batch_id)
        batch = self.step(batch_id, status="cancelling")
        _raise(failure)
        return batch

    def step(self, batch_id: str, **changes: Any) -> Batch:
        """Let the upstream change a batch, as `step(id, status="in_progress")`."""
        with self._lock:
            batch: Batch = {**_known(self.remote_batches, batch_id), **changes}  # type: ignore[typeddict-item]  # keys of a Batch
            self.remote_batches[batch_id] = batch
        return batch

    def finish(self, batch_id: str, output: bytes, errors: bytes | None = None) -> None:
        """Let the upstream complete a batch with these files."""
        made = {"output_file_id": output, "error_file_id": errors}
        ids = {
            key: self.upload(make_upload(content, purpose="batch_output")).id
            for key, content in made.items()
            if content is not None
        }
        self.step(batch_id, status="completed", completed_at=int(time.time()), **ids)

    def create_job(self, body: Mapping[str, Any]) -> FineTuningJob:
        failure = self._called("create_job", dict(body))
        self._found(body["training_file"])
        made = {"id": f"ftjob-{uuid.uuid4().hex}", "created_at": int(time.time())}
        job = job_of({**body, **made, "status": "validating_files"})
        with self._lock:
            self.remote_jobs[job["id"]] = job
        _raise(failure)
        return job

    def retrieve_job(self, job_id: str) -> FineTuningJob:
        _raise(self._called("retrieve_job", job_id))
        job: FineTuningJob = _known(self.remote_jobs, job_id)
        return job

    def jobs(self) -> Iterator[FineTuningJob]:
        self._called("jobs")
        return iter(reversed(list(self.remote_jobs.values())))

    def steer_job(self, job_id: str, action: Literal["cancel", "pause", "resume"]) -> FineTuningJob:
        failure = self._called("steer_job", job_id, action)
        status = {"cancel": "cancelled", "pause": "paused", "resume": "queued"}[action]
        job = self.step_job(job_id, status=status)
        _raise(failure)
        return job

    def step_job(self, job_id: str, **changes: Any) -> FineTuningJob:
        """Let the upstream change a job, as `step_job(id, status="running")`."""
        with self._lock:
            job = {**_known(self.remote_jobs, job_id), **changes}
            self.remote_jobs[job_id] = job
        return job

    def job_page(
        self, job_id: str, what: Literal["events", "checkpoints"], after: str | None, limit: int
    ) -> dict[str, Any]:
        self._called("job_page", job_id, what, after, limit)
        _known(self.remote_jobs, job_id)
        return {"object": "list", "data": [], "has_more": False}

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
        failure = self._called("infer", operation, body, upstream_model)
        _raise(failure)
        with self._lock:
            if self.replies:
                return self.replies.pop(0)
        return json_reply(_completion(upstream_model))

    def _called(self, method: str, *arguments: Any) -> _Failure | None:
        with self._lock:
            self.calls.append(Call(method, arguments))
            fitting = [f for f in self._failures if f.method in (None, method)]
            if not fitting:
                return None
            self._failures.remove(fitting[0])
        if fitting[0].is_late:
            return fitting[0]
        raise fitting[0].error

    def _found(self, file_id: str) -> StoredFile:
        with self._lock:
            stored = self.stored.get(file_id)
        if stored is None:
            raise NotFound(f"No such File object: {file_id}", param="id")
        return stored


def json_reply(value: Any, status: int = 200) -> Reply:
    """An upstream's answer with this JSON."""
    return Reply(status, {"Content-Type": "application/json"}, iter((json.dumps(value).encode(),)))


def stream_reply(*events: Any) -> Reply:
    """An upstream's stream of these events, each a chunk of its own, and its end."""
    chunks = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    return Reply(200, {"Content-Type": "text/event-stream"}, iter([*chunks, b"data: [DONE]\n\n"]))


def _raise(failure: _Failure | None) -> None:
    if failure is not None:
        raise failure.error


def _completion(model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": "Hello.", "refusal": None}
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def _known(things: Mapping[str, Any], key: str) -> Any:
    if key not in things:
        raise NotFound(f"there is no {key}")
    return things[key]
