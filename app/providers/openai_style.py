"""OpenAI's own endpoints over any Upstream; openai and azure add address and headers."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal
from urllib.parse import quote

from app.errors import InvalidRequest, NotFound, RangeNotSatisfiable, UpstreamError
from app.objects import Batch, FineTuningJob
from app.providers.multipart import MultipartFile
from app.providers.openai_jobs import OpenAIJobs, seconds
from app.providers.protocol import NO_FILES, BatchRequest, Operation, Provider, StoredFile
from app.providers.upstream import Answer, Upstream, clean, error_of
from app.transfers import AttachedFile, Cancellation, Download, Reply, Upload

_ERROR_BYTES = 1024 * 1024
_PAGE = "10000"

# Both providers' words for OpenAI's. Source: Azure OpenAI REST reference, Files; read 2026-11.
_STATUS: dict[str, Literal["uploaded", "processed", "error"]] = {
    "uploaded": "uploaded",
    "pending": "uploaded",
    "running": "uploaded",
    "notrunning": "uploaded",
    "processed": "processed",
    "succeeded": "processed",
    "error": "error",
    "failed": "error",
}

_SHOWN_HEADERS = (
    "Content-Type",
    "Retry-After",
    "retry-after-ms",
    "openai-processing-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
)


class OpenAIStyle(Provider):
    """A provider with OpenAI's endpoints. A subclass sets `upstream` and may move the paths."""

    operations = frozenset(Operation)
    upstream: Upstream

    def upload(self, upload: Upload) -> StoredFile:
        fields = {"purpose": upload.purpose, **self.routing_fields()}
        if upload.expires_after:
            fields["expires_after[anchor]"] = upload.expires_after.anchor
            fields["expires_after[seconds]"] = str(upload.expires_after.seconds)
        with MultipartFile(fields, upload) as body:
            answer = self.upstream.send_body(self.path("/files"), body, body.content_type)
        return self._stored(answer)

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self.upstream.base_url,)

    def check_access(self) -> None:
        # A list may have ten thousand entries; nobody has this file.
        self.retrieve("file-manifold-doctor")

    def retrieve(self, file_id: str) -> StoredFile:
        answer = self.upstream.json("GET", self._file_path(file_id))
        if _is_gone(answer):
            raise NotFound(f"No such File object: {file_id}", param="id")
        return self._stored(answer)

    def files(self, purpose: str | None = None) -> Iterator[StoredFile]:
        # Some servers have no cursor and answer every page with the whole list: an item that was
        # seen ends the walk, so it cannot go round for ever.
        seen: set[str] = set()
        params = {"limit": _PAGE, **({"purpose": purpose} if purpose else {})}
        while True:
            answer = self.upstream.json("GET", self.path("/files"), params=params)
            data = answer.get("data")
            if not isinstance(data, list):
                raise self._not_understood("a list without data")
            page = {self._stored(item).id: item for item in data}
            fresh = [item for file_id, item in page.items() if file_id not in seen]
            yield from (self._stored(item) for item in fresh if not _is_gone(item))
            seen.update(page)
            if not fresh or not answer.get("has_more"):
                return
            params["after"] = data[-1]["id"]

    def content(
        self,
        file_id: str,
        byte_range: str | None = None,
        cancellation: Cancellation | None = None,
    ) -> Download:
        # The answer to several ranges is a multipart body of its own; the whole may be given too.
        headers = {"Range": byte_range} if byte_range and "," not in byte_range else {}
        answer = self.upstream.stream(
            "GET",
            self._file_path(file_id, "/content"),
            headers=headers,
            cancellation=cancellation,
        )
        if answer.status == 416:
            answer.close()
            sized = answer.headers.get("content-range")
            raise RangeNotSatisfiable(
                f"the range {byte_range!r} is outside of the file",
                headers={"Content-Range": sized} if sized else None,
            )
        self.upstream.raise_for(answer)
        part = answer.headers.get("content-range") if answer.status == 206 else None
        if answer.status == 206 and part is None:
            answer.close()
            raise self._not_understood("a part that does not say which one it is")
        return Download(
            chunks=answer.chunks(),
            length=answer.length,
            content_range=part,
            close=answer.close,
        )

    def delete(self, file_id: str) -> None:
        try:
            self.upstream.json("DELETE", self._file_path(file_id))
        except NotFound:
            return

    def infer(
        self,
        operation: Operation,
        body: bytes,
        upstream_model: str,
        cancellation: Cancellation,
        files: Mapping[str, AttachedFile] = NO_FILES,
    ) -> Reply:
        path = self.inference_path(operation, upstream_model)
        return infer(self.upstream, path, body, cancellation)

    def create_batch(self, request: BatchRequest) -> Batch:
        return self._jobs.create_batch(request)

    def retrieve_batch(self, batch_id: str) -> Batch:
        return self._jobs.retrieve_batch(batch_id)

    def batches(self) -> Iterator[Batch]:
        return self._jobs.batches()

    def cancel_batch(self, batch_id: str) -> Batch:
        return self._jobs.cancel_batch(batch_id)

    def create_job(self, body: Mapping[str, Any]) -> FineTuningJob:
        return self._jobs.create_job(body)

    def retrieve_job(self, job_id: str) -> FineTuningJob:
        return self._jobs.retrieve_job(job_id)

    def jobs(self) -> Iterator[FineTuningJob]:
        return self._jobs.jobs()

    def steer_job(self, job_id: str, action: Literal["cancel", "pause", "resume"]) -> FineTuningJob:
        return self._jobs.steer_job(job_id, action)

    def job_page(
        self, job_id: str, what: Literal["events", "checkpoints"], after: str | None, limit: int
    ) -> dict[str, Any]:
        return self._jobs.job_page(job_id, what, after, limit)

    @property
    def _jobs(self) -> OpenAIJobs:
        return OpenAIJobs(self.upstream, self.path)

    def routing_fields(self) -> dict[str, str]:
        """Form fields of an upload that say for which model it is, where the provider asks."""
        return {}

    def path(self, path: str) -> str:
        """Where OpenAI's `path` is at this provider."""
        return path

    def inference_path(self, operation: Operation, upstream_model: str) -> str:
        """Where an inference operation is at this provider."""
        return self.path(f"/{operation.value}")

    def _file_path(self, file_id: str, rest: str = "") -> str:
        if file_id in ("", ".", ".."):
            raise NotFound(f"No such File object: {file_id}", param="id")
        return self.path(f"/files/{quote(file_id, safe='')}{rest}")

    def _stored(self, answer: Any) -> StoredFile:
        if not isinstance(answer, dict) or not isinstance(answer.get("id"), str):
            raise self._not_understood("a file without an id")
        size = answer.get("bytes")
        details = answer.get("status_details")
        return StoredFile(
            id=answer["id"],
            filename=clean(str(answer.get("filename") or "")),
            purpose=clean(str(answer.get("purpose") or "")),
            size=size if type(size) is int and size >= 0 else None,
            created_at=seconds(answer.get("created_at")) or 0,
            status=_STATUS.get(str(answer.get("status", "processed")).lower(), "processed"),
            status_details=clean(details) if isinstance(details, str) else None,
            expires_at=seconds(answer.get("expires_at")),
        )

    def _not_understood(self, what: str) -> UpstreamError:
        return UpstreamError(
            f"{self.deployment.provider} answered with {what}",
            provider=self.deployment.provider,
            deployment=self.deployment.id,
        )


def infer(upstream: Upstream, path: str, body: bytes, cancellation: Cancellation) -> Reply:
    """POST an inference body and return the answer as soon as its headers are there.

    An error answer is brought into OpenAI's envelope where it is not; nothing else is touched.
    """
    answer = upstream.stream(
        "POST",
        path,
        body=body,
        headers={
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
        },
        cancellation=cancellation,
    )
    headers = {name: answer.headers[name] for name in _SHOWN_HEADERS if name in answer.headers}
    if answer.status >= 300:
        return _refusal(answer, headers)
    return Reply(answer.status, headers, answer.chunks(), answer.close, answer.length)


def _refusal(answer: Answer, headers: dict[str, str]) -> Reply:
    with answer.response:
        raw = answer.read(_ERROR_BYTES)
    status = answer.status
    if status < 400:
        # A redirect would carry our credential elsewhere, and means nothing to the caller.
        raw, status = b"", 502
    error = error_of(raw, status)
    try:
        is_envelope = json.loads(raw)["error"].items() == error.items()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        is_envelope = False
    if not is_envelope:
        raw = json.dumps({"error": error}, ensure_ascii=False).encode()
        headers = {**headers, "Content-Type": "application/json"}
    return Reply(status, headers, iter((raw,)), length=len(raw))


def check_expiry(upload: Upload, shortest: int, longest: int, provider: str) -> None:
    """Raise InvalidRequest when a provider's own bounds for `expires_after` do not allow it."""
    expiry = upload.expires_after
    if expiry and not shortest <= expiry.seconds <= longest:
        raise InvalidRequest(
            f"expires_after.seconds is {expiry.seconds}; {provider} takes {shortest} to {longest}",
            param="expires_after[seconds]",
        )


def _is_gone(answer: Any) -> bool:
    return str(answer.get("status", "")).lower() in ("deleting", "deleted")
