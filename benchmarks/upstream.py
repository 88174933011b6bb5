"""A fake upstream that is fast enough not to be what is measured.

    python -m benchmarks.upstream --fd N

It speaks the OpenAI API on a socket it is given, in one process, as a bare protocol on asyncio,
and keeps of a file no more than its name and size, and its content up to 64 KB.
Larger content is always the one that `benchmarks.content` makes, so it can be given back without
having been kept. To an account whose key ends in `-checked` an upload's SHA-256 is taken too,
which costs more than receiving it, so it is never asked for while time is measured.

Measured on two cores: 58,000 file reads a second at 16 connections, an upload at 2.5 GB/s, four
at once at 3.2 GB/s together.

Who asks for a stream and says `slowly, in N steps` gets N events, PAUSE_SECONDS apart.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import re
import socket
from dataclasses import dataclass
from typing import Any, cast

from benchmarks import content

PAUSE_SECONDS = 0.1
KEPT_BYTES = 64 * 1024
LISTED = 20
_TAIL = 4096
"""The most bytes that can stand behind a file in its form."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_BOUNDARY = re.compile(
    rb"\r\ncontent-type: *multipart/form-data;.*?boundary=\"?([^\r\n\";]+)", re.I
)
_EXPECTS = re.compile(rb"\r\nexpect: *100-continue", re.IGNORECASE)
_CHECKED = re.compile(rb"\r\nauthorization: *bearer [^\r\n]*-checked\r\n", re.IGNORECASE)
_NAMED = re.compile(rb'name="?([^";\r\n]+)')
_FILENAME = re.compile(rb'filename="?([^";\r\n]+)')


@dataclass
class Stored:
    """A file: the object as it is shown, ready to be sent, and what is known of its content."""

    answer: bytes
    size: int
    content: bytes | None
    """None where it is what `benchmarks.content` makes."""


class Account:
    """What all connections share."""

    def __init__(self) -> None:
        self.files: dict[bytes, Stored] = {}
        self.checked: list[tuple[int, str]] = []
        """Size and SHA-256 of what was to be checked since somebody has asked."""
        self._numbers = itertools.count(1)
        listed = [_file_object(f"file-listed{n}", 1024, f"listed-{n}.bin") for n in range(LISTED)]
        self.page = answer(
            {
                "object": "list",
                "data": listed,
                "first_id": listed[0]["id"],
                "last_id": listed[-1]["id"],
                "has_more": False,
            }
        )

    def store(self, size: int, name: str, purpose: str, kept: bytes | None, sha256: str) -> bytes:
        """Take a file in; the answer to its upload."""
        file_id = f"file-bench{next(self._numbers)}"
        shown = _file_object(file_id, size, name, purpose)
        if sha256:
            self.checked.append((size, sha256))
        made = answer(shown)
        self.files[file_id.encode()] = Stored(made, size, kept)
        return made


def _file_object(file_id: str, size: int, name: str, purpose: str = "user_data") -> dict[str, Any]:
    return {
        "id": file_id,
        "object": "file",
        "bytes": size,
        "created_at": 1_760_000_000,
        "filename": name,
        "purpose": purpose,
        "status": "processed",
    }


def answer(shown: dict[str, Any], status: str = "200 OK") -> bytes:
    """A whole HTTP answer with a JSON body."""
    body = json.dumps(shown).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def _refusal(message: str, status: str = "404 Not Found") -> bytes:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return answer({"error": error}, status)


def _event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    shown = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1_760_000_000,
        "model": "gpt-4o",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    event = b"data: " + json.dumps(shown).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_WORD = _event({"content": "word "})
_CHAT = answer(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "gpt-4o",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "It says what it says.",
                    "refusal": None,
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18},
    }
)
_DELETED = answer({"id": "file-bench", "object": "file", "deleted": True})


class Connection(asyncio.Protocol):
    """One client: a head, then a body that is taken in by whoever the head names, and again."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._held = b""
        self._body: _Body | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._out = cast(asyncio.Transport, transport)
        self._out.set_write_buffer_limits(high=4 * content.MB)

    def connection_lost(self, _error: Exception | None) -> None:
        self._can_write.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    def data_received(self, data: bytes) -> None:
        if self._body is not None:
            if not self._body.take(data):
                return
            self._finish(self._body)
            return
        data = self._held + data if self._held else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._held = data
            return
        self._held = b""
        if data.startswith(b"GET "):
            self._get(data[4 : data.index(b" ", 4)].partition(b"?")[0])
        else:
            self._begin(data[: end + 2], data[end + 4 :])

    def _begin(self, head: bytes, rest: bytes) -> None:
        method, path, _ = head.split(b" ", 2)
        length = _LENGTH.search(head)
        boundary = _BOUNDARY.search(head)
        wire: _Chunks | _Counted
        wire = _Chunks() if _CHUNKED.search(head) else _Counted(int(length[1]) if length else 0)
        if boundary is not None:
            form = _Form(boundary[1], is_checked=bool(_CHECKED.search(head)))
            self._body = _Body(method, path, wire, form)
        else:
            self._body = _Body(method, path, wire, _Whole())
        if _EXPECTS.search(head):
            self._out.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._body.take(rest):
            self._finish(self._body)

    def _finish(self, body: "_Body") -> None:
        self._body = None
        if body.method == b"DELETE":
            self._out.write(_DELETED)
        elif isinstance(body.kept, _Form):
            self._out.write(body.kept.stored(self._account))
        elif body.path.partition(b"?")[0].endswith(b"/chat/completions"):
            self._chat(body.kept.data())
        else:
            self._out.write(_refusal("no such path"))

    def _get(self, path: bytes) -> None:
        last = path.rpartition(b"/")[2]
        files = self._account.files
        if (stored := files.get(last)) is not None:
            self._out.write(stored.answer)
        elif last == b"content" and (stored := files.get(path.split(b"/")[-2])) is not None:
            self._send(stored)
        elif last == b"files":
            self._out.write(self._account.page)
        elif last == b"checked":
            self._out.write(answer({"data": self._account.checked}))
            self._account.checked = []
        elif last == b"ready":
            self._out.write(_DELETED)
        else:
            self._out.write(_refusal("no such file"))

    def _send(self, stored: Stored) -> None:
        self._out.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: %d\r\n\r\n" % stored.size
        )
        if stored.content is not None:
            self._out.write(stored.content)
        else:
            self._task = asyncio.ensure_future(self._send_made(stored.size))

    async def _send_made(self, size: int) -> None:
        for piece in content.pieces(size):
            await self._can_write.wait()
            if self._out.is_closing():
                return
            self._out.write(piece)

    def _chat(self, asked: bytes) -> None:
        known = self._account.files
        named = re.findall(rb'"file_id": *"([^"]*)"', asked)
        if any(file_id not in known for file_id in named):
            self._out.write(_refusal("no such file"))
        elif not re.search(rb'"stream": *true', asked):
            self._out.write(_CHAT)
        elif slowly := re.search(rb"slowly, in (\d+) steps", asked):
            self._task = asyncio.ensure_future(self._stream_slowly(int(slowly[1])))
        else:
            self._out.write(_STREAM_HEAD + _WORD)
            self._out.write(_WORD + _WORD + _event({}, "stop") + _DONE)

    async def _stream_slowly(self, steps: int) -> None:
        self._out.write(_STREAM_HEAD)
        # Paced from its beginning, so that a late wake-up does not make the stream longer.
        begun = asyncio.get_running_loop().time()
        for n in range(1, steps + 1):
            self._out.write(_WORD)
            await asyncio.sleep(begun + n * PAUSE_SECONDS - asyncio.get_running_loop().time())
        self._out.write(_event({}, "stop") + _DONE)


class _Counted:
    """A body whose length was announced."""

    def __init__(self, length: int) -> None:
        self._left = length

    def take(self, data: bytes, to: "_Form | _Whole") -> bool:
        if data:
            to.add(data)
            self._left -= len(data)
        return self._left <= 0


class _Chunks:
    """A chunked body."""

    def __init__(self) -> None:
        self._held = b""
        self._left = 0
        self._is_last = False

    def take(self, data: bytes, to: "_Form | _Whole") -> bool:
        data, self._held = self._held + data if self._held else data, b""
        at = 0
        while at < len(data):
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                to.add(piece)
                at += len(piece)
                self._left -= len(piece)
            elif self._left:
                step = min(self._left, len(data) - at)
                at += step
                self._left -= step
                if not self._left and self._is_last:
                    return True
            else:
                end = data.find(b"\r\n", at)
                if end < 0:
                    self._held = data[at:]
                    return False
                size = int(data[at:end].partition(b";")[0], 16)
                # The line end that follows a chunk counts to it; the last has no trailers here.
                self._left, self._is_last = size + 2, size == 0
                at = end + 2
        return False


class _Whole:
    """A body that is kept as it comes."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def data(self) -> bytes:
        return b"".join(self._pieces)


class _Form:
    """A multipart body: the file's size, and its content or its SHA-256 as far as wanted.

    The file may be any part; what stands before it and behind it is small, so the beginning is
    kept until the file begins, and the latest bytes, in which the form ends.
    """

    def __init__(self, boundary: bytes, *, is_checked: bool) -> None:
        self._mark = b"--" + boundary
        self._head = b""
        self._tail = b""
        self._size = 0
        self._is_in_file = False
        self._kept: list[bytes] | None = []
        self._digest = hashlib.sha256() if is_checked else None
        self._fields: dict[bytes, bytes] = {}
        self._filename = b"unnamed"

    def add(self, piece: bytes) -> None:
        if not self._is_in_file:
            self._head += piece
            piece = self._enter()
            if not self._is_in_file:
                return
        # What may belong to the form's end is held back: fields behind a file are short.
        if len(piece) >= _TAIL:
            if self._tail:
                self._file(self._tail)
            self._file(memoryview(piece)[:-_TAIL])
            self._tail = piece[-_TAIL:]
        else:
            held = self._tail + piece
            if len(held) > _TAIL:
                self._file(held[:-_TAIL])
            self._tail = held[-_TAIL:]

    def _enter(self) -> bytes:
        """What follows the file's own head, once it is there."""
        at = self._head.find(b"filename")
        begins = self._head.find(b"\r\n\r\n", at) if at >= 0 else -1
        if begins < 0:
            return b""
        self._is_in_file = True
        named = _FILENAME.search(self._head, at)
        self._filename = named[1] if named else self._filename
        self._read_fields(self._head[:at])
        return self._head[begins + 4 :]

    def _file(self, piece: bytes | memoryview) -> None:
        self._size += len(piece)
        if self._digest is not None:
            self._digest.update(piece)
        if self._kept is not None:
            self._kept.append(bytes(piece))
            if self._size > KEPT_BYTES:
                self._kept = None

    def _read_fields(self, text: bytes) -> None:
        for part in text.split(self._mark):
            head, found, value = part.partition(b"\r\n\r\n")
            named = _NAMED.search(head)
            if found and named:
                self._fields[named[1]] = value.removesuffix(b"\r\n")

    def stored(self, account: Account) -> bytes:
        """The form has ended: take the file in."""
        last, found, behind = self._tail.partition(b"\r\n" + self._mark)
        if not self._is_in_file or not found:
            return _refusal("the form has no file, or no end", "400 Bad Request")
        self._file(last)
        self._read_fields(behind)
        purpose = self._fields.get(b"purpose", b"").decode()
        if not purpose:
            return _refusal("the form has no purpose", "400 Bad Request")
        kept = None if self._kept is None else b"".join(self._kept)
        if kept == content.BLOCK[: self._size]:
            kept = None  # It can be made again.
        sha256 = self._digest.hexdigest() if self._digest else ""
        return account.store(self._size, self._filename.decode(), purpose, kept, sha256)


@dataclass
class _Body:
    """A body on its way in: how it is framed, and who takes it."""

    method: bytes
    path: bytes
    wire: _Counted | _Chunks
    kept: Any

    def take(self, data: bytes) -> bool:
        return self.wire.take(data, self.kept)


async def serve(listening: socket.socket) -> None:
    """Answer on this socket until the process is ended."""
    account = Account()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(account), sock=listening, backlog=1024)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upstream")
    parser.add_argument("--fd", type=int, required=True, help="a listening socket")
    listening = socket.socket(fileno=parser.parse_args().fd)
    asyncio.run(serve(listening))


if __name__ == "__main__":
    main()
