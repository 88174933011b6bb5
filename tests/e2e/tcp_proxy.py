"""A TCP relay in front of a server, which can cut what goes through it and refuse what comes."""

import socket
import threading
from contextlib import suppress
from typing import Self

PIECE = 65536


class TcpProxy:
    """Listens on 127.0.0.1:`port`, which stays the same from `refuse` to `resume`."""

    def __init__(self, host: str, port: int) -> None:
        self._behind = (host, port)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listening: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self.port = 0
        self.resume()

    def resume(self) -> None:
        """Take connections again."""
        listening = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = listening.getsockname()[1]
        self._listening = listening
        self._begin(self._accept, listening)

    def cut(self) -> None:
        """Reset every connection there is; new ones are taken."""
        with self._lock:
            for each in self._open:
                # Both sides notice at once, also the one that is only waiting.
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """Take no connection any more, and cut those there are."""
        listening, self._listening = self._listening, None
        if listening is not None:
            # Wakes up whoever is in accept().
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        for thread in self._threads:
            thread.join()

    def _begin(self, run: object, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._behind)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            if self._listening is not listening:
                self.cut()
            left = threading.Barrier(2)
            self._begin(self._relay, client, server, left)
            self._begin(self._relay, server, client, left)

    def _relay(self, source: socket.socket, sink: socket.socket, left: threading.Barrier) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE):
                sink.sendall(piece)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        left.wait()
        with self._lock:
            self._open.discard(source)
        source.close()
