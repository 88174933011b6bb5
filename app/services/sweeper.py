"""What nobody comes back for is removed: expired files, dead uploads, contents without a row."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial

from app import faults
from app.db import files as rows
from app.db.engine import Database
from app.db.tables import now
from app.errors import GatewayError
from app.providers.protocol import Provider
from app.services.copies import TOMBSTONE_AGE, Copies
from app.services.kept import Kept
from app.services.metering import Meter
from app.services.once import Once
from app.services.uploads import Uploads
from app.spool import Spool

log = logging.getLogger("manifold.sweeper")

AT_ONCE = 100
YOUNG_SECONDS = 3600.0
"""What is on disk for less than this may belong to a request that is still running."""


class Sweeper:
    """One pass over everything that has an end; each step may be cut off and is done again.

    `also` are steps of others.
    """

    def __init__(
        self,
        database: Database,
        providers: Collection[Provider],
        *,
        copies: Copies,
        uploads: Uploads,
        kept: Kept,
        spool: Spool,
        meter: Meter,
        once: Once,
        also: Sequence[Callable[[], object]] = (),
    ) -> None:
        self._database = database
        self._providers = providers
        self._copies = copies
        self._uploads = uploads
        self._kept = kept
        self._spool = spool
        self._meter = meter
        self._once = once
        self._also = tuple(also)

    def run(self, young_seconds: float = YOUNG_SECONDS) -> None:
        """Make the pass. One step's trouble is logged and is not that of the others."""
        steps: tuple[Callable[[], object], ...] = (
            self.expired_files,
            self.tombstones,
            self._uploads.sweep,
            partial(self.kept_contents, young_seconds),
            partial(self._kept.sweep, young_seconds),
            self._spool.sweep,
            self._meter.sweep,
            self._once.sweep,
            *self._also,
            *(partial(provider.sweep, young_seconds) for provider in self._providers),
        )
        for step in steps:
            try:
                step()
            except (GatewayError, OSError) as error:
                log.warning("sweep failed", extra={"error": str(error)})
            faults.point("sweep step done")

    def expired_files(self) -> int:
        """Remove files past the time that their owners set; how many that were, 100 at most."""
        with self._database.read() as session:
            found = rows.expired(session, now(), AT_ONCE)
            copies = rows.copies_of(session, [file.id for file in found])
        for file in found:
            self._copies.erase_all(file, [copy for copy in copies if copy.file_id == file.id])
        return len(found)

    def tombstones(self) -> None:
        """Remove the rows of files that were deleted long ago."""
        with self._database.write() as session:
            rows.drop_tombstones(session, now() - TOMBSTONE_AGE, AT_ONCE)

    def kept_contents(self, young_seconds: float = YOUNG_SECONDS) -> int:
        """Remove contents that no row speaks of; how many that were."""
        before = time.time() - young_seconds
        found = {file_uuid for file_uuid, since in self._kept.entries() if since <= before}
        with self._database.read() as session:
            wanted = rows.kept(session, found)
        for file_uuid in found - wanted:
            self._kept.drop(file_uuid, None)
        return len(found - wanted)
