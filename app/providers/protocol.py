"""Provider and Operation: what is asked of a provider, method by method.

A provider is bound to one deployment and keeps no state per request: the server's threads share
it. It declares its name, its operations and its parameters, and codes the methods of those
operations; this base class answers every other one with NotSupported, so nobody asks which
provider it has. No exception but GatewayError leaves a provider. Deleting what is gone is not an
error.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal

from marshmallow import Schema

from app.errors import NotSupported
from app.settings import Deployment
from app.transfers import Cancellation, Download, Reply, Upload


class Operation(StrEnum):
    """What a provider may be able to do; inference operations carry OpenAI's path."""

    FILES = "files"
    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"


@dataclass(frozen=True)
class StoredFile:
    """A file as its provider tells it.

    `status` is one of OpenAI's three. `size` is in bytes, None while the provider does not know.
    `created_at` and `expires_at` are Unix seconds.
    """

    id: str
    filename: str
    purpose: str
    size: int | None
    created_at: int
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None
    expires_at: int | None = None


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
    Params: ClassVar[type[Schema]]
    """Checks `Deployment.params`; an instance gets the loaded value as `self.params`."""

    def __init__(self, deployment: Deployment, place: Place) -> None:
        self.deployment = deployment
        self.place = place
        self.params: dict[str, Any] = self.Params().load(dict(deployment.params))

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

    def infer(
        self,
        operation: Operation,
        body: bytes,
        upstream_model: str,
        cancellation: Cancellation,
    ) -> Reply:
        """Send an inference request and return the answer as soon as its headers are there.

        `body` is OpenAI's JSON, with `upstream_model` as its model and this account's own file
        ids. A cancel wakes up the wait for the answer. Every status comes back as a Reply, errors
        in OpenAI's envelope; whether to try another deployment is the caller's business. Raises
        UpstreamError, always `retryable`, when no answer came: no connection, a broken one, or
        none in time.
        """
        raise self._unsupported(operation)

    def _unsupported(self, operation: Operation) -> NotSupported:
        return NotSupported(f"provider {self.name!r} does not support {operation.value}")
