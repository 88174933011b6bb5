"""SHA-256 of what comes in, beside the work on it."""

import hashlib
from concurrent.futures import Future

from app.concurrency import threads

_WORTH_BYTES = 64 * 1024
"""Less is hashed in the time that handing it over takes."""


class Digest:
    """The hash of pieces given one after the other; a large one is hashed in another thread.

    The next piece waits for the one before: no more than one is held.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._under_way: Future[None] | None = None

    def update(self, piece: bytes) -> None:
        """Add a piece."""
        self._wait()
        if len(piece) < _WORTH_BYTES:
            self._sha256.update(piece)
        else:
            self._under_way = threads().submit(self._sha256.update, piece)

    def hexdigest(self) -> str:
        """The hash of everything so far, in hex."""
        self._wait()
        return self._sha256.hexdigest()

    def _wait(self) -> None:
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None
