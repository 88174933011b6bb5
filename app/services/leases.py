"""Work in hand: as long as its process lives, nobody else takes it for abandoned."""

import datetime as dt
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from app.db import copies
from app.db.engine import Database
from app.db.tables import now
from app.errors import DatabaseUnavailable

log = logging.getLogger("manifold.leases")

LEASE_SECONDS = 20.0


Renew = Callable[[Session, Collection[str], dt.datetime], None]
"""Holds the leases of rows with these ids until then, of those that still have one."""


class Leases:
    """Renews the leases of the rows that this process is at work on, all in one statement.

    They are copies unless another `renew` is given. Work that ends within a quarter of a lease
    costs no statement at all.
    """

    def __init__(
        self, database: Database, seconds: float = LEASE_SECONDS, renew: Renew = copies.renew
    ) -> None:
        self._database = database
        self._renew = renew
        self.seconds = seconds
        self._changed = threading.Condition()
        self._held: Counter[str] = Counter()
        self._keeper: threading.Thread | None = None

    def until(self) -> dt.datetime:
        """When a lease that begins now ends, unless it is renewed."""
        return now() + dt.timedelta(seconds=self.seconds)

    @contextmanager
    def held(self, row_ids: Collection[str]) -> Iterator[None]:
        """Keep these leases, which the rows have already, for as long as the block runs."""
        with self._changed:
            for row_id in row_ids:
                self._held[row_id] += 1
            if self._keeper is None or not self._keeper.is_alive():
                self._keeper = threading.Thread(target=self._keep, name="leases", daemon=True)
                self._keeper.start()
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                for row_id in row_ids:
                    self._held[row_id] -= 1
                    if not self._held[row_id]:
                        del self._held[row_id]

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
                    self._renew(session, sorted(due), self.until())
            except DatabaseUnavailable as error:
                log.warning("leases not renewed", extra={"error": error.message})
