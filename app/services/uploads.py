"""Large files in parts: create, parts, complete, cancel.

The parts are kept on the gateway's own disk and become a file as any other at complete. Every
change of an upload's status is one conditional UPDATE, so that of several calls at the same
moment one wins and the others are told.
"""

import datetime as dt
import hashlib
import logging
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from app import faults, ids
from app.db import uploads as rows
from app.db.engine import Database
from app.db.tables import UploadPart, UploadSession, now
from app.errors import (
    NO_SPACE,
    AmbiguousRouting,
    Conflict,
    DatabaseUnavailable,
    InvalidRequest,
    NotFound,
    NotPermitted,
    StorageFull,
    TooLarge,
)
from app.objects import FileObject
from app.services.callers import Caller
from app.services.files import Files
from app.services.metering import Meter
from app.services.router import Hints, Router, Selector, Way
from app.settings import Settings
from app.transfers import ExpiresAfter, Upload

log = logging.getLogger("manifold.uploads")

MB = 1024 * 1024
PART_BYTES = 64 * MB
"""The most that one part may hold. Source: OpenAI API reference, Uploads, add part."""
MAX_PARTS = 10_000
LIFETIME = dt.timedelta(hours=1)
TOMBSTONE_AGE = dt.timedelta(days=2)
"""How long a row outlives its upload, so that later calls are told what became of it."""

_SWEEP_AT_ONCE = 10
_COMPLETING_AGE = dt.timedelta(minutes=5)
"""How long parts may take to be put together before their process counts as dead."""
_KNOWN_AT_ONCE = 500
_ROW_ID = re.compile(r"[0-9a-f]{32}")
_ID = re.compile(r"upload_([0-9a-f]{32})")
_WHOLE = "whole"

Status = Literal["pending", "completed", "cancelled", "expired"]


class UploadObject(TypedDict):
    """Source: OpenAI API reference, Uploads, the upload object; read 2026-11."""

    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Status
    file: FileObject | None


class UploadPartObject(TypedDict):
    """Source: OpenAI API reference, Uploads, the part object; read 2026-11."""

    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str


@dataclass(frozen=True)
class Announced:
    """The file that will be sent in parts; `expires_after` is the file's, not the upload's."""

    filename: str
    mime_type: str
    purpose: str
    bytes: int
    expires_after: ExpiresAfter | None = None


class Uploads:
    """Everything that is done with uploads in parts on behalf of a caller."""

    def __init__(
        self, settings: Settings, database: Database, router: Router, files: Files, meter: Meter
    ) -> None:
        self._settings = settings
        self._database = database
        self._router = router
        self._files = files
        self._meter = meter
        self._root = settings.data_dir / "uploads"

    def create(self, caller: Caller, announced: Announced, selector: Selector) -> UploadObject:
        """A new pending upload, whose file will go where the selector says now.

        Raises what the router does for a model that is unknown or not the caller's, TooLarge.
        """
        self._check_size(announced)
        way = self._router.way(selector, caller)
        moment = now()
        expiry = announced.expires_after
        row = UploadSession(
            id=uuid.uuid4().hex,
            owner=caller.owner,
            filename=announced.filename,
            mime_type=announced.mime_type,
            purpose=announced.purpose,
            bytes=announced.bytes,
            file_expires_after_seconds=expiry.seconds if expiry else None,
            selector=_remembered(way),
            status="pending",
            part_ids=[],
            file_id=None,
            key_id=caller.key_id,
            expires_at=moment + LIFETIME,
            created_at=moment,
            updated_at=moment,
        )
        self._insert(caller, row, moment)
        return _upload_object(row)

    def part_folder(self, caller: Caller, upload_id: str) -> Path:
        """Where a part's bytes are to be spooled. Raises when no part can be added now."""
        with self._database.read() as session:
            row = self._admitted(caller, upload_id, rows.by_id(session, _row_id(upload_id)))
        _require_pending(row)
        return self._folder(row.id)

    def add_part(
        self, caller: Caller, upload_id: str, spooled: Path, size: int, sha256: str
    ) -> UploadPartObject:
        """Keep a part that was spooled to the folder; it is moved. `size` is in bytes.

        Raises InvalidRequest when the parts would hold more than was announced.
        """
        part = UploadPart(
            id=f"part_{uuid.uuid4().hex}",
            upload_id=_row_id(upload_id),
            bytes=size,
            sha256=sha256,
            created_at=now(),
        )
        path = self._folder(part.upload_id) / part.id
        try:
            spooled.rename(path)
        except FileNotFoundError:
            # Removed with its folder by a cancel, which this says; else it is a fault of ours.
            self.part_folder(caller, upload_id)
            raise
        try:
            with self._database.write() as session:
                row = rows.by_id(session, part.upload_id, lock=True)
                row = self._admitted(caller, upload_id, row)
                _require_pending(row)
                is_repeat = rows.has_content(session, row.id, sha256, size)
                _require_room(row, rows.sent(session, row.id), size, is_repeat=is_repeat)
                rows.add_part(session, part)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return {
            "id": part.id,
            "object": "upload.part",
            "created_at": int(part.created_at.timestamp()),
            "upload_id": upload_id,
        }

    def complete(
        self,
        caller: Caller,
        upload_id: str,
        part_ids: Sequence[str],
        hints: Hints,
        md5: str | None = None,
    ) -> UploadObject:
        """The completed upload with the file that was made of these parts, in this order.

        Repeated with the same parts it answers the same: the first answer may have been lost. On
        any failure, an upstream's above all, the upload is pending as before. Raises Conflict
        while another call completes it.
        """
        row = self._found(caller, upload_id)
        # What an admin completes is still its owner's.
        owner = replace(caller, owner=row.owner)
        if row.status == "completed" and row.part_ids == list(part_ids):
            return _upload_object(row, self._file_of(owner, row))
        _require_pending(row)
        _require_same(row, hints.selector())
        way = self._router.way(_selector(row), caller)
        parts = self._chosen(row, part_ids)
        # While it completes the row names the file that is being made: after a crash that tells.
        file_uuid = ids.new_uuid()
        self._move(row, "completing", part_ids=list(part_ids), file_id=file_uuid)
        faults.point("completing committed")
        try:
            with self._assembled(row, parts, md5) as upload:
                file = self._files.create(owner, upload, way, file_uuid)
        except BaseException:
            with suppress(DatabaseUnavailable):
                self._reopen(row.id)
            raise
        self._finish(row, file)
        return _upload_object(row, file)

    def cancel(self, caller: Caller, upload_id: str) -> UploadObject:
        """The cancelled upload, its parts gone. Raises InvalidRequest for one that is over."""
        row = self._found(caller, upload_id)
        if row.status != "cancelled":
            _require_pending(row)
            self._move(row, "cancelled")
            self._remove(row.id)
        return _upload_object(row)

    def sweep(self) -> None:
        """Bring to their end uploads that nobody comes back to, and those that a crash cut off."""
        moment = now()
        with self._database.read() as session:
            forgotten = rows.over_since(session, moment - TOMBSTONE_AGE, _SWEEP_AT_ONCE)
            cut_off = rows.completing_since(session, moment - _COMPLETING_AGE, _SWEEP_AT_ONCE)
        self._remove(*forgotten)
        with self._database.write() as session:
            rows.drop(session, forgotten)
            expired = rows.expire(session, moment, _SWEEP_AT_ONCE)
        self._remove(*expired)
        for row in cut_off:
            self._recover(row)

    def strays(self, young_seconds: float) -> Iterator[str]:
        """The row ids of uploads that have a folder with parts, and no row any more."""
        before = time.time() - young_seconds
        names = [path.name for path in self._root.glob("*") if _ROW_ID.fullmatch(path.name)]
        for start in range(0, len(names), _KNOWN_AT_ONCE):
            some = names[start : start + _KNOWN_AT_ONCE]
            with self._database.read() as session:
                known = rows.known(session, some)
            for name in some:
                with suppress(FileNotFoundError):
                    if name not in known and self._folder(name).stat().st_ctime <= before:
                        yield name

    def is_stray(self, row_id: str) -> bool:
        """Whether there is a folder of this upload, and no row."""
        with self._database.read() as session:
            return self._folder(row_id).is_dir() and not rows.known(session, [row_id])

    def discard(self, row_id: str) -> None:
        """Remove an upload's folder."""
        self._remove(row_id)

    def _recover(self, row: UploadSession) -> None:
        """An upload whose completing was cut off: its file was made, or it may be tried again."""
        file = self._files.recorded(row.file_id or "")
        if file is not None and file.state == "uploading":
            return  # Its process lives, or the reconciler comes to it soon.
        if file is None or file.state != "ready":
            self._reopen(row.id)
            return
        with self._database.write() as session:
            done = {"file_id": file.public_id}
            rows.change_status(session, row.id, "completing", "completed", **done)
        self._remove(row.id)

    def _reopen(self, row_id: str) -> None:
        with self._database.write() as session:
            rows.change_status(session, row_id, "completing", "pending", part_ids=[], file_id=None)

    # Rows

    def _insert(self, caller: Caller, row: UploadSession, moment: dt.datetime) -> None:
        """Add the row, and clean up a little after those that nobody came back to."""
        with self._database.read() as session:
            forgotten = rows.over_since(session, moment - TOMBSTONE_AGE, _SWEEP_AT_ONCE)
        # Once more before their rows go: a crash may have come between status and removal.
        self._remove(*forgotten)
        with self._database.write() as session:
            self._meter.admit(session, caller, row.bytes, is_announced=True)
            rows.drop(session, forgotten)
            expired = rows.expire(session, moment, _SWEEP_AT_ONCE)
            rows.insert(session, row)
        self._remove(*expired)

    def _found(self, caller: Caller, upload_id: str) -> UploadSession:
        with self._database.read() as session:
            return self._admitted(caller, upload_id, rows.by_id(session, _row_id(upload_id)))

    def _admitted(self, caller: Caller, upload_id: str, row: UploadSession | None) -> UploadSession:
        """The row when the caller may use it. Raises NotPermitted, NotFound."""
        if row is None:
            raise _unknown(upload_id)
        if row.owner == caller.owner or caller.is_admin:
            return row
        if self._settings.hide_foreign_objects:
            raise _unknown(upload_id)
        raise NotPermitted(
            f"User {caller.display_name} does not have access to the upload {upload_id}"
        )

    def _move(self, row: UploadSession, after: str, **values: Any) -> None:
        """Change a pending upload's status. Raises for one that is pending no more."""
        with self._database.write() as session:
            moved = rows.change_status(session, row.id, "pending", after, **values)
            current = None if moved else rows.by_id(session, row.id)
        if not moved:
            if current is None:
                raise _unknown(_public_id(row))
            _require_pending(current)
            raise _being_completed(current)
        row.status = after

    def _chosen(self, row: UploadSession, part_ids: Sequence[str]) -> list[UploadPart]:
        with self._database.read() as session:
            known = {part.id: part for part in rows.parts_of(session, row.id)}
        seen: set[str] = set()
        for part_id in part_ids:
            if part_id not in known:
                raise InvalidRequest(
                    f"the upload {_public_id(row)} has no part {part_id!r:.80}", param="part_ids"
                )
            if part_id in seen:
                raise InvalidRequest(f"part_ids names {part_id!r} twice", param="part_ids")
            seen.add(part_id)
        parts = [known[part_id] for part_id in part_ids]
        size = sum(part.bytes for part in parts)
        if size != row.bytes:
            raise InvalidRequest(
                f"the parts hold {size} bytes, the upload was announced with {row.bytes} bytes",
                param="part_ids",
            )
        return parts

    def _finish(self, row: UploadSession, file: FileObject) -> None:
        row.status, row.file_id = "completed", file["id"]
        try:
            with self._database.write() as session:
                rows.change_status(session, row.id, "completing", "completed", file_id=file["id"])
        except DatabaseUnavailable:
            # The file is there and the client is to know it; the row is left for later.
            log.exception("upload completed but not recorded", extra={"upload": row.id})
        else:
            self._remove(row.id)

    def _file_of(self, owner: Caller, row: UploadSession) -> FileObject | None:
        """The file that was made, None when it is deleted by now."""
        try:
            return self._files.retrieve(owner, row.file_id or "", Hints())
        except NotFound:
            return None

    # Bytes

    def _folder(self, row_id: str) -> Path:
        return self._root / row_id

    def _remove(self, *row_ids: str) -> None:
        for row_id in row_ids:
            shutil.rmtree(self._folder(row_id), ignore_errors=True)

    @contextmanager
    def _assembled(
        self, row: UploadSession, parts: Sequence[UploadPart], md5: str | None
    ) -> Iterator[Upload]:
        """The parts as one file, for as long as the context lasts."""
        folder = self._folder(row.id)
        whole = folder / _WHOLE
        digests = [hashlib.sha256()]
        if md5 is not None:
            digests.append(hashlib.md5(usedforsecurity=False))
        try:
            size = _join([folder / part.id for part in parts], whole, digests)
            if size != row.bytes:
                raise InvalidRequest(
                    f"of the parts of the upload {_public_id(row)} only {size} bytes are left on "
                    "the gateway's disk; begin a new upload",
                    param="part_ids",
                    code="parts_lost",
                )
            if md5 is not None and (found := digests[1].hexdigest()) != md5.lower():
                raise InvalidRequest(
                    f"the content's md5 is {found}, not {md5}", param="md5", code="md5_mismatch"
                )
            seconds = row.file_expires_after_seconds
            yield Upload(
                source=whole,
                filename=row.filename,
                mime_type=row.mime_type,
                purpose=row.purpose,
                size=row.bytes,
                sha256=digests[0].hexdigest(),
                expires_after=ExpiresAfter("created_at", seconds) if seconds else None,
            )
        finally:
            # No reason to fail for: the folder goes soon, and the file may be made already.
            with suppress(OSError):
                whole.unlink()

    def _check_size(self, announced: Announced) -> None:
        limit = self._settings.max_file_size_mb * MB
        kind = "file"
        if announced.purpose == "batch":
            limit, kind = min(limit, self._settings.max_batch_file_size_mb * MB), "batch file"
        if announced.bytes > limit:
            raise TooLarge(
                f"the {kind} is too large: {announced.bytes} bytes were announced, "
                f"{limit} bytes are allowed",
                param="bytes",
                code="file_too_large",
            )


def _join(parts: Sequence[Path], whole: Path, digests: Sequence[Any]) -> int:
    """Write the parts one after another, and into the digests; how many bytes they had."""
    size = 0
    try:
        with whole.open("wb") as out:
            for path in parts:
                with suppress(FileNotFoundError), path.open("rb") as source:
                    while piece := source.read(MB):
                        out.write(piece)
                        size += len(piece)
                        for digest in digests:
                            digest.update(piece)
    except FileNotFoundError:
        return size  # The whole folder is gone.
    except OSError as error:
        if error.errno in NO_SPACE:
            raise StorageFull from error
        raise
    return size


def _remembered(way: Way) -> dict[str, Any]:
    """The way as a selector that still means the same when a default has changed meanwhile."""
    if way.kind == "unified":
        return {"target_model_names": list(way.names)}
    if way.kind == "encoded":
        return {"model": way.names[0]}
    return {"provider": way.routes[0].deployment.provider}


def _selector(row: UploadSession) -> Selector:
    found = row.selector
    return Selector(
        model=found.get("model"),
        target_model_names=tuple(found.get("target_model_names", ())),
        provider=found.get("provider"),
    )


def _require_same(row: UploadSession, asked: Selector) -> None:
    """Raise AmbiguousRouting for a selector beside complete that is not the upload's own."""
    was, wanted = _named(_selector(row)), _named(asked)
    for kind, names in wanted.items():
        if set(was.get(kind, ())) != set(names):
            before = ", ".join(f"{key} {', '.join(value)!r}" for key, value in was.items())
            raise AmbiguousRouting(
                f"{kind} is {', '.join(names)!r} here, but the upload {_public_id(row)} was "
                f"created for {before}",
                param=kind,
            )


def _named(selector: Selector) -> dict[str, tuple[str, ...]]:
    """What a selector names, by its spelling on the wire."""
    found = {
        "model": (selector.model or "",),
        "custom_llm_provider": (selector.provider or "",),
        "target_model_names": selector.target_model_names,
    }
    return {kind: names for kind, names in found.items() if any(names)}


def _status(row: UploadSession) -> str:
    return "expired" if row.status == "pending" and row.expires_at <= now() else row.status


def _require_pending(row: UploadSession) -> None:
    """Raise InvalidRequest naming what became of the upload, Conflict while it is completed."""
    status = _status(row)
    if status == "completing":
        raise _being_completed(row)
    if status != "pending":
        became = "has expired" if status == "expired" else f"is {status}"
        raise InvalidRequest(
            f"the upload {_public_id(row)} {became}", param="upload_id", code=f"upload_{status}"
        )


def _being_completed(row: UploadSession) -> Conflict:
    return Conflict(
        f"the upload {_public_id(row)} is being completed by another request",
        param="upload_id",
        code="upload_completing",
    )


def _require_room(row: UploadSession, sent: rows.Sent, size: int, *, is_repeat: bool) -> None:
    """Raise InvalidRequest when a part is one too many.

    Equal parts count once: the openai client sends a part again whose answer was lost, and knows
    nothing of the first. All together may fill the disk with twice the announced bytes.
    """
    held = sent.distinct_bytes + (0 if is_repeat else size)
    if held <= row.bytes and sent.bytes + size > 2 * row.bytes:
        held = sent.bytes + size
    if held > row.bytes:
        raise InvalidRequest(
            f"with this part the upload would hold {held} bytes, it was announced with "
            f"{row.bytes} bytes",
            param="data",
        )
    if sent.parts >= MAX_PARTS:
        raise InvalidRequest(f"an upload may have {MAX_PARTS} parts", param="data")


def _row_id(upload_id: str) -> str:
    found = _ID.fullmatch(upload_id)
    if found is None:
        raise _unknown(upload_id)
    return found[1]


def _public_id(row: UploadSession) -> str:
    return f"upload_{row.id}"


def _unknown(upload_id: str) -> NotFound:
    shown = upload_id if len(upload_id) <= 80 else upload_id[:80] + "..."
    return NotFound(f"No such Upload object: {shown}", param="upload_id")


def _upload_object(row: UploadSession, file: FileObject | None = None) -> UploadObject:
    return {
        "id": _public_id(row),
        "object": "upload",
        "bytes": row.bytes,
        "created_at": int(row.created_at.timestamp()),
        "expires_at": int(row.expires_at.timestamp()),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": cast(Status, _status(row)),
        "file": file,
    }
