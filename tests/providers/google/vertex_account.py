"""A project at Vertex AI in memory: its bucket, its batch jobs and its tuning jobs.

Source: Google Cloud, REST reference v1, batchPredictionJobs and tuningJobs; read 2026-11.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import requests
import responses

from app.errors import NotFound, UpstreamRejected
from app.providers.google.storage import Bucket
from app.providers.upstream import Upstream
from tests.builders import make_deployment

HOST = "https://us-central1-aiplatform.googleapis.com"
ROOT = "/v1/projects/p/locations/us-central1"
BUCKET = "bucket-1"


class MemoryAnswer:
    """The bytes of an object on their way, `size` at a time."""

    def __init__(self, content: bytes, size: int) -> None:
        self._content, self._size = content, size
        self.is_closed = False

    @property
    def length(self) -> int:
        return len(self._content)

    def chunks(self) -> Iterator[bytes]:
        for at in range(0, len(self._content), self._size):
            yield self._content[at : at + self._size]

    def read(self, limit: int) -> bytes:
        return self._content[:limit]

    def close(self) -> None:
        self.is_closed = True


class MemoryBucket(Bucket):
    """A bucket whose objects are in `objects`, by name. `generated` are written as they are read:
    by name, a function that gives the bytes."""

    def __init__(self, name: str = BUCKET) -> None:
        self.name = name
        self.objects: dict[str, bytes] = {}
        self.described: dict[str, dict[str, str]] = {}
        self.answers: list[MemoryAnswer] = []
        self.was_read: list[str] = []
        self.before_read: Callable[[str], None] = lambda _name: None
        self.chunk_bytes = 1000

    def read(self, name: str, byte_range: Any = None, cancellation: Any = None) -> Any:
        self.before_read(name)
        if name not in self.objects:
            raise NotFound(f"No such object: {self.name}/{name}")
        content = self.objects[name]
        if byte_range:
            found = re.fullmatch("bytes=([0-9]+)-([0-9]+)", byte_range)
            assert found
            if len(content) <= int(found[1]):
                raise UpstreamRejected("behind the end", status=416)
            content = content[int(found[1]) : int(found[2]) + 1]
        else:
            self.was_read.append(name)
        answer = MemoryAnswer(content, self.chunk_bytes)
        self.answers.append(answer)
        return answer

    def get(self, name: str) -> Any:
        if name not in self.objects:
            raise NotFound(f"No such object: {self.name}/{name}")
        return {"name": name, "metadata": self.described.get(name, {})}

    def list(self, prefix: str = "") -> Iterator[Any]:
        # Not in their order: nobody promises one.
        for name in sorted(self.objects, reverse=True):
            if name.startswith(prefix):
                size = str(len(self.objects[name]))
                yield {"name": name, "generation": "1", "size": size}

    def put_lines(self, name: str, lines: Iterable[bytes], content_type: str) -> Any:
        self.objects[name] = b"".join(lines)
        return self.get(name)

    def delete(self, name: str) -> None:
        self.objects.pop(name, None)


class VertexAccount:
    """The jobs of a project, as `jobs` by kind and number; `posted` are the bodies that came."""

    def __init__(self, mock: responses.RequestsMock) -> None:
        self.bucket = MemoryBucket()
        self.jobs: dict[str, dict[str, dict[str, Any]]] = {
            "batchPredictionJobs": {},
            "tuningJobs": {},
        }
        self.posted: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.page = 2
        self.made_at: Callable[[int], str] = "2026-11-20T10:00:0{}.123456Z".format
        """When the next job is made, given how many there are."""
        root = re.escape(HOST + ROOT)
        for method, pattern, answer in (
            ("POST", "/(?P<kind>[a-zA-Z]+)", self._create),
            ("GET", "/(?P<kind>[a-zA-Z]+)", self._list),
            ("GET", "/(?P<kind>[a-zA-Z]+)/(?P<number>[^/:?]+)", self._get),
            ("POST", "/(?P<kind>[a-zA-Z]+)/(?P<number>[^/:?]+):cancel", self._cancel),
        ):
            compiled = re.compile(root + pattern + r"(\?.*)?$")
            mock.add_callback(method, compiled, self._answering(compiled, answer))

    def upstream(self, max_retries: int = 0) -> Upstream:
        """The service that has the jobs."""
        return Upstream(
            HOST,
            headers=lambda: {"Authorization": "Bearer token"},
            deployment=make_deployment(provider="vertex_ai", max_retries=max_retries),
            pool_size=2,
        )

    def set(self, kind: str, number: str, state: str, **more: Any) -> None:
        """Bring a job into a state."""
        self.jobs[kind][number] |= {"state": f"JOB_STATE_{state}", **more}

    def _answering(
        self, pattern: re.Pattern[str], answer: Callable[..., tuple[int, Any]]
    ) -> Callable[..., Any]:
        def callback(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
            found = pattern.match(request.url or "")
            assert found
            status, body = answer(request, **found.groupdict())
            return status, {}, json.dumps(body)

        return callback

    def _create(self, request: Any, kind: str) -> tuple[int, Any]:
        body = json.loads(request.body)
        self.posted.append(body)
        number = str(900 + len(self.jobs[kind]))
        self.jobs[kind][number] = {
            **body,
            "name": f"projects/77/locations/us-central1/{kind}/{number}",
            "state": "JOB_STATE_PENDING",
            "createTime": self.made_at(len(self.jobs[kind])),
            "updateTime": "2026-11-20T10:00:30Z",
        }
        return 200, self.jobs[kind][number]

    def _list(self, request: Any, kind: str) -> tuple[int, Any]:
        # In the order in which they were made: nobody promises another.
        found = list(self.jobs[kind].values())
        token = re.search("pageToken=([0-9]+)", request.url)
        start = int(token[1]) if token else 0
        answer: dict[str, Any] = {kind: found[start : start + self.page]}
        if len(found) > start + self.page:
            answer["nextPageToken"] = str(start + self.page)
        return 200, answer if found else {}

    def _get(self, _request: Any, kind: str, number: str) -> tuple[int, Any]:
        found = self.jobs.get(kind, {}).get(number)
        return (200, found) if found else (404, _error(404, "NOT_FOUND"))

    def _cancel(self, _request: Any, kind: str, number: str) -> tuple[int, Any]:
        found = self.jobs[kind].get(number)
        if not found:
            return 404, _error(404, "NOT_FOUND")
        if found["state"] not in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING"):
            return 400, _error(400, "FAILED_PRECONDITION")
        self.cancelled.append(number)
        return 200, {}


def _error(code: int, status: str) -> dict[str, Any]:
    message = f"The resource projects/77/x was refused: {status}"
    return {"error": {"code": code, "message": message, "status": status}}
