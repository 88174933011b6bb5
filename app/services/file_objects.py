"""Rows of files and copies as OpenAI's objects, and what a provider tells as columns."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

from app.db.files import Listed
from app.db.tables import Copy, File, now
from app.objects import FileObject
from app.providers.protocol import StoredFile

_SHOWN_STATE = {"intended": "uploading", "stored": "uploading"}


def status_of(copies: Sequence[Copy]) -> tuple[str, str | None]:
    """OpenAI's status and details at this moment: processed when every model has a ready copy."""
    moment = now()
    by_model: dict[str | None, list[Copy]] = {}
    for copy in copies:
        by_model.setdefault(copy.model_name, []).append(copy)
    for group in by_model.values():
        if all(copy.state == "missing" or is_over(copy, moment) for copy in group):
            return "error", next((text for c in group if (text := _trouble(c, moment))), None)
    ready = all(
        any(c.state == "ready" and not is_over(c, moment) for c in group)
        for group in by_model.values()
    )
    return ("processed" if ready else "uploaded"), None


def is_over(copy: Copy, moment: dt.datetime) -> bool:
    """Whether the upstream has let go of the copy, as it said that it would."""
    has_ended = copy.expires_at is not None and copy.expires_at <= moment
    return copy.state == "expired" or (has_ended and copy.state in ("ready", "stored"))


def _trouble(copy: Copy, moment: dt.datetime) -> str | None:
    if is_over(copy, moment):
        return f"expired: {copy.model_name or copy.provider} has let go of the file"
    return copy.last_error


def file_object(file: File | Listed, *, handed: str | None = None) -> FileObject:
    """OpenAI's file object for a row, under the id that was asked for."""
    return {
        "id": handed or file.public_id or "",
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": _expiry(file),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,  # type: ignore[typeddict-item]  # one of OpenAI's three by status_of
        "status_details": file.status_details,
    }


def _expiry(file: File | Listed) -> int | None:
    known = [moment for moment in (file.expires_at, file.copies_expire_at) if moment]
    return int(min(known).timestamp()) if known else None


def stored_object(stored: StoredFile, handed: str) -> FileObject:
    """OpenAI's file object for what a provider tells, under another id."""
    return {
        "id": handed,
        "object": "file",
        "bytes": stored.size or 0,
        "created_at": stored.created_at,
        "expires_at": stored.expires_at,
        "filename": stored.filename,
        "purpose": stored.purpose,
        "status": stored.status,
        "status_details": stored.status_details,
    }


def copy_object(copy: Copy, *, in_full: bool) -> dict[str, object]:
    expires = int(copy.expires_at.timestamp()) if copy.expires_at else None
    state = "expired" if is_over(copy, now()) else copy.state
    shown: dict[str, object] = {
        "model": copy.model_name,
        "state": _SHOWN_STATE.get(state, state),
        "expires_at": expires,
    }
    if in_full:
        shown |= {
            "deployment": copy.deployment_id,
            "provider": copy.provider,
            "provider_file_id": copy.deployment_file_id,
            "attempts": copy.attempts,
            "last_error": copy.last_error,
        }
    return shown


def copy_facts(stored: StoredFile) -> dict[str, Any]:
    """What a provider tells of a file, as columns of its copy."""
    state = {"processed": "ready", "uploaded": "stored", "error": "missing"}[stored.status]
    expires = stored.expires_at
    return {
        "deployment_file_id": stored.id,
        "state": state,
        "last_error": stored.status_details,
        "expires_at": dt.datetime.fromtimestamp(expires, dt.UTC) if expires else None,
    }


def last_expiry(copies: Sequence[Copy]) -> dt.datetime | None:
    """When the last copy ends, None while one of them has no end."""
    moments = [copy.expires_at for copy in copies if copy.deployment_file_id]
    known = [moment for moment in moments if moment]
    return max(known) if known and len(known) == len(moments) else None
