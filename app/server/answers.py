"""An answer's head and the beginning of its body in one write."""

from typing import Any

from gunicorn.http.wsgi import Response

from app import turns
from app.server.bodies import Arriving

_MOST_JOINED = 64 * 1024
"""The longest first piece of a body that is copied behind the head."""


class Answer(Response):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's response, of which a small one is one system call and one packet, not two."""

    sock: Any
    arriving: Arriving | None = None

    def should_close(self) -> bool:
        """Whether it is the connection's last answer: one to a body that is not read is, too.

        A client that is not told would send its next request to a connection that ends.
        """
        return (self.arriving is not None and self.arriving.is_left) or bool(super().should_close())

    def write(self, arg: bytes) -> None:
        """Send a piece of the body, and the head before the first one."""
        if self.headers_sent or len(arg) > _MOST_JOINED:
            # The client may be slow.
            turns.leave()
            super().write(arg)
            return
        sock, self.sock = self.sock, _Held()
        try:
            super().write(arg)
        finally:
            held, self.sock = self.sock, sock
        sock.sendall(b"".join(held.pieces))


class _Held:
    """Keeps what would be sent."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []

    def sendall(self, data: Any) -> None:
        self.pieces.append(data)
