"""The audit trail: who did what to which object, from where, and what came of it.

A row goes into the transaction of the change that it tells of, so neither is there without the
other. What is begun at a provider is written down before (status 202) and when it has ended; what
has no transaction of ours, by `Trail`, before the answer leaves. Names of fields are kept, values
never.
"""

import datetime as dt
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from sqlalchemy.orm import Session

from app import ids
from app.db import audit as rows
from app.db.change import Changing
from app.db.engine import Database
from app.db.tables import AuditEntry, now
from app.errors import DatabaseUnavailable
from app.services.callers import Caller
from app.services.journal import ADOPT_SECONDS, Journal, Row

BEGUN = 202
DONE = 200

_KEY_PREFIX = 12
"""As much of a key's hash as the access log shows."""
_LONGEST_TARGET = 4096
_LONGEST_ADDRESS = 64
_SWEEP_SECONDS = 3600.0
_SWEEP_AT_ONCE = 1000


class Note(Protocol):
    """Writes one row about a change into the transaction that makes it."""

    def __call__(self, session: Session, /, *, status: int = DONE) -> None: ...


def entry(
    caller: Caller,
    action: str,
    target: str | None,
    *,
    status: int = DONE,
    fields: Iterable[str] = (),
    size: int | None = None,
) -> Row:
    """A row, by its columns.

    `target` is the object's public id, `size` in bytes, `fields` names without values.
    """
    return {
        "id": ids.new_uuid(),
        "at": now(),
        "actor": caller.user_id,
        "role": caller.role.value,
        "key": caller.key_hash[:_KEY_PREFIX] or None,
        "address": _plain(caller.origin.address, _LONGEST_ADDRESS),
        "action": action,
        "target": _plain(target, _LONGEST_TARGET),
        "status": status,
        "request_id": caller.origin.request_id,
        "fields": sorted(set(fields)),
        "bytes": size,
    }


def record(
    session: Session | Changing,
    caller: Caller,
    action: str,
    target: str | None,
    *,
    status: int = DONE,
    fields: Iterable[str] = (),
    size: int | None = None,
) -> None:
    """Add a row to the transaction of the change."""
    rows.add(session, [entry(caller, action, target, status=status, fields=fields, size=size)])


def noting(caller: Caller, action: str, target: str | None, *, size: int | None = None) -> Note:
    """The same for those who make the change but do not know for whom."""
    return partial(record, caller=caller, action=action, target=target, size=size)


def unnoted(_session: Session, /, *, status: int = DONE) -> None:
    """The note of what nobody asked for: a repair, or the rest of what is noted already."""


def intend(database: Database, caller: Caller, action: str, target: str | None) -> None:
    """Commit that something is about to be asked of a provider.

    Raises DatabaseUnavailable, and then it must not be asked.
    """
    with database.write() as session:
        record(session, caller, action, target, status=BEGUN)


@dataclass
class _Waiting:
    row: Row
    is_done: bool = False
    error: BaseException | None = field(default=None)


class Trail:
    """Rows that go with no change of ours: downloads, what was refused, a provider's doings.

    `write` returns when its row is committed; rows that arrive while others are being committed go
    together in the next transaction. `jot` is for what is so frequent that even this would be felt
    (measured: a quarter of the small downloads a second): its row is on the disk, in
    `journal_folder`, when it returns, and in the database within a second.
    """

    def __init__(
        self, database: Database, retention_days: float, journal_folder: Path | None = None
    ) -> None:
        self._database = database
        self._journal = Journal(journal_folder, self._keep) if journal_folder else None
        self._retention = dt.timedelta(days=retention_days)
        self._queue: list[_Waiting] = []
        self._queueing = threading.Lock()
        self._writing = threading.Lock()
        self._next_sweep = 0.0
        self._next_adoption = 0.0

    def write(
        self,
        caller: Caller,
        action: str,
        target: str | None,
        *,
        status: int = DONE,
        fields: Iterable[str] = (),
        size: int | None = None,
    ) -> None:
        """Commit one row. Raises DatabaseUnavailable when that cannot be done."""
        mine = _Waiting(entry(caller, action, target, status=status, fields=fields, size=size))
        with self._queueing:
            self._queue.append(mine)
        with self._writing:
            # Perhaps whoever wrote before us has taken it along.
            if not mine.is_done:
                self._commit()
        if mine.error is not None:
            raise DatabaseUnavailable from mine.error

    def jot(
        self, caller: Caller, action: str, target: str | None, *, status: int, size: int | None
    ) -> None:
        """Keep one row, if need be beyond this process. Raises StorageFull, DatabaseUnavailable."""
        if self._journal is None:
            self.write(caller, action, target, status=status, size=size)
            return
        row = entry(caller, action, target, status=status, size=size)
        self._journal.write({**row, "at": row["at"].isoformat()})

    def take_in(self) -> None:
        """Put what this process, and those that are gone, have on the disk into the database."""
        if self._journal is not None:
            self._journal.flush()
            self._journal.adopt()

    def newest(self, among: rows.AuditFilter, limit: int) -> list[AuditEntry]:
        """At most `limit` rows, the newest ones, in the order in which they were written."""
        with self._database.read() as session:
            return list(rows.newest(session, among, limit))

    def sweep(self) -> int:
        """Remove rows whose time is over, some at a time; how many those were."""
        with self._database.write() as session:
            return rows.sweep(session, now() - self._retention, _SWEEP_AT_ONCE)

    def sweep_when_due(self) -> None:
        """The same once an hour, and at once again while there is more. For one thread.

        Every half a minute it also takes in what processes that are gone have left on the disk.
        """
        if self._journal is not None and time.monotonic() >= self._next_adoption:
            self._journal.adopt()
            self._next_adoption = time.monotonic() + ADOPT_SECONDS
        if time.monotonic() >= self._next_sweep:
            is_all = self.sweep() < _SWEEP_AT_ONCE
            self._next_sweep = time.monotonic() + (_SWEEP_SECONDS if is_all else 0.0)

    def _keep(self, found: Sequence[Row]) -> None:
        facts = [{**row, "at": dt.datetime.fromisoformat(row["at"])} for row in found]
        with self._database.write() as session:
            rows.add_new(session, facts)

    def _commit(self) -> None:
        with self._queueing:
            together, self._queue = self._queue, []
        error: BaseException | None = None
        try:
            with self._database.write() as session:
                rows.add(session, [waiting.row for waiting in together])
        except BaseException as raised:  # all who wait must be told
            error = raised
            if not isinstance(raised, Exception):
                raise
        finally:
            for waiting in together:
                waiting.is_done, waiting.error = True, error


def _plain(text: str | None, longest: int) -> str | None:
    """Text that every database stores and that stays on its line wherever it is shown."""
    if text is None or text.isprintable():
        return text and text[:longest]
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:longest])
    return "".join(shown)[:longest]
