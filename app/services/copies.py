"""One copy of a file at one deployment: sent, looked for, removed; and its row beside it."""

import datetime as dt
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial

from sqlalchemy.orm import Session

from app import faults
from app.db import copies as work_rows
from app.db import files as rows
from app.db.engine import Database
from app.db.tables import Copy, File, now
from app.errors import (
    Conflict,
    DatabaseUnavailable,
    GatewayError,
    NotFound,
    UpstreamError,
    UpstreamRejected,
)
from app.providers.protocol import Attempt, Provider, StoredFile
from app.services import audit
from app.services.fan_out import FanOut
from app.services.file_objects import copy_facts, last_expiry, status_of
from app.services.kept import Kept
from app.services.router import Route, Router
from app.transfers import GivenUpError, Upload

log = logging.getLogger("manifold.files")

TOMBSTONE_AGE = dt.timedelta(days=2)
"""How long a deleted file's row stays, so that a list cursor that names it still works."""
_SWEEP_AT_ONCE = 100
_SHORTEST_PAUSE = dt.timedelta(seconds=2)
_LONGEST_PAUSE = dt.timedelta(minutes=10)


def pause(attempts: int) -> dt.timedelta:
    """How long to wait after so many attempts: longer each time, up to a bound."""
    return min(_SHORTEST_PAUSE * 1.7 ** min(attempts, 20), _LONGEST_PAUSE)


def is_certain(error: GatewayError) -> bool:
    """Whether a failed upload has stored nothing for sure."""
    if isinstance(error, UpstreamRejected):
        return error.retryable or error.status < 500
    return not isinstance(error, UpstreamError | DatabaseUnavailable) or (
        isinstance(error, UpstreamError)
        and (error.retryable or error.code == "upstream_auth_failed")
    )


def _refuse_live_twin(session: Session, copy: Copy, file: File) -> None:
    if work_rows.has_live_twin(session, copy, file, now()):
        raise UpstreamError("a file of the same name and size is being stored there")


class Copies:
    """What is done with single copies, for requests and for the worker alike."""

    def __init__(self, database: Database, router: Router, fan_out: FanOut, kept: Kept) -> None:
        self._database = database
        self._router = router
        self._fan_out = fan_out
        self._kept = kept

    def route_of(self, copy: Copy) -> Route:
        """The deployment of a copy. Raises UpstreamError when the configuration has it no more."""
        route = self._router.by_id(copy.deployment_id, copy.model_name)
        if route is None:
            raise UpstreamError("the configuration has this deployment no more")
        return route

    # Send

    def send(
        self,
        provider: Provider,
        upload: Upload,
        under_way: Callable[[], StoredFile] | None = None,
    ) -> StoredFile:
        """Store a copy whose intent is committed.

        `under_way` waits for the end of it where it was begun before.
        """
        stored = self._begun_before(under_way)
        if stored is None:
            with self._router.counted(provider.deployment.id):
                stored = provider.upload(upload)
        faults.point("copy stored upstream")
        return stored

    def record(self, copy_id: str, provider: Provider, stored: StoredFile) -> None:
        """Commit what the upstream calls a copy.

        Raises Conflict, with the copy taken back, when the intent is no longer there: somebody
        took this process for dead.
        """
        try:
            with self._database.write() as session:
                is_wanted = rows.record_copy(session, copy_id, **copy_facts(stored))
        except DatabaseUnavailable:
            # Nobody would know of this copy: take it back now, the intent stays for later.
            with suppress(GatewayError):
                provider.delete(stored.id)
            raise
        if not is_wanted:
            provider.delete(stored.id)
            raise Conflict("the upload took so long that it was given up on")
        faults.point("copy recorded")

    @staticmethod
    def _begun_before(under_way: Callable[[], StoredFile] | None) -> StoredFile | None:
        """What became of a head start, None when it ended before the file's end was let go."""
        try:
            return under_way() if under_way is not None else None
        except GivenUpError:
            return None

    # Look

    def recount(self, file_id: str) -> None:
        """Write the status that a file's copies make at this moment."""
        with self._database.write() as session:
            file = rows.by_uuid(session, file_id)
            if file is None or file.state != "ready":
                return
            copies = rows.copies_of(session, [file_id])
            status, details = status_of(copies)
            rows.record_file(
                session,
                file_id,
                was="ready",
                status=status,
                status_details=details,
                copies_expire_at=None if file.is_kept else last_expiry(copies),
            )

    def lost(self, file: File, copy: Copy) -> StoredFile | None:
        """What an attempt whose answer was lost has stored, None when there is nothing (yet).

        Its row is linked to it. Raises UpstreamError when the upstream does not say, and when it
        cannot be told from what somebody uploads at this moment.
        """
        provider = self.route_of(copy).provider
        is_searched = provider.id_of(copy.upload_key or "") is None
        if is_searched:
            with self._database.read() as session:
                _refuse_live_twin(session, copy, file)
        attempt = Attempt(
            key=copy.upload_key or "",
            filename=file.filename,
            purpose=file.purpose,
            size=work_rows.sent_bytes(copy, file),
            # A copy may have been on its way before the file was complete.
            begun_at=int(min(file.created_at, copy.created_at).timestamp()),
            ended_by=int(copy.updated_at.timestamp()),
        )
        found = list(provider.attempted(attempt))
        with self._database.read() as session:
            known = work_rows.linked(session, copy.deployment_id, [each.id for each in found])
        for each in found:
            if each.id in known:
                continue
            with self._database.write() as session:
                if is_searched:
                    # Begun since it was asked for above, it may be what was found.
                    _refuse_live_twin(session, copy, file)
                is_linked = work_rows.link(session, copy, each.id)
            if is_linked and (not is_searched or self._is_there(provider, copy, each.id)):
                return each
        return None

    def _is_there(self, provider: Provider, copy: Copy, raw: str) -> bool:
        """Whether what was found and linked still exists; else the link is undone.

        A twin may have been linked to it, and both removed, since the upstream's list was made.
        """
        try:
            provider.retrieve(raw)
        except NotFound:
            self._unlink(copy, raw)
            return False
        except GatewayError:
            self._unlink(copy, raw)
            raise
        return True

    def _unlink(self, copy: Copy, raw: str) -> None:
        with self._database.write() as session:
            work_rows.unlink(session, copy.id, raw)

    def has_lost_twin(self, file: File, copy: Copy) -> bool:
        """Whether what is found might be another content: one of the same name and size is lost."""
        if self.route_of(copy).provider.id_of(copy.upload_key or "") is not None:
            return False
        with self._database.read() as session:
            return work_rows.has_lost_twin(session, copy, file)

    def discard_lost(self, file: File, copy: Copy) -> None:
        """Remove everything that the lost attempt may have stored, whichever of it that is."""
        while (found := self.lost(file, copy)) is not None:
            self.route_of(copy).provider.delete(found.id)
            self._unlink(copy, found.id)

    # Remove

    def take_back(self, file: File, copies: Sequence[Copy], unsure: Collection[str] = ()) -> None:
        """Remove what was stored of a file that nobody has seen, and its row with the last copy.

        `unsure` are the ids of copies that may be there, or may still come. What cannot be
        removed, or is unsure, keeps its row for the worker.
        """
        stored = [copy for copy in copies if copy.deployment_file_id]
        faults.point("take-back begun")
        undone = self._fan_out.run({copy.id: partial(self.erase, copy) for copy in stored})
        faults.point("take-back done upstream")
        left = {key: outcome for key, outcome in undone.items() if outcome is not None}
        gone = {copy.id for copy in copies} - set(left) - set(unsure)
        moment = now()
        is_over = len(gone) == len(copies)
        with self._database.write() as session:
            if is_over:
                rows.drop_file(session, file.id)
            else:
                rows.record_file(session, file.id, state="failed")
                rows.drop_copies(session, gone)
                for key, error in left.items():
                    work_rows.settle(
                        session,
                        key,
                        state="deleting",
                        last_error=error.message,
                        next_look_at=moment + pause(0),
                    )
                for key in unsure:
                    work_rows.settle(session, key, next_look_at=moment + pause(0))
                # Another process may have removed the others meanwhile: this is the end of it.
                is_over = not rows.copies_of(session, [file.id])
                if is_over:
                    rows.drop_file(session, file.id)
        faults.point("take-back committed")
        if is_over:
            self._kept.drop(file.id, file.sha256)

    def erase_all(
        self, file: File, copies: Sequence[Copy], note: audit.Note = audit.unnoted
    ) -> list[Copy]:
        """Remove every copy of a file, from now on unusable; those that could not be removed.

        What remains keeps its row and is retried by the worker. `note` is written when it begins
        and when all are gone.
        """
        left = [copy for copy in copies if copy.state != "deleted"]
        moment = now()
        with self._database.write() as session:
            rows.record_file(session, file.id, state="deleting")
            for copy in left:
                rows.record_copy(session, copy.id, state="deleting", next_look_at=moment + pause(1))
            note(session, status=audit.BEGUN)
        faults.point("delete committed")
        outcomes = self._fan_out.run({copy.id: partial(self._remove, file, copy) for copy in left})
        faults.point("delete done upstream")
        remaining = [copy for copy in left if outcomes[copy.id] is not None]
        with self._database.write() as session:
            if not remaining:
                rows.record_file(session, file.id, state="deleted")
                note(session)
            for copy in left:
                outcome = outcomes[copy.id]
                if outcome is None:
                    work_rows.settle(
                        session, copy.id, state="deleted", last_error=None, next_look_at=None
                    )
                else:
                    rows.record_copy(session, copy.id, last_error=outcome.message)
            if not remaining:
                rows.drop_tombstones(session, now() - TOMBSTONE_AGE, _SWEEP_AT_ONCE)
        faults.point("delete recorded")
        if not remaining:
            self._kept.drop(file.id, file.sha256)
        return remaining

    def erase(self, copy: Copy) -> None:
        """Remove a copy at its upstream; one that is gone is no error."""
        self.route_of(copy).provider.delete(copy.deployment_file_id or "")
        faults.point("copy erased")

    def _remove(self, file: File, copy: Copy) -> None:
        if copy.lease_until is not None and copy.lease_until > now():
            raise UpstreamError("the copy is being stored at this moment")
        if copy.deployment_file_id:
            self.erase(copy)
        elif copy.upload_key and copy.state in ("intended", "deleting"):
            # Its answer was lost: it may be there all the same.
            if self.has_lost_twin(file, copy):
                self.discard_lost(file, copy)
            elif (found := self.lost(file, copy)) is not None:
                self.route_of(copy).provider.delete(found.id)
