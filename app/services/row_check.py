"""The rows against one another, and whether anybody still works on what is left to do."""

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from functools import partial

from app.db import files as file_rows
from app.db import fsck as rows
from app.db.engine import Database
from app.db.tables import Copy, File, now
from app.services.file_objects import is_over, status_of
from app.services.findings import PAGE, Difference, Report, is_held, pages, shown
from app.services.lookup import Held
from app.services.mending import Mending
from app.services.renewal import Renewal
from app.services.router import Router

OVERDUE = dt.timedelta(minutes=10)
"""How late a worker comes to a copy before it looks as if there were none."""
_DATABASE = "database"
_UNFINISHED_FILES = ("uploading", "failed", "deleting")
_UNFINISHED_COPIES = ("intended", "stored", "deleting")


class RowCheck:
    """Looks through the database."""

    def __init__(
        self, database: Database, router: Router, *, renewal: Renewal, mending: Mending
    ) -> None:
        self._database = database
        self._router = router
        self._renewal = renewal
        self._mending = mending

    # The database as such

    def whole(self, report: Report) -> None:
        """Let a SQLite file be looked through, and find rows whose parents are gone."""
        with self._database.read() as session:
            damage = rows.damage(session)
            orphans = list(rows.orphans(session))
        for text in damage:
            report.difference(
                Difference("database", _DATABASE, "-", shown(text), "nothing: restore a backup")
            )
        for orphan in orphans:
            report.difference(
                Difference(
                    "database",
                    _DATABASE,
                    f"{orphan.table}:{orphan.row}",
                    f"a row of {orphan.table} whose {orphan.parent} row is gone",
                    "removes it, and what it stands for at an account",
                    partial(self._drop, orphan),
                )
            )

    def _drop(self, orphan: rows.Orphan) -> str | None:
        if orphan.table == Copy.__tablename__:
            with self._database.read() as session:
                copy = rows.orphaned_copy(session, orphan)
            if copy is not None and copy.deployment_file_id:
                self._mending.erase(copy)
        with self._database.write() as session:
            rows.drop_orphan(session, orphan)
        return None

    # File by file

    def files(self, report: Report) -> None:
        """Look at every file and its copies, page by page."""
        homeless: Counter[str] = Counter()

        def read(after: str) -> list[File]:
            with self._database.read() as session:
                return rows.files_after(session, after, PAGE)

        for page in pages(read, lambda file: file.id):
            for file, copies in self._with_copies(page):
                report.summary.files += file.state != "deleted"
                report.summary.copies += sum(copy.state != "deleted" for copy in copies)
                if file.state != "deleted":
                    homeless.update(copy.deployment_id for copy in self._homeless(copies))
                if self._problems(file, copies, report):
                    self._tell(file.id, report)
        for deployment_id, number in sorted(homeless.items()):
            report.difference(
                Difference(
                    "unconfigured",
                    shown(deployment_id),
                    "-",
                    f"the configuration does not name it, and copies are there: {number:,}",
                    "nothing: name it again, and delete these files if nobody needs them",
                )
            )

    def _with_copies(self, page: Sequence[File]) -> list[tuple[File, list[Copy]]]:
        by_file: dict[str, list[Copy]] = {file.id: [] for file in page}
        with self._database.read() as session:
            for copy in file_rows.copies_of(session, list(by_file)):
                by_file[copy.file_id].append(copy)
        return [(file, by_file[file.id]) for file in page]

    def _homeless(self, copies: Sequence[Copy]) -> list[Copy]:
        return [
            copy
            for copy in copies
            if copy.state not in ("deleted", "expired", "missing")
            and self._router.by_id(copy.deployment_id) is None
        ]

    def _tell(self, file_id: str, report: Report) -> None:
        """Tell what is wrong with a file, if it still is."""
        with self._database.read() as session:
            file, copies = rows.file_with_copies(session, file_id)
        if file is None:
            return
        for each in self._problems(file, copies, report):
            report.difference(each)

    def _problems(self, file: File, copies: Sequence[Copy], report: Report) -> list[Difference]:
        if file.state == "deleted":
            return []
        found = [problem for copy in copies if (problem := self._overdue(copy, file))]
        written = [file.updated_at, *(copy.updated_at for copy in copies)]
        is_fresh = any(report.asked.is_fresh(moment) for moment in written)
        if is_fresh or any(is_held(copy) for copy in copies) or found:
            return found
        if file.state in _UNFINISHED_FILES:
            return self._stuck_file(file, copies)
        if file.expires_at is not None and file.expires_at <= now():
            return []  # The sweep comes to it.
        return [
            *self._stuck_copies(file, copies),
            *self._lost(file, copies),
            *self._status(file, copies),
        ]

    def _overdue(self, copy: Copy, file: File) -> Difference | None:
        due = copy.next_look_at
        if due is None or due > now() - OVERDUE or is_held(copy):
            return None
        if self._router.by_id(copy.deployment_id) is None:
            return None
        return Difference(
            "overdue",
            copy.deployment_id,
            copy.deployment_file_id or copy.id,
            f"of the file {file.public_id or file.id}: something was to be done at "
            f"{due:%Y-%m-%d %H:%M} UTC and nobody did; start `manifold worker`",
            "does it",
            partial(self._mending.look, copy.id),
        )

    def _stuck_file(self, file: File, copies: Sequence[Copy]) -> list[Difference]:
        if any(copy.next_look_at is not None for copy in copies):
            return []
        return [
            Difference(
                "stuck",
                _DATABASE,
                file.public_id or file.id,
                f"the file is {file.state}, and nothing says when somebody is to go on with it",
                "goes on with it",
                partial(self._mending.look_again, file.id),
            )
        ]

    def _stuck_copies(self, file: File, copies: Sequence[Copy]) -> list[Difference]:
        return [
            Difference(
                "stuck",
                copy.deployment_id,
                copy.deployment_file_id or copy.id,
                f"a copy of the file {file.public_id or file.id} is {copy.state}, and nothing "
                "says when somebody is to look at it",
                "looks at it",
                partial(self._mending.look_again, file.id),
            )
            for copy in copies
            if copy.state in _UNFINISHED_COPIES and copy.next_look_at is None
        ]

    def _lost(self, file: File, copies: Sequence[Copy]) -> list[Difference]:
        held = Held(file, tuple(copies))
        moment = now()
        is_awaited = any(copy.next_look_at is not None for copy in copies)
        has_ended = bool(copies) and all(is_over(copy, moment) for copy in copies)
        if held.readable or is_awaited or has_ended or self._renewal.is_kept(held):
            return []
        return [
            Difference(
                "lost",
                _DATABASE,
                file.public_id or file.id,
                f"no copy of {shown(file.filename)!r} is left, and its content is not kept",
                "nothing: its owner has to upload it again",
                None,
            )
        ]

    def _status(self, file: File, copies: Sequence[Copy]) -> list[Difference]:
        moment = now()
        if any(copy.next_look_at is not None and copy.next_look_at <= moment for copy in copies):
            return []  # Whoever comes to it writes the status too.
        status, _ = status_of(copies)
        if status == file.status:
            return []
        return [
            Difference(
                "status",
                _DATABASE,
                file.public_id or file.id,
                f"the file says {file.status!r}, and its copies make {status!r}",
                "writes what the copies make",
                partial(self._recount, file.id),
            )
        ]

    def _recount(self, file_id: str) -> str | None:
        self._mending.recount(file_id)
        return None
