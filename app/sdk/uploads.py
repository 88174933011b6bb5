"""What a program gives as a file -> an Upload that can be sent, and a batch file's rows with it."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TypeAlias

from app.errors import InvalidRequest
from app.file_names import clean_filename, mime_type
from app.objects import PURPOSES
from app.providers.wire import jsonl
from app.sdk.accounts import Account
from app.settings import Settings
from app.transfers import ExpiresAfter, Upload

Content: TypeAlias = bytes | IO[bytes] | os.PathLike[str]
GivenFile: TypeAlias = Content | tuple[str | None, Content] | tuple[str | None, Content, str | None]
"""A path, an open file or bytes; or a name with one of them and perhaps the content's type."""

_PIECE = 1024 * 1024
_LONGEST_ROW = Settings.max_batch_row_mb * 1024 * 1024


@contextmanager
def upload_of(
    given: GivenFile, purpose: str, expires_after: ExpiresAfter | None
) -> Iterator[Upload]:
    """The upload, readable any number of times while the block runs.

    A file that is given by its path is sent from where it is; an open one is read once, from where
    it stands, into a temporary file. Raises InvalidRequest for what cannot be an upload.
    """
    if purpose not in PURPOSES:
        raise InvalidRequest(
            f"{purpose!r:.60} is not one of: {', '.join(PURPOSES)}", param="purpose"
        )
    name, content, declared = _parts(given)
    with _on_disk(content) as path:
        digest, size = _measured(path)
        if size == 0:
            raise InvalidRequest("the file is empty", param="file", code="empty_file")
        filename = clean_filename(name or _name_of(content))
        yield Upload(
            source=path,
            filename=filename,
            mime_type=mime_type(declared or "", filename),
            purpose=purpose,
            size=size,
            sha256=digest,
            expires_after=expires_after,
        )


@contextmanager
def as_wanted(upload: Upload, account: Account) -> Iterator[Upload]:
    """What the account's provider takes: a batch file's rows in its form and for its model.

    Raises InvalidRequest naming the line that it cannot do.
    """
    provider, model = account.provider, account.upstream_model
    if upload.purpose != "batch" or (not model and provider.takes_openai_rows):
        yield upload
        return
    named: list[str] = []
    with tempfile.NamedTemporaryFile(prefix="manifold-rows-") as out:
        with upload.open() as source:
            parts = iter(jsonl.rows(jsonl.lines(source, _LONGEST_ROW)))
            rows = parts if model else jsonl.of_one_model(parts, named)
            out.writelines(provider.batch_rows(rows, model))
        out.flush()
        digest, size = _measured(Path(out.name))
        yield replace(
            upload,
            source=Path(out.name),
            size=size,
            sha256=digest,
            model=model or "".join(named),
            original=upload,
        )


def _parts(given: GivenFile) -> tuple[str | None, Content, str | None]:
    if not isinstance(given, tuple):
        return None, given, None
    if len(given) == 2:
        return given[0], given[1], None
    return given


@contextmanager
def _on_disk(content: Content) -> Iterator[Path]:
    if isinstance(content, os.PathLike):
        yield Path(content)
        return
    if not isinstance(content, bytes) and not hasattr(content, "read"):
        raise InvalidRequest(
            f"file is {type(content).__name__}; give bytes, a file that is open for reading "
            "bytes, or a pathlib.Path",
            param="file",
        )
    with tempfile.NamedTemporaryFile(prefix="manifold-upload-") as out:
        if isinstance(content, bytes):
            out.write(content)
        else:
            while piece := content.read(_PIECE):
                if not isinstance(piece, bytes):
                    raise InvalidRequest("open the file for bytes, as in 'rb'", param="file")
                out.write(piece)
        out.flush()
        yield Path(out.name)


def _measured(path: Path) -> tuple[str, int]:
    """SHA-256 in hex and size in bytes."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as source:
        while piece := source.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size


def _name_of(content: Content) -> str:
    name = content if isinstance(content, os.PathLike) else getattr(content, "name", "")
    # A file that was opened by its number has that as its name.
    return Path(name).name if isinstance(name, str | os.PathLike) else ""
