"""Every copy is brought to its end: finished, taken back, found again, renewed or removed.

Rows alone decide what is left to do: a copy with a `next_look_at` in the past is due. A look holds
the copy's lease, so one worker does it; when that worker dies the lease runs out and another one
takes over. Every step may be cut off anywhere and is done again from the rows.
"""

import datetime as dt
import logging
from collections.abc import Sequence

from app import faults
from app.db import copies as work_rows
from app.db import files as rows
from app.db.engine import Database
from app.db.tables import Copy, File, now
from app.errors import FileExpired, GatewayError, NotFound, UpstreamError
from app.services.copies import Copies, pause
from app.services.file_objects import copy_facts, is_over, last_expiry, status_of
from app.services.kept import Kept
from app.services.leases import Leases
from app.services.lookup import Held
from app.services.renewal import Renewal
from app.settings import Settings

log = logging.getLogger("manifold.reconciler")

AT_ONCE = 100
_SURE_AFTER_LOOKS = 2
"""How often an upstream is asked for a copy whose answer was lost before it counts as not there."""


class Reconciler:
    """The looks at copies of the background worker."""

    name = "copies"

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        copies: Copies,
        renewal: Renewal,
        kept: Kept,
        leases: Leases,
    ) -> None:
        self._settings = settings
        self._database = database
        self._copies = copies
        self._renewal = renewal
        self._kept = kept
        self._leases = leases

    def due(self) -> list[str]:
        """The row ids of copies that somebody should look at now, 100 at most."""
        with self._database.read() as session:
            return work_rows.due(session, now(), AT_ONCE)

    def look(self, copy_id: str) -> bool:
        """Do what is due about one copy; False when somebody else does, or nothing is."""
        held, copy = self._read(copy_id)
        if held is None or copy is None or copy.next_look_at is None or copy.next_look_at > now():
            return False
        try:
            if self._is_for_renewal(held, copy):
                return self._renew(held, copy)
            with self._database.write() as session:
                if not work_rows.claim(session, copy_id, now(), self._leases.until()):
                    return False
            faults.point("look claimed")
            with self._leases.held([copy_id]):
                # Since it was read it may have changed; from here on it is ours.
                held, copy = self._read(copy_id)
                if held is not None and copy is not None:
                    copy.lease_until = None
                    self._look(held, copy)
            faults.point("look done")
        except GatewayError as error:
            self._postpone(copy_id, error)
        except Exception:  # one copy's trouble is not that of the others
            log.exception("look broke", extra={"copy": copy_id})
            self._postpone(copy_id, GatewayError("internal error"))
        return True

    def _read(self, copy_id: str) -> tuple[Held | None, Copy | None]:
        with self._database.read() as session:
            copy = work_rows.by_id(session, copy_id)
            file = rows.by_uuid(session, copy.file_id) if copy else None
            if copy is None or file is None:
                return None, None
            copies = rows.copies_of(session, [file.id])
        mine = next(each for each in copies if each.id == copy_id)
        return Held(file, tuple(copies)), mine

    def _look(self, held: Held, copy: Copy) -> None:
        match held.file.state:
            case "uploading":
                self._abandon(held)
            case "failed":
                self._take_back(held.file, held.copies)
            case "deleting":
                self._copies.erase_all(held.file, held.copies)
            case "ready":
                self._look_at_ready(held, copy)
            case _:
                self._settle(copy, state="deleted", next_look_at=None)

    # Uploads that their process did not live to finish

    def _abandon(self, held: Held) -> None:
        """Nobody was told of this file: what there is of it goes."""
        with self._database.write() as session:
            if not rows.record_file(session, held.file.id, was="uploading", state="failed"):
                return
        log.warning("upload abandoned", extra={"file": held.file.id})
        self._take_back(held.file, held.copies)

    def _take_back(self, file: File, copies: Sequence[Copy]) -> None:
        unsure = set()
        for copy in copies:
            if copy.deployment_file_id or copy.state not in ("intended", "deleting"):
                continue
            found = None
            if self._copies.has_lost_twin(file, copy):
                # One that is taken for the other's would leave the other with the wrong bytes.
                self._copies.discard_lost(file, copy)
            else:
                found = self._copies.lost(file, copy)
            if found is not None:
                copy.deployment_file_id = found.id
            elif self._counted(copy) <= _SURE_AFTER_LOOKS:
                unsure.add(copy.id)
        self._copies.take_back(file, copies, unsure)

    # Files that their owners have

    def _is_for_renewal(self, held: Held, copy: Copy) -> bool:
        """Whether the copy has to be stored (again), and may be."""
        if held.file.state != "ready" or not self._renewal.has_bytes(held, copy):
            return False
        ends_soon = copy.expires_at is not None and copy.expires_at <= now() + dt.timedelta(
            seconds=self._settings.renew_ahead_seconds
        )
        is_gone = copy.state == "missing" or is_over(copy, now())
        return (is_gone or (copy.state == "ready" and ends_soon)) and not self._is_too_old(held)

    def _is_too_old(self, held: Held) -> bool:
        """Whether the time is over for which contents are kept until their copies are there."""
        age = now() - held.file.created_at
        limit = dt.timedelta(hours=self._settings.spool_max_hours)
        return not self._settings.keep_content and age > limit

    def _renew(self, held: Held, copy: Copy) -> bool:
        try:
            self._renewal.renew(held, copy)
        except UpstreamError:
            return True  # It has noted that, and when to try again.
        self._release(held)
        return True

    def _look_at_ready(self, held: Held, copy: Copy) -> None:
        file = held.file
        if file.expires_at is not None and file.expires_at <= now():
            self._copies.erase_all(file, held.copies)
        elif copy.state == "intended":
            self._find(held, copy)
        elif copy.state == "stored":
            self._refresh(held, copy)
        elif is_over(copy, now()):
            self._settle(copy, state="expired", next_look_at=None)
            self._note_status(held)
        elif copy.state == "missing":
            # Nobody has the bytes, or it has been tried for long enough.
            self._settle(copy, next_look_at=None)
            self._note_status(held)
            self._release(held)
        else:
            self._settle(copy, next_look_at=copy.expires_at)

    def _find(self, held: Held, copy: Copy) -> None:
        """A copy whose answer was lost, of a file that others hold: it is there, or it is not."""
        if self._copies.has_lost_twin(held.file, copy):
            # Nobody can tell one's bytes from the other's: both are stored again.
            self._copies.discard_lost(held.file, copy)
            self._settle(copy, state="missing", next_look_at=now())
            return
        found = self._copies.lost(held.file, copy)
        if found is not None:
            facts = copy_facts(found)
            for name, value in facts.items():
                setattr(copy, name, value)
            self._settle(copy, next_look_at=self._renewal.next_look(held.file, copy), **facts)
            self._note_status(held)
            self._release(held)
        elif self._counted(copy) > _SURE_AFTER_LOOKS:
            self._settle(copy, state="missing", next_look_at=now())
        else:
            self._settle(copy, next_look_at=now() + pause(copy.attempts))

    def _refresh(self, held: Held, copy: Copy) -> None:
        try:
            stored = self._copies.route_of(copy).provider.retrieve(copy.deployment_file_id or "")
        except NotFound as error:
            self._settle(copy, state="missing", last_error=error.message, next_look_at=now())
            return
        self._counted(copy)
        for name, value in copy_facts(stored).items():
            setattr(copy, name, value)
        self._settle(
            copy,
            next_look_at=self._renewal.next_look(held.file, copy),
            **copy_facts(stored),
        )
        self._note_status(held)

    def _release(self, held: Held) -> None:
        """Let go of a content that was kept for repairs only, once nothing is left to repair."""
        if not held.file.is_kept or self._settings.keep_content:
            return
        with self._database.write() as session:
            copies = rows.copies_of(session, [held.file.id])
            waits = any(
                copy.state in ("intended", "missing") and copy.next_look_at is not None
                for copy in copies
            )
            if waits:
                return
            rows.record_file(
                session, held.file.id, is_kept=False, copies_expire_at=last_expiry(copies)
            )
        self._kept.drop(held.file.id, held.file.sha256)

    # Rows

    def _counted(self, copy: Copy) -> int:
        """How often this copy has been looked at without success, this time included."""
        with self._database.write() as session:
            rows.record_copy(session, copy.id, attempts=copy.attempts + 1)
        copy.attempts += 1
        return copy.attempts - 1

    def _settle(self, copy: Copy, **values: object) -> None:
        for name, value in values.items():
            setattr(copy, name, value)
        with self._database.write() as session:
            work_rows.settle(session, copy.id, **values)

    def _note_status(self, held: Held) -> None:
        status, details = status_of(held.copies)
        ends = None if held.file.is_kept else last_expiry(held.copies)
        with self._database.write() as session:
            rows.record_file(
                session,
                held.file.id,
                was="ready",
                status=status,
                status_details=details,
                copies_expire_at=ends,
            )

    def _postpone(self, copy_id: str, error: GatewayError) -> None:
        log.warning("look failed", extra={"copy": copy_id, "error": error.message})
        with self._database.write() as session:
            copy = work_rows.by_id(session, copy_id)
            if copy is None:
                return
            is_over_now = isinstance(error, FileExpired)
            work_rows.settle(
                session,
                copy_id,
                attempts=copy.attempts + 1,
                last_error=error.message,
                next_look_at=None if is_over_now else now() + pause(copy.attempts),
            )
