"""The clients, each work in a process of its own so that no other one's lock is in its way.

    python -m benchmarks.client < JSON

reads `{"work": NAME, ...}`, does that work once and prints what it has seen as JSON: what the
functions below take, and what they return. They are bare sockets, with as little as possible
between two looks at the clock, because the client shares two cores with what it measures; but for
`upload_as_usual`, which is what people have.
"""

import asyncio
import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import content

TIMEOUT_SECONDS = 120.0
_PIECE = content.MB


class BrokenError(Exception):
    """The other side did not speak HTTP as it should, or hung up."""


class Connection:
    """A kept connection that asks and reads whole answers."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._held = b""

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a request."""
        self.socket.sendall(request)
        return self.answer()

    def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        status, headers = self.head()
        return status, b"".join(self.body(headers))

    def head(self) -> tuple[int, dict[bytes, bytes]]:
        """Status and headers, with names in lower case; an interim answer is passed over."""
        while True:
            while (end := self._held.find(b"\r\n\r\n")) < 0:
                self._more()
            head, self._held = self._held[:end], self._held[end + 4 :]
            first, *lines = head.split(b"\r\n")
            status = int(first.split(b" ", 2)[1])
            if status >= 200:
                pairs = (line.partition(b":") for line in lines)
                return status, {name.lower(): value.strip() for name, _, value in pairs}

    def body(self, headers: dict[bytes, bytes]) -> Iterator[bytes | memoryview]:
        """The pieces of a body as they arrive."""
        if b"content-length" in headers:
            yield from self._counted(int(headers[b"content-length"]))
        elif headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            yield from self._chunks()
        else:
            raise BrokenError("an answer without a length")

    def _counted(self, length: int) -> Iterator[bytes | memoryview]:
        held, self._held = self._held[:length], self._held[length:]
        left = length - len(held)
        if held:
            yield held
        if left < _PIECE:
            while left:
                piece = self.socket.recv(left)
                if not piece:
                    raise BrokenError("the answer ended early")
                left -= len(piece)
                yield piece
            return
        place = memoryview(bytearray(_PIECE))
        while left:
            size = self.socket.recv_into(place[: min(left, _PIECE)])
            if not size:
                raise BrokenError("the answer ended early")
            left -= size
            yield place[:size]

    def _chunks(self) -> Iterator[bytes | memoryview]:
        while True:
            while (end := self._held.find(b"\r\n")) < 0:
                self._more()
            size = int(self._held[:end].partition(b";")[0], 16)
            self._held = self._held[end + 2 :]
            if not size:
                while len(self._held) < 2:
                    self._more()
                self._held = self._held[2:]
                return
            yield from self._counted(size)
            while len(self._held) < 2:
                self._more()
            self._held = self._held[2:]

    def _more(self) -> None:
        piece = self.socket.recv(65536)
        if not piece:
            raise BrokenError("the connection ended early")
        self._held += piece


def upload(forms: list[dict[str, Any]]) -> dict[str, Any]:
    """Send all forms at once, each over its own new connection: seconds until all were answered.

    A form has `port`, `head` (with the request's own head), `tail`, and `size` bytes of content
    between them, or the `path` of a file that holds it.
    """
    answers: list[tuple[int, str]] = []
    connections = [Connection(form["port"]) for form in forms]

    def send(connection: Connection, form: dict[str, Any]) -> None:
        pipe = connection.socket
        # Refused before all of it was read: the answer is on its way.
        with suppress(BrokenPipeError, ConnectionResetError):
            pipe.sendall(form["head"].encode())
            if form.get("path"):
                with Path(form["path"]).open("rb") as source:
                    pipe.sendfile(source)
            else:
                for piece in content.pieces(form["size"]):
                    pipe.sendall(piece)
            pipe.sendall(form["tail"].encode())
        try:
            status, body = connection.answer()
            answers.append((status, body.decode()))
        except (OSError, BrokenError) as error:
            answers.append((0, f"{type(error).__name__}: {error}"))

    begun = time.perf_counter()
    _together([partial(send, c, f) for c, f in zip(connections, forms, strict=True)])
    seconds = time.perf_counter() - begun
    for connection in connections:
        connection.socket.close()
    bad = [(status, body) for status, body in answers if status != 200]
    return {
        "seconds": seconds,
        "failures": len(bad),
        "first_failure": bad[0] if bad else None,
        "answers": [json.loads(body) for status, body in answers if status == 200],
    }


def upload_as_usual(
    base_url: str, headers: dict[str, str], query: dict[str, str], fields: dict[str, str], path: str
) -> dict[str, Any]:
    """Upload a file with the `openai` client, as soon as a line comes on standard input."""
    # The others do not wait for it.
    from openai import OpenAI, OpenAIError  # noqa: PLC0415

    usual = OpenAI(
        base_url=base_url,
        api_key="in the headers",
        default_headers=headers,
        default_query=query,
        max_retries=0,
        timeout=TIMEOUT_SECONDS,
    )
    with suppress(OpenAIError):
        # What it does at its first request is not measured.
        usual.files.list()
    print("begun", flush=True)
    sys.stdin.readline()
    try:
        with Path(path).open("rb") as source:
            stored = usual.files.create(file=source, purpose="user_data", extra_body=fields)
    except OpenAIError as error:
        return {"failures": 1, "first_failure": str(error)}
    return {"failures": 0, "bytes": stored.bytes}


def download(port: int, request: str, size: int, is_checked: bool) -> dict[str, Any]:
    """Ask over a new connection: seconds to the first byte of content and to the last.

    `is_checked` takes the SHA-256 too, which costs time.
    """
    digest = hashlib.sha256() if is_checked else None
    with Connection(port) as connection:
        begun = time.perf_counter()
        connection.socket.sendall(request.encode())
        status, headers = connection.head()
        first: float | None = None
        got = 0
        for piece in connection.body(headers):
            if first is None:
                first = time.perf_counter() - begun
            got += len(piece)
            if digest is not None:
                digest.update(piece)
        seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "first_byte_seconds": first,
        "failures": int(status != 200 or got != size),
        "first_failure": [status, f"{got} of {size} bytes"],
        "sha256": digest.hexdigest() if digest else "",
    }


def first_events(port: int, request: str, times: int) -> dict[str, Any]:
    """One stream after the other on one connection: seconds to the first event of each."""
    waited: list[float] = []
    failures = 0
    with Connection(port) as connection:
        for _ in range(times):
            begun = time.perf_counter()
            connection.socket.sendall(request.encode())
            status, headers = connection.head()
            seen = b""
            for piece in connection.body(headers):
                if b"data:" not in seen and b"data:" in bytes(piece):
                    waited.append(time.perf_counter() - begun)
                seen += bytes(piece)
            failures += status != 200 or b"[DONE]" not in seen
            if b"connection" in headers and headers[b"connection"].lower() == b"close":
                raise BrokenError("a stream that ends the connection")
    return {"seconds": waited, "failures": failures}


def streams(port: int, request: str, number: int) -> dict[str, Any]:
    """So many streams at once, each over its own new connection.

    Seconds to the first event and to the end of each, from the moment at which all are asked for.
    """
    asked = request.encode()

    async def one(begun: float) -> tuple[float, float, bool]:
        first = last = 0.0
        is_whole = False
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
            writer.write(asked)
            seen = b""
            while piece := await asyncio.wait_for(reader.read(65536), TIMEOUT_SECONDS):
                seen += piece
                if not first and b"\r\n\r\n" in seen and b"data:" in seen:
                    first = time.perf_counter() - begun
                if b"data: [DONE]" in seen:
                    is_whole = seen.startswith(b"HTTP/1.1 200")
                    break
            last = time.perf_counter() - begun
            writer.close()
        except (OSError, TimeoutError):
            is_whole = False
        return first, last, is_whole

    async def all_of_them() -> list[tuple[float, float, bool]]:
        begun = time.perf_counter()
        return await asyncio.gather(*(one(begun) for _ in range(number)))

    seen = asyncio.run(all_of_them())
    whole = [(first, last) for first, last, is_whole in seen if is_whole]
    return {
        "first_seconds": [first for first, _ in whole],
        "last_seconds": [last for _, last in whole],
        "failures": number - len(whole),
    }


def probe(port: int, request: str, connections: int, pause_seconds: float) -> dict[str, Any]:
    """Ask at an even pace on several connections until standard input ends: how long each took."""
    over = threading.Event()
    waited: list[float] = []
    failures: list[int] = []

    def ask() -> None:
        with Connection(port) as connection:
            while not over.wait(pause_seconds):
                begun = time.perf_counter()
                status, _ = connection.ask(request.encode())
                waited.append(time.perf_counter() - begun)
                if status != 200:
                    failures.append(status)

    threads = [threading.Thread(target=ask) for _ in range(connections)]
    for thread in threads:
        thread.start()
    print("begun", flush=True)
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    return {"seconds": waited, "failures": len(failures)}


def load(port: int, requests: list[str], connections: int, seconds: float) -> dict[str, Any]:
    """Ask one request after the other on so many connections; what wrk does, where that is not.

    Half as fast as wrk, so what a fast server can do is more than this shows.
    """
    end = time.perf_counter() + seconds
    waited: list[float] = []
    failures: list[int] = []
    asked = [request.encode() for request in requests]

    def ask(first: int) -> None:
        turn = first
        with Connection(port) as connection:
            while (begun := time.perf_counter()) < end:
                status, _ = connection.ask(asked[turn % len(asked)])
                waited.append(time.perf_counter() - begun)
                turn += 1
                if status != 200:
                    failures.append(status)

    begun = time.perf_counter()
    _together([partial(ask, n) for n in range(connections)])
    taken = time.perf_counter() - begun
    return {
        "requests": len(waited),
        "seconds": taken,
        "waited": waited,
        "failures": len(failures),
        "first_failure": failures[:1],
    }


def _together(calls: list[Callable[[], None]]) -> None:
    if len(calls) == 1:
        calls[0]()
        return
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


_WORKS: dict[str, Callable[..., dict[str, Any]]] = {
    work.__name__: work
    for work in (upload, upload_as_usual, download, first_events, streams, probe, load)
}


def main() -> None:
    asked = json.loads(sys.stdin.readline())
    print(json.dumps(_WORKS[asked.pop("work")](**asked)))


if __name__ == "__main__":
    main()
