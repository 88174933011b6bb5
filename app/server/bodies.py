"""A request's body as the application reads it."""

import errno
from typing import Any

from gunicorn.http import errors as refused
from gunicorn.http.body import Body, LengthReader

from app import turns

_SHORT = 64 * 1024


class Arriving:
    """A request's body that is asked for when it is read first, and that ends early as an error.

    gunicorn says `100 Continue` before the application has seen the key, and shows a connection
    that broke in the middle of a body as the body's end.
    """

    def __init__(self, reader: Any, sock: Any, expected: bool) -> None:
        self._reader = reader
        self._sock = sock
        self._left: int | None = getattr(reader, "length", None)
        self._is_plain = isinstance(reader, LengthReader)
        self.expected = expected

    @property
    def is_left(self) -> bool:
        """Whether more of it is to come than will be read for nobody, to keep the connection."""
        return self._left is not None and self._left > _SHORT

    def read(self, size: int) -> bytes:
        data: bytes
        if self.expected:
            self.expected = False
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            if self._is_plain:
                data = self._recv(size)
            else:
                turns.leave()
                data = self._reader.read(size)
        except (refused.ParseException, TimeoutError) as error:
            # What an application knows of its server is OSError, so a bad chunk becomes one.
            raise ConnectionResetError(errno.ECONNRESET, "the body is malformed") from error
        if self._left is not None:
            self._left -= len(data)
            if size and not data and self._left > 0:
                raise ConnectionResetError(errno.ECONNRESET, "the body ended early")
        return data

    def _recv(self, size: int) -> bytes:
        """The next bytes of a body of known length, as many as there are, at most `size`.

        gunicorn reads far ahead and copies all of that at each call, which costs more than
        everything else that is done with a large upload.
        """
        reader = self._reader
        size = min(size, reader.length)
        if size <= 0:
            return b""
        held = reader.unreader.buf.getbuffer().nbytes
        if held:
            # It came with the head, and is all that was asked for: nothing is read ahead.
            data: bytes = reader.unreader.read(min(size, held))
        elif reader.length > _SHORT:
            turns.leave()
            data = self._sock.recv(size)
        else:
            # The rest of a small body is on its way.
            with turns.waiting():
                data = self._sock.recv(size)
        reader.length -= len(data)
        return data


class Input(Body):  # type: ignore[misc]  # gunicorn has no types
    """A body for the application: what is there is given at once, without another copy."""

    def read(self, size: int | None = None) -> bytes:
        """As a raw stream's: a positive `size` may give less than that, b"" is the end."""
        if size is None or size <= 0 or self.buf.tell():
            data: bytes = super().read(size)
            return data
        return self._read_reader(size)  # type: ignore[no-any-return]  # as above
