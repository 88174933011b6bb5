"""A multipart form read as it arrives: fields in memory, the one file to the spool."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from flask import request
from multipart import MultipartSegment, ParserLimitReached, PushMultipartParser
from werkzeug.exceptions import ClientDisconnected

from app.concurrency import threads
from app.digest import Digest
from app.errors import NO_SPACE, InvalidRequest, StorageFull, TooLarge
from app.file_names import clean_filename, mime_type
from app.transfers import HELD_BYTES, Arriving, ExpiresAfter, Upload

READ_BYTES = 1024 * 1024
"""The most that is taken from the connection at a time: a quarter of it costs a sixth more CPU."""
IN_MEMORY_BYTES = 64 * 1024
"""What is no larger need not go to the disk, which takes longer than its rows in the database."""
FLUSH_BYTES = 256 * 1024
"""What is written to disk at a time; who reads along gets it then."""
MAX_FIELDS_BYTES = 1024 * 1024
MAX_PARTS = 200
MAX_CONTENT_TYPE = 2000
MAX_HEAD_LINE_BYTES = 64 * 1024
"""Of a part; it has the file's name, which is cut to what is kept of it later."""
_LARGE_BYTES = 16 * 1024 * 1024
_FORM_OVERHEAD_BYTES = 2 * MAX_FIELDS_BYTES


@dataclass(frozen=True)
class SpooledFile:
    """The uploaded file, with what its part said.

    `source` is where it lies on our disk, or all of it when it is small. `size` is in bytes; of
    one that still arrives it is what Content-Length makes likely, and there is no `sha256`.
    """

    source: Path | bytes = field(repr=False)
    filename: str
    mime_type: str
    size: int
    sha256: str

    def upload(self, purpose: str, expires_after: ExpiresAfter | None) -> Upload:
        """The same, with what it is for."""
        return Upload(
            source=self.source,
            filename=self.filename,
            mime_type=self.mime_type,
            purpose=purpose,
            size=self.size,
            sha256=self.sha256,
            expires_after=expires_after,
        )


@dataclass
class Form:
    """What the form held. A field that came several times has several values."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    file: SpooledFile | None = None

    def text(self, name: str) -> str | None:
        """A field's value, None when it was not sent. Raises InvalidRequest for two that differ."""
        values = self.fields.get(name, [])
        if len(set(values)) > 1:
            raise InvalidRequest(f"{name} is given {len(values)} times", param=name)
        return values[0] if values else None


Announce = Callable[[Form, SpooledFile], Arriving | None]
"""Is told of a file whose first bytes are on disk, with the fields before it; says who reads on."""


def nobody(_form: Form, _spooled: SpooledFile) -> None:
    """Nobody reads along."""


def least_file_bytes() -> int:
    """How large the form's file is at least, by what the request says of its length."""
    return max(0, (request.content_length or 0) - _FORM_OVERHEAD_BYTES)


@contextmanager
def spooled_form(
    spool: Callable[[], Path],
    *,
    file_field: str,
    max_file_bytes: int,
    in_memory_bytes: int = 0,
    announce: Announce = nobody,
) -> Iterator[Form]:
    """The request's form; its file is removed from the folder `spool()` at the end.

    One of at most `in_memory_bytes` is not put there. One that is worth it is announced while it
    arrives, if its length can be told: it is then taken for the form's last part.

    Raises InvalidRequest for a body that is no whole multipart form, TooLarge for a file over
    the limit (before the body is read when Content-Length tells), StorageFull.
    """
    declared = request.content_length
    if declared is not None and declared > max_file_bytes + _FORM_OVERHEAD_BYTES:
        raise _too_large(file_field, max_file_bytes, declared)
    reader = _Reader(
        _boundary(file_field),
        spool,
        file_field,
        max_file_bytes=max_file_bytes,
        in_memory_bytes=in_memory_bytes,
        announce=announce,
    )
    try:
        yield reader.read()
    finally:
        reader.discard()


def _boundary(file_field: str) -> bytes:
    # The parser's work grows with the square of such a header.
    is_sane = len(request.headers.get("Content-Type", "")) <= MAX_CONTENT_TYPE
    boundary = request.mimetype_params.get("boundary", "") if is_sane else ""
    if not is_sane or request.mimetype != "multipart/form-data" or not 0 < len(boundary) <= 200:
        raise InvalidRequest(
            f"send the {file_field} as multipart/form-data with a boundary", param=file_field
        )
    return boundary.encode("latin-1", "replace")


class _Reader:
    def __init__(
        self,
        boundary: bytes,
        spool: Callable[[], Path],
        file_field: str,
        *,
        max_file_bytes: int,
        in_memory_bytes: int,
        announce: Announce,
    ) -> None:
        self._boundary = boundary
        self._parser = PushMultipartParser(
            boundary, max_segment_count=MAX_PARTS, max_header_size=MAX_HEAD_LINE_BYTES
        )
        self._spool = spool
        self._file_field = file_field
        self._max = max_file_bytes
        self._in_memory = in_memory_bytes
        self._announce = announce
        self._received = 0
        self._form = Form()
        self._fields_bytes = 0
        self._path: Path | None = None

    def read(self) -> Form:
        """The whole form."""
        try:
            for part, data in self._parts():
                if not part.name:
                    raise ValueError("a part without a name")  # noqa: TRY301  # broken form
                if part.filename is not None and part.name == self._file_field:
                    if self._form.file is not None:
                        raise InvalidRequest("send one file at a time", param=self._file_field)
                    self._form.file = self._spooled(part, data)
                elif part.filename is not None:
                    raise InvalidRequest(
                        f"unexpected file part {part.name!r}; the file's part is "
                        f"{self._file_field!r}",
                        param=self._file_field,
                    )
                else:
                    self._form.fields.setdefault(part.name, []).append(self._text(part, data))
        except ParserLimitReached as error:
            raise TooLarge(
                f"a form may have {MAX_PARTS} parts, and a line of a part's head "
                f"{MAX_HEAD_LINE_BYTES} bytes"
            ) from error
        except ValueError as error:
            raise InvalidRequest("the multipart form is broken", code="invalid_form") from error
        return self._form

    def discard(self) -> None:
        """Remove the spooled file."""
        if self._path is not None:
            with suppress(FileNotFoundError):
                _remove(self._path)

    def _parts(self) -> Iterator[tuple[MultipartSegment, Iterator[bytes]]]:
        events = self._events()
        for event in events:
            if isinstance(event, MultipartSegment):
                yield event, _data(events)

    def _events(self) -> Iterator[MultipartSegment | bytes | None]:
        read = request.stream.read
        outside = 0
        while True:
            try:
                piece = read(READ_BYTES)
            except OSError as error:
                raise ClientDisconnected from error
            if not piece:
                # Refuses what is not whole.
                self._parser.close()  # type: ignore[no-untyped-call]  # the library has no types
                return
            self._received += len(piece)
            outside += len(piece)
            for event in self._parser.parse(piece):
                outside = 0
                yield event
            if outside > MAX_FIELDS_BYTES:
                raise TooLarge(f"there are more than {MAX_FIELDS_BYTES} bytes outside of any part")

    def _text(self, part: MultipartSegment, data: Iterator[bytes]) -> str:
        pieces = []
        for piece in data:
            self._fields_bytes += len(piece)
            if self._fields_bytes > MAX_FIELDS_BYTES:
                raise TooLarge(f"the form's fields have more than {MAX_FIELDS_BYTES} bytes")
            pieces.append(piece)
        try:
            text = b"".join(pieces).decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{part.name} is not UTF-8", param=part.name) from error
        if "\0" in text:
            raise InvalidRequest(f"{part.name} holds a null byte", param=part.name)
        return text

    def _spooled(self, part: MultipartSegment, data: Iterator[bytes]) -> SpooledFile:
        digest = Digest()
        pieces = self._measured(data, digest)
        begun: list[_Measured] = []
        size = 0
        for piece, size in pieces:
            begun.append((piece, size))
            if size > self._in_memory:
                path, whole = self._written(part, chain(_taken(begun), pieces))
                return self._spooled_as(part, path, whole, digest.hexdigest())
        content = b"".join(piece for piece, _ in begun)
        return self._spooled_as(part, content, size, digest.hexdigest())

    def _measured(self, data: Iterator[bytes], digest: Digest) -> "Iterator[_Measured]":
        size = 0
        for piece in data:
            size += len(piece)
            if size > self._max:
                declared = request.content_length
                raise _too_large(self._file_field, self._max, declared or size)
            digest.update(piece)
            yield piece, size

    def _written(self, part: MultipartSegment, pieces: "Iterator[_Measured]") -> tuple[Path, int]:
        """Where the pieces are now, and how many bytes they were."""
        size = shown = 0
        is_announced = False
        arriving: Arriving | None = None
        try:
            path, opened = self._open()
            with opened as out:
                for piece, size in pieces:
                    out.write(piece)
                    if size - shown < FLUSH_BYTES:
                        continue
                    shown = size
                    if not is_announced:
                        is_announced = True
                        arriving = self._announced(part, path, size)
                    if arriving is not None:
                        out.flush()
                        arriving.wrote(size)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise StorageFull from error
            raise
        return path, size

    @staticmethod
    def _spooled_as(
        part: MultipartSegment, source: Path | bytes, size: int, sha256: str = ""
    ) -> SpooledFile:
        name = clean_filename(part.filename)
        kind = mime_type(part.header("Content-Type", ""), name)
        return SpooledFile(source, name, kind, size, sha256)

    def _announced(self, part: MultipartSegment, path: Path, came: int) -> Arriving | None:
        """Who reads the file along, of which so many bytes came; its size is that of a last part.

        Now and then the parser holds back what may be a boundary: the size is then wrong, which
        is seen at the end.
        """
        declared = request.content_length
        if declared is None:
            return None
        end = declared - len(b"\r\n--" + self._boundary + b"--\r\n")
        size = end - (self._received - came)
        if not came + HELD_BYTES < size <= self._max:
            return None
        return self._announce(self._form, self._spooled_as(part, path, size))

    def _open(self) -> tuple[Path, BinaryIO]:
        folder = self._spool()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(prefix="upload-", dir=folder)
        path = self._path = Path(name)
        return path, os.fdopen(handle, "wb", buffering=FLUSH_BYTES)


def _remove(path: Path) -> None:
    """Remove a file; what a large one takes to be let go of, 40 ms for 512 MB, nobody waits for."""
    if path.stat().st_size < _LARGE_BYTES:
        path.unlink()
        return
    held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    path.unlink()
    threads().submit(os.close, held)


_Measured = tuple[bytes, int]
"""A piece, and how many bytes have come with it."""


def _taken(pieces: list[_Measured]) -> Iterator[_Measured]:
    while pieces:
        yield pieces.pop(0)


def _data(events: Iterator[MultipartSegment | bytes | None]) -> Iterator[bytes]:
    for event in events:
        if not isinstance(event, bytes):
            return
        yield event


def _too_large(file_field: str, limit: int, size: int) -> TooLarge:
    return TooLarge(
        f"the {file_field} is too large: {size} bytes were sent, {limit} bytes are allowed",
        param=file_field,
        code="file_too_large",
    )
