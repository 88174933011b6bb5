"""FakeProvider: an account in memory, which passes the provider contract like the real ones."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from marshmallow import INCLUDE, Schema

from app.errors import GatewayError, NotFound
from app.providers.protocol import Operation, Place, Provider, StoredFile
from app.providers.wire.byte_range import part_of
from app.settings import Deployment
from app.transfers import Cancellation, Download, Reply, Upload
from tests.builders import make_deployment, make_place


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
        {Operation.FILES, Operation.CHAT, Operation.COMPLETIONS, Operation.EMBEDDINGS}
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
        self.during_upload: Callable[[], None] = lambda: None
        """Called in the middle of every upload."""
        self._failures: list[_Failure] = []
        self._lock = threading.Lock()

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
        expiry = upload.expires_after
        stored = StoredFile(
            id=f"file-{uuid.uuid4().hex}",
            filename=upload.filename,
            purpose=upload.purpose,
            size=len(content),
            created_at=now,
            expires_at=now + expiry.seconds if expiry else None,
        )
        with self._lock:
            self.contents[stored.id] = content
            self.stored[stored.id] = stored
        _raise(failure)
        return stored

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

    def infer(
        self,
        operation: Operation,
        body: bytes,
        upstream_model: str,
        cancellation: Cancellation,
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
