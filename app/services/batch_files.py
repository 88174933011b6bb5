"""Batch input files: the rows checked before anything is sent, and each deployment's own copy."""

import hashlib
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import tee
from pathlib import Path

from app import turns
from app.concurrency import often_taking_turns
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

    @contextmanager
    def copies(
        self, upload: Upload, way: Way, spool: Path, *, sent_by: Caller | None = None
    ) -> Iterator[Mapping[str, Upload]]:
        """By deployment id, the file as that deployment's upstream wants it.

        The file is read once: every row is checked when it is a caller's, and written for each
        distinct upstream model and way of writing rows; what was written is removed at the end.
        By the provider way OpenAI's rows go as they are, where the provider takes them.

        Raises InvalidRequest, TooLarge, ModelAccessDenied naming the line that nobody may send,
        and InvalidRequest for one that a provider cannot do. By the provider way a row names the
        provider's own models; by the others a public model name of the way, or the deployment's
        own upstream name. With `validate_batch_files` off only the models are looked at, of those
        rows that can be read.
        """
        if sent_by is not None:
            self._check_outside(upload)
        with ExitStack() as stack:
            made: dict[tuple[object, ...], _Rendition] = {}
            found: dict[str, _Rendition | None] = {}
            for route in way.routes:
                provider = route.provider
                is_raw = way.kind == "raw"
                if is_raw and provider.takes_openai_rows:
                    found[route.deployment.id] = None
                    continue
                model = "" if is_raw else route.upstream_model
                key = (model, type(provider).batch_rows, provider.row_url("/v1/x"))
                if key not in made:
                    made[key] = stack.enter_context(_Rendition(provider, model, spool))
                found[route.deployment.id] = made[key]
            if made or sent_by is not None:
                turns.leave()
                with often_taking_turns():
                    self._read(upload, way, sent_by, list(made.values()))
            yield {id: each.of(upload) if each else upload for id, each in found.items()}

    def _read(
        self, upload: Upload, way: Way, caller: Caller | None, made: "Sequence[_Rendition]"
    ) -> None:
        with upload.open() as file:
            found = jsonl.lines(file, self._settings.max_batch_row_mb * MB)
            parts: Iterator[Row | bytes]
            if self._settings.validate_batch_files:
                parts = jsonl.rows(found) if caller is None else self._checked(found, caller, way)
            else:
                parts = jsonl.readable(found)
                parts = parts if caller is None else self._of_known_models(parts, caller, way)
            if not made:
                deque(parts, maxlen=0)
                return
            writing = [
                each.written(own) for each, own in zip(made, tee(parts, len(made)), strict=True)
            ]
            try:
                # Side by side, so that no more than one row is held.
                deque(zip(*writing, strict=True), maxlen=0)
                for each in made:
                    each.out.flush()
            except OSError as error:
                if error.errno in NO_SPACE:
                    raise StorageFull from error
                raise

    def _check_outside(self, upload: Upload) -> None:
        limit = self._settings.max_batch_file_size_mb * MB
        if upload.size > limit:
            raise TooLarge(
                f"the batch file is too large: {upload.size} bytes were sent, "
                f"{limit} bytes are allowed",
                param="file",
                code="file_too_large",
            )
        is_named = upload.filename.lower().endswith(".jsonl")
        if self._settings.validate_batch_files and not is_named:
            raise InvalidRequest(
                f"a batch file's name ends in .jsonl, not {upload.filename!r}", param="file"
            )

    def _checked(self, lines: Iterator[bytes], caller: Caller, way: Way) -> Iterator[Row]:
        seen: set[bytes] = set()
        allowed: set[str] = set()
        url: str | None = None
        number = 0
        for row in jsonl.rows(lines):
            number += 1
            if number > self._settings.max_batch_file_records:
                raise TooLarge(
                    f"the batch file has more than {self._settings.max_batch_file_records} rows",
                    param="file",
                    code="too_many_rows",
                )
            url = _checked(row, seen, url)
            model = row.model
            if model is not None and not (isinstance(model, str) and model in allowed):
                self._check_model(caller, row.number, model, way)
                allowed.add(str(model))
            yield row
        if number == 0:
            raise InvalidRequest("the batch file has no rows", param="file", code="empty_file")

    def _of_known_models(
        self, parts: Iterator[Row | bytes], caller: Caller, way: Way
    ) -> Iterator[Row | bytes]:
        for number, part in enumerate(parts, start=1):
            if isinstance(part, Row):
                # Whatever else it says, it goes out with the model that the file is for.
                with suppress(InvalidRequest):
                    self._check_model(caller, number, part.model, way)
            else:
                for model in jsonl.models_of(part):
                    self._check_model(caller, number, model, way)
            yield part

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


class _Rendition:
    """The rows as one provider wants them for one of its models, in a file of its own."""

    def __init__(self, provider: Provider, model: str, spool: Path) -> None:
        self.out = tempfile.NamedTemporaryFile(prefix="rows-", dir=spool, buffering=MB)  # noqa: SIM115  # closed below
        self._provider = provider
        self._model = model
        self._named: list[str] = []
        self._digest = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> "_Rendition":
        return self

    def __exit__(self, *_error: object) -> None:
        # What could not be written stays in the buffer, and closing would try it once more.
        with suppress(OSError):
            self.out.close()

    def written(self, parts: Iterator[Row | bytes]) -> Iterator[None]:
        """Write the rows, one at each step."""
        if not self._model:
            parts = jsonl.of_one_model(parts, self._named)
        for line in self._provider.batch_rows(parts, self._model):
            self._digest.update(line)
            self._size += len(line)
            self.out.write(line)
            yield

    def of(self, upload: Upload) -> Upload:
        """What is sent instead of the upload, once all rows are written."""
        return replace(
            upload,
            source=Path(self.out.name),
            size=self._size,
            sha256=self._digest.hexdigest(),
            model=self._model or "".join(self._named),
            original=upload,
        )


def _checked(row: Row, seen: set[bytes], url: str | None) -> str:
    """The row's url, once the row has all it needs."""
    keys = {member.key for member in row.document.members}
    if not keys.issuperset(jsonl.REQUIRED):
        missing = next(key for key in jsonl.REQUIRED if key not in keys)
        raise _bad(row.number, f"{missing} is missing", "missing_required_parameter")
    custom_id, asked = row.custom_id, row.url
    if not isinstance(custom_id, str) or not custom_id:
        raise _bad(row.number, "custom_id must be a string that is not empty")
    mark = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    if mark in seen:
        raise _bad(row.number, f"custom_id {custom_id[:80]!r} stands twice", "duplicate_custom_id")
    seen.add(mark)
    if row.method != "POST":
        raise _bad(row.number, "method must be 'POST'")
    if not isinstance(asked, str) or (found := openai_url(asked)) not in ENDPOINTS:
        raise _bad(row.number, f"url must be one of: {', '.join(ENDPOINTS)}")
    if not row.has_body:
        raise _bad(row.number, "body must be a JSON object")
    if url is not None and found != url:
        raise _bad(row.number, f"url is {asked!r}, the rows before say {url!r}", "url_mismatch")
    return found


def _bad(number: int, what: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"line {number}: {what}", param="file", code=code)


def _denied(number: int, model: str) -> ModelAccessDenied:
    return ModelAccessDenied(
        f"line {number}: this key may not use the model {model!r:.200}", param="file"
    )
