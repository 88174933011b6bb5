"""Bytes coming in and going out: Upload, Download and Reply. No Flask, no requests."""

import io
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


HELD_BYTES = 64 * 1024
"""How much of the end of an arriving file nobody gets before it is let go."""
STALL_SECONDS = 15.0
"""How long somebody who reads an arriving file waits for its next bytes."""


class GivenUpError(Exception):
    """An arriving file will not come to its end, or not in time, for those who read it already.

    No OSError: nobody may take it for a connection that broke, and try again.
    """


class Arriving:
    """A file that is still being written: one writer, and readers each at its own pace.

    The last HELD_BYTES of its `size` reach no reader before `let_go`: until then no upstream can
    have the whole of it, so nothing can be stored anywhere by a request that comes to nothing.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._readable = 0
        self._is_over = False
        self._changed = threading.Condition()

    def wrote(self, size: int) -> None:
        """The file's first `size` bytes can be read from disk now."""
        with self._changed:
            if not self._is_over:
                self._readable = max(0, min(size, self._size - HELD_BYTES))
                self._changed.notify_all()

    def let_go(self) -> None:
        """All of it is on disk, and may be stored."""
        with self._changed:
            self._is_over = True
            self._readable = self._size
            self._changed.notify_all()

    def give_up(self) -> None:
        """Nobody gets any more of it. Once it was let go, this changes nothing."""
        with self._changed:
            if not self._is_over:
                self._is_over = True
                self._readable = -1
                self._changed.notify_all()

    def readable_from(self, start: int) -> int:
        """How many bytes there are from `start` on; waits for the first, 0 is the file's end.

        Raises GivenUpError.
        """
        if start >= self._size:
            return 0
        with self._changed:
            came = self._changed.wait_for(
                lambda: self._is_over or self._readable > start, STALL_SECONDS
            )
            if not came or self._readable < 0:
                raise GivenUpError
            return self._readable - start

    def open(self) -> BinaryIO:
        """A new reader at the first byte; the caller closes it."""
        return _ArrivingReader(self, self._path)


class _ArrivingReader(io.FileIO):
    """A file's reader that waits at what is its end for now."""

    def __init__(self, arriving: Arriving, path: Path) -> None:
        super().__init__(path, "rb")
        self._arriving = arriving

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes, as many as there are. Raises GivenUpError."""
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(1024 * 1024), b""))
        return super().read(min(size, self._arriving.readable_from(self.tell())))


@dataclass(frozen=True)
class Upload:
    """One complete file, ready to be sent any number of times.

    `source` is where it lies on this disk, or all of it when it is small. `size` is in bytes,
    `sha256` is hex. Every reader opens it anew, so that copies to several deployments go out at
    the same time, each at its own pace.

    `key` names this one attempt to store it: 32 hex digits that are on record before the first
    byte is sent, so that a provider which lets us choose names can be asked what became of it;
    empty when nobody asks. `model` is the upstream model that a batch file's rows are for.
    `original` is what the caller sent, when this is what an upstream wants instead of it.

    One that is still `arriving` has the size that was announced, and no `sha256` yet.
    """

    source: Path | bytes = field(repr=False)
    filename: str
    mime_type: str
    purpose: str
    size: int
    sha256: str
    expires_after: ExpiresAfter | None = None
    key: str = ""
    model: str = ""
    original: "Upload | None" = None
    arriving: Arriving | None = None

    def open(self) -> BinaryIO:
        """A new reader at the first byte; the caller closes it."""
        if isinstance(self.source, bytes):
            return io.BytesIO(self.source)
        return self.arriving.open() if self.arriving else self.source.open("rb")


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
    `path` is where the whole file lies, when that is on this disk and byte for byte the same.
    Whoever takes a Download calls `close`, read to the end or not.
    """

    chunks: Iterator[bytes]
    length: int | None
    content_range: str | None = None
    close: Callable[[], None] = nothing
    path: Path | None = None


@dataclass(frozen=True)
class Reply:
    """An upstream's answer to an inference request, headers first, body as it arrives.

    `headers` holds only what a client may see. Whoever takes a Reply calls `close`.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))
    close: Callable[[], None] = nothing
    length: int | None = None
    """How long the body is, where that is known."""

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
