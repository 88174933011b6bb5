"""A multipart body that is streamed with a known length, never held.

`requests`' own `files=` reads every file into memory. Source of the format: RFC 7578; how the
openai client writes it was read from the wire (field order, filename escapes), 2026-11.
"""

import io
import secrets
from collections.abc import Mapping
from functools import lru_cache

from urllib3.fields import RequestField

from app.transfers import Upload


class MultipartFile(io.RawIOBase):
    """Form fields and one file as a readable, rewindable body. Close it to close the file."""

    def __init__(self, fields: Mapping[str, str], upload: Upload) -> None:
        super().__init__()
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        text = "".join(
            f"--{boundary}\r\n{_headers(name)}{value}\r\n" for name, value in fields.items()
        )
        named = _headers("file", upload.filename, upload.mime_type)
        self._head = f"{text}--{boundary}\r\n{named}".encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._file = upload.open()
        self._file_size = upload.size
        self._size = len(self._head) + upload.size + len(self._tail)
        self._at = 0

    def __len__(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        self._file.seek(min(max(0, self._at - len(self._head)), self._file_size))
        return self._at

    def read(self, size: int = -1) -> bytes:
        """The next bytes: up to `size`, from one of head, file and tail at a time."""
        if size < 0:
            return b"".join(iter(lambda: self.read(1 << 20), b""))
        file_start = len(self._head)
        tail_start = file_start + self._file_size
        if self._at < file_start:
            piece = self._head[self._at : self._at + size]
        elif self._at < tail_start:
            piece = self._file.read(min(size, tail_start - self._at))
            if not piece:
                raise OSError("the spooled file is shorter than it was")
        else:
            begin = self._at - tail_start
            piece = self._tail[begin : begin + size]
        self._at += len(piece)
        return piece

    def close(self) -> None:
        self._file.close()
        super().close()


@lru_cache(maxsize=256)
def _headers(name: str, filename: str | None = None, mime_type: str | None = None) -> str:
    """A part's headers, with the empty line behind them."""
    field = RequestField(name, b"", filename=filename)
    field.make_multipart(content_type=mime_type)
    return field.render_headers()
