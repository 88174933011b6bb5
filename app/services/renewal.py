"""Copies that their upstream no longer has are stored there again, by one process at a time."""

import datetime as dt
import hashlib
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from app import faults, turns
from app.db import copies as work_rows
from app.db import files as rows
from app.db.engine import Database
from app.db.tables import Copy, File, now
from app.errors import (
    NO_SPACE,
    ContentNotAvailable,
    FileExpired,
    GatewayError,
    NotFound,
    StorageFull,
    UpstreamError,
    UpstreamTimeout,
)
from app.providers.protocol import Provider
from app.services.batch_files import BatchFiles
from app.services.copies import Copies, is_certain, pause
from app.services.file_objects import copy_facts, is_over, last_expiry, status_of
from app.services.kept import Kept
from app.services.leases import Leases
from app.services.lookup import READABLE, Held
from app.services.router import Route, Router, Way
from app.settings import Settings
from app.spool import Spool
from app.transfers import Upload

log = logging.getLogger("manifold.renewal")

GONE = ("expired", "missing")
"""States of a copy that was there, or should have been, and is not."""
_LOOK_EVERY_SECONDS = (0.05, 1.0)


class Renewal:
    """Puts copies back where they belong, from whoever still has the bytes."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        router: Router,
        *,
        copies: Copies,
        batch_files: BatchFiles,
        kept: Kept,
        leases: Leases,
        spool: Spool,
    ) -> None:
        self._settings = settings
        self._database = database
        self._router = router
        self._copies = copies
        self._batch_files = batch_files
        self._kept = kept
        self._leases = leases
        self._spool = spool

    # What can be done

    def renewable(self, held: Held) -> list[Copy]:
        """The copies that are gone, or past their time, and have a deployment to go back to."""
        moment = now()
        return [
            copy
            for copy in held.copies
            if (copy.state in GONE or is_over(copy, moment))
            and self._router.by_id(copy.deployment_id) is not None
        ]

    def has_bytes(self, held: Held, copy: Copy) -> bool:
        """Whether somebody still has the content, for all that is known."""
        return self.is_kept(held) or any(other.id != copy.id for other in held.readable)

    def is_kept(self, held: Held) -> bool:
        """Whether the gateway's own disk has the content."""
        return self._kept.upload_of(held.file) is not None

    # Renew

    def renew(self, held: Held, copy: Copy) -> Copy:
        """The copy, stored at its upstream again: by this call, or by another one just now.

        Raises FileExpired when nobody has the bytes any more, the upstream's error when it does
        not take them, UpstreamTimeout when another process takes too long over it.
        """
        if not self.has_bytes(held, copy):
            raise expired(held.file, copy)
        moment, key = now(), secrets.token_hex(16)
        with self._database.write() as session:
            is_ours = work_rows.claim_renewal(session, copy, moment, self._leases.until(), key)
        if not is_ours:
            return self._awaited(copy)
        faults.point("renewal claimed")
        was = copy.deployment_file_id
        with self._leases.held([copy.id]):
            try:
                renewed = self._stored(held, copy, key)
            except GatewayError as error:
                self._failed(copy, error)
                raise
        if was and was != renewed.deployment_file_id:
            # It may live a little longer; nobody is told of it any more.
            with suppress(GatewayError):
                self._copies.route_of(copy).provider.delete(was)
            faults.point("renewal removed the old copy")
        return renewed

    def vanished(self, held: Held, copy: Copy) -> bool:
        """Ask the upstream whether it still has a copy; one that it has not is noted as missing."""
        try:
            self._copies.route_of(copy).provider.retrieve(copy.deployment_file_id or "")
        except NotFound as error:
            moment = now()
            with self._database.write() as session:
                work_rows.note_missing(
                    session,
                    copy,
                    moment,
                    last_error=error.message,
                    next_look_at=moment if self.has_bytes(held, copy) else None,
                )
            self._copies.recount(held.file.id)
            copy.state = "missing"
            return True
        except UpstreamError:
            return False
        return False

    def next_look(self, file: File, copy: Copy) -> dt.datetime | None:
        """When something is to be done about a copy that is in order; None: never."""
        if copy.state == "stored":
            return now() + pause(copy.attempts)
        if copy.state != "ready" or copy.expires_at is None:
            return None
        ahead = self._settings.renew_ahead_seconds if file.is_kept else 0.0
        return max(copy.expires_at - dt.timedelta(seconds=ahead), now() + pause(0))

    def _stored(self, held: Held, copy: Copy, key: str) -> Copy:
        route = self._copies.route_of(copy)
        file = held.file
        # Who held the lease before us died over it: perhaps after the upstream had said yes.
        stored = self._copies.lost(file, copy) if copy.lease_until is not None else None
        if stored is None:
            with (
                self._upload(held, copy, route) as upload,
                self._router.counted(copy.deployment_id),
            ):
                self._note_size(copy, upload.size)
                stored = route.provider.upload(replace(upload, key=key))
        faults.point("renewal stored upstream")
        facts = copy_facts(stored)
        facts["first_file_id"] = copy.first_file_id or copy.deployment_file_id
        for name, value in facts.items():
            setattr(copy, name, value)
        copy.lease_until, copy.next_look_at = None, self.next_look(file, copy)
        file.status, file.status_details = status_of(held.copies)
        file.copies_expire_at = None if file.is_kept else last_expiry(held.copies)
        with self._database.write() as session:
            rows.record_file(
                session,
                file.id,
                was="ready",
                status=file.status,
                status_details=file.status_details,
                copies_expire_at=file.copies_expire_at,
            )
            is_wanted = work_rows.record_renewal(
                session, copy.id, key, next_look_at=copy.next_look_at, **facts
            )
        if not is_wanted:
            route.provider.delete(stored.id)
            raise NotFound(f"No such File object: {file.public_id}", param="id")
        faults.point("renewal recorded")
        log.info("renewed", extra={"file": file.id, "deployment": copy.deployment_id})
        return copy

    def _note_size(self, copy: Copy, size: int) -> None:
        """Note how many bytes will be sent: by them the copy is found should the answer be lost."""
        if copy.sent_bytes == size:
            return
        with self._database.write() as session:
            rows.record_copy(session, copy.id, sent_bytes=size)
        copy.sent_bytes = size

    def _failed(self, copy: Copy, error: GatewayError) -> None:
        log.warning(
            "renewal failed",
            extra={"copy": copy.id, "deployment": copy.deployment_id, "error": error.message},
        )
        is_over_now = isinstance(error, FileExpired)
        with self._database.write() as session:
            work_rows.settle(
                session,
                copy.id,
                # What may have arrived is looked for before it is sent once more.
                state=copy.state if is_certain(error) else "intended",
                last_error=error.message,
                next_look_at=None if is_over_now else now() + pause(copy.attempts + 1),
            )

    def _awaited(self, copy: Copy) -> Copy:
        """The copy once whoever renews it has done so."""
        end = time.monotonic() + self._settings.file_wait_seconds
        wait = _LOOK_EVERY_SECONDS[0]
        while True:
            with self._database.read() as session:
                found = work_rows.by_id(session, copy.id)
            if found is None or found.state in ("deleting", "deleted"):
                raise NotFound("the file was deleted", param="id")
            if found.lease_until is None or found.lease_until <= now():
                moment = now()
                if found.state in READABLE and not is_over(found, moment):
                    return found
                raise UpstreamError(
                    f"the file could not be stored at {found.provider} again: {found.last_error}",
                    provider=found.provider,
                    deployment=found.deployment_id,
                )
            if time.monotonic() + wait > end:
                raise UpstreamTimeout(
                    f"the file is still being stored at {found.provider} again; try again later",
                    provider=found.provider,
                    deployment=found.deployment_id,
                )
            turns.leave()
            time.sleep(wait)
            wait = min(wait * 1.5, _LOOK_EVERY_SECONDS[1])

    # Bytes

    @contextmanager
    def _upload(self, held: Held, copy: Copy, route: Route) -> Iterator[Upload]:
        """The file as this copy's upstream wants it."""
        file = held.file
        with self._content(held, copy) as upload:
            if file.purpose != "batch":
                yield upload
                return
            way = Way(file.kind, tuple(file.target_model_names), (route,))  # type: ignore[arg-type]  # the column holds nothing else
            with self._batch_files.copies(upload, way, self._spool.folder()) as made:
                yield made[route.deployment.id]

    @contextmanager
    def _content(self, held: Held, copy: Copy) -> Iterator[Upload]:
        kept = self._kept.upload_of(held.file)
        if kept is not None:
            yield kept
            return
        others = [other for other in held.readable if other.id != copy.id]
        path = self._spool.folder() / f"renewal-{secrets.token_hex(8)}"
        try:
            yield self._fetched(held.file, others, copy, path)
        finally:
            path.unlink(missing_ok=True)

    def _fetched(self, file: File, others: Sequence[Copy], copy: Copy, path: Path) -> Upload:
        last: GatewayError | None = None
        for other in others:
            route = self._router.by_id(other.deployment_id)
            if route is None:
                continue
            try:
                return _downloaded(file, route.provider, other.deployment_file_id or "", path)
            except GatewayError as error:
                last = error
        if last is None or isinstance(last, NotFound | ContentNotAvailable):
            raise expired(file, copy)
        raise last


def expired(file: File, copy: Copy) -> FileExpired:
    """The answer when a copy is gone for good."""
    where = copy.model_name or copy.provider
    what = f"is gone at {where}"
    if copy.expires_at is not None and is_over(copy, now()):
        what = f"expired at {where} at {copy.expires_at:%Y-%m-%d %H:%M:%S} UTC"
    return FileExpired(
        f"the file {file.public_id} {what}, and neither the gateway nor another model has its "
        "content; upload it again",
        param="file_id",
    )


def _downloaded(file: File, provider: Provider, raw: str, path: Path) -> Upload:
    """The file from another holder, in the spool. Raises ContentNotAvailable for other bytes."""
    digest = hashlib.sha256()
    size = 0
    download = provider.content(raw)
    try:
        with path.open("wb") as out:
            for chunk in download.chunks:
                digest.update(chunk)
                size += len(chunk)
                out.write(chunk)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise StorageFull from error
        raise
    finally:
        download.close()
    # A batch file's rows were written for that holder; their models are written anew.
    if file.purpose != "batch" and digest.hexdigest() != file.sha256:
        raise ContentNotAvailable("another holder's bytes are not those that were sent")
    return Upload(
        source=path,
        filename=file.filename,
        mime_type=file.mime_type,
        purpose=file.purpose,
        size=size,
        sha256=digest.hexdigest(),
    )
