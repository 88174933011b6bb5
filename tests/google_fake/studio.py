"""A fake of Google AI Studio: the Files API, Gemini models, batches. Strict, and in memory.

`Studio.handle` answers one request, whoever carries it: `responses` in a unit test, WSGI in a
process. What the answers look like to the byte is written down in Google's Gemini API reference.
"""

import base64
import datetime as dt
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from tests.google_fake.models import Answer, Refused, as_json, content, events

HOST = "https://generativelanguage.googleapis.com"
LIFETIME = dt.timedelta(hours=48)
GRANULARITY = 256 * 1024


@dataclass
class StoredFile:
    """A file of the project."""

    name: str
    display_name: str
    mime_type: str
    content: bytes
    created_at: dt.datetime
    polls_left: int = 0
    is_failed: bool = False
    source: str = "UPLOADED"


@dataclass
class Session:
    """An upload under way."""

    file: dict[str, Any]
    mime_type: str
    size: int
    received: bytes = b""
    made: StoredFile | None = None


@dataclass
class BatchJob:
    """A batch; `polls_left` retrieves until it has ended."""

    name: str
    model: str
    method: str
    display_name: str
    file_name: str
    created_at: dt.datetime
    polls_left: int
    state: str = "BATCH_STATE_PENDING"
    responses_file: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)


class Studio:
    """One project with one key.

    `polls_until_active` retrieves say PROCESSING; `fails` makes files FAILED; `batch_polls`
    retrieves until a batch has ended; `inlined`: its results come inside of the answer. `clock`
    may be moved on.
    """

    def __init__(self, key: str = "AIza-test-key", base: str = HOST) -> None:
        self.key = key
        self.base = base
        self.files: dict[str, StoredFile] = {}
        self.sessions: dict[str, Session] = {}
        self.batches: dict[str, BatchJob] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.polls_until_active = 0
        self.fails = False
        self.batch_polls = 1
        self.inlined = False
        self.ahead = dt.timedelta()
        self.page_size = 10
        self.failures: list[Callable[[str, str], Answer | None]] = []
        self._lock = threading.RLock()

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC) + self.ahead

    def handle(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """The answer to one request; `path` without the query, header names in any case."""
        said = {name.lower(): value for name, value in headers.items()}
        with self._lock:
            self.requests.append((method, f"{path}?{query}" if query else path, said))
            for failure in list(self.failures):
                if (answer := failure(method, path)) is not None:
                    self.failures.remove(failure)
                    return answer
            try:
                return self._answer(method, path, dict(parse_qsl(query)), said, body)
            except Refused as refused:
                return refused.answer

    def fail(self, answer: Answer, *, path: str = "", method: str = "", times: int = 1) -> None:
        """Answer so, so many times, to requests whose path holds this."""

        def failure(asked: str, where: str) -> Answer | None:
            fits = path in where and method in ("", asked)
            return answer if fits else None

        self.failures += [failure for _ in range(times)]

    def _answer(
        self, method: str, path: str, query: dict[str, str], said: dict[str, str], body: bytes
    ) -> Answer:
        if path.startswith("/session/"):
            return self._piece(path.removeprefix("/session/"), said, body)
        if "key" in query:
            raise Refused(400, "INVALID_ARGUMENT", "a key in a URL ends up in logs")
        if path.endswith("/openai/chat/completions"):
            self._check_key(said.get("authorization", "").removeprefix("Bearer "))
            return as_json(
                {
                    "id": "chatcmpl-openai",
                    "object": "chat.completion",
                    "created": 1,
                    "model": json.loads(body)["model"],
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "by the OpenAI surface"},
                            "finish_reason": "stop",
                        }
                    ],
                }
            )
        self._check_key(said.get("x-goog-api-key", ""))
        for verb, shape, act in self._routes():
            if verb == method and (found := re.fullmatch(shape, path)):
                return act(said=said, query=query, body=body, **found.groupdict())
        raise Refused(404, "NOT_FOUND", f"no such route: {method} {path}")

    def _routes(self) -> Iterator[tuple[str, str, Callable[..., Answer]]]:
        version = r"/v1(?:beta)?"
        yield "POST", rf"/upload{version}/files", self._begin
        yield "GET", rf"{version}/files", self._list
        yield "GET", rf"{version}/files/(?P<name>[^/:]+)", self._get
        yield "GET", rf"{version}/files/(?P<name>[^/:]+):download", self._download
        yield "DELETE", rf"{version}/files/(?P<name>[^/:]+)", self._delete
        yield (
            "POST",
            rf"{version}/models/(?P<model>[^/:]+):(?P<verb>generateContent|streamGenerateContent)",
            self._generate,
        )
        yield "POST", rf"{version}/models/(?P<model>[^/:]+):(?P<verb>\w*mbedContents?)", self._embed
        yield (
            "POST",
            rf"{version}/models/(?P<model>[^/:]+):"
            r"(?P<verb>batchGenerateContent|asyncBatchEmbedContent)",
            self._start,
        )
        yield "GET", rf"{version}/batches", self._batch_list
        yield "GET", rf"{version}/batches/(?P<name>[^/:]+)", self._batch
        yield "POST", rf"{version}/batches/(?P<name>[^/:]+):cancel", self._cancel

    def _check_key(self, key: str) -> None:
        if key != self.key:
            raise Refused(
                400,
                "INVALID_ARGUMENT",
                f"API key not valid: {key}",
                "API_KEY_INVALID",
            )

    # Files

    def _begin(self, said: dict[str, str], body: bytes, **_: Any) -> Answer:
        if (
            said.get("x-goog-upload-protocol") != "resumable"
            or said.get("x-goog-upload-command") != "start"
        ):
            raise Refused(400, "INVALID_ARGUMENT", "not a resumable upload")
        told = json.loads(body)["file"]
        name = str(told.get("name") or f"files/{secrets.token_hex(6)}").removeprefix("files/")
        if not re.fullmatch("[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", name):
            raise Refused(400, "INVALID_ARGUMENT", f"bad name {name}")
        if len(str(told.get("displayName", ""))) > 512:
            raise Refused(400, "INVALID_ARGUMENT", "displayName is too long")
        if self._living(name):
            raise Refused(409, "ALREADY_EXISTS", f"File files/{name} already exists")
        token = secrets.token_hex(8)
        self.sessions[token] = Session(
            {**told, "name": name},
            said["x-goog-upload-header-content-type"],
            int(said["x-goog-upload-header-content-length"]),
        )
        url = f"https://elsewhere.invalid/session/{token}?upload_id={token}"
        return 200, {"X-Goog-Upload-URL": url, "X-Goog-Upload-Status": "active"}, b""

    def _piece(self, token: str, said: dict[str, str], body: bytes) -> Answer:
        session = self.sessions.get(token)
        if session is None:
            raise Refused(404, "NOT_FOUND", "no such session")
        if "x-goog-api-key" in said and said["x-goog-api-key"] != self.key:
            raise Refused(403, "PERMISSION_DENIED", "wrong key")
        command = said.get("x-goog-upload-command", "")
        if command == "query":
            if session.made is not None:
                return self._made(session.made)
            received = {"X-Goog-Upload-Size-Received": str(len(session.received))}
            return 200, {"X-Goog-Upload-Status": "active", **received}, b""
        if int(said.get("x-goog-upload-offset", "-1")) != len(session.received):
            raise Refused(400, "INVALID_ARGUMENT", "wrong offset")
        if int(said.get("content-length", "-1")) != len(body):
            raise Refused(400, "INVALID_ARGUMENT", "wrong length")
        session.received += body
        if command == "upload":
            if len(body) % GRANULARITY:
                raise Refused(400, "INVALID_ARGUMENT", "a piece of an odd length")
            return 200, {"X-Goog-Upload-Status": "active"}, b""
        if command != "upload, finalize":
            raise Refused(400, "INVALID_ARGUMENT", f"unknown command {command!r}")
        if len(session.received) != session.size:
            raise Refused(400, "INVALID_ARGUMENT", "the length is not the one announced")
        session.made = StoredFile(
            session.file["name"],
            str(session.file.get("displayName", "")),
            session.mime_type,
            session.received,
            self.now(),
            self.polls_until_active,
            self.fails,
        )
        self.files[session.made.name] = session.made
        return self._made(session.made)

    def _made(self, file: StoredFile) -> Answer:
        status, headers, body = as_json({"file": self._told(file)})
        return status, {**headers, "X-Goog-Upload-Status": "final"}, body

    def _told(self, file: StoredFile) -> dict[str, Any]:
        state = "PROCESSING" if file.polls_left else "FAILED" if file.is_failed else "ACTIVE"
        digest = hashlib.sha256(file.content).hexdigest()
        told: dict[str, Any] = {
            "name": f"files/{file.name}",
            "displayName": file.display_name,
            "mimeType": file.mime_type,
            "sizeBytes": str(len(file.content)),
            "createTime": _text(file.created_at),
            "updateTime": _text(file.created_at),
            "expirationTime": _text(file.created_at + LIFETIME),
            "sha256Hash": base64.b64encode(digest.encode()).decode(),
            "uri": f"{self.base}/v1beta/files/{file.name}",
            "state": state,
            "source": file.source,
        }
        if state == "FAILED":
            told["error"] = {"code": 3, "message": "the video has no frames"}
        return told

    def _living(self, name: str) -> StoredFile | None:
        file = self.files.get(name)
        if file is not None and file.created_at + LIFETIME <= self.now():
            del self.files[name]
            return None
        return file

    def _found(self, name: str) -> StoredFile:
        file = self._living(name)
        if file is None:
            raise Refused(
                403,
                "PERMISSION_DENIED",
                f"You do not have permission to access the File {name} or it may not exist.",
            )
        return file

    def _get(self, name: str, **_: Any) -> Answer:
        file = self._found(name)
        answer = as_json(self._told(file))
        file.polls_left = max(0, file.polls_left - 1)
        return answer

    def _list(self, query: dict[str, str], **_: Any) -> Answer:
        size = min(int(query.get("pageSize", "10")), self.page_size)
        names = sorted(name for name in list(self.files) if self._living(name))
        start = int(query.get("pageToken", "0"))
        page = [self._told(self.files[name]) for name in names[start : start + size]]
        more = {"nextPageToken": str(start + size)} if start + size < len(names) else {}
        return as_json({**({"files": page} if page else {}), **more})

    def _delete(self, name: str, **_: Any) -> Answer:
        self._found(name)
        del self.files[name]
        return as_json({})

    def _download(self, name: str, query: dict[str, str], **_: Any) -> Answer:
        file = self._found(name)
        if file.source != "GENERATED" or query.get("alt") != "media":
            raise Refused(400, "INVALID_ARGUMENT", "only generated files can be downloaded")
        return 200, {"Content-Type": "application/octet-stream"}, file.content

    # Models

    def _generate(
        self, model: str, verb: str, body: bytes, query: dict[str, str], **_: Any
    ) -> Answer:
        answer = content(json.loads(body), self._seen)
        if verb == "generateContent":
            return as_json(answer)
        if query.get("alt") != "sse":
            raise Refused(400, "INVALID_ARGUMENT", "a stream of another form")
        return events(answer)

    def _seen(self, named: Mapping[str, Any]) -> str:
        uri = str(named.get("fileUri"))
        begin = f"{self.base}/v1beta/files/"
        if not uri.startswith(begin):
            raise Refused(400, "INVALID_ARGUMENT", f"no file of this project: {uri}")
        file = self._found(uri.removeprefix(begin))
        if file.polls_left:
            raise Refused(400, "FAILED_PRECONDITION", "the file is not in an ACTIVE state")
        if named.get("mimeType") != file.mime_type:
            raise Refused(400, "INVALID_ARGUMENT", "another MIME type than at the upload")
        return f"{file.mime_type}:{hashlib.sha256(file.content).hexdigest()}"

    def _embed(self, model: str, verb: str, body: bytes, **_: Any) -> Answer:
        asked = json.loads(body)
        if verb == "embedContent":
            return as_json({"embedding": {"values": [0.5, -0.5]}})
        found = [{"values": [float(number), 1.0]} for number, _ in enumerate(asked["requests"])]
        return as_json({"embeddings": found})

    # Batches

    def _start(self, model: str, verb: str, body: bytes, **_: Any) -> Answer:
        asked = json.loads(body)["batch"]
        file_name = asked["inputConfig"]["fileName"]
        source = self._found(file_name.removeprefix("files/"))
        name = f"b{secrets.token_hex(6)}"
        self.batches[name] = BatchJob(
            name,
            model,
            verb,
            asked["displayName"],
            file_name,
            self.now(),
            self.batch_polls,
            rows=[json.loads(line) for line in source.content.splitlines() if line.strip()],
        )
        return as_json(self._told_batch(self.batches[name]))

    def _batch(self, name: str, **_: Any) -> Answer:
        job = self._job(name)
        if job.state in ("BATCH_STATE_PENDING", "BATCH_STATE_RUNNING"):
            job.polls_left -= 1
            job.state = "BATCH_STATE_RUNNING"
            if job.polls_left <= 0:
                self._finish(job)
        return as_json(self._told_batch(job))

    def _batch_list(self, **_: Any) -> Answer:
        return as_json({"operations": [self._told_batch(job) for job in self.batches.values()]})

    def _cancel(self, name: str, **_: Any) -> Answer:
        job = self._job(name)
        if job.state in ("BATCH_STATE_PENDING", "BATCH_STATE_RUNNING"):
            job.state = "BATCH_STATE_CANCELLED"
        return as_json({})

    def _job(self, name: str) -> BatchJob:
        if name not in self.batches:
            raise Refused(404, "NOT_FOUND", f"batches/{name} not found")
        return self.batches[name]

    def _results(self, job: BatchJob) -> list[dict[str, Any]]:
        found = []
        for row in job.rows:
            try:
                if "Embed" in job.method:
                    made: dict[str, Any] = {"embedding": {"values": [0.25]}}
                else:
                    made = content(row["request"], self._seen)
                found.append({"key": row["key"], "response": made})
            except Refused as refused:
                error = json.loads(refused.answer[2])["error"]
                told = {"code": 3, "message": error["message"]}
                found.append({"key": row["key"], "error": told})
        return found

    def _finish(self, job: BatchJob) -> None:
        job.state = "BATCH_STATE_SUCCEEDED"
        if self.inlined:
            return
        lines = "".join(json.dumps(row) + "\n" for row in self._results(job))
        name = f"r{secrets.token_hex(6)}"
        self.files[name] = StoredFile(
            name, "results", "application/jsonl", lines.encode(), self.now(), source="GENERATED"
        )
        job.responses_file = f"files/{name}"

    def _told_batch(self, job: BatchJob) -> dict[str, Any]:
        is_done = job.state not in ("BATCH_STATE_PENDING", "BATCH_STATE_RUNNING")
        kind = "EmbedContentBatch" if "Embed" in job.method else "GenerateContentBatch"
        metadata: dict[str, Any] = {
            "@type": f"type.googleapis.com/google.ai.generativelanguage.v1beta.{kind}",
            "model": f"models/{job.model}",
            "displayName": job.display_name,
            "state": job.state,
            "createTime": _text(job.created_at),
            "updateTime": _text(job.created_at),
            "inputConfig": {"fileName": job.file_name},
            "batchStats": {"requestCount": str(len(job.rows))},
        }
        if is_done:
            metadata["endTime"] = _text(job.created_at + dt.timedelta(seconds=5))
        told: dict[str, Any] = {"name": f"batches/{job.name}", "metadata": metadata}
        if is_done:
            told["done"] = True
        if job.state == "BATCH_STATE_SUCCEEDED":
            if job.responses_file:
                metadata["output"] = {"responsesFile": job.responses_file}
            else:
                inlined = [
                    {
                        **{k: v for k, v in row.items() if k != "key"},
                        "metadata": {"key": row["key"]},
                    }
                    for row in self._results(job)
                ]
                metadata["output"] = {"inlinedResponses": {"inlinedResponses": inlined}}
        return told


def _text(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
