"""Files: create, retrieve, content, delete.

A row with the intent is committed before the first byte goes upstream, and what the upstream
answered is committed right after, so a crash at any point leaves rows from which every copy can
be finished or taken back. No transaction is open while an upstream is waited for.
"""

import datetime as dt
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from app import ids
from app.db import files as rows
from app.db import jobs as job_rows
from app.db.engine import Database
from app.db.tables import Copy, File, now
from app.errors import (
    Conflict,
    ContentNotAvailable,
    DatabaseUnavailable,
    DeleteIncomplete,
    GatewayError,
    InvalidRequest,
    NotFound,
    RangeNotSatisfiable,
    UpstreamError,
    UpstreamRejected,
)
from app.objects import FileDeleted, FileObject
from app.providers.protocol import Provider, StoredFile
from app.services.access import Caller
from app.services.batch_files import BatchFiles
from app.services.fan_out import FanOut
from app.services.file_objects import (
    copy_facts,
    copy_object,
    file_object,
    last_expiry,
    status_of,
    stored_object,
)
from app.services.lookup import Held, Lookup, Unrecorded
from app.services.router import Hints, Route, Router, Way
from app.settings import Settings
from app.transfers import Cancellation, Download, Upload

T = TypeVar("T")

log = logging.getLogger("manifold.files")

TOMBSTONE_AGE = dt.timedelta(days=2)
"""How long a deleted file's row stays, so that a list cursor that names it still works."""
_SWEEP_AT_ONCE = 100


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
        settings: Settings,
        database: Database,
        router: Router,
        lookup: Lookup,
        fan_out: FanOut,
    ) -> None:
        self._settings = settings
        self._database = database
        self._router = router
        self._lookup = lookup
        self._fan_out = fan_out
        self._batch_files = BatchFiles(settings, router)

    # Upload

    def create(self, caller: Caller, upload: Upload, way: Way) -> FileObject:
        """Store the upload at every route of the way (by one account: at one) and answer with it.

        Raises the upstream's error, naming the model, when some model ends with no copy; what was
        stored is taken back first.
        """
        if upload.purpose != "batch":
            return self._create(caller, upload, way, {})
        self._batch_files.check(caller, upload, way)
        with self._batch_files.copies(upload, way, upload.path.parent) as copies:
            return self._create(caller, upload, way, copies)

    def _create(
        self, caller: Caller, upload: Upload, way: Way, copies: Mapping[str, Upload]
    ) -> FileObject:
        """`copies` holds, by deployment id, what an upstream gets instead of the upload."""
        if way.kind == "unified":
            return self._store(caller, upload, way, way.routes, copies)
        routes = self._router.order(way.routes, lambda route: route.deployment.id)
        for route in routes[:-1]:
            try:
                return self._store(caller, upload, way, (route,), copies)
            except UpstreamError as error:
                if not error.retryable:
                    raise
                self._router.rest(route.deployment.id)
        return self._store(caller, upload, way, routes[-1:], copies)

    def _store(
        self,
        caller: Caller,
        upload: Upload,
        way: Way,
        routes: Sequence[Route],
        copies: Mapping[str, Upload],
    ) -> FileObject:
        file, planned = self._intend(caller, upload, way, routes)
        outcomes = self._fan_out.run(
            {
                copy.id: partial(
                    self._send,
                    copy.id,
                    route.provider,
                    copies.get(route.deployment.id, upload),
                )
                for copy, route in planned
            }
        )
        stored = {key: o for key, o in outcomes.items() if isinstance(o, StoredFile)}
        failed = {key: o for key, o in outcomes.items() if isinstance(o, GatewayError)}
        for copy, route in planned:
            if copy.id in failed:
                log.warning(
                    "upload failed",
                    extra={"deployment": route.deployment.id, "error": failed[copy.id].message},
                )
        held_by = {copy.model_name for copy, _ in planned if copy.id in stored}
        without = [copy for copy, _ in planned if copy.id in failed]
        if self._settings.fan_out == "every_model":
            without = [copy for copy in without if copy.model_name not in held_by]
        if without:
            self._take_back(file, planned, stored, failed)
            raise _named(failed[without[0].id], without[0].model_name)
        return self._finish(file, planned, stored, failed, way)

    def _intend(
        self, caller: Caller, upload: Upload, way: Way, routes: Sequence[Route]
    ) -> tuple[File, list[tuple[Copy, Route]]]:
        moment = now()
        file_uuid = ids.new_uuid()
        expiry = upload.expires_after
        public_id = None
        if way.kind == "unified":
            public_id = ids.encode_unified(upload.mime_type, file_uuid, way.names)
            if not ids.is_raw(public_id):
                raise InvalidRequest(
                    f"{len(way.names)} target model names make an id of {len(public_id)} "
                    f"characters; {ids.MAX_ID_LENGTH} are allowed",
                    param="target_model_names",
                )
        file = File(
            id=file_uuid,
            public_id=public_id,
            kind=way.kind,
            owner=caller.owner,
            filename=upload.filename,
            mime_type=upload.mime_type,
            purpose=upload.purpose,
            bytes=upload.size,
            sha256=upload.sha256,
            target_model_names=list(way.names),
            state="uploading",
            status="uploaded",
            status_details=None,
            expires_at=moment + dt.timedelta(seconds=expiry.seconds) if expiry else None,
            created_at=moment,
            updated_at=moment,
        )
        planned = [
            (
                Copy(
                    id=ids.new_uuid(),
                    file_id=file_uuid,
                    model_name=route.model_name,
                    deployment_id=route.deployment.id,
                    provider=route.deployment.provider,
                    deployment_file_id=None,
                    state="intended",
                    attempts=1,
                    last_error=None,
                    expires_at=None,
                    created_at=moment,
                    updated_at=moment,
                ),
                route,
            )
            for route in routes
        ]
        with self._database.write() as session:
            rows.insert(session, file, [copy for copy, _ in planned])
        return file, planned

    def _send(self, copy_id: str, provider: Provider, upload: Upload) -> StoredFile:
        with self._router.counted(provider.deployment.id):
            stored = provider.upload(upload)
        try:
            with self._database.write() as session:
                rows.record_copy(session, copy_id, **copy_facts(stored))
        except DatabaseUnavailable:
            # Nobody would know of this copy: take it back now, the intent stays for later.
            with suppress(GatewayError):
                provider.delete(stored.id)
            raise
        return stored

    def _finish(
        self,
        file: File,
        planned: Sequence[tuple[Copy, Route]],
        stored: dict[str, StoredFile],
        failed: dict[str, GatewayError],
        way: Way,
    ) -> FileObject:
        copies = [copy for copy, _ in planned]
        for copy in copies:
            if copy.id in stored:
                for name, value in copy_facts(stored[copy.id]).items():
                    setattr(copy, name, value)
            else:
                copy.state = "missing" if _is_certain(failed[copy.id]) else "intended"
                copy.last_error = failed[copy.id].message
        file.public_id = self._public_id(file, copies, way)
        file.state = "ready"
        file.status, file.status_details = status_of(copies)
        file.expires_at = file.expires_at or last_expiry(copies)
        with self._database.write() as session:
            is_wanted = rows.record_file(
                session,
                file.id,
                was="uploading",
                public_id=file.public_id,
                state=file.state,
                status=file.status,
                status_details=file.status_details,
                expires_at=file.expires_at,
            )
            for copy in copies:
                if copy.id in failed:
                    rows.record_copy(session, copy.id, state=copy.state, last_error=copy.last_error)
        if not is_wanted:
            # Its owner was deleted meanwhile, and his files with him.
            self._delete_everywhere(Held(file, tuple(copies)))
            raise Conflict("the file was deleted while it was being uploaded")
        return file_object(file)

    @staticmethod
    def _public_id(file: File, copies: Sequence[Copy], way: Way) -> str | None:
        raw = next((c.deployment_file_id for c in copies if c.deployment_file_id), None)
        if way.kind == "encoded" and raw:
            return ids.encode_file(raw, way.names[0])
        return raw if way.kind == "raw" else file.public_id

    def _take_back(
        self,
        file: File,
        planned: Sequence[tuple[Copy, Route]],
        stored: dict[str, StoredFile],
        failed: dict[str, GatewayError],
    ) -> None:
        """Remove what was stored. What cannot be removed, or may be there, keeps its row."""
        undone = self._fan_out.run(
            {
                copy.id: partial(route.provider.delete, stored[copy.id].id)
                for copy, route in planned
                if copy.id in stored
            }
        )
        gone = {key for key, outcome in undone.items() if outcome is None}
        gone |= {key for key, error in failed.items() if _is_certain(error)}
        with self._database.write() as session:
            if len(gone) == len(planned):
                rows.drop_file(session, file.id)
                return
            rows.record_file(session, file.id, state="failed")
            rows.drop_copies(session, gone)
            for key, outcome in undone.items():
                if outcome is not None:
                    rows.record_copy(session, key, state="deleting", last_error=outcome.message)

    # Look

    def retrieve(
        self, caller: Caller, file_id: str, hints: Hints, *, with_copies: bool = False
    ) -> FileObject:
        """The file object, from the row; copies that are not final are asked for first."""
        found = self._lookup.resolve(caller, file_id, hints)
        if isinstance(found, Unrecorded):
            raw, handed = found.raw, found.handed
            return self._first(
                self._lookup.accounts(caller, found, hints),
                lambda route: stored_object(route.provider.retrieve(raw), handed),
            )
        found = self._refresh(found)
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
    ) -> Content:
        """The bytes from a copy that gives them, the next one when a copy fails before its first.

        Raises ContentNotAvailable or the last upstream's error when none does, NotFound when all
        of them have lost it.
        """
        found = self._lookup.resolve(caller, file_id, hints)
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
            # A batch file's copies were rewritten: their size is not the caller's.
            size = None if file.purpose == "batch" else file.bytes
            return Content(opened, file.filename, file.mime_type, size, route.deployment.id)
        if last is not None:
            raise last
        raise ContentNotAvailable(f"no copy of the file {file_id} can be read now", param="id")

    # Delete

    def delete(self, caller: Caller, file_id: str, hints: Hints) -> FileDeleted:
        """Remove every copy. Raises DeleteIncomplete naming the models where one remains.

        From the first attempt on the file is unusable; a repeated call goes on where it stopped.
        """
        found = self._lookup.resolve(caller, file_id, hints, deleting=True)
        if isinstance(found, Unrecorded):
            raw = found.raw
            self._first(
                self._lookup.accounts(caller, found, hints),
                lambda route: _delete_known(route.provider, raw),
            )
        else:
            self._refuse_while_read(found, file_id)
            remaining = self._delete_everywhere(found)
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
                self._delete_everywhere(Held(file, copies))

    def _delete_everywhere(self, held: Held) -> list[Copy]:
        """The copies that could not be deleted."""
        known = [copy for copy in held.copies if copy.deployment_file_id]
        known = [copy for copy in known if copy.state != "deleted"]
        with self._database.write() as session:
            rows.record_file(session, held.file.id, state="deleting")
            for copy in known:
                rows.record_copy(session, copy.id, state="deleting")
        outcomes = self._fan_out.run({copy.id: partial(self._erase, copy) for copy in known})
        remaining = [copy for copy in known if outcomes[copy.id] is not None]
        moment = now()
        with self._database.write() as session:
            if not remaining:
                rows.record_file(session, held.file.id, state="deleted")
            for copy in known:
                outcome = outcomes[copy.id]
                if outcome is None:
                    rows.record_copy(session, copy.id, state="deleted", last_error=None)
                else:
                    rows.record_copy(session, copy.id, last_error=outcome.message)
            if not remaining:
                rows.drop_tombstones(session, moment - TOMBSTONE_AGE, _SWEEP_AT_ONCE)
        return remaining

    def _erase(self, copy: Copy) -> None:
        route = self._router.by_id(copy.deployment_id)
        if route is None:
            raise UpstreamError("the configuration has this deployment no more")
        route.provider.delete(copy.deployment_file_id or "")

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


def _is_certain(error: GatewayError) -> bool:
    """Whether a failed upload has stored nothing for sure."""
    if isinstance(error, UpstreamRejected):
        return error.retryable or error.status < 500
    return not isinstance(error, UpstreamError | DatabaseUnavailable) or (
        isinstance(error, UpstreamError)
        and (error.retryable or error.code == "upstream_auth_failed")
    )


def _named(error: GatewayError, model_name: str | None) -> GatewayError:
    if model_name is not None:
        error.message = f"the upload to the model {model_name!r} failed: {error.message}"
    if error.status >= 500:
        # The client would repeat the whole upload; where the answer was lost that makes a twin.
        error.headers["x-should-retry"] = "false"
    return error


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
