"""Google's resources as JSON: a list page by page, the parts of one read leniently.

Source: Google Cloud API design guide, AIP-122 (names) and AIP-158 (pages); read 2026-11.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from app.errors import UpstreamError
from app.providers.openai_jobs import seconds
from app.providers.upstream import Upstream

_PAGE = "100"

ERROR_CODES: Mapping[object, str] = {
    1: "cancelled",
    3: "invalid_argument",
    4: "deadline_exceeded",
    5: "not_found",
    7: "permission_denied",
    8: "resource_exhausted",
    9: "failed_precondition",
    13: "internal",
    14: "unavailable",
}
"""The names of a job's error codes. Source: google/rpc/code.proto; read 2026-11."""


@contextmanager
def not_begun() -> Iterator[None]:
    """What comes before a job is asked for: whatever fails in it has begun nothing for sure."""
    try:
        yield
    except UpstreamError as error:
        error.retryable = True
        raise


def walk(upstream: Upstream, path: str, key: str) -> Iterator[dict[str, Any]]:
    """Every item of a list, all pages; `key` is where an answer has them."""
    params = {"pageSize": _PAGE}
    while True:
        answer = upstream.json("GET", path, params=params)
        yield from objects(answer.get(key))
        following = answer.get("nextPageToken")
        # The same page again would go round for ever.
        if not isinstance(following, str) or following in ("", params.get("pageToken")):
            return
        params["pageToken"] = following


def part(of: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The object below these keys, {} when there is none."""
    found: Any = of
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, dict) else {}


def objects(value: object) -> list[dict[str, Any]]:
    """The objects of a list, [] for what is none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def state_of(job: Mapping[str, Any]) -> str:
    """A job's state without JOB_STATE_; one that is not told yet is PENDING."""
    return str(job.get("state") or "JOB_STATE_PENDING").removeprefix("JOB_STATE_")


def end_of(job: Mapping[str, Any]) -> int | None:
    """When a job has ended, in Unix seconds; its last change where it does not say."""
    return seconds(job.get("endTime")) or seconds(job.get("updateTime"))


def last_part(name: object) -> str:
    """What stands behind the last slash of a resource's name, "" for none."""
    return name.rpartition("/")[2] if isinstance(name, str) else ""


def count(value: object) -> int:
    """A number that comes as text (int64), 0 for what is none; -1 is "unknown" in places."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
