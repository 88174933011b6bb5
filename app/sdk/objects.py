"""What the calls answer with: OpenAI's objects with attributes, and the content of a file.

Source: OpenAI API reference, Files, Batch and Fine-tuning; read 2026-11.
"""

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Generic, Literal, Self, TypeVar

from app import objects
from app.errors import UpstreamError
from app.providers.protocol import StoredFile
from app.transfers import Download, Upload

IN_MEMORY_BYTES = 8 * 1024 * 1024
"""A content that is larger lies in a temporary file."""

PIECE = 256 * 1024

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What all of them can do."""

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's JSON object."""
        return asdict(self)

    def model_dump(self) -> dict[str, Any]:
        """The same, by the name that the openai client has for it."""
        return self.to_dict()


@dataclass(frozen=True)
class FileObject(Answer):
    """A file. Times are Unix seconds; `bytes` is 0 while the provider does not say."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None = None
    expires_at: int | None = None
    object: Literal["file"] = "file"


def file_of(stored: StoredFile, upload: Upload | None = None) -> FileObject:
    """The object of a file; name, size and purpose are its uploader's, where there is one."""
    return FileObject(
        id=stored.id,
        bytes=upload.size if upload else stored.size or 0,
        created_at=stored.created_at,
        filename=upload.filename if upload else stored.filename,
        purpose=upload.purpose if upload else stored.purpose,
        status=stored.status,
        status_details=stored.status_details,
        expires_at=stored.expires_at,
    )


@dataclass(frozen=True)
class FileDeleted(Answer):
    """The confirmation that a file is gone."""

    id: str
    deleted: bool = True
    object: Literal["file"] = "file"


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list; iterating gives its items. The next part begins `after=last_id`."""

    data: list[T]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: Literal["list"] = "list"

    def __iter__(self) -> Iterator[T]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class BatchError:
    """What is wrong with a batch's input, and in which of its lines."""

    code: str | None = None
    message: str | None = None
    param: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class BatchErrors:
    """Why a batch has failed."""

    data: list[BatchError] = field(default_factory=list)
    object: str = "list"


@dataclass(frozen=True)
class BatchRequestCounts:
    """How many rows there are, and how many have an end."""

    total: int
    completed: int
    failed: int


@dataclass(frozen=True)
class Batch(Answer):
    """A batch. Times are Unix seconds."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str
    created_at: int
    request_counts: BatchRequestCounts
    errors: BatchErrors | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    metadata: dict[str, str] | None = None
    usage: dict[str, Any] | None = None
    model: str | None = None
    object: Literal["batch"] = "batch"


def batch_of(told: objects.Batch) -> Batch:
    """The object of a batch as a provider tells it."""
    given: dict[str, Any] = {**told}
    given["request_counts"] = BatchRequestCounts(**told["request_counts"])
    errors = told["errors"]
    given["errors"] = None
    if isinstance(errors, Mapping):
        each = [e for e in errors.get("data") or () if isinstance(e, Mapping)]
        given["errors"] = BatchErrors([BatchError(**_known(BatchError, e)) for e in each])
    return Batch(**_known(Batch, given))


@dataclass(frozen=True)
class JobError:
    """Why a fine-tuning job has failed."""

    code: str | None = None
    message: str | None = None
    param: str | None = None


@dataclass(frozen=True)
class Hyperparameters:
    """How a model was tuned; "auto" where the provider chooses."""

    n_epochs: int | float | str | None = None
    batch_size: int | float | str | None = None
    learning_rate_multiplier: int | float | str | None = None


@dataclass(frozen=True)
class FineTuningJob(Answer):
    """A fine-tuning job. Times are Unix seconds. `more` is what else the provider tells."""

    id: str
    created_at: int
    model: str
    status: str
    training_file: str
    hyperparameters: Hyperparameters
    organization_id: str = ""
    seed: int = 0
    result_files: list[str] = field(default_factory=list)
    error: JobError | None = None
    fine_tuned_model: str | None = None
    finished_at: int | None = None
    trained_tokens: int | None = None
    validation_file: str | None = None
    estimated_finish: int | None = None
    method: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    more: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's JSON object, with all that the provider tells."""
        told = asdict(self)
        return {**told.pop("more"), **told}


def job_of(told: objects.FineTuningJob) -> FineTuningJob:
    """The object of a fine-tuning job as a provider tells it."""
    given: dict[str, Any] = dict(told)
    error = _mapping(given.get("error"))
    # OpenAI writes an empty object where there is none.
    given["error"] = JobError(**_known(JobError, error)) if any(error.values()) else None
    chosen = _mapping(given.get("hyperparameters"))
    given["hyperparameters"] = Hyperparameters(**_known(Hyperparameters, chosen))
    known = _known(FineTuningJob, given)
    return FineTuningJob(**known, more={k: v for k, v in given.items() if k not in known})


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _known(cls: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(cls)} - {"more"}
    return {key: value for key, value in given.items() if key in names}


class FileContent:
    """A file's content, complete when the call that gave it has returned.

    A small one is in memory, a larger one in a temporary file that goes with this object.
    `size` is in bytes.
    """

    def __init__(self, download: Download) -> None:
        # Not a `with`: it is closed by `close`, or when nobody has this object any more.
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115  # as said
        self._close = weakref.finalize(self, self._file.close)
        try:
            self.size = _copied(download, self._file)
        except BaseException:
            self.close()
            raise

    @property
    def content(self) -> bytes:
        """All of it."""
        return self.read()

    @property
    def text(self) -> str:
        """All of it as UTF-8, with a mark where it is none."""
        return self.read().decode("utf-8", "replace")

    def read(self) -> bytes:
        """All of it, however often."""
        return b"".join(self.iter_bytes())

    async def aread(self) -> bytes:
        """The same: nothing has to be waited for any more."""
        return self.read()

    def iter_bytes(self, chunk_size: int = PIECE) -> Iterator[bytes]:
        """The content from its beginning, in pieces of that many bytes."""
        self._file.seek(0)
        while piece := self._file.read(chunk_size):
            yield piece

    def iter_lines(self) -> Iterator[str]:
        """The lines of a text, without their ends."""
        self._file.seek(0)
        for line in self._file:
            yield line.decode("utf-8", "replace").rstrip("\r\n")

    def write_to_file(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, in place of what was there."""
        with Path(path).open("wb") as out:
            for piece in self.iter_bytes():
                out.write(piece)

    def close(self) -> None:
        """Let go of it; there is nothing to read afterwards."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _copied(download: Download, out: IO[bytes]) -> int:
    """Write a download; its size. Raises UpstreamError when it ends before its time."""
    size = 0
    try:
        for chunk in download.chunks:
            size += len(chunk)
            out.write(chunk)
    finally:
        download.close()
    if download.length not in (None, size):
        raise UpstreamError(f"the provider sent {size} bytes of {download.length}")
    return size
