"""Copies in hand: as long as their process lives, nobody else takes them for abandoned."""

import datetime as dt
import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from app.db import copies as rows
from app.db.engine import Database
from app.db.tables import now
from app.errors import DatabaseUnavailable

log = logging.getLogger("manifold.leases")

LEASE_SECONDS = 20.0


class Leases:
    """Renews the leases of the copies that this process is at work on, all in one statement.

    Work that ends within a quarter of a lease costs no statement at all.
    """

    def __init__(self, database: Database, seconds: float = LEASE_SECONDS) -> None:
        self._database = database
        self.seconds = seconds
        self._changed = threading.Condition()
        self._held: Counter[str] = Counter()
        self._keeper: threading.Thread | None = None

    def until(self) -> dt.datetime:
        """When a lease that begins now ends, unless it is renewed."""
        return now() + dt.timedelta(seconds=self.seconds)

    @contextmanager
    def held(self, copy_ids: Collection[str]) -> Iterator[None]:
        """Keep these leases, which the rows have already, for as long as the block runs."""
        with self._changed:
            self._held.update(copy_ids)
            if self._keeper is None or not self._keeper.is_alive():
                self._keeper = threading.Thread(target=self._keep, name="leases", daemon=True)
                self._keeper.start()
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._held.subtract(copy_ids)
                self._held += Counter()

    def _keep(self) -> None:
        while True:
            with self._changed:
                while not self._held:
                    self._changed.wait()
                known = set(self._held)
            time.sleep(self.seconds / 4)
            with self._changed:
                # What has begun meanwhile has a fresh lease.
                due = known & set(self._held)
            if not due:
                continue
            try:
                with self._database.write() as session:
                    rows.renew(session, sorted(due), self.until())
            except DatabaseUnavailable as error:
                log.warning("leases not renewed", extra={"error": error.message})
