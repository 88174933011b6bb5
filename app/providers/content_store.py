"""Contents on disk, each kept once: a blob named by its sha256, and a hard link for every entry."""

import errno
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app import turns
from app.concurrency import aside
from app.errors import NO_SPACE, StorageFull, UpstreamError
from app.transfers import Upload

PIECE = 1024 * 1024
"""Bytes that are in memory at a time."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_LINK = frozenset(
    {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}
)
"""What `link` says on a file system without hard links, or when the blob has too many of them."""


class ContentStore:
    """Blobs under `root`/blobs; an entry is a path on the same file system that its owner chose.

    The file system counts an entry's links, so no crash leaves a wrong number: a blob without any
    entry has one link, its own name. An entry reads the same until it is dropped, whatever
    happens to the blob's name meanwhile. Where there are no hard links every entry is a copy.
    Errors carry `deployment`.
    """

    def __init__(self, root: Path, deployment: str = "") -> None:
        self._blobs = root / "blobs"
        self._temporary_folder = root / "tmp"
        self._deployment = deployment

    def put(self, upload: Upload, entry: Path) -> None:
        """Make `entry` hold the upload's bytes, on disk for good when this returns.

        Raises StorageFull, or UpstreamError when the bytes are not those that `upload.sha256`
        names; then nothing is left behind.
        """
        if not _SHA256.fullmatch(upload.sha256):
            raise self._mismatch(upload)
        blob = self._blob(upload.sha256)
        turns.leave()
        with self.guarded():
            _make_folder(blob.parent)
            _make_folder(entry.parent)
            try:
                if not _share(blob, entry, upload.size):
                    aside(lambda: self._write(upload, blob, entry))
                _sync_folder(entry.parent)
            except BaseException:
                self._unlink(entry, upload.sha256)
                raise

    def drop(self, entry: Path, sha256: str | None) -> None:
        """Remove an entry, and its blob when it was the last. One that is gone is no error.

        Without `sha256` the blob is left to `sweep`.
        """
        with self.guarded():
            self._unlink(entry, sha256)
            with suppress(FileNotFoundError):
                _sync_folder(entry.parent)

    def write_record(self, path: Path, record: bytes) -> None:
        """Write a small file so that it is there whole or not at all. Raises StorageFull."""
        with self.guarded():
            _make_folder(path.parent)
            with self._temporary() as temporary:
                temporary.write_bytes(record)
                _sync_file(temporary)
                temporary.replace(path)
            _sync_folder(path.parent)

    def sweep(self, max_age_seconds: float = 24 * 3600) -> None:
        """Remove what crashes left behind: temporary files and blobs without an entry."""
        before = time.time() - max_age_seconds
        with self.guarded():
            for leftover in _files_in(self._temporary_folder):
                with suppress(FileNotFoundError):
                    if leftover.stat().st_mtime <= before:
                        leftover.unlink()
            for blob in self._blobs.glob("??/*"):
                with suppress(FileNotFoundError):
                    found = blob.stat()
                    if found.st_nlink == 1 and found.st_ctime <= before:
                        blob.unlink()

    def unused(self, young_seconds: float) -> Iterator[str]:
        """The sha256 of every blob that has had no entry for longer than that."""
        before = time.time() - young_seconds
        with self.guarded():
            for blob in self._blobs.glob("??/*"):
                with suppress(FileNotFoundError):
                    found = blob.stat()
                    if found.st_nlink == 1 and found.st_ctime <= before:
                        yield blob.name

    def is_unused(self, sha256: str) -> bool:
        """Whether there is such a blob, and no entry of it."""
        with self.guarded(), suppress(FileNotFoundError):
            return self._blob(sha256).stat().st_nlink == 1
        return False

    def drop_unused(self, sha256: str) -> None:
        """Remove a blob that has no entry; an upload that links it right now keeps it."""
        with self.guarded():
            if self.is_unused(sha256):
                self._blob(sha256).unlink(missing_ok=True)

    def distrust(self, sha256: str) -> None:
        """Let no further entry share a blob that holds other bytes than its name says."""
        blob = self._blob(sha256)
        with suppress(FileNotFoundError):
            if self.digest(blob) != sha256:
                with self.guarded():
                    blob.unlink(missing_ok=True)

    def digest(self, entry: Path) -> str:
        """The sha256 of what an entry holds now, in hex. Raises FileNotFoundError."""
        digest = hashlib.sha256()
        try:
            source = entry.open("rb")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._failed(error) from error
        with source, self.guarded():
            while piece := source.read(PIECE):
                digest.update(piece)
        return digest.hexdigest()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn an OSError into StorageFull or UpstreamError; no path of ours is in the message."""
        try:
            yield
        except OSError as error:
            if error.errno in NO_SPACE:
                raise StorageFull from error
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> UpstreamError:
        return UpstreamError(
            f"the local file store failed: {error.strerror or type(error).__name__}",
            provider="local",
            deployment=self._deployment,
            retryable=True,
        )

    def _blob(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256

    def _unlink(self, entry: Path, sha256: str | None) -> None:
        entry.unlink(missing_ok=True)
        if sha256 is None or not _SHA256.fullmatch(sha256):
            return
        blob = self._blob(sha256)
        with suppress(FileNotFoundError):
            if blob.stat().st_nlink == 1:
                # An upload that links the blob right now keeps it: see _share.
                blob.unlink()

    def _write(self, upload: Upload, blob: Path, entry: Path) -> None:
        with self._temporary() as temporary:
            self._copy(upload, temporary)
            try:
                # The blob's name first: while `temporary` is there, it has two links and stays.
                blob.hardlink_to(temporary)
            except FileExistsError:
                # Another upload of the same content was faster.
                if _share(blob, entry, upload.size):
                    return
                # It is gone again, damaged, or has all the links it can have: ours replaces it.
                entry.hardlink_to(temporary)
                temporary.replace(blob)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                temporary.replace(entry)
                return
            else:
                entry.hardlink_to(temporary)
            _sync_folder(blob.parent)

    def _copy(self, upload: Upload, target: Path) -> None:
        digest = hashlib.sha256()
        with upload.open() as source, target.open("wb") as sink:
            while piece := source.read(PIECE):
                digest.update(piece)
                sink.write(piece)
            sink.flush()
            os.fsync(sink.fileno())
        if digest.hexdigest() != upload.sha256:
            raise self._mismatch(upload)

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        _make_folder(self._temporary_folder)
        handle, name = tempfile.mkstemp(dir=self._temporary_folder)
        os.close(handle)
        path = Path(name)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _mismatch(self, upload: Upload) -> UpstreamError:
        return UpstreamError(
            f"the content of {upload.filename!r} changed while it was being stored",
            provider="local",
            deployment=self._deployment,
            retryable=True,
        )


def _make_folder(path: Path) -> None:
    """Make a folder and those above it; their names are on disk for good."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _share(blob: Path, entry: Path, size: int) -> bool:
    """Link the entry to a blob that is there and whole; say whether that was possible."""
    try:
        if blob.stat().st_size != size:
            return False
        entry.hardlink_to(blob)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    # A deletion that had counted the links before may have taken the blob's name: put it back.
    # Without it the entry would be as good, only shared with nobody.
    with suppress(OSError):
        blob.hardlink_to(entry)
    return True


def _files_in(folder: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        yield from folder.iterdir()


def _sync_file(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
