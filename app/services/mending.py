"""Rows are set right, and what follows from that is left to those who do it every day."""

from collections.abc import Collection
from contextlib import suppress

from app.db import files as file_rows
from app.db import fsck as rows
from app.db.engine import Database
from app.db.tables import Copy
from app.errors import DatabaseUnavailable, GatewayError
from app.services.copies import Copies
from app.services.lookup import READABLE, Held
from app.services.reconciler import Reconciler
from app.services.renewal import Renewal


class Mending:
    """What the parts of a check do with files and copies."""

    def __init__(
        self, database: Database, *, copies: Copies, renewal: Renewal, reconciler: Reconciler
    ) -> None:
        self._database = database
        self._copies = copies
        self._renewal = renewal
        self._reconciler = reconciler

    def held(self, copy: Copy) -> tuple[Held, Copy] | None:
        """The file and the copy as they are now; None when the file is on its way out, or the
        upstream's id is another one's."""
        with self._database.read() as session:
            file, copies = rows.file_with_copies(session, copy.file_id)
        mine = next((each for each in copies if each.id == copy.id), None)
        if file is None or mine is None or file.state != "ready" or mine.state not in READABLE:
            return None
        if mine.deployment_file_id != copy.deployment_file_id:
            return None
        return Held(file, tuple(copies)), mine

    def has_bytes(self, held: Held, copy: Copy) -> bool:
        """Whether anybody else has the content."""
        return self._renewal.has_bytes(held, copy)

    def bring_back(self, held: Held, copy: Copy) -> str | None:
        """Note that a copy is gone, as a request does that finds it so, and store it again.

        Why that has not come to its end, None when it has.
        """
        if not self._renewal.vanished(held, copy):
            return "the account did not say so again"
        self._reconciler.look(copy.id)
        with self._database.read() as session:
            file, copies = rows.file_with_copies(session, held.file.id)
        mine = next((each for each in copies if each.id == copy.id), None)
        if file is not None and mine is not None and mine.next_look_at and mine.state == "missing":
            return f"not stored again yet ({mine.last_error}); a worker goes on"
        return None

    def refusal(self, where: str, own: Collection[str]) -> str | None:
        """Why nothing is deleted for having no row: the database may be the wrong one."""
        with self._database.read() as session:
            if where in own or rows.has_files(session):
                return None
        return f"the database has no file at all; if it is the right one, say --own {where}"

    def is_linked(self, raw: str) -> bool:
        """Whether some row has, or had, what an upstream calls so."""
        with self._database.read() as session:
            return bool(rows.linked(session, [raw]))

    def replace(self, held: Held, copy: Copy) -> str | None:
        """Store a copy anew, from where the content is, and then remove what it was.

        Why that was not done; then nothing was removed.
        """
        if not self.has_bytes(held, copy):
            return "nobody else has the content; nothing was removed"
        try:
            self._renewal.renew(held, copy)
        except DatabaseUnavailable:
            raise
        except GatewayError as error:
            return f"not stored anew ({error.message}); nothing was removed"
        self.recount(held.file.id)
        return None

    def is_given(self, held: Held) -> bool:
        """Whether some account gives the content, and does not only have it."""
        for copy in held.readable:
            with suppress(GatewayError):
                raw = copy.deployment_file_id or ""
                download = self._copies.route_of(copy).provider.content(raw)
                try:
                    next(download.chunks, b"")
                finally:
                    download.close()
                return True
        return False

    def look_again(self, file_id: str) -> str | None:
        """Make a file's copies due, and look at them."""
        with self._database.write() as session:
            rows.make_due(session, file_id)
        with self._database.read() as session:
            file, copies = rows.file_with_copies(session, file_id)
        if file is None:
            return None
        if not copies:
            # There is nothing at any upstream; only the row is left.
            if file.state == "deleting":
                self._copies.erase_all(file, [])
            else:
                self._copies.take_back(file, [])
        for copy in copies:
            self._reconciler.look(copy.id)
        return None

    def look(self, copy_id: str) -> str | None:
        """Do what is due about a copy."""
        if self._reconciler.look(copy_id):
            return None
        return "somebody else is at it"

    def erase(self, copy: Copy) -> None:
        """Remove a copy at its upstream; one that is gone is no error."""
        self._copies.erase(copy)

    def let_go_of_kept(self, file_id: str) -> None:
        """Note that the gateway's disk does not have a content."""
        with self._database.write() as session:
            file_rows.record_file(session, file_id, is_kept=False)
        self.recount(file_id)

    def recount(self, file_id: str) -> None:
        """Write the status that a file's copies make."""
        self._copies.recount(file_id)
