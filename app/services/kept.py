"""Contents that stay on the gateway's disk, as the setting says or until every copy is made."""

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from app.db.tables import File
from app.errors import UpstreamError
from app.providers.content_store import PIECE, ContentStore
from app.providers.protocol import Flaw
from app.providers.wire.byte_range import part_of
from app.transfers import Download, Upload

MB = 1024 * 1024
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Kept:
    """One entry for each file, named by its row id; equal contents are on disk once."""

    def __init__(self, data_dir: Path) -> None:
        # The local provider's blobs are shared: what it stores too takes no second place.
        self._store = ContentStore(data_dir / "local")
        self._folder = data_dir / "kept"

    def has_room(self, size: int, limit_mb: int) -> bool:
        """Whether so many bytes more keep what is kept within a limit, and within the disk."""
        used = 0
        for path in self._paths():
            with suppress(FileNotFoundError):
                used += path.stat().st_size
        return used + size <= limit_mb * MB

    def put(self, file_uuid: str, upload: Upload) -> None:
        """Keep the content, on disk for good when this returns. Raises StorageFull."""
        self._store.put(upload, self._path(file_uuid))

    def upload_of(self, file: File) -> Upload | None:
        """The file as it was sent, None when its content is not on this machine's disk."""
        path = self._path(file.id)
        if not file.is_kept or not path.is_file():
            return None
        return Upload(
            source=path,
            filename=file.filename,
            mime_type=file.mime_type,
            purpose=file.purpose,
            size=file.bytes,
            sha256=file.sha256 or "",
        )

    def download(self, file: File, byte_range: str | None) -> Download | None:
        """The content, or the part of it that a Range header's value names; None as above.

        Raises RangeNotSatisfiable.
        """
        upload = self.upload_of(file)
        if upload is None:
            return None
        part = part_of(byte_range, file.bytes)
        start, length = (part.start, part.length) if part else (0, file.bytes)
        with self._store.guarded():
            reader = upload.open()
        return Download(
            chunks=self._chunks(reader, start, length),
            length=length,
            content_range=part.content_range if part else None,
            close=reader.close,
            path=self._path(file.id),
        )

    def _chunks(self, reader: BinaryIO, start: int, length: int) -> Iterator[bytes]:
        with self._store.guarded():
            reader.seek(start)
        while length:
            with self._store.guarded():
                chunk = reader.read(min(PIECE, length))
            if not chunk:
                raise UpstreamError("a kept content is shorter than it was")
            length -= len(chunk)
            yield chunk

    def drop(self, file_uuid: str, sha256: str | None) -> None:
        """Let the content go. One that is gone is no error."""
        self._store.drop(self._path(file_uuid), sha256)

    def sweep(self, max_age_seconds: float) -> None:
        """Remove what no entry has any more: contents of dropped ones, and half-written files."""
        self._store.sweep(max_age_seconds)

    def entries(self) -> Iterator[tuple[str, float]]:
        """The row ids of what is kept, and when each was put there, in Unix seconds."""
        for path in self._paths():
            with suppress(FileNotFoundError):
                yield path.name, path.stat().st_ctime

    def has(self, file_uuid: str) -> bool:
        """Whether a content is here, whatever its row says."""
        return self._path(file_uuid).is_file()

    def fault(self, file: File, *, read: bool) -> str | None:
        """What is wrong with a content that is here, None for nothing; `read`: byte by byte."""
        path = self._path(file.id)
        try:
            size = path.stat().st_size
            if size != file.bytes:
                return f"it has {size} bytes instead of {file.bytes}"
            if read and file.sha256 and self._store.digest(path) != file.sha256:
                return "it is not what was uploaded"
        except FileNotFoundError:
            return None
        return None

    def drop_damaged(self, file_uuid: str, sha256: str | None) -> None:
        """Let a content go, and see to it that no other entry is made from its bytes."""
        self.drop(file_uuid, sha256)
        if sha256:
            self._store.distrust(sha256)

    def unused_blobs(self, young_seconds: float) -> Iterator[Flaw]:
        """Blobs, of what is kept and of local models, that no entry has shared for so long."""
        for sha256 in self._store.unused(young_seconds):
            yield Flaw(
                "leftover",
                sha256,
                "a content that no entry shares: a delete that was cut off",
                "removes it",
                partial(self._store.is_unused, sha256),
                partial(self._store.drop_unused, sha256),
            )

    def _paths(self) -> list[Path]:
        with self._store.guarded():
            found = list(self._folder.iterdir()) if self._folder.is_dir() else []
        return [path for path in found if _UUID.fullmatch(path.name)]

    def _path(self, file_uuid: str) -> Path:
        return self._folder / file_uuid
