"""Things that tests need, from functions with one default per argument."""

import atexit
import hashlib
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.providers.protocol import Place
from app.settings import Deployment
from app.transfers import ExpiresAfter, Upload

_scratch = tempfile.TemporaryDirectory(prefix="manifold-tests-")
atexit.register(_scratch.cleanup)


def make_deployment(
    id: str = "deployment-1",
    *,
    model_name: str | None = "gpt-4o",
    provider: str = "openai",
    upstream_model: str = "gpt-4o-2026",
    params: Mapping[str, Any] | None = None,
    weight: float = 1.0,
    timeout_seconds: float = 5.0,
    max_retries: int = 0,
    is_default: bool = False,
    mode: str | None = None,
    model_info: Mapping[str, Any] | None = None,
) -> Deployment:
    """A deployment that gives up at the first failure."""
    return Deployment(
        id=id,
        model_name=model_name,
        provider=provider,
        upstream_model=upstream_model,
        params=params or {},
        weight=weight,
        timeout_seconds=timeout_seconds,
        max_retries=max_retries,
        is_default=is_default,
        mode=mode,
        model_info=model_info or {},
    )


def make_place(
    data_dir: Path | None = None,
    *,
    pool_size: int = 4,
    max_inline_bytes: int = 1024 * 1024,
) -> Place:
    """A place whose data directory is new and empty unless it is given."""
    return Place(data_dir or _new_folder(), pool_size, max_inline_bytes)


def make_upload(
    content: bytes = b'{"hello": "world"}\n',
    *,
    filename: str = "hello.jsonl",
    mime_type: str = "application/jsonl",
    purpose: str = "user_data",
    sha256: str | None = None,
    expires_after_seconds: int | None = None,
    folder: Path | None = None,
) -> Upload:
    """An upload on disk; its folder goes away when the tests end."""
    path = (folder or _new_folder()) / uuid.uuid4().hex
    path.write_bytes(content)
    expiry = expires_after_seconds
    return Upload(
        source=path,
        filename=filename,
        mime_type=mime_type,
        purpose=purpose,
        size=len(content),
        sha256=sha256 or hashlib.sha256(content).hexdigest(),
        expires_after=None if expiry is None else ExpiresAfter("created_at", expiry),
    )


def path_of(upload: Upload) -> Path:
    """Where an upload lies, for one that is on disk."""
    assert isinstance(upload.source, Path)
    return upload.source


def _new_folder() -> Path:
    return Path(tempfile.mkdtemp(dir=_scratch.name))


def spooled(data_dir: Path) -> list[Path]:
    """The files that are under way in a gateway's spool, in whatever process's folder."""
    return [path for path in (data_dir / "spool").glob("*/*") if path.name != ".lock"]
