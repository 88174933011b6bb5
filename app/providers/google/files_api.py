"""AI Studio's Files API: uploads in pieces that can be resumed, files that live for 48 hours.

Source: Gemini API reference, Files, and Using files; read 2026-11.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from app.errors import GatewayError, NotFound, UpstreamAuthFailed, UpstreamError, UpstreamRejected
from app.providers.google.resources import walk
from app.providers.google.storage import CHUNK, Slice, may_go_on
from app.providers.openai_jobs import seconds
from app.providers.protocol import StoredFile
from app.providers.upstream import Upstream, clean
from app.transfers import Upload

CANONICAL = "https://generativelanguage.googleapis.com"
_TRIES = 5
_NAME = re.compile("[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_STATES: Mapping[str, Any] = {"PROCESSING": "uploaded", "ACTIVE": "processed", "FAILED": "error"}
_LONGEST_NAME = 512


class FilesApi:
    """The files of one project. `version` is the API's, as in `v1beta`."""

    def __init__(self, upstream: Upstream, version: str) -> None:
        self._upstream = upstream
        self._version = version

    def put(self, upload: Upload, key: str) -> StoredFile:
        """The file that now holds the upload, sent from disk piece by piece.

        One of this name that is there already is not overwritten: with the same bytes it is ours
        (its answer was lost), else UpstreamRejected.
        """
        try:
            session = self._begin(upload, key)
        except UpstreamRejected as error:
            if error.status != 409:
                raise
            found = self.get(key)
            if _digest(found) != upload.sha256:
                raise
            return stored(found, upload.purpose)
        made = self._sent(session, upload)
        if _digest(made) not in (upload.sha256, None):
            self._remove(str(made.get("name", "")).removeprefix("files/"))
            raise self._upstream.nonsense("stored other bytes than it was sent")
        return stored(made, upload.purpose)

    def get(self, file_id: str) -> dict[str, Any]:
        """What Google tells of a file. Raises NotFound, also for another project's."""
        try:
            return self._upstream.json("GET", self._path(file_id))
        except UpstreamAuthFailed as error:
            # Of a file that it does not have Google says 403; of a key that is bad, 400.
            raise NotFound(f"No such File object: {file_id:.200}", param="id") from error

    def list(self) -> Iterator[dict[str, Any]]:
        """Every file of the project, all pages."""
        yield from walk(self._upstream, f"/{self._version}/files", "files")

    def delete(self, file_id: str) -> None:
        """Remove a file. One that is gone already is no error."""
        try:
            self._upstream.json("DELETE", self._path(file_id))
        except (NotFound, UpstreamAuthFailed):
            # A 403 is what Google says of a file that it does not have; if it was our key that it
            # refused, the next question tells.
            self._must_be_gone(file_id)

    def uri(self, file_id: str, base: str) -> str:
        """The address under which a request names a file."""
        return f"{base or CANONICAL}{self._path(file_id)}"

    def _must_be_gone(self, file_id: str) -> None:
        try:
            self.get(file_id)
        except NotFound:
            next(self.list(), None)  # Raises when it is our key that is refused.
            return
        raise self._upstream.nonsense("does not delete a file that it has")

    def _remove(self, file_id: str) -> None:
        try:
            self.delete(file_id)
        except GatewayError:
            return

    # Uploads

    def _begin(self, upload: Upload, key: str) -> str:
        """The address, on our own host, of a new upload."""
        described = {
            "name": f"files/{key}",
            "displayName": clean(upload.filename)[:_LONGEST_NAME],
            "mimeType": upload.mime_type,
            "sizeBytes": str(upload.size),
        }
        answer = self._upstream.exchange(
            "POST",
            f"/upload/{self._version}/files",
            body=json.dumps({"file": described}).encode(),
            headers={
                "Content-Type": "application/json",
                "X-Goog-Upload-Protocol": "resumable",
                "X-Goog-Upload-Command": "start",
                "X-Goog-Upload-Header-Content-Length": str(upload.size),
                "X-Goog-Upload-Header-Content-Type": upload.mime_type,
            },
        )
        answer.close()
        found = urlsplit(answer.headers.get("x-goog-upload-url", ""))
        if not found.path.startswith("/"):
            raise self._upstream.nonsense("began an upload and did not say where")
        return f"{found.path}?{found.query}" if found.query else found.path

    def _sent(self, session: str, upload: Upload) -> dict[str, Any]:
        start, failures = 0, 0
        with upload.open() as file:
            while True:
                length = min(CHUNK, upload.size - start)
                is_last = start + length == upload.size
                file.seek(start)
                try:
                    answer = self._upstream.exchange(
                        "POST",
                        session,
                        body=Slice(file, length),
                        headers={
                            "X-Goog-Upload-Offset": str(start),
                            "X-Goog-Upload-Command": "upload, finalize" if is_last else "upload",
                            "Content-Length": str(length),
                        },
                    )
                    made = self._upstream.object_of(answer)
                except UpstreamError as error:
                    failures += 1
                    if failures == _TRIES or not may_go_on(error):
                        raise
                    start, made = self._progress(session)
                    if made:
                        return _file(made)
                    continue
                if is_last:
                    return _file(made)
                start += length

    def _progress(self, session: str) -> tuple[int, dict[str, Any]]:
        """How many bytes have arrived, and the file when all have."""
        answer = self._upstream.exchange(
            "POST",
            session,
            headers={"X-Goog-Upload-Command": "query", "Content-Length": "0"},
            repeatable=True,
        )
        made = self._upstream.object_of(answer)
        if answer.headers.get("x-goog-upload-status") == "final":
            return 0, made
        received = answer.headers.get("x-goog-upload-size-received", "0")
        return int(received) if received.isdigit() else 0, {}

    def _path(self, file_id: str) -> str:
        return f"/{self._version}/files/{plain_id(file_id)}"


def plain_id(file_id: str) -> str:
    """A file's id, also of `files/...` or of an address of Google's. Raises NotFound for others."""
    name = file_id
    if "://" in file_id:
        found = urlsplit(file_id)
        shape = re.fullmatch(r"/v[0-9][a-z0-9]*/files/([^/]+)", found.path)
        is_theirs = f"{found.scheme}://{found.netloc}" == CANONICAL and shape and not found.query
        name = shape[1] if is_theirs and shape else ""
    name = name.removeprefix("files/")
    if not _NAME.fullmatch(name):
        raise NotFound(f"No such File object: {file_id:.200}", param="id")
    return name


def stored(told: Mapping[str, Any], purpose: str = "user_data") -> StoredFile:
    """What Google tells of a file, as a provider says it. It keeps no purpose."""
    name = str(told.get("name") or "").removeprefix("files/")
    size = str(told.get("sizeBytes", "0"))
    state = _STATES.get(str(told.get("state", "ACTIVE")), "uploaded")
    error = told.get("error")
    why = error.get("message") if isinstance(error, Mapping) else None
    details = str(why or "Google could not process the file") if state == "error" else None
    return StoredFile(
        id=name,
        filename=clean(str(told.get("displayName") or name)),
        purpose=purpose,
        size=int(size) if size.isdigit() else None,
        created_at=seconds(told.get("createTime")) or 0,
        status=state,
        status_details=clean(details) if details else None,
        expires_at=seconds(told.get("expirationTime")),
    )


def _file(answer: Mapping[str, Any]) -> dict[str, Any]:
    found = answer.get("file")
    return dict(found) if isinstance(found, Mapping) else {}


def _digest(told: Mapping[str, Any]) -> str | None:
    """The SHA-256 in hex. Google writes base64, of the bytes or of their hex digits."""
    text = told.get("sha256Hash")
    if not isinstance(text, str):
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(raw) == 32:
        return raw.hex()
    return raw.decode("ascii", "replace") if len(raw) == 64 else None
