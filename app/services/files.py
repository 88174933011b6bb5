"""Files: create, retrieve, content, delete.

A row with the intent is committed before the first byte goes upstream, and what the upstream
answered is committed right after, so a crash at any point leaves rows from which every copy can
be finished or taken back. No transaction is open while an upstream is waited for.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from app.db import files as rows
from app.db import jobs as job_rows
from app.db.engine import Database
from app.db.tables import Copy, File, now
from app.errors import (
    Conflict,
    ContentNotAvailable,
    DeleteIncomplete,
    GatewayError,
    NotFound,
    RangeNotSatisfiable,
    UpstreamError,
)
from app.objects import FileDeleted, FileObject
from app.providers.protocol import Provider
from app.services import audit
from app.services.callers import Caller
from app.services.copies import Copies
from app.services.file_objects import (
    copy_facts,
    copy_object,
    file_object,
    is_over,
    status_of,
    stored_object,
)
from app.services.head_start import HeadStart, HeadStarts
from app.services.kept import Kept
from app.services.lookup import Held, Lookup, Unrecorded
from app.services.renewal import expired
from app.services.router import Hints, Route, Router, Way
from app.services.storing import Storing
from app.transfers import Cancellation, Download, Upload

T = TypeVar("T")

log = logging.getLogger("manifold.files")


@dataclass(frozen=True)
class Content:
    """A file's bytes on their way out, with what the row says of them."""

    download: Download
    filename: str
    mime_type: str
    size: int | None
    deployment: str


class Files:
    """Everything that is done with files on behalf of a caller."""

    def __init__(
        self,
        database: Database,
        router: Router,
        lookup: Lookup,
        *,
        head_starts: HeadStarts,
        storing: Storing,
        copies: Copies,
        kept: Kept,
    ) -> None:
        self._database = database
        self._router = router
        self._lookup = lookup
        self._head_starts = head_starts
        self._storing = storing
        self._copies = copies
        self._kept = kept

    # Upload

    def begin(self, upload: Upload, way: Way) -> HeadStart | None:
        """Begin to send an upload that still arrives; see HeadStarts."""
        return self._head_starts.begin(upload, way)

    def create(
        self,
        caller: Caller,
        upload: Upload,
        way: Way,
        file_uuid: str | None = None,
        head_start: HeadStart | None = None,
    ) -> FileObject:
        """Store the upload and answer with it; see Storing."""
        return self._storing.create(caller, upload, way, file_uuid, head_start)

    def made(self, file_uuid: str) -> FileObject | None:
        """The file that was made under a row id, None when there is none that anybody may see."""
        file = self.recorded(file_uuid)
        return file_object(file) if file is not None and file.state == "ready" else None

    def recorded(self, file_uuid: str) -> File | None:
        """The row of a file, in whatever state, for those who chose its id."""
        with self._database.read() as session:
            return rows.by_uuid(session, file_uuid)

    # Look

    def retrieve(
        self,
        caller: Caller,
        file_id: str,
        hints: Hints,
        *,
        with_copies: bool = False,
        seen: rows.WithCopies | None = None,
    ) -> FileObject:
        """The file object, from the row; copies that are not final are asked for first.

        `seen` is the file that was found with the caller, if there was one.
        """
        found = self._lookup.resolve(caller, file_id, hints, seen=seen)
        if isinstance(found, Unrecorded):
            raw, handed = found.raw, found.handed
            return self._first(
                self._lookup.accounts(caller, found, hints),
                lambda route: stored_object(route.provider.retrieve(raw), handed),
            )
        found = self._refresh(found)
        found.file.status, found.file.status_details = status_of(found.copies)
        answer = file_object(found.file, handed=file_id)
        if with_copies:
            answer["copies"] = [
                copy_object(c, in_full=caller.sees_everything) for c in found.copies
            ]
        return answer

    def content(
        self,
        caller: Caller,
        file_id: str,
        hints: Hints,
        byte_range: str | None = None,
        cancellation: Cancellation | None = None,
        *,
        seen: rows.WithCopies | None = None,
    ) -> Content:
        """The bytes from a copy that gives them, the next one when a copy fails before its first.

        `seen` as for `retrieve`. Raises ContentNotAvailable or the last upstream's error when none
        does, NotFound when all of them have lost it.
        """
        found = self._lookup.resolve(caller, file_id, hints, seen=seen)
        if isinstance(found, Unrecorded):
            raw = found.raw
            return self._first(
                self._lookup.accounts(caller, found, hints),
                lambda route: Content(
                    _opened(route.provider.content(raw, byte_range, cancellation)),
                    raw,
                    "application/octet-stream",
                    None,
                    route.deployment.id,
                ),
            )
        file = found.file
        if (kept := self._kept.download(file, byte_range)) is not None:
            return Content(kept, file.filename, file.mime_type, file.bytes, "")
        last: GatewayError | None = None
        for copy, route in self._readable(found):
            try:
                stored_id = copy.deployment_file_id or ""
                opened = _opened(route.provider.content(stored_id, byte_range, cancellation))
            except RangeNotSatisfiable:
                raise
            except NotFound:
                last = last or NotFound(f"the file {file_id} is gone at its upstream", param="id")
                continue
            except GatewayError as error:
                if cancellation is not None and cancellation.is_cancelled:
                    raise
                last = error
                if isinstance(error, UpstreamError) and error.retryable:
                    self._router.rest(route.deployment.id)
                continue
            # A batch file's copies were rewritten, and what a batch made may be translated: their
            # size is not that of the row.
            size = None if file.purpose in ("batch", "batch_output") else file.bytes
            return Content(opened, file.filename, file.mime_type, size, route.deployment.id)
        if last is not None:
            raise last
        over = [copy for copy in found.copies if is_over(copy, now())]
        if over:
            raise expired(file, over[0])
        raise ContentNotAvailable(f"no copy of the file {file_id} can be read now", param="id")

    # Delete

    def delete(self, caller: Caller, file_id: str, hints: Hints) -> FileDeleted:
        """Remove every copy. Raises DeleteIncomplete naming the models where one remains.

        From the first attempt on the file is unusable; a repeated call goes on where it stopped.
        """
        found = self._lookup.resolve(caller, file_id, hints, deleting=True)
        if isinstance(found, Unrecorded):
            raw = found.raw
            accounts = self._lookup.accounts(caller, found, hints)
            audit.intend(self._database, caller, "file.delete", file_id)
            self._first(accounts, lambda route: _delete_known(route.provider, raw))
        else:
            self._refuse_while_read(found, file_id)
            note = audit.noting(caller, "file.delete", file_id, size=found.file.bytes)
            remaining = self._copies.erase_all(found.file, found.copies, note)
            if remaining:
                names = sorted({copy.model_name or copy.provider for copy in remaining})
                raise DeleteIncomplete(
                    f"the file {file_id} still has copies at: {', '.join(names)}; it can no "
                    "longer be used, and repeating the delete goes on with the rest",
                    param="id",
                )
        return {"id": file_id, "object": "file", "deleted": True}

    def _refuse_while_read(self, held: Held, file_id: str) -> None:
        with self._database.read() as session:
            job = job_rows.running_on(session, held.file.id)
        if job is not None:
            raise Conflict(
                f"the file {file_id} is the input of {job.public_id or 'a job that is starting'}, "
                f"which is {job.status}",
                param="id",
                code="file_in_use",
            )

    def finish_deletes(self, file_uuids: Collection[str]) -> None:
        """Go on with deletes that are committed; what remains keeps its row."""
        for file_uuid in file_uuids:
            with self._database.read() as session:
                file = rows.by_uuid(session, file_uuid)
                copies = tuple(rows.copies_of(session, [file_uuid]))
            if file is not None and file.state == "deleting":
                self._copies.erase_all(file, copies)

    # Copies

    @staticmethod
    def _first(accounts: Sequence[Route], ask: Callable[[Route], T]) -> T:
        """The answer of the first account that knows the file."""
        for route in accounts[:-1]:
            try:
                return ask(route)
            except NotFound:
                continue
        return ask(accounts[-1])

    def _readable(self, held: Held) -> Iterator[tuple[Copy, Route]]:
        for copy in self._router.order(held.readable, lambda copy: copy.deployment_id):
            route = self._router.by_id(copy.deployment_id)
            if route is not None:
                yield copy, route

    def _refresh(self, held: Held) -> Held:
        """Ask for the copies that their upstream is still at work on."""
        waiting = [c for c in held.copies if c.state == "stored" and c.deployment_file_id]
        if not waiting:
            return held
        changed: dict[str, dict[str, Any]] = {}
        for copy in waiting:
            route = self._router.by_id(copy.deployment_id)
            if route is None:
                continue
            try:
                stored = route.provider.retrieve(copy.deployment_file_id or "")
            except NotFound as error:
                changed[copy.id] = {"state": "missing", "last_error": error.message}
            except UpstreamError as error:
                changed[copy.id] = {"last_error": error.message}
            else:
                changed[copy.id] = copy_facts(stored)
        for copy in waiting:
            for name, value in changed.get(copy.id, {}).items():
                setattr(copy, name, value)
        held.file.status, held.file.status_details = status_of(held.copies)
        with self._database.write() as session:
            rows.record_file(
                session,
                held.file.id,
                status=held.file.status,
                status_details=held.file.status_details,
            )
            for copy_id, values in changed.items():
                rows.record_copy(session, copy_id, was="stored", **values)
        return held


def _delete_known(provider: Provider, raw: str) -> None:
    """Delete a file that the provider has; for one that it has not, deleting says nothing."""
    provider.retrieve(raw)
    provider.delete(raw)


def _opened(download: Download) -> Download:
    """The download with its first bytes read, so that a failure before them can be mended."""
    try:
        first = next(download.chunks, b"")
    except GatewayError:
        download.close()
        raise

    def chunks() -> Iterator[bytes]:
        if first:
            yield first
        yield from download.chunks

    return replace(download, chunks=chunks())
