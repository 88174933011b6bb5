"""Batch input files: the rows checked before anything is sent, and each deployment's own copy."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from app.errors import (
    NO_SPACE,
    InvalidRequest,
    ModelAccessDenied,
    StorageFull,
    TooLarge,
    UnknownModel,
)
from app.providers.protocol import Provider
from app.providers.wire import jsonl
from app.providers.wire.jsonl import ENDPOINTS, Row, openai_url
from app.services.callers import Caller
from app.services.router import Router, Way
from app.settings import Settings
from app.transfers import Upload

MB = 1024 * 1024


class BatchFiles:
    """What an upload with the purpose `batch` goes through before it is stored anywhere."""

    def __init__(self, settings: Settings, router: Router) -> None:
        self._settings = settings
        self._router = router

    def check(self, caller: Caller, upload: Upload, way: Way) -> None:
        """Read every row once. Raises InvalidRequest, TooLarge, ModelAccessDenied naming the line.

        By the provider way a row names the provider's own models; by the others a public model
        name of the way, or the deployment's own upstream name. With `validate_batch_files` off
        only the models are looked at, of those rows that can be read.
        """
        limit = self._settings.max_batch_file_size_mb * MB
        if upload.size > limit:
            raise TooLarge(
                f"the batch file is too large: {upload.size} bytes were sent, "
                f"{limit} bytes are allowed",
                param="file",
                code="file_too_large",
            )
        if not self._settings.validate_batch_files:
            self._check_models_only(caller, upload, way)
            return
        if not upload.filename.lower().endswith(".jsonl"):
            raise InvalidRequest(
                f"a batch file's name ends in .jsonl, not {upload.filename!r}", param="file"
            )
        seen: set[bytes] = set()
        allowed: set[str] = set()
        url: str | None = None
        number = 0
        with upload.open() as file:
            for row in jsonl.rows(jsonl.lines(file, self._longest)):
                number += 1
                if number > self._settings.max_batch_file_records:
                    raise TooLarge(
                        f"the batch file has more than {self._settings.max_batch_file_records} "
                        "rows",
                        param="file",
                        code="too_many_rows",
                    )
                url = _checked(row, seen, url)
                model = row.model
                if model is None or (isinstance(model, str) and model in allowed):
                    continue
                self._check_model(caller, row.number, model, way)
                allowed.add(str(model))
        if number == 0:
            raise InvalidRequest("the batch file has no rows", param="file", code="empty_file")

    def _check_models_only(self, caller: Caller, upload: Upload, way: Way) -> None:
        with upload.open() as file:
            found = jsonl.readable(jsonl.lines(file, self._longest))
            for number, part in enumerate(found, start=1):
                if isinstance(part, Row):
                    # Whatever else it says, it goes out with the model that the file is for.
                    with suppress(InvalidRequest):
                        self._check_model(caller, number, part.model, way)
                    continue
                for model in jsonl.models_of(part):
                    self._check_model(caller, number, model, way)

    @contextmanager
    def copies(self, upload: Upload, way: Way, spool: Path) -> Iterator[Mapping[str, Upload]]:
        """By deployment id, the file as that deployment's upstream wants it.

        Written once for each distinct upstream model and way of writing rows, removed at the end.
        By the provider way OpenAI's rows go as they are, where the provider takes them. Raises
        InvalidRequest naming the line that a provider cannot do.
        """
        with ExitStack() as stack:
            made: dict[tuple[object, ...], Upload] = {}
            found: dict[str, Upload] = {}
            for route in way.routes:
                provider = route.provider
                is_raw = way.kind == "raw"
                if is_raw and provider.takes_openai_rows:
                    found[route.deployment.id] = upload
                    continue
                model = "" if is_raw else route.upstream_model
                key = (model, type(provider).batch_rows, provider.row_url("/v1/x"))
                if key not in made:
                    made[key] = stack.enter_context(self._rewritten(upload, provider, model, spool))
                found[route.deployment.id] = made[key]
            yield found

    @contextmanager
    def _rewritten(
        self, upload: Upload, provider: Provider, model: str, spool: Path
    ) -> Iterator[Upload]:
        # Not a `with`: what is raised while the copy is being sent is nothing of its writing.
        out = tempfile.NamedTemporaryFile(prefix="rows-", dir=spool, buffering=MB)  # noqa: SIM115  # as said
        try:
            try:
                digest, size, model = self._write(upload, provider, model, out)
            except OSError as error:
                if error.errno in NO_SPACE:
                    raise StorageFull from error
                raise
            yield replace(
                upload,
                path=Path(out.name),
                size=size,
                sha256=digest,
                model=model,
                original=upload,
            )
        finally:
            # What could not be written stays in the buffer, and closing would try it once more.
            with suppress(OSError):
                out.close()

    def _write(
        self, upload: Upload, provider: Provider, model: str, out: IO[bytes]
    ) -> tuple[str, int, str]:
        """Write the rows as the provider wants them; their SHA-256, size in bytes, and model."""
        digest = hashlib.sha256()
        size = 0
        named: list[str] = []
        with upload.open() as file:
            found = jsonl.lines(file, self._longest)
            is_checked = self._settings.validate_batch_files
            parts = jsonl.rows(found) if is_checked else jsonl.readable(found)
            if not model:
                parts = jsonl.of_one_model(parts, named)
            for line in provider.batch_rows(parts, model):
                digest.update(line)
                size += len(line)
                out.write(line)
        out.flush()
        return digest.hexdigest(), size, model or "".join(named)

    def _check_model(self, caller: Caller, number: int, model: object, way: Way) -> None:
        if not isinstance(model, str) or not model:
            raise _bad(number, "body.model must be a string")
        if way.kind == "raw":
            provider = way.routes[0].deployment.provider
            if not caller.may_use(model, [f"{provider}/{model}"]):
                raise _denied(number, model)
            return
        own = {r.upstream_model for r in way.routes} | {
            r.deployment.qualified_model for r in way.routes
        }
        names = {*way.names, *(r.model_name for r in way.routes)}
        if model in names or model in own:
            return
        try:
            self._router.routes(model, caller)
        except ModelAccessDenied as error:
            raise _denied(number, model) from error
        except UnknownModel as error:
            raise _bad(
                number, f"the model {model!r:.200} does not exist", "model_not_found"
            ) from error
        targets = ", ".join(way.names)
        raise _bad(number, f"the model {model!r:.200} is not one that the file is for: {targets}")

    @property
    def _longest(self) -> int:
        return self._settings.max_batch_row_mb * MB


def _checked(row: Row, seen: set[bytes], url: str | None) -> str:
    """The row's url, once the row has all it needs."""
    keys = {member.key for member in row.document.members}
    missing = [key for key in jsonl.REQUIRED if key not in keys]
    if missing:
        raise _bad(row.number, f"{missing[0]} is missing", "missing_required_parameter")
    if not isinstance(row.custom_id, str) or not row.custom_id:
        raise _bad(row.number, "custom_id must be a string that is not empty")
    mark = hashlib.blake2b(row.custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    if mark in seen:
        raise _bad(
            row.number, f"custom_id {row.custom_id[:80]!r} stands twice", "duplicate_custom_id"
        )
    seen.add(mark)
    if row.document.value("method") != "POST":
        raise _bad(row.number, "method must be 'POST'")
    if not isinstance(row.url, str) or openai_url(row.url) not in ENDPOINTS:
        raise _bad(row.number, f"url must be one of: {', '.join(ENDPOINTS)}")
    if not row.has_body:
        raise _bad(row.number, "body must be a JSON object")
    if url is not None and openai_url(row.url) != url:
        raise _bad(row.number, f"url is {row.url!r}, the rows before say {url!r}", "url_mismatch")
    return openai_url(row.url)


def _bad(number: int, what: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"line {number}: {what}", param="file", code=code)


def _denied(number: int, model: str) -> ModelAccessDenied:
    return ModelAccessDenied(
        f"line {number}: this key may not use the model {model!r:.200}", param="file"
    )
