"""Bytes coming in and going out: Upload, Download and Reply. No Flask, no requests."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class ExpiresAfter:
    """When a file expires: `seconds` after `anchor` (always "created_at" at OpenAI)."""

    anchor: str
    seconds: int


@dataclass(frozen=True)
class Upload:
    """One complete file on the gateway's own disk, ready to be sent any number of times.

    `size` is in bytes, `sha256` is hex. Every reader opens the file anew, so that copies to
    several deployments go out at the same time, each at its own pace.

    `key` names this one attempt to store it: 32 hex digits that are on record before the first
    byte is sent, so that a provider which lets us choose names can be asked what became of it;
    empty when nobody asks. `model` is the upstream model that a batch file's rows are for.
    `original` is what the caller sent, when this is what an upstream wants instead of it.
    """

    path: Path
    filename: str
    mime_type: str
    purpose: str
    size: int
    sha256: str
    expires_after: ExpiresAfter | None = None
    key: str = ""
    model: str = ""
    original: "Upload | None" = None

    def open(self) -> BinaryIO:
        """A new reader at the first byte; the caller closes it."""
        return self.path.open("rb")


@dataclass(frozen=True)
class AttachedFile:
    """What is known of a file that an inference request uses: it was stored at its upload.

    Both are empty for a file that was not uploaded here.
    """

    filename: str
    mime_type: str


def nothing() -> None:
    """Close what needs no closing."""


@dataclass(frozen=True)
class Download:
    """The bytes of a file on their way out.

    `length` is the number of bytes that `chunks` gives, or None when the holder does not say.
    `content_range` is the value of a Content-Range header when the answer is a part (206).
    Whoever takes a Download calls `close`, read to the end or not.
    """

    chunks: Iterator[bytes]
    length: int | None
    content_range: str | None = None
    close: Callable[[], None] = nothing


@dataclass(frozen=True)
class Reply:
    """An upstream's answer to an inference request, headers first, body as it arrives.

    `headers` holds only what a client may see. Whoever takes a Reply calls `close`.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))
    close: Callable[[], None] = nothing

    @property
    def is_event_stream(self) -> bool:
        """Whether the body is a stream of server-sent events."""
        return self.headers.get("Content-Type", "").startswith("text/event-stream")


class Cancellation:
    """Ends a wait for an upstream from another thread, once the client has gone.

    The waiting side says with `then` how it is woken up; the watching side calls `cancel`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake: Callable[[], None] = nothing
        self.is_cancelled = False

    def then(self, wake: Callable[[], None]) -> None:
        """From now on a cancel calls `wake`; at once when it was cancelled already."""
        with self._lock:
            self._wake = wake
            already = self.is_cancelled
        if already:
            wake()

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        with self._lock:
            self.is_cancelled = True
            wake = self._wake
        wake()
