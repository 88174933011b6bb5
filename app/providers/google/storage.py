"""One bucket of Cloud Storage: objects written in chunks that can be resumed, listed, read.

Source: Cloud Storage JSON API reference, objects, and Resumable uploads; read 2026-11.
"""

import base64
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from app.errors import GatewayError, NotFound, UpstreamError, UpstreamRejected
from app.providers.lines import CHUNK_BYTES
from app.providers.upstream import Answer, Upstream
from app.transfers import Cancellation

CHUNK = 8 * 1024 * 1024
"""Bytes of one request of an upload; a multiple of 256 KiB, as every chunk but the last must be."""
_TRIES = 5
_RANGE = re.compile(r"bytes=0-([0-9]+)")
_OPEN = 308
_EXISTS = 412


class Bucket:
    """Objects by their names, over an Upstream of Cloud Storage. Shared by the server's threads."""

    def __init__(self, upstream: Upstream, name: str) -> None:
        self._upstream = upstream
        self.name = name

    def put(
        self,
        name: str,
        open_file: Callable[[], BinaryIO],
        size: int,
        content_type: str,
        metadata: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The object that now holds a file of so many bytes, sent from disk chunk by chunk.

        An object of this name that is there already is not overwritten: with the same bytes it
        counts as ours (its answer was lost), else UpstreamRejected. Raises UpstreamError when
        what was stored is not what was sent; then it is removed.
        """
        with open_file() as file:
            checksum = _Checksum()
            while piece := file.read(CHUNK_BYTES):
                checksum.add(piece)
            described = {"crc32c": checksum.text}
            try:
                session = self._begin(name, content_type, metadata, described, size)
            except UpstreamRejected as error:
                if error.status != _EXISTS:
                    raise
                return self._same(name, size, checksum.text)
            file.seek(0)
            return self._whole(session, name, file, size, checksum.text)

    def put_lines(self, name: str, lines: Iterable[bytes], content_type: str) -> dict[str, Any]:
        """The object that now holds these lines, of which nobody knows how many there will be.

        One chunk of them is in memory at a time.
        """
        session = self._begin(name, content_type, None, {}, None)
        checksum = _Checksum()
        start = 0
        held = io.BytesIO()
        for line in lines:
            held.write(line)
            while held.tell() >= CHUNK + 1:
                whole = held.getbuffer()
                piece = bytes(whole[:CHUNK])
                rest = bytes(whole[CHUNK:])
                whole.release()
                self._send(session, io.BytesIO(piece), start, len(piece), None)
                checksum.add(piece)
                start += len(piece)
                held = io.BytesIO()
                held.write(rest)
        last = held.getvalue()
        checksum.add(last)
        made = self._send(session, io.BytesIO(last), start, len(last), start + len(last))
        return self._checked(name, made, checksum.text)

    def get(self, name: str) -> dict[str, Any]:
        """What Cloud Storage tells of an object. Raises NotFound."""
        return self._upstream.json("GET", self._path(name))

    def open(
        self, name: str, byte_range: str | None = None, cancellation: Cancellation | None = None
    ) -> Answer:
        """An object's bytes, or those that a Range header's value names; any status."""
        headers = {"Range": byte_range} if byte_range else {}
        return self._upstream.stream(
            "GET", f"{self._path(name)}?alt=media", headers=headers, cancellation=cancellation
        )

    def read(
        self, name: str, byte_range: str | None = None, cancellation: Cancellation | None = None
    ) -> Answer:
        """The same, but no other status than that of bytes. Raises NotFound, UpstreamError."""
        answer = self.open(name, byte_range, cancellation)
        self._upstream.raise_for(answer)
        return answer

    def list(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Every object whose name begins so, all pages, by name."""
        params = {"prefix": prefix, "maxResults": "1000"}
        while True:
            answer = self._upstream.json("GET", self._objects, params=params)
            items = answer.get("items")
            yield from (item for item in items or () if isinstance(item, dict))
            following = answer.get("nextPageToken")
            # The same page again would go round for ever.
            if not isinstance(following, str) or following in ("", params.get("pageToken")):
                return
            params["pageToken"] = following

    def delete(self, name: str) -> None:
        """Remove an object. One that is gone already is no error."""
        with suppress(NotFound):
            self._upstream.json("DELETE", self._path(name))

    # Uploads

    def _begin(
        self,
        name: str,
        content_type: str,
        metadata: Mapping[str, str] | None,
        described: Mapping[str, str],
        size: int | None,
    ) -> str:
        """The address, on our own host, of a new upload."""
        headers = {"Content-Type": "application/json", "X-Upload-Content-Type": content_type}
        if size is not None:
            headers["X-Upload-Content-Length"] = str(size)
        body = {"name": name, "contentType": content_type, **described}
        if metadata:
            body["metadata"] = dict(metadata)  # type: ignore[assignment]  # an object among texts
        params = {"uploadType": "resumable"}
        if size is not None:
            # Only where nothing is, so that nothing is ever overwritten.
            params["ifGenerationMatch"] = "0"
        answer = self._upstream.exchange(
            "POST",
            f"/upload/storage/v1/b/{quote(self.name, safe='')}/o",
            params=params,
            body=json.dumps(body).encode(),
            headers=headers,
        )
        answer.close()
        return self._own_address(answer.headers.get("location", ""))

    def _own_address(self, location: str) -> str:
        """Path and query of an upload's address: only our own host ever gets our token."""
        found = urlsplit(location)
        if not found.path.startswith("/"):
            raise self._upstream.nonsense("began an upload and did not say where")
        return f"{found.path}?{found.query}" if found.query else found.path

    def _whole(
        self, session: str, name: str, file: BinaryIO, size: int, crc32c: str
    ) -> dict[str, Any]:
        start, failures = 0, 0
        while True:
            length = min(CHUNK, size - start)
            file.seek(start)
            try:
                made = self._send(session, Slice(file, length), start, length, size)
            except UpstreamError as error:
                failures += 1
                if failures == _TRIES or not may_go_on(error):
                    raise
                found = self._progress(session, size)
                if isinstance(found, int):
                    start = found
                    continue
                made = found
            if made is None:
                start += length
                continue
            return self._checked(name, made, crc32c)

    def _send(
        self,
        session: str,
        body: "Slice | io.BytesIO",
        start: int,
        length: int,
        size: int | None,
    ) -> dict[str, Any] | None:
        """Send one chunk; the object when it was the last one."""
        total = "*" if size is None else str(size)
        span = f"bytes {start}-{start + length - 1}/{total}" if length else f"bytes */{total}"
        answer = self._upstream.exchange(
            "PUT",
            session,
            body=body,  # type: ignore[arg-type]  # a BytesIO is as good as a RawIOBase
            headers={"Content-Range": span, "Content-Length": str(length)},
            allowed=(_OPEN,),
        )
        if answer.status != _OPEN:
            return self._upstream.object_of(answer)
        answer.close()
        kept = _RANGE.fullmatch(answer.headers.get("range", ""))
        if kept is None or int(kept[1]) + 1 < start + length:
            raise self._upstream.nonsense("kept only a part of what it was sent")
        return None

    def _progress(self, session: str, size: int) -> int | dict[str, Any]:
        """How many bytes have arrived, or the object when all have."""
        answer = self._upstream.exchange(
            "PUT",
            session,
            headers={"Content-Range": f"bytes */{size}", "Content-Length": "0"},
            repeatable=True,
            allowed=(_OPEN,),
        )
        if answer.status != _OPEN:
            return self._upstream.object_of(answer)
        answer.close()
        kept = _RANGE.fullmatch(answer.headers.get("range", ""))
        return int(kept[1]) + 1 if kept else 0

    def _same(self, name: str, size: int, crc32c: str) -> dict[str, Any]:
        """The object that is there already, when it is the one that was to be stored."""
        found = self.get(name)
        if str(found.get("size")) == str(size) and found.get("crc32c") in (crc32c, None):
            return found
        raise self._upstream.nonsense("has another object of this name already")

    def _checked(self, name: str, made: dict[str, Any] | None, crc32c: str) -> dict[str, Any]:
        if made is None:
            raise self._upstream.nonsense("waits for more after the last byte")
        if made.get("crc32c") not in (crc32c, None):
            with suppress(GatewayError):
                self.delete(name)
            raise self._upstream.nonsense("stored other bytes than it was sent")
        return made

    @property
    def _objects(self) -> str:
        return f"/storage/v1/b/{quote(self.name, safe='')}/o"

    def _path(self, name: str) -> str:
        if name in ("", ".", ".."):
            raise NotFound(f"No such File object: {name}", param="id")
        return f"{self._objects}/{quote(name, safe='')}"


class Slice(io.RawIOBase):
    """So many bytes of a file from where it stands now; can be rewound to there."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        super().__init__()
        self._file = file
        self._begin = file.tell()
        self._length = length
        self._at = 0

    def __len__(self) -> int:
        return self._length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, start + offset)
        self._file.seek(self._begin + self._at)
        return self._at

    def read(self, size: int = -1) -> bytes:
        """The next bytes: up to `size`, and no further than the slice."""
        left = max(0, self._length - self._at)
        piece = self._file.read(left if size < 0 else min(size, left))
        if left and size and not piece:
            raise OSError("the spooled file is shorter than it was")
        self._at += len(piece)
        return piece


class _Checksum:
    """CRC32C as Cloud Storage writes it: base64 of four bytes, the highest first."""

    def __init__(self) -> None:
        # Imported here, as google-auth is: only where there is a bucket.
        import google_crc32c  # noqa: PLC0415

        self._sum = google_crc32c.Checksum()  # type: ignore[no-untyped-call]  # as above

    def add(self, piece: bytes) -> None:
        self._sum.update(piece)  # type: ignore[no-untyped-call]  # the library has no types

    @property
    def text(self) -> str:
        found = self._sum.digest()  # type: ignore[no-untyped-call]  # likewise
        return base64.b64encode(found).decode()


def may_go_on(error: UpstreamError) -> bool:
    """Whether an upload that failed in the middle can be asked how far it came."""
    if isinstance(error, UpstreamRejected):
        return error.status in (408, 429) or error.status >= 500
    return error.code != "upstream_auth_failed"
