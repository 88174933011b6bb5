"""OpenAI's batches and fine-tuning jobs over any Upstream, read leniently.

Azure writes states with capitals, dates as ISO text and leaves keys out. Source: OpenAI API
reference, Batch and Fine-tuning; Azure OpenAI REST reference, the same; read 2026-11.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal
from urllib.parse import quote

from app.objects import Batch, FineTuningJob
from app.providers.protocol import BatchRequest
from app.providers.upstream import Upstream

Path = Callable[[str], str]
_PAGE = 100
_LAST_SECOND = 253_402_300_799
"""The last one of the year 9999; no database takes a later moment."""
_TIMES = (
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)
_JOB_STATUS = {"created": "validating_files", "pending": "queued", "canceled": "cancelled"}
_BATCH_STATUS = {
    "canceled": "cancelled",
    "canceling": "cancelling",
    "inprogress": "in_progress",
    "notstarted": "validating",
}
_JOB_KEYS: Mapping[str, Any] = {
    "error": None,
    "fine_tuned_model": None,
    "finished_at": None,
    "hyperparameters": {},
    "model": "",
    "organization_id": "",
    "result_files": [],
    "seed": 0,
    "trained_tokens": None,
    "training_file": "",
    "validation_file": None,
}


class OpenAIJobs:
    """Batches and fine-tuning jobs of one account. `path` says where OpenAI's paths are there."""

    def __init__(self, upstream: Upstream, path: Path) -> None:
        self._upstream = upstream
        self._path = path

    def create_batch(self, request: BatchRequest) -> Batch:
        """The started batch."""
        body: dict[str, Any] = {
            "input_file_id": request.input_file_id,
            "endpoint": request.endpoint,
            "completion_window": request.completion_window,
        }
        if request.metadata is not None:
            body["metadata"] = request.metadata
        if request.output_expires_after is not None:
            expiry = request.output_expires_after
            body["output_expires_after"] = {"anchor": expiry.anchor, "seconds": expiry.seconds}
        return batch_of(self._named(self._upstream.post(self._path("/batches"), body)))

    def retrieve_batch(self, batch_id: str) -> Batch:
        """The batch as it is now."""
        answer = self._upstream.json("GET", self._path(f"/batches/{_id(batch_id)}"))
        return batch_of(self._named(answer))

    def cancel_batch(self, batch_id: str) -> Batch:
        """The batch after the upstream took note."""
        answer = self._upstream.post(self._path(f"/batches/{_id(batch_id)}/cancel"))
        return batch_of(self._named(answer))

    def batches(self) -> Iterator[Batch]:
        """All batches, page by page."""
        return map(batch_of, self._walk("/batches"))

    def create_job(self, body: Mapping[str, Any]) -> FineTuningJob:
        """The started job."""
        return job_of(self._named(self._upstream.post(self._path("/fine_tuning/jobs"), body)))

    def retrieve_job(self, job_id: str) -> FineTuningJob:
        """The job as it is now."""
        answer = self._upstream.json("GET", self._path(f"/fine_tuning/jobs/{_id(job_id)}"))
        return job_of(self._named(answer))

    def steer_job(self, job_id: str, action: str) -> FineTuningJob:
        """The job after the upstream took note."""
        answer = self._upstream.post(self._path(f"/fine_tuning/jobs/{_id(job_id)}/{action}"))
        return job_of(self._named(answer))

    def jobs(self) -> Iterator[FineTuningJob]:
        """All jobs, page by page."""
        return map(job_of, self._walk("/fine_tuning/jobs"))

    def job_page(
        self, job_id: str, what: Literal["events", "checkpoints"], after: str | None, limit: int
    ) -> dict[str, Any]:
        """One page, with OpenAI's words and times."""
        params = {"limit": str(limit), **({"after": after} if after else {})}
        answer = self._upstream.json(
            "GET", self._path(f"/fine_tuning/jobs/{_id(job_id)}/{what}"), params=params
        )
        data = [
            {
                **item,
                **({"created_at": seconds(item["created_at"])} if "created_at" in item else {}),
                **({"level": "warn"} if item.get("level") == "warning" else {}),
            }
            for item in _items(answer)
        ]
        rest = {key: value for key, value in answer.items() if key != "value"}
        return {**rest, "object": "list", "data": data, "has_more": answer.get("has_more") is True}

    def _walk(self, path: str) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        params = {"limit": str(_PAGE)}
        while True:
            answer = self._upstream.json("GET", self._path(path), params=params)
            items = [item for item in _items(answer) if isinstance(item.get("id"), str)]
            fresh = [item for item in items if item["id"] not in seen]
            yield from fresh
            seen.update(item["id"] for item in fresh)
            if not fresh or not answer.get("has_more"):
                return
            params["after"] = fresh[-1]["id"]

    def _named(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer, which must have an id: nobody could ask for a job without one again."""
        if not (isinstance(answer.get("id"), str) and answer["id"]):
            raise self._upstream.nonsense("answered with a job that has no id")
        return answer


def batch_of(answer: Mapping[str, Any]) -> Batch:
    """OpenAI's batch object from what an upstream wrote."""
    status = str(answer.get("status") or "validating").lower()
    counts = answer.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    batch: dict[str, Any] = {
        "id": _text(answer, "id"),
        "object": "batch",
        "endpoint": _text(answer, "endpoint"),
        "errors": answer.get("errors"),
        "input_file_id": _text(answer, "input_file_id"),
        "completion_window": _text(answer, "completion_window") or "24h",
        "status": _BATCH_STATUS.get(status, status),
        "output_file_id": _text(answer, "output_file_id") or None,
        "error_file_id": _text(answer, "error_file_id") or None,
        "created_at": seconds(answer.get("created_at")) or 0,
        **{name: seconds(answer.get(name)) for name in _TIMES},
        "request_counts": {
            name: _count(counts.get(name)) for name in ("total", "completed", "failed")
        },
        "metadata": answer.get("metadata"),
    }
    batch |= {name: answer[name] for name in ("usage", "model") if answer.get(name)}
    return batch  # type: ignore[return-value]  # built key by key above


def job_of(answer: Mapping[str, Any]) -> FineTuningJob:
    """OpenAI's fine-tuning job from what an upstream wrote."""
    status = str(answer.get("status") or "queued").lower()
    organization = answer.get("organization_id") or answer.get("organisation_id")
    rest = {
        key: value
        for key, value in answer.items()
        # A null where OpenAI has none says the same as nothing.
        if key != "organisation_id" and (value is not None or _JOB_KEYS.get(key) is None)
    }
    files = answer.get("result_files")
    job = {
        **_JOB_KEYS,
        **rest,
        "object": "fine_tuning.job",
        "organization_id": organization or "",
        "result_files": [file for file in files if isinstance(file, str) and file]
        if isinstance(files, list)
        else [],
        "status": _JOB_STATUS.get(status, status),
        "created_at": seconds(answer.get("created_at")) or 0,
        "finished_at": seconds(answer.get("finished_at")),
    }
    if "estimated_finish" in answer:
        job["estimated_finish"] = seconds(answer["estimated_finish"])
    return job


def seconds(value: Any) -> int | None:
    """Unix seconds from a number or from the ISO text that Azure sometimes writes, in UTC."""
    if isinstance(value, str):
        try:
            moment = dt.datetime.fromisoformat(value)
        except ValueError:
            return None
        value = (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value <= _LAST_SECOND else None


def _items(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objects of a list; an older preview of Azure's says `value`."""
    data = answer.get("data") or answer.get("value")
    return [item for item in data if isinstance(item, dict)] if isinstance(data, list) else []


def _text(answer: Mapping[str, Any], key: str) -> str:
    value = answer.get(key)
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _id(text: str) -> str:
    return quote(text, safe="")
