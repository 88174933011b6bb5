"""Provider and Operation: what is asked of a provider, method by method.

A provider is bound to one deployment and keeps no state per request: the server's threads share
it. It declares its name, its operations and its parameters, and codes the methods of those
operations; this base class answers every other one with NotSupported, so nobody asks which
provider it has. No exception but GatewayError leaves a provider. Deleting what is gone is not an
error.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal

from marshmallow import Schema

from app.errors import NotFound, NotSupported
from app.objects import Batch, FineTuningJob
from app.providers.wire import jsonl
from app.providers.wire.jsonl import Row
from app.settings import Deployment
from app.transfers import AttachedFile, Cancellation, Download, ExpiresAfter, Reply, Upload

CLOCKS_DIFFER_SECONDS = 300
"""How far an upstream's clock may be from ours."""

NO_FILES: Mapping[str, AttachedFile] = {}


class Operation(StrEnum):
    """What a provider may be able to do; inference operations carry OpenAI's path."""

    FILES = "files"
    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"
    BATCHES = "batches"
    FINE_TUNING = "fine_tuning"


@dataclass(frozen=True)
class StoredFile:
    """A file as its provider tells it.

    `status` is one of OpenAI's three. `size` is in bytes, None while the provider does not know.
    `created_at` and `expires_at` are Unix seconds. `sha256` is what the provider was given, in hex,
    None where it does not say.
    """

    id: str
    filename: str
    purpose: str
    size: int | None
    created_at: int
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None
    expires_at: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Flaw:
    """Something in a store of ours that is too much there, or is not as it was written.

    `meaning` says what it is and `remedy` what `mend` does about it, in an operator's words.
    `persists` tells it from the traces of somebody who is at work. `file_id` is the file that
    suffers from it; then `mend` takes nothing away, and makes sure that the file can be stored
    again and shares nothing with what is damaged. `has_bytes`: something is there all the same.
    """

    kind: Literal["leftover", "damaged"]
    id: str
    meaning: str
    remedy: str
    persists: Callable[[], bool]
    mend: Callable[[], None]
    file_id: str | None = None
    has_bytes: bool = False


@dataclass(frozen=True)
class Attempt:
    """An upload of which nobody knows whether it arrived: what was to be stored, and when.

    `begun_at` and `ended_by` are Unix seconds on our clock, `ended_by` None while it may still
    arrive.
    """

    key: str
    filename: str
    purpose: str
    size: int
    begun_at: int
    ended_by: int | None = None


@dataclass(frozen=True)
class BatchRequest:
    """What a batch is created from; `input_file_id` is the upstream's, `endpoint` its spelling.

    None means that the caller did not set it, so it is not sent. `model` is the upstream model
    that the input file's rows are for, empty when nobody knows; most providers read it there.
    """

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None
    model: str = ""


@dataclass(frozen=True)
class Place:
    """Where a provider runs: what it may use of this machine.

    `data_dir` is the gateway's data directory; `pool_size` the most connections to keep open to
    one upstream; `max_inline_bytes` the largest file that is put into a chat body.
    """

    data_dir: Path
    pool_size: int = 32
    max_inline_bytes: int = 20 * 1024 * 1024


class Provider:
    """One deployment, spoken to in its provider's own way."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    """Other prefixes in `litellm_params.model` that mean this provider."""
    operations: ClassVar[frozenset[Operation]] = frozenset()
    serves_tuned_models: ClassVar[bool] = True
    """Whether a fine-tuned model can be called as soon as its job has succeeded."""
    processes_first: ClassVar[bool] = False
    """Whether a file can be used in a request only once the upstream has processed it."""
    takes_openai_rows: ClassVar[bool] = True
    """Whether a batch file's rows are stored as OpenAI writes them; if not, `batch_rows` makes
    others of them, whichever way the file goes."""
    is_on_this_disk: ClassVar[bool] = False
    """Whether the files lie on this machine, where another one has its own."""
    shared_params: ClassVar[tuple[str, ...]] = ()
    """Parameters that a deployment which leaves them out has from the account of its provider in
    `files_settings`."""
    environment: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """By parameter, the environment variables in which people keep it, the likeliest first: for
    programs without a configuration, never for the gateway."""
    Params: ClassVar[type[Schema]]
    """Checks `Deployment.params`; an instance gets the loaded value as `self.params`."""

    def __init__(self, deployment: Deployment, place: Place) -> None:
        self.deployment = deployment
        self.place = place
        self.params: dict[str, Any] = self.Params().load(dict(deployment.params))

    @classmethod
    def with_environment(
        cls, given: Mapping[str, Any], environ: Mapping[str, str]
    ) -> dict[str, Any]:
        """The given parameters, and those that are left out as the environment has them."""
        found = {
            key: next((environ[name] for name in names if environ.get(name)), None)
            for key, names in cls.environment.items()
        }
        return {**{key: value for key, value in found.items() if value}, **given}

    @property
    def account(self) -> str:
        """The same for deployments that are known to see the same files; it says nothing else."""
        told = json.dumps([self.name, dict(self.deployment.params)], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where its requests go, for those who look at the way there; none for this machine."""
        return ()

    def check_access(self) -> None:
        """Ask for something small that only a valid credential is told.

        Raises what any request would, UpstreamAuthFailed for example; NotFound means that the
        credential is taken.
        """
        next(iter(self.files()), None)

    def upload(self, upload: Upload) -> StoredFile:
        """Store a copy and return what the upstream calls it.

        Raises UpstreamError; `retryable` on it says that nothing was stored for sure.
        """
        raise self._unsupported(Operation.FILES)

    def retrieve(self, file_id: str) -> StoredFile:
        """The file as it is now. Raises NotFound when the upstream has no such file."""
        raise self._unsupported(Operation.FILES)

    def files(self, purpose: str | None = None) -> Iterator[StoredFile]:
        """Every file of the account, all pages, in the provider's own order."""
        raise self._unsupported(Operation.FILES)

    def id_of(self, key: str) -> str | None:
        """What a file that was uploaded under this key is called here; None where the upstream
        chooses."""
        return None

    def is_ours(self, file_id: str) -> bool:
        """Whether a file's place here shows that a gateway made it; False: anybody may have."""
        return False

    def attempted(self, attempt: Attempt) -> Iterator[StoredFile]:
        """The files that may be what an attempt has stored, the likeliest first.

        Where the upstream chooses the ids, they are those of the same name, purpose and size that
        were made at that time; the caller knows which of them are somebody else's.
        """
        known = self.id_of(attempt.key)
        if known is not None:
            with suppress(NotFound):
                yield self.retrieve(known)
            return
        first = attempt.begun_at - CLOCKS_DIFFER_SECONDS
        last = None if attempt.ended_by is None else attempt.ended_by + CLOCKS_DIFFER_SECONDS
        found = [
            file
            for file in self.files(attempt.purpose)
            if file.filename == attempt.filename
            and file.size in (None, attempt.size)
            and file.created_at >= first
            and (last is None or file.created_at <= last)
        ]
        yield from sorted(found, key=lambda file: abs(file.created_at - attempt.begun_at))

    def content(
        self,
        file_id: str,
        byte_range: str | None = None,
        cancellation: Cancellation | None = None,
    ) -> Download:
        """The bytes, or those that `byte_range` (a Range header's value) names.

        A holder that cannot give parts gives the whole. A cancel wakes up the wait for the answer
        and for every byte of it; the bytes then end with UpstreamError. Raises NotFound,
        RangeNotSatisfiable, ContentNotAvailable.
        """
        raise self._unsupported(Operation.FILES)

    def delete(self, file_id: str) -> None:
        """Remove the file. One that is gone already is no error."""
        raise self._unsupported(Operation.FILES)

    def sweep(self, max_age_seconds: float) -> None:
        """Remove what crashes have left behind, longer ago than that, in places of ours alone."""

    def flaws(self, young_seconds: float, *, read: bool = False) -> Iterator[Flaw]:
        """What is wrong in places of ours alone; of what is younger than that, nothing is said.

        With `read` every content is read and held against what was written.
        """
        yield from ()

    def infer(
        self,
        operation: Operation,
        body: bytes,
        upstream_model: str,
        cancellation: Cancellation,
        files: Mapping[str, AttachedFile] = NO_FILES,
    ) -> Reply:
        """Send an inference request and return the answer as soon as its headers are there.

        `body` is OpenAI's JSON, with `upstream_model` as its model and this account's own file
        ids; `files` says by these ids what is known of every file that the caller may use. A
        cancel wakes up the wait for the answer. Every status comes back as a Reply, errors in
        OpenAI's envelope; whether to try another deployment is the caller's business. Raises
        UpstreamError, always `retryable`, when no answer came: no connection, a broken one, or
        none in time.
        """
        raise self._unsupported(operation)

    def row_url(self, url: str) -> str:
        """How this provider spells the url of a batch row, given OpenAI's (`/v1/...`)."""
        return url

    def batch_rows(self, rows: Iterable[Row | bytes], model: str) -> Iterator[bytes]:
        """The lines of a batch file as this provider takes them, for one of its models.

        For each row there is one, empty where the provider takes none. A row that is bytes could
        not be read and was not checked. `model` is empty when the rows themselves name the
        provider's models. Raises InvalidRequest naming the line that the provider cannot do.
        """

        def spell(url: str) -> str:
            found = jsonl.openai_url(url)
            return self.row_url(found) if found in jsonl.ENDPOINTS else url

        return jsonl.rewrite(rows, model, spell)

    def create_batch(self, request: BatchRequest) -> Batch:
        """Start a batch. An UpstreamError is `retryable` when nothing was started for sure."""
        raise self._unsupported(Operation.BATCHES)

    def retrieve_batch(self, batch_id: str) -> Batch:
        """The batch as it is now. Raises NotFound."""
        raise self._unsupported(Operation.BATCHES)

    def batches(self) -> Iterator[Batch]:
        """Every batch of the account, newest first."""
        raise self._unsupported(Operation.BATCHES)

    def cancel_batch(self, batch_id: str) -> Batch:
        """Ask for the end of a batch; the batch as it is then. Raises NotFound."""
        raise self._unsupported(Operation.BATCHES)

    def create_job(self, body: Mapping[str, Any]) -> FineTuningJob:
        """Start a fine-tuning job from OpenAI's body, with this account's model and file ids."""
        raise self._unsupported(Operation.FINE_TUNING)

    def retrieve_job(self, job_id: str) -> FineTuningJob:
        """The job as it is now. Raises NotFound."""
        raise self._unsupported(Operation.FINE_TUNING)

    def jobs(self) -> Iterator[FineTuningJob]:
        """Every fine-tuning job of the account, newest first."""
        raise self._unsupported(Operation.FINE_TUNING)

    def steer_job(self, job_id: str, action: Literal["cancel", "pause", "resume"]) -> FineTuningJob:
        """Cancel, pause or resume; the job as it is then. Raises NotFound."""
        raise self._unsupported(Operation.FINE_TUNING)

    def job_page(
        self, job_id: str, what: Literal["events", "checkpoints"], after: str | None, limit: int
    ) -> dict[str, Any]:
        """A page of a job's events or checkpoints, as OpenAI's list object, newest first."""
        raise self._unsupported(Operation.FINE_TUNING)

    def _unsupported(self, operation: Operation) -> NotSupported:
        return NotSupported(f"provider {self.name!r} does not support {operation.value}")
