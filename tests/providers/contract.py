"""What every provider must do, written once; a provider's test file inherits it.

`ProviderContract` needs a fixture `provider`. `HttpProviderContract` gives a provider that speaks
HTTP an upstream to speak to: `FilesUpstream`, behind the library `responses`.
"""

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import requests
import responses
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from app.errors import (
    ContentNotAvailable,
    NotFound,
    NotSupported,
    RangeNotSatisfiable,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamTimeout,
)
from app.providers.protocol import BatchRequest, Operation, Provider
from app.providers.wire.jsonl import openai_url
from app.transfers import Cancellation, Download
from tests.builders import make_upload, path_of

EVERY_BYTE = bytes(range(256)) * 5
BODY = b'{"model": "m", "messages": []}'


def read(download: Download) -> bytes:
    """The bytes of a download, whose length must be true."""
    try:
        content = b"".join(download.chunks)
    finally:
        download.close()
    assert download.length in (None, len(content))
    return content


class FilesContract:
    """Tests of any provider. The subclass has a fixture `provider`, an account without files."""

    unknown_id: ClassVar[str] = "file-00000000000000000000000000000000"
    """An id that could be one of the provider's, and is not."""
    gives_ranges: ClassVar[bool] = True
    """Whether `content` can give parts."""
    gives_content: ClassVar[bool] = True
    """Whether what was uploaded can be downloaded again; if not, it is refused with a reason."""
    keeps_purposes: ClassVar[bool] = True
    """Whether a file's purpose is known to the upstream."""
    expires: ClassVar[bool] = False
    """Whether files end by themselves."""
    purpose: ClassVar[str] = "user_data"
    """A purpose that the provider takes, and whose files can be downloaded again."""

    @pytest.mark.parametrize(
        "content",
        [EVERY_BYTE, b"", b"\x00", b"\xff\xfe\r\n--boundary--\r\n", b"x" * 3_000_001],
        ids=["every byte value", "empty", "one byte", "looks like multipart", "several chunks"],
    )
    def test_what_was_uploaded_comes_back(self, provider: Provider, content: bytes) -> None:
        stored = provider.upload(make_upload(content, purpose=self.purpose))
        assert stored.size in (None, len(content))
        self._gives(provider, stored.id, content)

    def test_an_uploaded_file_is_described_as_it_was_sent(self, provider: Provider) -> None:
        before = int(time.time())
        upload = make_upload(b"12345", filename="Maße \U0001f600 (1).jsonl", purpose=self.purpose)
        stored = provider.upload(upload)
        assert (stored.filename, stored.purpose) == (upload.filename, self.purpose)
        assert stored.size in (None, 5)
        assert before - 60 <= stored.created_at <= time.time() + 60
        assert stored.status in ("uploaded", "processed")
        assert (stored.expires_at is not None) == self.expires

    def test_retrieve_says_what_upload_said(self, provider: Provider) -> None:
        stored = provider.upload(make_upload(purpose=self.purpose))
        assert provider.retrieve(stored.id) == stored

    def test_the_list_has_every_file(self, provider: Provider) -> None:
        assert list(provider.files()) == []
        stored = [
            provider.upload(make_upload(content, purpose=self.purpose))
            for content in (b"a", b"b", b"a")
        ]
        assert sorted(file.id for file in provider.files()) == sorted(file.id for file in stored)
        assert stored[0] in list(provider.files())

    def test_the_list_can_be_of_one_purpose(self, provider: Provider) -> None:
        stored = provider.upload(make_upload(purpose=self.purpose))
        assert [file.id for file in provider.files(self.purpose)] == [stored.id]
        other = "fine-tune" if self.purpose != "fine-tune" else "batch"
        found = [file.id for file in provider.files(other)]
        assert found == ([] if self.keeps_purposes else [stored.id])

    def test_the_same_bytes_twice_are_two_files(self, provider: Provider) -> None:
        first, second = (provider.upload(make_upload(purpose=self.purpose)) for _ in range(2))
        assert first.id != second.id
        provider.delete(first.id)
        self._gives(provider, second.id, path_of(make_upload()).read_bytes())

    def test_it_says_where_its_requests_go(self, provider: Provider) -> None:
        for address in provider.addresses:
            assert address.startswith(("http://", "https://")) and not address.endswith("/")

    def test_an_unknown_id_is_not_found(self, provider: Provider) -> None:
        with pytest.raises(NotFound):
            provider.retrieve(self.unknown_id)
        with pytest.raises(NotFound):
            read(provider.content(self.unknown_id))

    def test_deleting_twice_is_no_error(self, provider: Provider) -> None:
        stored = provider.upload(make_upload(purpose=self.purpose))
        provider.delete(stored.id)
        provider.delete(stored.id)
        provider.delete(self.unknown_id)

    def test_a_deleted_file_is_not_found(self, provider: Provider) -> None:
        stored = provider.upload(make_upload(purpose=self.purpose))
        provider.delete(stored.id)
        with pytest.raises(NotFound):
            provider.retrieve(stored.id)
        with pytest.raises(NotFound):
            read(provider.content(stored.id))
        assert list(provider.files()) == []

    @pytest.mark.parametrize(
        ("byte_range", "start", "end"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=10-19", 10, 20),
            ("bytes=1200-", 1200, 1280),
            ("bytes=-3", 1277, 1280),
            ("bytes=1270-9999", 1270, 1280),
            ("bytes=-9999", 0, 1280),
        ],
    )
    def test_a_part_can_be_read(
        self, provider: Provider, byte_range: str, start: int, end: int
    ) -> None:
        stored = provider.upload(make_upload(EVERY_BYTE, purpose=self.purpose))
        if not self.gives_content:
            self._gives(provider, stored.id, EVERY_BYTE)
            return
        download = provider.content(stored.id, byte_range)
        if self.gives_ranges:
            assert download.content_range == f"bytes {start}-{end - 1}/1280"
            assert read(download) == EVERY_BYTE[start:end]
        else:
            assert download.content_range is None
            assert read(download) == EVERY_BYTE

    def test_a_part_behind_the_end_is_refused(self, provider: Provider) -> None:
        stored = provider.upload(make_upload(b"12345", purpose=self.purpose))
        if not self.gives_content or not self.gives_ranges:
            self._gives(provider, stored.id, b"12345", "bytes=5-")
            return
        with pytest.raises(RangeNotSatisfiable) as refusal:
            provider.content(stored.id, "bytes=5-")
        assert refusal.value.headers == {"Content-Range": "bytes */5"}

    def _gives(
        self, provider: Provider, file_id: str, content: bytes, byte_range: str | None = None
    ) -> None:
        """The bytes come back, or are refused with a reason where the provider gives none."""
        if self.gives_content:
            assert read(provider.content(file_id, byte_range)) == content
            return
        with pytest.raises(ContentNotAvailable):
            provider.content(file_id, byte_range)

    def test_what_is_not_declared_is_refused(self, provider: Provider) -> None:
        for operation in frozenset(Operation) - provider.operations - {Operation.FILES}:
            with pytest.raises(NotSupported, match=operation.value):
                provider.infer(operation, BODY, "m", Cancellation())
        for name in (Operation.FILES, Operation.BATCHES, Operation.FINE_TUNING):
            if name in provider.operations:
                continue
            for call in _CALLS[name](provider, self.unknown_id, self.purpose):
                with pytest.raises(NotSupported):
                    call()


class JobsContract:
    """Tests of a provider with OpenAI's batches and fine-tuning. The fixture is the same."""

    @pytest.mark.parametrize("metadata", [None, {}, {"k": "v"}], ids=["none", "empty", "a pair"])
    def test_a_batch_is_described_as_it_was_asked_for(
        self, provider: Provider, metadata: dict[str, str] | None
    ) -> None:
        file_id = _batch_input(provider)
        endpoint = provider.row_url("/v1/responses")
        request = BatchRequest(file_id, endpoint, "24h", metadata)
        before = int(time.time())
        batch = provider.create_batch(request)
        assert (batch["input_file_id"], batch["completion_window"]) == (file_id, "24h")
        assert openai_url(batch["endpoint"]) == "/v1/responses"
        assert (batch["metadata"] or {}) == (metadata or {})
        assert batch["status"] == "validating"
        assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)
        assert before - 60 <= batch["created_at"] <= time.time() + 60
        assert provider.retrieve_batch(batch["id"]) == batch

    def test_the_list_has_every_batch_newest_first(self, provider: Provider) -> None:
        file_id = _batch_input(provider)
        assert list(provider.batches()) == []
        request = BatchRequest(file_id, provider.row_url("/v1/responses"), "24h")
        made = [provider.create_batch(request) for _ in range(3)]
        assert [batch["id"] for batch in provider.batches()] == [b["id"] for b in reversed(made)]

    def test_a_batch_can_be_cancelled(self, provider: Provider) -> None:
        file_id = _batch_input(provider)
        request = BatchRequest(file_id, provider.row_url("/v1/responses"), "24h")
        batch = provider.create_batch(request)
        assert provider.cancel_batch(batch["id"])["status"] == "cancelling"
        assert provider.retrieve_batch(batch["id"])["status"] == "cancelling"

    def test_an_unknown_batch_is_not_found(self, provider: Provider) -> None:
        for call in batch_calls(provider, "batch_unknown", "")[1:3]:
            with pytest.raises(NotFound):
                call()

    def test_a_job_is_described_as_it_was_asked_for(self, provider: Provider) -> None:
        file_id = provider.upload(make_upload(purpose="fine-tune")).id
        body = {"model": "m", "training_file": file_id, "suffix": "s", "metadata": {"k": "v"}}
        job = provider.create_job(body)
        assert {key: job[key] for key in body} == body
        assert (job["status"], job["result_files"]) == ("validating_files", [])
        assert provider.retrieve_job(job["id"]) == job
        second = provider.create_job(body)
        assert [found["id"] for found in provider.jobs()] == [second["id"], job["id"]]

    def test_a_job_can_be_steered(self, provider: Provider) -> None:
        file_id = provider.upload(make_upload(purpose="fine-tune")).id
        job = provider.create_job({"model": "m", "training_file": file_id})
        assert provider.steer_job(job["id"], "pause")["status"] == "paused"
        assert provider.steer_job(job["id"], "resume")["status"] == "queued"
        assert provider.steer_job(job["id"], "cancel")["status"] == "cancelled"
        for what in ("events", "checkpoints"):
            page = provider.job_page(job["id"], what, None, 20)
            assert (page["object"], page["has_more"]) == ("list", False)

    def test_an_unknown_job_is_not_found(self, provider: Provider) -> None:
        for call in job_calls(provider, "ftjob-unknown", "")[1:4]:
            with pytest.raises(NotFound):
                call()


class ProviderContract(FilesContract, JobsContract):
    """Tests of a provider that does all of it in OpenAI's own way."""


def _batch_input(provider: Provider) -> str:
    return provider.upload(make_upload(purpose="batch")).id


def file_calls(provider: Provider, file_id: str, purpose: str) -> list[Callable[[], object]]:
    """One call of each file method, to see how they fail."""
    return [
        lambda: provider.upload(make_upload(purpose=purpose)),
        lambda: provider.retrieve(file_id),
        lambda: list(provider.files()),
        lambda: read(provider.content(file_id)),
        lambda: provider.delete(file_id),
    ]


def batch_calls(provider: Provider, batch_id: str, _purpose: str) -> list[Callable[[], object]]:
    """One call of each batch method, to see how they fail."""
    return [
        lambda: provider.create_batch(BatchRequest("file-1", "/v1/responses", "24h")),
        lambda: provider.retrieve_batch(batch_id),
        lambda: provider.cancel_batch(batch_id),
        lambda: list(provider.batches()),
    ]


def job_calls(provider: Provider, job_id: str, _purpose: str) -> list[Callable[[], object]]:
    """One call of each fine-tuning method, to see how they fail."""
    return [
        lambda: provider.create_job({"model": "m", "training_file": "file-1"}),
        lambda: provider.retrieve_job(job_id),
        lambda: provider.steer_job(job_id, "cancel"),
        lambda: provider.job_page(job_id, "events", None, 20),
        lambda: list(provider.jobs()),
    ]


_CALLS = {
    Operation.FILES: file_calls,
    Operation.BATCHES: batch_calls,
    Operation.FINE_TUNING: job_calls,
}


class FilesUpstream:
    """An account at an upstream that has OpenAI's endpoints of files and of jobs, in memory.

    Source: OpenAI API reference, Files, Batch and Fine-tuning; read 2026-11. `requests` are those that came in. A
    subclass says how a provider's answers differ.
    """  # noqa: E501

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.contents: dict[str, bytes] = {}
        self.described: dict[str, dict[str, Any]] = {}
        self.requests: list[requests.PreparedRequest] = []
        self.uploaded_fields: list[dict[str, str]] = []
        self.jobs: dict[str, dict[str, dict[str, Any]]] = {"batches": {}, "fine_tuning/jobs": {}}

    def answer_of(self, described: dict[str, Any]) -> dict[str, Any]:
        """A file object as this upstream writes it."""
        return described

    def error_of(self, status: int, message: str) -> dict[str, Any]:
        """An error body as this upstream writes it."""
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        return {"error": error}

    def register(self, mock: responses.RequestsMock) -> None:
        """Answer requests below `base_url`; query strings do not matter."""
        root = re.escape(self.base_url.rstrip("/"))
        rest = r"(\?.*)?$"
        one = root + r"/files/(?P<id>[^/?]+)"
        jobs = root + r"/(?P<kind>batches|fine_tuning/jobs)"
        job = jobs + r"/(?P<id>[^/?]+)"
        for method, pattern, answer in (
            ("POST", root + "/files", self._create),
            ("GET", root + "/files", self._list),
            ("GET", one, self._retrieve),
            ("GET", one + "/content", self._content),
            ("DELETE", one, self._delete),
            ("POST", jobs, self._start),
            ("GET", jobs, self._list_jobs),
            ("GET", job, self._job),
            ("GET", job + "/(events|checkpoints)", self._details),
            ("POST", job + "/(?P<action>cancel|pause|resume)", self._steer),
        ):
            compiled = re.compile(pattern + rest)
            mock.add_callback(method, compiled, self._answering(compiled, answer))

    def _answering(
        self, pattern: re.Pattern[str], answer: Callable[..., Any]
    ) -> Callable[..., Any]:
        def callback(request: requests.PreparedRequest) -> tuple[int, dict[str, str], bytes]:
            self.requests.append(request)
            found = pattern.match(request.url or "")
            status, headers, body = answer(request, **(found.groupdict() if found else {}))
            if not isinstance(body, bytes):
                body = json.dumps(body).encode()
            return status, headers, body

        return callback

    def _create(self, request: requests.PreparedRequest) -> tuple[int, dict[str, str], Any]:
        mime_type, options = parse_options_header(request.headers["Content-Type"])
        sent = _sent(request.body)
        declared = request.headers.get("Content-Length")
        assert declared in (None, str(len(sent))), "Content-Length is not the body's length"
        _, form, files = FormDataParser().parse(io.BytesIO(sent), mime_type, len(sent), options)
        file = files["file"]
        file_id = f"file-{len(self.requests):032x}"
        self.uploaded_fields.append(form.to_dict())
        self.contents[file_id] = file.read()
        file.close()
        self.described[file_id] = {
            "id": file_id,
            "object": "file",
            "bytes": len(self.contents[file_id]),
            "created_at": int(time.time()),
            "filename": file.filename,
            "purpose": form["purpose"],
            "status": "processed",
        }
        return 200, {}, self.answer_of(self.described[file_id])

    def _list(self, request: requests.PreparedRequest) -> tuple[int, dict[str, str], Any]:
        purpose = request.params.get("purpose")  # type: ignore[attr-defined]  # responses adds it
        data = [
            self.answer_of(described)
            for described in self.described.values()
            if purpose in (None, described["purpose"])
        ]
        return 200, {}, {"object": "list", "data": data, "has_more": False}

    def _retrieve(
        self, request: requests.PreparedRequest, id: str
    ) -> tuple[int, dict[str, str], Any]:
        if id not in self.described:
            return self._missing(id)
        return 200, {}, self.answer_of(self.described[id])

    def _content(
        self, request: requests.PreparedRequest, id: str
    ) -> tuple[int, dict[str, str], Any]:
        if id not in self.contents:
            return self._missing(id)
        whole = self.contents[id]
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
        if found is None:
            return 200, {"Content-Length": str(len(whole))}, whole
        first, last = found.groups()
        start = int(first) if first else max(0, len(whole) - int(last))
        end = min(int(last) + 1, len(whole)) if first and last else len(whole)
        if start >= len(whole):
            return 416, {"Content-Range": f"bytes */{len(whole)}"}, self.error_of(416, "range")
        part = {"Content-Range": f"bytes {start}-{end - 1}/{len(whole)}"}
        return 206, {**part, "Content-Length": str(end - start)}, whole[start:end]

    def _delete(
        self, request: requests.PreparedRequest, id: str
    ) -> tuple[int, dict[str, str], Any]:
        if self.described.pop(id, None) is None:
            return self._missing(id)
        del self.contents[id]
        return 200, {}, {"id": id, "object": "file", "deleted": True}

    def job_of(self, job: dict[str, Any]) -> dict[str, Any]:
        """A batch or a fine-tuning job as this upstream writes it."""
        return job

    def _start(
        self, request: requests.PreparedRequest, kind: str
    ) -> tuple[int, dict[str, str], Any]:
        job_id = f"{'batch_' if kind == 'batches' else 'ftjob-'}{len(self.requests):032x}"
        status = "validating" if kind == "batches" else "validating_files"
        self.jobs[kind][job_id] = {
            **json.loads(_sent(request.body)),
            "id": job_id,
            "created_at": int(time.time()),
            "status": status,
        }
        return 200, {}, self.job_of(self.jobs[kind][job_id])

    def _list_jobs(
        self, request: requests.PreparedRequest, kind: str
    ) -> tuple[int, dict[str, str], Any]:
        data = [self.job_of(job) for job in reversed(self.jobs[kind].values())]
        return 200, {}, {"object": "list", "data": data, "has_more": False}

    def _job(
        self, request: requests.PreparedRequest, kind: str, id: str
    ) -> tuple[int, dict[str, str], Any]:
        if id not in self.jobs[kind]:
            return self._missing(id)
        return 200, {}, self.job_of(self.jobs[kind][id])

    def _details(
        self, request: requests.PreparedRequest, kind: str, id: str
    ) -> tuple[int, dict[str, str], Any]:
        status, headers, answer = self._job(request, kind, id)
        return status, headers, {"data": []} if status == 200 else answer

    def _steer(
        self, request: requests.PreparedRequest, kind: str, id: str, action: str
    ) -> tuple[int, dict[str, str], Any]:
        ends = {"cancel": "cancelled", "pause": "paused", "resume": "queued"}
        if id in self.jobs[kind]:
            status = "cancelling" if kind == "batches" else ends[action]
            self.jobs[kind][id]["status"] = status
        return self._job(request, kind, id)

    def _missing(self, file_id: str) -> tuple[int, dict[str, str], Any]:
        return 404, {}, self.error_of(404, f"No such File object: {file_id}")


class HttpProviderContract(ProviderContract):
    """Tests of a provider that speaks HTTP.

    The subclass has a fixture `provider` whose deployment has `max_retries=0`, and says with
    `base_url` where its requests go and with `Upstream` how the answers there look.
    """

    base_url: ClassVar[str]
    """What stands before `/files` in the address of a request."""
    Upstream: ClassVar[type[FilesUpstream]] = FilesUpstream

    @pytest.fixture(autouse=True)
    def upstream(self) -> Iterator[FilesUpstream]:
        """The upstream's side; a request that it does not know fails the test."""
        upstream = self.Upstream(self.base_url)
        # Not every test sends every request; one that must come is asserted by its test.
        with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
            upstream.register(mock)
            yield upstream

    @pytest.fixture
    def failing(self, upstream: FilesUpstream) -> Iterator[Callable[..., None]]:
        """A function that makes every request from now on end with a status or an exception."""
        with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:

            def fail(outcome: int | Exception, body: bytes | None = None) -> None:
                everything = re.compile(".*")
                for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
                    if isinstance(outcome, Exception):
                        mock.add(method, everything, body=outcome)
                    else:
                        raw = json.dumps(upstream.error_of(outcome, "no luck")).encode()
                        mock.add(method, everything, status=outcome, body=body or raw)

            yield fail

    def _all_calls(self, provider: Provider) -> list[Callable[[], object]]:
        return [
            call
            for operation, calls in _CALLS.items()
            if operation in provider.operations
            for call in calls(provider, self.unknown_id, self.purpose)
        ]

    @pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 400])
    def test_an_upstreams_error_is_an_upstream_error(
        self, provider: Provider, failing: Callable[..., None], status: int
    ) -> None:
        failing(status)
        for call in self._all_calls(provider):
            with pytest.raises(UpstreamError) as failure:
                call()
            assert failure.value.deployment == provider.deployment.id
            assert failure.value.provider == provider.deployment.provider

    def test_an_error_that_is_no_json_is_an_upstream_error(
        self, provider: Provider, failing: Callable[..., None]
    ) -> None:
        failing(502, b"<html><h1>Bad Gateway</h1></html>")
        for call in file_calls(provider, self.unknown_id, self.purpose):
            with pytest.raises(UpstreamError):
                call()

    def test_an_answer_that_is_no_json_is_an_upstream_error(
        self, provider: Provider, failing: Callable[..., None]
    ) -> None:
        failing(200, b"<html>Welcome</html>")
        for call in file_calls(provider, self.unknown_id, self.purpose)[:3]:
            with pytest.raises(UpstreamError):
                call()

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_refused_credential_is_our_own_fault(
        self, provider: Provider, failing: Callable[..., None], status: int
    ) -> None:
        failing(status)
        for call in self._all_calls(provider):
            with pytest.raises(UpstreamAuthFailed) as failure:
                call()
            assert failure.value.status == 502

    @pytest.mark.parametrize(
        ("problem", "error"),
        [
            (requests.ReadTimeout("slow"), UpstreamTimeout),
            (requests.ConnectTimeout("far"), UpstreamTimeout),
            (requests.ConnectionError("gone"), UpstreamError),
            (requests.exceptions.ChunkedEncodingError("broken"), UpstreamError),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
    )
    def test_no_answer_is_an_upstream_error(
        self,
        provider: Provider,
        failing: Callable[..., None],
        problem: Exception,
        error: type[UpstreamError],
    ) -> None:
        failing(problem)
        for call in self._all_calls(provider):
            with pytest.raises(error):
                call()

    @pytest.mark.parametrize("file_id", ["../../models", "a/b", "a?b=c", "a#b", "a%2fb"])
    def test_an_id_cannot_leave_its_place_in_the_address(
        self, provider: Provider, upstream: FilesUpstream, file_id: str
    ) -> None:
        with pytest.raises(NotFound):
            provider.retrieve(file_id)
        for request in upstream.requests:
            path = (request.url or "").partition("?")[0]
            assert path.removeprefix(self.base_url).count("/") == 2

    def test_expires_after_is_sent(self, provider: Provider, upstream: FilesUpstream) -> None:
        provider.upload(make_upload(purpose=self.purpose, expires_after_seconds=20 * 24 * 3600))
        assert upstream.uploaded_fields[-1] == {
            "purpose": self.purpose,
            "expires_after[anchor]": "created_at",
            "expires_after[seconds]": "1728000",
        }

    def test_a_refused_upload_may_be_tried_elsewhere(
        self, provider: Provider, failing: Callable[..., None]
    ) -> None:
        failing(503)
        with pytest.raises(UpstreamError) as failure:
            provider.upload(make_upload(purpose=self.purpose))
        assert failure.value.retryable

    def test_an_upload_without_an_answer_may_have_been_stored(
        self, provider: Provider, failing: Callable[..., None]
    ) -> None:
        failing(requests.ReadTimeout("slow"))
        with pytest.raises(UpstreamError) as failure:
            provider.upload(make_upload(purpose=self.purpose))
        assert not failure.value.retryable


def _sent(body: Any) -> bytes:
    if body is None:
        return b""
    if hasattr(body, "read"):
        body = body.read()
    if isinstance(body, str):
        return body.encode()
    return body if isinstance(body, bytes) else b"".join(body)
