"""A fake of Vertex AI, Cloud Storage and Google's tokens. Strict, and in memory.

`Vertex.handle` answers one request, whoever carries it. What the answers look like to the byte is
written down in Google's references of the three services.
"""

import base64
import datetime as dt
import hashlib
import json
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

import google_crc32c
import jwt

from tests.google_fake.models import KEYS, Answer, Refused, as_json, content, events

QUARTER_MB = 256 * 1024
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_ROOT = r"/v1(?:beta1)?/projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)"


@dataclass
class Blob:
    """An object in a bucket."""

    name: str
    content: bytes
    content_type: str
    metadata: dict[str, str]
    created_at: dt.datetime
    generation: int


@dataclass
class Session:
    """A resumable upload under way."""

    bucket: str
    told: dict[str, Any]
    content_type: str
    only_new: bool
    length: int | None
    received: bytes = b""
    made: Blob | None = None


@dataclass
class BatchJob:
    """A batch prediction job; `polls_left` retrieves until it has ended."""

    number: str
    told: dict[str, Any]
    created_at: dt.datetime
    polls_left: int
    state: str = "JOB_STATE_PENDING"
    folder: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


class Vertex:
    """One project with one service account and its buckets.

    `public_key` (PEM) checks its assertions. `grants` counts the tokens that were given out,
    `token_seconds` is how long they live; `tokens` may be emptied to revoke them. `shards` and
    `batch_polls` say how a batch ends.
    """

    def __init__(
        self, public_key: str, email: str, *, project: str = "my-project", bucket: str = "my-bucket"
    ) -> None:
        self.public_key = public_key
        self.email = email
        self.project = project
        self.buckets: dict[str, dict[str, Blob]] = {bucket: {}}
        self.tokens: dict[str, float] = {}
        self.grants = 0
        self.grant_delay = 0.0
        self.token_seconds = 3599
        self.sessions: dict[str, Session] = {}
        self.batches: dict[str, BatchJob] = {}
        self.batch_polls = 1
        self.shards = 3
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.failures: list[Callable[[str, str], Answer | None]] = []
        self._lock = threading.RLock()

    def handle(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """The answer to one request; `path` as on the wire, header names in any case."""
        said = {name.lower(): value for name, value in headers.items()}
        if path == "/token":
            time.sleep(self.grant_delay)
        with self._lock:
            self.requests.append((method, f"{path}?{query}" if query else path, said))
            for failure in list(self.failures):
                if (answer := failure(method, path)) is not None:
                    self.failures.remove(failure)
                    return answer
            try:
                if path == "/token":
                    return self._token(body)
                self._check_token(said)
                asked = dict(parse_qsl(query))
                for verb, shape, act in self._routes():
                    if verb == method and (found := re.fullmatch(shape, path)):
                        return act(said=said, query=asked, body=body, **found.groupdict())
                raise Refused(404, "NOT_FOUND", f"no such route: {method} {path}")
            except Refused as refused:
                return refused.answer

    def fail(self, answer: Answer, *, path: str = "", method: str = "", times: int = 1) -> None:
        """Answer so, so many times, to requests whose path holds this."""

        def failure(asked: str, where: str) -> Answer | None:
            return answer if path in where and method in ("", asked) else None

        self.failures += [failure for _ in range(times)]

    def _routes(self) -> Iterator[tuple[str, str, Callable[..., Answer]]]:
        objects = r"/storage/v1/b/(?P<bucket>[^/]+)/o"
        model = r"(?P<model>publishers/google/models/[^/:]+|endpoints/[0-9]+)"
        jobs = rf"{_ROOT}/batchPredictionJobs"
        yield "POST", r"/upload/storage/v1/b/(?P<bucket>[^/]+)/o", self._begin
        yield "PUT", r"/session/(?P<token>[^/]+)", self._chunk
        yield "GET", objects, self._list
        yield "GET", rf"{objects}/(?P<name>[^/]+)", self._get
        yield "DELETE", rf"{objects}/(?P<name>[^/]+)", self._delete
        verbs = r"(?P<verb>generateContent|streamGenerateContent)"
        yield "POST", rf"{_ROOT}/{model}:{verbs}", self._generate
        yield "POST", rf"{_ROOT}/{model}:predict", self._predict
        yield "POST", jobs, self._start
        yield "GET", jobs, self._jobs
        yield "GET", rf"{jobs}/(?P<number>[0-9]+)", self._job
        yield "POST", rf"{jobs}/(?P<number>[0-9]+):cancel", self._cancel

    # Tokens

    def _token(self, body: bytes) -> Answer:
        asked = dict(parse_qsl(body.decode()))
        if asked.get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer":
            return as_json({"error": "unsupported_grant_type"}, 400)
        try:
            claims = jwt.decode(
                asked["assertion"],
                self.public_key,
                algorithms=["RS256"],
                options={"verify_aud": False},
            )
        except jwt.PyJWTError as error:
            return as_json({"error": "invalid_grant", "error_description": str(error)}, 400)
        good = (
            claims.get("iss") == self.email
            and SCOPE in claims.get("scope", "").split()
            and str(claims.get("aud", "")).endswith("/token")
            and claims["exp"] - claims["iat"] <= 3600
        )
        if not good:
            return as_json({"error": "invalid_grant", "error_description": "wrong claims"}, 400)
        self.grants += 1
        token = f"ya29.{secrets.token_urlsafe(24)}"
        self.tokens[token] = time.time() + self.token_seconds
        told = {"access_token": token, "expires_in": self.token_seconds, "token_type": "Bearer"}
        return as_json(told)

    def _check_token(self, said: dict[str, str]) -> None:
        token = said.get("authorization", "").removeprefix("Bearer ")
        if self.tokens.get(token, 0.0) <= time.time():
            raise Refused(401, "UNAUTHENTICATED", f"Request had invalid credentials: {token}")

    # Storage

    def _in(self, bucket: str) -> dict[str, Blob]:
        if bucket not in self.buckets:
            raise Refused(404, "NOT_FOUND", "The specified bucket does not exist.")
        return self.buckets[bucket]

    def _blob(self, bucket: str, name: str) -> Blob:
        blob = self._in(bucket).get(unquote(name))
        if blob is None:
            raise Refused(404, "NOT_FOUND", f"No such object: {bucket}/{unquote(name)}")
        return blob

    def _begin(
        self, bucket: str, said: dict[str, str], query: dict[str, str], body: bytes
    ) -> Answer:
        if query.get("uploadType") != "resumable":
            raise Refused(400, "INVALID_ARGUMENT", "not a resumable upload")
        told = json.loads(body)
        only_new = query.get("ifGenerationMatch") == "0"
        if only_new and told["name"] in self._in(bucket):
            raise Refused(412, "FAILED_PRECONDITION", "conditionNotMet")
        length = said.get("x-upload-content-length")
        token = secrets.token_hex(8)
        self.sessions[token] = Session(
            bucket,
            told,
            said["x-upload-content-type"],
            only_new,
            int(length) if length else None,
        )
        # Another host, as some proxies say it: nobody may follow.
        return 200, {"Location": f"https://elsewhere.invalid/session/{token}?upload_id=1"}, b""

    def _chunk(self, token: str, said: dict[str, str], body: bytes, **_: Any) -> Answer:
        session = self.sessions.get(token)
        if session is None:
            raise Refused(404, "NOT_FOUND", "no such session")
        if int(said.get("content-length", "-1")) != len(body):
            raise Refused(400, "INVALID_ARGUMENT", "wrong length")
        span = said.get("content-range", "")
        if session.made is not None:
            return as_json(self._told(session.bucket, session.made))
        if found := re.fullmatch(r"bytes \*/(\*|[0-9]+)", span):
            total = found[1]
            if total.isdigit() and len(session.received) == int(total):
                return self._finish(session)
            return self._open(session)
        asked = re.fullmatch(r"bytes ([0-9]+)-([0-9]+)/(\*|[0-9]+)", span)
        if asked is None or int(asked[2]) - int(asked[1]) + 1 != len(body):
            raise Refused(400, "INVALID_ARGUMENT", f"bad Content-Range {span!r}")
        if int(asked[1]) != len(session.received):
            raise Refused(400, "INVALID_ARGUMENT", "a chunk at another place")
        session.received += body
        if asked[3].isdigit() and len(session.received) == int(asked[3]):
            return self._finish(session)
        if len(body) % QUARTER_MB:
            raise Refused(400, "INVALID_ARGUMENT", "a chunk of an odd length")
        return self._open(session)

    def _open(self, session: Session) -> Answer:
        received = len(session.received)
        return 308, {"Range": f"bytes=0-{received - 1}"} if received else {}, b""

    def _finish(self, session: Session) -> Answer:
        if session.length not in (None, len(session.received)):
            raise Refused(400, "INVALID_ARGUMENT", "the length is not the one announced")
        told = session.told
        wanted = told.get("crc32c")
        if wanted and wanted != _crc32c(session.received):
            raise Refused(400, "INVALID_ARGUMENT", "Provided CRC32C doesn't match")
        session.made = self.store(
            session.bucket,
            told["name"],
            session.received,
            session.content_type,
            told.get("metadata") or {},
        )
        return as_json(self._told(session.bucket, session.made))

    def store(
        self,
        bucket: str,
        name: str,
        data: bytes,
        content_type: str,
        metadata: dict[str, str] | None = None,
    ) -> Blob:
        """Put an object into a bucket."""
        made = Blob(
            name, data, content_type, metadata or {}, dt.datetime.now(dt.UTC), time.time_ns()
        )
        self.buckets[bucket][name] = made
        return made

    def _told(self, bucket: str, blob: Blob) -> dict[str, Any]:
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{blob.name}/{blob.generation}",
            "name": blob.name,
            "bucket": bucket,
            "generation": str(blob.generation),
            "size": str(len(blob.content)),
            "contentType": blob.content_type,
            "crc32c": _crc32c(blob.content),
            "md5Hash": base64.b64encode(
                hashlib.md5(blob.content).digest()
            ).decode(),  # what the service gives
            "timeCreated": _text(blob.created_at),
            "updated": _text(blob.created_at),
            **({"metadata": blob.metadata} if blob.metadata else {}),
        }

    def _list(self, bucket: str, query: dict[str, str], **_: Any) -> Answer:
        prefix = query.get("prefix", "")
        names = sorted(name for name in self._in(bucket) if name.startswith(prefix))
        start = int(query.get("pageToken", "0"))
        size = min(int(query.get("maxResults", "1000")), 3)
        page = [self._told(bucket, self._in(bucket)[n]) for n in names[start : start + size]]
        more = {"nextPageToken": str(start + size)} if start + size < len(names) else {}
        return as_json({"kind": "storage#objects", **({"items": page} if page else {}), **more})

    def _get(
        self, bucket: str, name: str, query: dict[str, str], said: dict[str, str], **_: Any
    ) -> Answer:
        blob = self._blob(bucket, name)
        if query.get("alt") != "media":
            return as_json(self._told(bucket, blob))
        whole = blob.content
        headers = {"Content-Type": blob.content_type}
        found = re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", said.get("range", ""))
        if found is None:
            return 200, headers, whole
        if found[1]:
            start, end = int(found[1]), min(int(found[2] or len(whole)), len(whole) - 1)
        else:
            start, end = max(0, len(whole) - int(found[2])), len(whole) - 1
        if start >= len(whole):
            return 416, {"Content-Range": f"bytes */{len(whole)}"}, b"out of range"
        span = {"Content-Range": f"bytes {start}-{end}/{len(whole)}"}
        return 206, {**headers, **span}, whole[start : end + 1]

    def _delete(self, bucket: str, name: str, **_: Any) -> Answer:
        self._blob(bucket, name)
        del self.buckets[bucket][unquote(name)]
        return 204, {}, b""

    # Models

    def _look(self, named: Mapping[str, Any]) -> str:
        found = re.fullmatch(r"gs://([^/]+)/(.+)", str(named.get("fileUri")))
        blob = self.buckets.get(found[1], {}).get(found[2]) if found else None
        if blob is None:
            raise Refused(404, "NOT_FOUND", f"no such file: {named.get('fileUri')}")
        if named.get("mimeType") != blob.content_type:
            raise Refused(400, "INVALID_ARGUMENT", "another MIME type than the object's")
        return f"{blob.content_type}:{hashlib.sha256(blob.content).hexdigest()}"

    def _generate(
        self, project: str, verb: str, body: bytes, query: dict[str, str], **_: Any
    ) -> Answer:
        if project != self.project:
            raise Refused(403, "PERMISSION_DENIED", "not your project")
        answer = content(json.loads(body), self._look, KEYS | {"labels"})
        if verb == "generateContent":
            return as_json(answer)
        if query.get("alt") != "sse":
            raise Refused(400, "INVALID_ARGUMENT", "a stream of another form")
        return events(answer)

    def _predict(self, body: bytes, **_: Any) -> Answer:
        asked = json.loads(body)["instances"]
        found = [
            {"embeddings": {"values": [float(n)], "statistics": {"token_count": 1}}}
            for n, _ in enumerate(asked)
        ]
        return as_json({"predictions": found})

    # Batches

    def _start(self, project: str, location: str, body: bytes, **_: Any) -> Answer:
        told = json.loads(body)
        [uri] = told["inputConfig"]["gcsSource"]["uris"]
        self._at(uri)
        number = str(secrets.randbelow(10**12) + 10**12)
        name = f"projects/1234/locations/{location}/batchPredictionJobs/{number}"
        job = BatchJob(number, {**told, "name": name}, dt.datetime.now(dt.UTC), self.batch_polls)
        self.batches[number] = job
        return as_json(self._told_job(job))

    def _at(self, uri: str) -> Blob:
        found = re.fullmatch(r"gs://([^/]+)/(.+)", uri)
        blob = self.buckets.get(found[1], {}).get(found[2]) if found else None
        if blob is None:
            raise Refused(400, "INVALID_ARGUMENT", f"no such input: {uri}")
        return blob

    def _known(self, number: str) -> BatchJob:
        if number not in self.batches:
            raise Refused(404, "NOT_FOUND", f"no batchPredictionJob {number}")
        return self.batches[number]

    def _job(self, number: str, **_: Any) -> Answer:
        job = self._known(number)
        if job.state in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING"):
            job.polls_left -= 1
            job.state = "JOB_STATE_RUNNING" if job.polls_left > 0 else "JOB_STATE_SUCCEEDED"
            if job.state == "JOB_STATE_SUCCEEDED":
                self._write(job)
        return as_json(self._told_job(job))

    def _jobs(self, **_: Any) -> Answer:
        return as_json({"batchPredictionJobs": [self._told_job(j) for j in self.batches.values()]})

    def _cancel(self, number: str, **_: Any) -> Answer:
        job = self._known(number)
        if job.state not in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING"):
            raise Refused(400, "FAILED_PRECONDITION", "the job has ended")
        job.state = "JOB_STATE_CANCELLED"
        return as_json({})

    def _write(self, job: BatchJob) -> None:
        """The results, in any order, over several shards."""
        [uri] = job.told["inputConfig"]["gcsSource"]["uris"]
        prefix = job.told["outputConfig"]["gcsDestination"]["outputUriPrefix"]
        bucket, _, folder = prefix.removeprefix("gs://").partition("/")
        job.folder = f"{folder}/prediction-model-2026-11-21T00:00:00.000000Z"
        results = []
        for line in self._at(uri).content.splitlines():
            request = json.loads(line)["request"]
            row: dict[str, Any] = {"status": "", "processed_time": "2026-11-21T00:00:00Z"}
            try:
                row |= {"response": content(request, self._look, KEYS | {"labels"})}
            except Refused as refused:
                told = json.loads(refused.answer[2])
                row |= {"status": f"Bad Request: {json.dumps(told)}", "response": {}}
            results.append(json.dumps({**row, "request": request}))
        random.Random(7).shuffle(results)
        for shard in range(self.shards):
            name = f"{job.folder}/predictions.jsonl-{shard:05}-of-{self.shards:05}"
            lines = results[shard :: self.shards]
            data = "".join(f"{line}\n" for line in lines).encode()
            self.store(bucket, name, data, "application/jsonl")
        self.store(bucket, f"{job.folder}/incremental_predictions.jsonl", b"{}\n", "text/plain")
        job.more = {"outputInfo": {"gcsOutputDirectory": f"gs://{bucket}/{job.folder}"}}

    def _told_job(self, job: BatchJob) -> dict[str, Any]:
        ended = job.state not in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING")
        return {
            **job.told,
            "state": job.state,
            "createTime": _text(job.created_at),
            "updateTime": _text(job.created_at),
            **({"endTime": _text(job.created_at + dt.timedelta(seconds=3))} if ended else {}),
            **job.more,
        }


def _crc32c(data: bytes) -> str:
    found = google_crc32c.Checksum(data).digest()
    return base64.b64encode(found).decode()


def _text(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
