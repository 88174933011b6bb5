"""What upstreams have answered to an upload, and what of that is on record.

All answers that come together are committed with the upload's end. As long as something else is
to happen before, another upstream's answer or a file to be kept, each is committed by itself, so
that a crash meanwhile leaves as little as possible to be searched for.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress

from app.db.tables import Copy
from app.errors import GatewayError
from app.providers.protocol import StoredFile
from app.services.copies import Copies
from app.services.router import Route

Outcome = StoredFile | GatewayError


class Answers:
    """Those of one upload."""

    def __init__(self, copies: Copies, planned: Iterable[tuple[Copy, Route]]) -> None:
        self._copies = copies
        self._providers = {copy.id: route.provider for copy, route in planned}
        self._recorded: set[str] = set()

    def record(self, copy_id: str, stored: StoredFile) -> StoredFile:
        """Commit one. Raises as Copies.record."""
        self._copies.record(copy_id, self._providers[copy_id], stored)
        self._recorded.add(copy_id)
        return stored

    def record_rest(self, outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
        """Commit all that is not on record yet; what could not be is an error now."""
        found = dict(outcomes)
        for copy_id, stored in outcomes.items():
            if isinstance(stored, StoredFile) and copy_id not in self._recorded:
                try:
                    self.record(copy_id, stored)
                except GatewayError as error:
                    found[copy_id] = error
        return found

    def withdraw(self, copies: Iterable[Copy]) -> None:
        """Remove what nobody would know of, as far as that can be done; the intents stay."""
        for copy in copies:
            if copy.deployment_file_id and copy.id not in self._recorded:
                with suppress(GatewayError):
                    self._providers[copy.id].delete(copy.deployment_file_id)
