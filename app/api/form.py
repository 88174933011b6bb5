"""A multipart form read as it arrives: fields in memory, the one file to the spool."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from flask import request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from app.errors import NO_SPACE, InvalidRequest, StorageFull, TooLarge
from app.file_names import clean_filename, mime_type

READ_BYTES = 64 * 1024
"""Werkzeug's decoder slows down by four with pieces of 1 MB."""
MAX_FIELDS_BYTES = 1024 * 1024
MAX_PARTS = 200
MAX_CONTENT_TYPE = 2000
_FORM_OVERHEAD_BYTES = 2 * MAX_FIELDS_BYTES


@dataclass(frozen=True)
class SpooledFile:
    """The uploaded file on our disk, with what its part said. `size` is in bytes."""

    path: Path
    filename: str
    mime_type: str
    size: int
    sha256: str


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


def least_file_bytes() -> int:
    """How large the form's file is at least, by what the request says of its length."""
    return max(0, (request.content_length or 0) - _FORM_OVERHEAD_BYTES)


@contextmanager
def spooled_form(spool: Path, *, file_field: str, max_file_bytes: int) -> Iterator[Form]:
    """The request's form; its file is removed from the spool at the end.

    Raises InvalidRequest for a body that is no whole multipart form, TooLarge for a file over
    the limit (before the body is read when Content-Length tells), StorageFull.
    """
    declared = request.content_length
    if declared is not None and declared > max_file_bytes + _FORM_OVERHEAD_BYTES:
        raise _too_large(file_field, max_file_bytes, declared)
    decoder = _decoder(file_field)
    reader = _Reader(decoder, spool, file_field, max_file_bytes)
    try:
        yield reader.read()
    finally:
        reader.discard()


def _decoder(file_field: str) -> MultipartDecoder:
    # The parser's work grows with the square of such a header.
    is_sane = len(request.headers.get("Content-Type", "")) <= MAX_CONTENT_TYPE
    boundary = request.mimetype_params.get("boundary", "") if is_sane else ""
    if not is_sane or request.mimetype != "multipart/form-data" or not 0 < len(boundary) <= 200:
        raise InvalidRequest(
            f"send the {file_field} as multipart/form-data with a boundary", param=file_field
        )
    return MultipartDecoder(
        boundary.encode("latin-1", "replace"), MAX_FIELDS_BYTES, max_parts=MAX_PARTS
    )


class _Reader:
    def __init__(
        self, decoder: MultipartDecoder, spool: Path, file_field: str, max_file_bytes: int
    ) -> None:
        self._decoder = decoder
        self._spool = spool
        self._file_field = file_field
        self._max = max_file_bytes
        self._form = Form()
        self._fields_bytes = 0
        self._path: Path | None = None

    def read(self) -> Form:
        """The whole form."""
        try:
            for part, data in self._parts():
                if not part.name:
                    raise ValueError("a part without a name")  # noqa: TRY301  # broken form
                if isinstance(part, File) and part.name == self._file_field:
                    if self._form.file is not None:
                        raise InvalidRequest("send one file at a time", param=self._file_field)
                    self._form.file = self._spooled(part, data)
                elif isinstance(part, File):
                    raise InvalidRequest(
                        f"unexpected file part {part.name!r}; the file's part is "
                        f"{self._file_field!r}",
                        param=self._file_field,
                    )
                else:
                    self._form.fields.setdefault(part.name, []).append(self._text(part, data))
        except RequestEntityTooLarge as error:
            raise TooLarge(
                f"a form may have {MAX_PARTS} parts and {MAX_FIELDS_BYTES} bytes of fields"
            ) from error
        except ValueError as error:
            raise InvalidRequest("the multipart form is broken", code="invalid_form") from error
        return self._form

    def discard(self) -> None:
        """Remove the spooled file."""
        if self._path is not None:
            with suppress(FileNotFoundError):
                self._path.unlink()

    def _parts(self) -> Iterator[tuple[Field | File, Iterator[bytes]]]:
        events = self._events()
        for event in events:
            if isinstance(event, Field | File):
                yield event, _data(events)

    def _events(self) -> Iterator[Field | File | Data]:
        stream = request.stream
        while True:
            event = self._decoder.next_event()
            if isinstance(event, Epilogue):
                return
            if isinstance(event, NeedData):
                try:
                    piece = stream.read(READ_BYTES)
                    if self._ends_within_the_last_boundary(piece):
                        piece += stream.read(1)
                except OSError as error:
                    raise ClientDisconnected from error
                # None, once the body is at its end: the decoder then refuses what is not whole.
                self._decoder.receive_data(piece or None)
            elif isinstance(event, Field | File | Data):
                yield event

    def _ends_within_the_last_boundary(self, piece: bytes) -> bool:
        # Without the last dash Werkzeug 3.1.9 takes the line end before the boundary for content.
        cut = b"--" + self._decoder.boundary + b"-"
        return (bytes(self._decoder.buffer[-len(cut) :]) + piece).endswith(cut)

    def _text(self, part: Field, data: Iterator[bytes]) -> str:
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

    def _spooled(self, part: File, data: Iterator[bytes]) -> SpooledFile:
        digest = hashlib.sha256()
        size = 0
        try:
            with self._open() as out:
                for piece in data:
                    size += len(piece)
                    if size > self._max:
                        declared = request.content_length
                        raise _too_large(self._file_field, self._max, declared or size)
                    digest.update(piece)
                    out.write(piece)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise StorageFull from error
            raise
        name = clean_filename(part.filename)
        assert self._path is not None  # noqa: S101  # _open has set it
        kind = mime_type(part.headers.get("content-type", ""), name)
        return SpooledFile(self._path, name, kind, size, digest.hexdigest())

    def _open(self) -> BinaryIO:
        self._spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, path = tempfile.mkstemp(prefix="upload-", dir=self._spool)
        self._path = Path(path)
        return os.fdopen(handle, "wb", buffering=1024 * 1024)


def _data(events: Iterator[Field | File | Data]) -> Iterator[bytes]:
    for event in events:
        if not isinstance(event, Data):
            raise ValueError("a part began inside another")  # noqa: TRY004  # broken form
        yield event.data
        if not event.more_data:
            return


def _too_large(file_field: str, limit: int, size: int) -> TooLarge:
    return TooLarge(
        f"the {file_field} is too large: {size} bytes were sent, {limit} bytes are allowed",
        param=file_field,
        code="file_too_large",
    )
