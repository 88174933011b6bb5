"""Files on the gateway's own disk, and chat with engines that have no files API."""

import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from marshmallow import RAISE, Schema, ValidationError, fields, validate

from app.errors import InvalidRequest, NotFound, NotSupported, UpstreamError
from app.providers.content_store import PIECE, ContentStore
from app.providers.openai_style import infer
from app.providers.params import is_address
from app.providers.protocol import NO_FILES, Flaw, Operation, Place, Provider, StoredFile
from app.providers.upstream import Upstream
from app.providers.wire.byte_range import part_of
from app.providers.wire.inline import Fetch, Images, Inlined, inline_files
from app.settings import Deployment
from app.transfers import AttachedFile, Cancellation, Download, Reply, Upload

_log = logging.getLogger(__name__)

_FILE_ID = re.compile(r"file-[0-9a-f]{32}")
_INFERENCE = frozenset(
    {Operation.CHAT, Operation.COMPLETIONS, Operation.EMBEDDINGS, Operation.RESPONSES}
)
_WITH_FILES = frozenset({Operation.CHAT, Operation.RESPONSES})
_FILES_PER_BODY = 4
"""How many files of the largest size one body may hold, together."""


class LocalParams(Schema):
    class Meta:
        unknown = RAISE

    api_base = fields.String(
        load_default=None,
        validate=is_address,
        metadata={
            "description": "an engine with OpenAI's API, up to `/v1`; files are only kept without"
        },
    )
    api_key = fields.String(
        load_default=None, metadata={"description": "the engine's key, if it asks for one"}
    )
    max_inline_file_size_mb = fields.Integer(
        load_default=None,
        validate=validate.Range(min=1),
        metadata={"description": "the largest file that is put into a chat; else as in general"},
    )
    inline_images = fields.String(
        load_default=None,
        validate=validate.OneOf(("file_data", "image_url")),
        metadata={"description": "how images are put into a chat; engines expect `image_url`"},
    )


@dataclass(frozen=True)
class _Entry:
    """What is known of a stored file: the JSON beside its content."""

    id: str
    filename: str
    purpose: str
    bytes: int
    mime_type: str
    sha256: str
    created_at: int
    expires_at: int | None

    @property
    def is_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= time.time()

    @property
    def stored_file(self) -> StoredFile:
        return StoredFile(
            id=self.id,
            filename=self.filename,
            purpose=self.purpose,
            size=self.bytes,
            created_at=self.created_at,
            expires_at=self.expires_at,
            sha256=self.sha256,
        )


class Local(Provider):
    """Files in the data directory; inference at `api_base`, with the files' contents put in.

    A file is `<id>.bin`, its content, and `<id>.json`, its entry. It is there when its entry is:
    the entry is written last and removed first, so a crash leaves at most a content that nobody
    knows, for `sweep`.
    """

    name = "local"
    aliases = ("hosted_vllm", "vllm", "ollama", "lm_studio", "llamafile")
    operations = _INFERENCE | {Operation.FILES}
    is_on_this_disk = True
    Params = LocalParams

    def __init__(self, deployment: Deployment, place: Place) -> None:
        super().__init__(deployment, place)
        # The id may hold anything; its hash is a folder's name on every file system.
        self._folder = place.data_dir / "local" / hashlib.sha256(deployment.id.encode()).hexdigest()
        self._store = ContentStore(place.data_dir / "local", deployment.id)
        own_limit = self.params["max_inline_file_size_mb"]
        self._max_inline_bytes = own_limit * 1024 * 1024 if own_limit else place.max_inline_bytes
        is_engine = deployment.provider in self.aliases
        self._images: Images = self.params["inline_images"] or (
            "image_url" if is_engine else "file_data"
        )
        base = self.params["api_base"]
        if is_engine and base is None:
            raise ValidationError({"api_base": ["missing: the engine's address"]})
        self._engine: Upstream | None = None
        if base is None:
            files_only = frozenset({Operation.FILES})
            self.operations = files_only  # type: ignore[misc]  # narrower for this deployment
            return
        if deployment.provider == "ollama" and urlsplit(base).path in ("", "/"):
            # Its OpenAI endpoints are below /v1; people give the address that it prints.
            base = base.rstrip("/") + "/v1"
        self._engine = Upstream(
            base, headers=self._credential, deployment=deployment, pool_size=place.pool_size
        )

    @property
    def account(self) -> str:
        return self._folder.name

    @property
    def addresses(self) -> tuple[str, ...]:
        return () if self._engine is None else (self._engine.base_url,)

    def check_access(self) -> None:
        if self._engine is not None:
            self._engine.json("GET", "/models")

    def id_of(self, key: str) -> str | None:
        return f"file-{key}"

    def is_ours(self, file_id: str) -> bool:
        return _FILE_ID.fullmatch(file_id) is not None

    def upload(self, upload: Upload) -> StoredFile:
        now = int(time.time())
        entry = _Entry(
            id=f"file-{upload.key or secrets.token_hex(16)}",
            filename=upload.filename,
            purpose=upload.purpose,
            bytes=upload.size,
            mime_type=upload.mime_type,
            sha256=upload.sha256,
            created_at=now,
            expires_at=now + upload.expires_after.seconds if upload.expires_after else None,
        )
        self._store.put(upload, self._content_path(entry.id))
        try:
            record = json.dumps(asdict(entry)).encode()
            self._store.write_record(self._entry_path(entry.id), record)
        except BaseException:
            self._remove(entry.id, entry.sha256)
            raise
        return entry.stored_file

    def retrieve(self, file_id: str) -> StoredFile:
        return self._living(file_id).stored_file

    def files(self, purpose: str | None = None) -> Iterator[StoredFile]:
        for entry in self._entries():
            if not entry.is_expired and purpose in (None, entry.purpose):
                yield entry.stored_file

    def content(
        self,
        file_id: str,
        byte_range: str | None = None,
        cancellation: Cancellation | None = None,
    ) -> Download:
        entry = self._living(file_id)
        part = part_of(byte_range, entry.bytes)
        start, length = (part.start, part.length) if part else (0, entry.bytes)
        reader = self._open(entry)
        return Download(
            chunks=self._chunks(reader, start, length),
            length=length,
            content_range=part.content_range if part else None,
            close=reader.close,
            path=self._content_path(entry.id),
        )

    def delete(self, file_id: str) -> None:
        if not _FILE_ID.fullmatch(file_id):
            return
        try:
            entry = self._read(file_id)
        except UpstreamError:
            # An entry that cannot be read must still be removable; sweep finds its blob.
            entry = None
        self._remove(file_id, entry.sha256 if entry else None)

    def infer(
        self,
        operation: Operation,
        body: bytes,
        upstream_model: str,
        cancellation: Cancellation,
        files: Mapping[str, AttachedFile] = NO_FILES,
    ) -> Reply:
        if operation not in _INFERENCE:
            raise self._unsupported(operation)
        if self._engine is None:
            raise NotSupported(
                f"model {self.deployment.model_name or self.name!r} only stores files; for "
                f"{operation.value} set its api_base to an engine that speaks the OpenAI API"
            )
        if operation in _WITH_FILES:
            body = inline_files(body, self._fetch_for_one_body(), self._images)
        return infer(self._engine, f"/{operation.value}", body, cancellation)

    def sweep(self, max_age_seconds: float = 24 * 3600) -> None:
        """Remove what has expired, and what crashes left behind longer ago than `max_age_seconds`.

        One call per data directory is enough for the blobs, one per deployment for its files.
        """
        for entry in self._entries():
            if entry.is_expired:
                self._remove(entry.id, entry.sha256)
        before = time.time() - max_age_seconds
        with self._store.guarded():
            for path in list(self._folder.glob("*.bin")):
                # Linking the content sets its ctime: an upload under way is never that old.
                if not path.with_suffix(".json").exists() and path.stat().st_ctime <= before:
                    self._store.drop(path, None)
        self._store.sweep(max_age_seconds)

    def flaws(self, young_seconds: float, *, read: bool = False) -> Iterator[Flaw]:
        before = time.time() - young_seconds
        with self._store.guarded():
            if not self._folder.is_dir():
                return
            with os.scandir(self._folder) as found:
                for each in found:
                    path = Path(each.path)
                    if not _FILE_ID.fullmatch(path.stem):
                        continue
                    with suppress(FileNotFoundError):
                        if path.suffix == ".bin" and each.stat().st_ctime <= before:
                            yield from self._nameless(path)
                        elif path.suffix == ".json":
                            yield from self._unsound(path.stem, read=read)

    def _nameless(self, path: Path) -> Iterator[Flaw]:
        def persists() -> bool:
            return path.exists() and not path.with_suffix(".json").exists()

        if persists():
            yield Flaw(
                "leftover",
                path.stem,
                "a content without an entry: an upload or a delete that was cut off",
                "removes it",
                persists,
                lambda: self._store.drop(path, None),
            )

    def _unsound(self, file_id: str, *, read: bool) -> Iterator[Flaw]:
        """The flaw of an entry and its content, if they have one."""
        meaning = self._fault(file_id, read=read)
        if meaning is None:
            return

        def mend() -> None:
            with suppress(UpstreamError):
                if (entry := self._read(file_id)) is not None:
                    self._store.distrust(entry.sha256)

        yield Flaw(
            "damaged",
            file_id,
            meaning,
            "stores it anew from where the content still is, and removes this",
            lambda: self._fault(file_id, read=read) is not None,
            mend,
            file_id=file_id,
            has_bytes=self._content_path(file_id).exists(),
        )

    def _fault(self, file_id: str, *, read: bool) -> str | None:
        try:
            entry = self._read(file_id)
        except UpstreamError:
            return "its entry cannot be read"
        if entry is None or entry.is_expired:
            return None
        path = self._content_path(file_id)
        try:
            size = path.stat().st_size
            if size == entry.bytes and not (read and self._store.digest(path) != entry.sha256):
                return None
        except FileNotFoundError:
            # A delete takes the entry first.
            return "its content is gone" if self._entry_path(file_id).exists() else None
        if size != entry.bytes:
            return f"its content has {size} bytes instead of {entry.bytes}"
        return "its content is not what was stored"

    def _credential(self) -> dict[str, str]:
        key = self.params["api_key"]
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _entry_path(self, file_id: str) -> Path:
        return self._folder / f"{file_id}.json"

    def _content_path(self, file_id: str) -> Path:
        return self._folder / f"{file_id}.bin"

    def _living(self, file_id: str) -> _Entry:
        # The id becomes a path: one that is not exactly of our making never gets to the disk.
        entry = self._read(file_id) if _FILE_ID.fullmatch(file_id) else None
        if entry is None or entry.is_expired:
            raise _not_found(file_id)
        return entry

    def _read(self, file_id: str) -> _Entry | None:
        with self._store.guarded():
            try:
                record: Any = json.loads(self._entry_path(file_id).read_bytes())
                return _Entry(**record)
            except FileNotFoundError:
                return None
            except (ValueError, TypeError) as error:
                raise UpstreamError(
                    f"the entry of file {file_id!r} is damaged",
                    provider=self.name,
                    deployment=self.deployment.id,
                ) from error

    def _entries(self) -> Iterator[_Entry]:
        with self._store.guarded():
            ids = [path.stem for path in self._folder.glob("*.json")]
        for file_id in ids:
            try:
                entry = self._read(file_id) if _FILE_ID.fullmatch(file_id) else None
            except UpstreamError as error:
                _log.warning("deployment %s: %s; skipped", self.deployment.id, error.message)
                continue
            if entry is not None:
                yield entry

    def _open(self, entry: _Entry) -> BinaryIO:
        with self._store.guarded():
            try:
                return self._content_path(entry.id).open("rb")
            except FileNotFoundError:
                # It was deleted since its entry was read.
                raise _not_found(entry.id) from None

    def _chunks(self, reader: BinaryIO, start: int, length: int) -> Iterator[bytes]:
        with self._store.guarded():
            reader.seek(start)
        while length:
            with self._store.guarded():
                chunk = reader.read(min(PIECE, length))
            if not chunk:
                raise UpstreamError(
                    "a stored file is shorter than it was",
                    provider=self.name,
                    deployment=self.deployment.id,
                )
            length -= len(chunk)
            yield chunk

    def _remove(self, file_id: str, sha256: str | None) -> None:
        with self._store.guarded():
            self._entry_path(file_id).unlink(missing_ok=True)
        self._store.drop(self._content_path(file_id), sha256)

    def _fetch_for_one_body(self) -> Fetch:
        room = _FILES_PER_BODY * self._max_inline_bytes

        def fetch(file_id: str) -> Inlined:
            nonlocal room
            entry = self._living(file_id)
            if entry.bytes > self._max_inline_bytes:
                raise _too_large(entry, f"the limit is {self._max_inline_bytes}")
            room -= entry.bytes
            if room < 0:
                limit = _FILES_PER_BODY * self._max_inline_bytes
                raise _too_large(entry, f"all files of a request may have {limit} together")
            with self._open(entry) as reader, self._store.guarded():
                return Inlined(entry.filename, entry.mime_type, reader.read())

        return fetch


def _not_found(file_id: str) -> NotFound:
    return NotFound(f"No such File object: {file_id}", param="id")


def _too_large(entry: _Entry, limit: str) -> InvalidRequest:
    return InvalidRequest(
        f"file {entry.filename!r} is too large to be put into a message: it has {entry.bytes} "
        f"bytes, {limit}",
        code="file_too_large_to_inline",
    )
