"""The OpenAI objects that the gateway hands out, as TypedDicts.

Source: OpenAI API reference, Files and Models; read 2026-11.
"""

from typing import Any, Literal, NotRequired, TypedDict

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
"""Purposes that an upload may have."""

LISTED_PURPOSES = (*PURPOSES, "assistants_output", "batch_output", "fine-tune-results")
"""Purposes that a stored file may have, and a list may ask for."""


class FileObject(TypedDict):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None
    copies: NotRequired[list[dict[str, Any]]]


class FileDeleted(TypedDict):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class RequestCounts(TypedDict):
    total: int
    completed: int
    failed: int


class Batch(TypedDict):
    """A batch; times are Unix seconds. From a provider it has the upstream's ids."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: dict[str, Any] | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None
    usage: NotRequired[dict[str, Any]]
    model: NotRequired[str]


BATCH_FINAL = frozenset({"completed", "failed", "expired", "cancelled"})
"""States that a batch does not leave."""

JOB_FINAL = frozenset({"succeeded", "failed", "cancelled"})
"""States that a fine-tuning job does not leave."""

FineTuningJob = dict[str, Any]
"""A fine-tuning job: OpenAI's required keys are there, whatever else the upstream told is kept."""


class Page(TypedDict):
    object: Literal["list"]
    data: list[Any]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page(data: list[Any], *, has_more: bool) -> Page:
    """A list answer around `data`, whose items have an `id`."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
