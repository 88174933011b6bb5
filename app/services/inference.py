"""Chat and other inference: file ids translated, only holders asked, the next one on failure.

The body passes through byte for byte except its model and its file ids.
"""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from app import json_spans
from app.db import files as rows
from app.db.engine import Database
from app.db.tables import Copy
from app.errors import (
    FileExpired,
    FileNotAvailable,
    GatewayError,
    InvalidRequest,
    ModelAccessDenied,
    UpstreamAuthFailed,
)
from app.json_spans import Document, Span
from app.providers.protocol import Operation
from app.services.callers import Caller
from app.services.file_objects import copy_facts
from app.services.lookup import Held, Lookup, Unrecorded
from app.services.readiness import await_processed
from app.services.renewal import Renewal
from app.services.router import Hints, Route, Router, Selector
from app.settings import Settings
from app.transfers import AttachedFile, Cancellation, Reply

log = logging.getLogger("manifold.inference")

_PARTS = (
    ("messages", "*", "content", "*"),
    ("input", "*", "content", "*"),
    ("input", "*", "output", "*"),
)

FILE_ID_PATHS: tuple[json_spans.Path, ...] = (
    *((*part, "file", "file_id") for part in _PARTS),
    *((*part, "image_file", "file_id") for part in _PARTS),
    *((*part, "input_file", "file_id") for part in _PARTS),
    *((*part, "input_image", "file_id") for part in _PARTS),
    *((*part, "file_id") for part in _PARTS),
    ("messages", "*", "attachments", "*", "file_id"),
    ("messages", "*", "file_ids", "*"),
    ("attachments", "*", "file_id"),
    ("input", "*", "file_id"),
    ("input", "*", "attachments", "*", "file_id"),
    ("input", "*", "output", "file_id"),
    ("tools", "*", "container", "file_ids", "*"),
    ("tools", "*", "environment", "file_ids", "*"),
    ("tools", "*", "file_ids", "*"),
    ("tools", "*", "code_interpreter", "file_ids", "*"),
    ("tools", "*", "code_interpreter", "container", "file_ids", "*"),
    ("tools", "*", "input_image_mask", "file_id"),
    ("tool_resources", "code_interpreter", "file_ids", "*"),
    ("prompt", "variables", "*", "file_id"),
)
"""Every place where OpenAI's inference API takes a file id.

Source: OpenAI API reference, chat completions and responses, request bodies; read 2026-11.
"""

_SHORT_BYTES = 64 * 1024
"""The longest answer that is waited for as a whole, so that its length can be said."""
_MODEL = ("model",)
_STREAM = ("stream",)
_OWN_KEYS = ("custom_llm_provider", "provider", "target_model_names")
READ_PATHS = (_MODEL, _STREAM, *((key,) for key in _OWN_KEYS), *FILE_ID_PATHS)

_PERHAPS_GONE = frozenset({400, 403, 404})
"""Refusals that may mean that the upstream has a file no more; a 403 is what some say of one."""

_MOVE_ON = frozenset({408, 429})
"""Refusals beside all of 500 and above after which another deployment is tried."""


@dataclass(frozen=True)
class Answer:
    """An upstream's reply, and which deployment gave it."""

    reply: Reply
    route: Route


@dataclass(frozen=True)
class _Attached:
    """A file of the request: what the caller calls it, and what each deployment calls it.

    `held` is its row, if it has one.
    """

    handed: str
    raw_by_deployment: dict[str, str]
    models: tuple[str, ...]
    held: Held | None = None

    def copy_at(self, deployment_id: str) -> Copy | None:
        """The copy's row at a deployment."""
        copies = self.held.copies if self.held else ()
        return next((copy for copy in copies if copy.deployment_id == deployment_id), None)


@dataclass(frozen=True)
class _Request:
    """What all candidates are asked."""

    operation: Operation
    document: Document
    spans: Sequence[Span]
    attached: Mapping[str, _Attached]
    cancellation: Cancellation


class Inference:
    """Requests to a model, with the caller's own file ids in them."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        router: Router,
        lookup: Lookup,
        renewal: Renewal,
    ) -> None:
        self._settings = settings
        self._database = database
        self._router = router
        self._lookup = lookup
        self._renewal = renewal

    @staticmethod
    def read(body: bytes) -> Document:
        """The request's body. Raises InvalidRequest for what is no JSON object."""
        return json_spans.parse(body, READ_PATHS)

    def run(
        self,
        caller: Caller,
        operation: Operation,
        document: Document,
        hints: Hints,
        cancellation: Cancellation,
    ) -> Answer:
        """The first answer worth showing, from a deployment that holds every file of the request.

        A copy that its upstream has let go of is stored there again first, when somebody has the
        bytes. Raises UnknownModel, ModelAccessDenied, FileNotAvailable, FileExpired and what
        resolving a file id raises, all before anything is sent; Conflict for a file that is still
        being processed; UpstreamAuthFailed when our credential was refused.
        """
        selector = hints.selector(inference=True)
        candidates = self._candidates(caller, selector)
        spans = [span for span in document.at(FILE_ID_PATHS) if span.value is not None]
        attached = self._attach(caller, spans, candidates)
        holders = self._holders(candidates, attached.values(), selector.model or "")
        # One that cannot answer for certain is asked only when all of them cannot.
        holders = [r for r in holders if operation in r.provider.operations] or holders
        ordered = self._router.order(holders, lambda route: route.deployment.id)
        request = _Request(operation, document, spans, attached, cancellation)
        for route in ordered[:-1]:
            answer = self._try(request, route)
            if answer is not None:
                return answer
        last = self._try(request, ordered[-1], is_last=True)
        assert last is not None  # noqa: S101  # the last candidate answers or raises
        return last

    def _candidates(self, caller: Caller, selector: Selector) -> tuple[Route, ...]:
        if selector.model is None:
            raise InvalidRequest(
                "you must provide a model parameter",
                param="model",
                code="missing_required_parameter",
            )
        if selector.provider is None:
            return self._router.routes(selector.model, caller)
        account = self._router.account(selector.provider)
        if not caller.may_use(selector.model, [f"{selector.provider}/{selector.model}"]):
            raise ModelAccessDenied(
                f"this key may not use the model {selector.model!r:.200} "
                f"of the provider {selector.provider!r}",
                param="model",
            )
        return (replace(account, upstream_model=selector.model),)

    def _attach(
        self,
        caller: Caller,
        spans: Sequence[Span],
        candidates: Sequence[Route],
    ) -> dict[str, _Attached]:
        attached: dict[str, _Attached] = {}
        for span in spans:
            handed = span.value
            if not isinstance(handed, str):
                raise InvalidRequest("a file id must be a string", param=_dotted(span.path))
            if handed not in attached:
                found = self._lookup.resolve(caller, handed, _NO_HINTS)
                attached[handed] = (
                    _attached(handed, found)
                    if isinstance(found, Held)
                    else self._unrecorded(caller, found, candidates)
                )
        return attached

    def _unrecorded(
        self, caller: Caller, found: Unrecorded, candidates: Sequence[Route]
    ) -> _Attached:
        """A file that only its id tells of: at its own account, or at whichever is asked."""
        routes = candidates
        if found.model is not None:
            routes = self._lookup.accounts(caller, found, _NO_HINTS)
        models = tuple(dict.fromkeys(route.model_name or "" for route in routes))
        holders = dict.fromkeys((r.deployment.id for r in routes), found.raw)
        return _Attached(found.handed, holders, models)

    def _holders(
        self, candidates: Sequence[Route], attached: Collection[_Attached], model: str
    ) -> list[Route]:
        """The candidates that hold every file; when none does, one to which they are brought back.

        Raises FileExpired, FileNotAvailable naming the file that none has.
        """
        try:
            return _holders(candidates, attached, model)
        except FileNotAvailable:
            places = [(route, self._gone_from(route, attached)) for route in candidates]
            found = self._router.order(
                [(route, gone) for route, gone in places if gone],
                lambda place: place[0].deployment.id,
            )
            if not found:
                raise
        last: FileExpired | None = None
        for route, gone in found:
            try:
                self._renew(gone)
            except FileExpired as error:
                last = error
                continue
            return [route]
        assert last is not None  # noqa: S101  # there was one at least
        raise last

    def _gone_from(
        self, route: Route, attached: Collection[_Attached]
    ) -> list[tuple[_Attached, Copy]]:
        """The files that a deployment has held and has not now; empty when it never held one."""
        gone = []
        for file in attached:
            if route.deployment.id in file.raw_by_deployment:
                continue
            copies = self._renewal.renewable(file.held) if file.held else []
            copy = next((c for c in copies if c.deployment_id == route.deployment.id), None)
            if copy is None:
                return []
            gone.append((file, copy))
        return gone

    def _renew(self, gone: Sequence[tuple[_Attached, Copy]]) -> None:
        for file, copy in gone:
            assert file.held is not None  # noqa: S101  # it has a copy
            renewed = self._renewal.renew(file.held, copy)
            file.raw_by_deployment[copy.deployment_id] = renewed.deployment_file_id or ""

    def _await_processed(self, request: _Request, route: Route) -> None:
        """Return once the deployment can use every file. Raises Conflict, InvalidRequest."""
        if not route.provider.processes_first:
            return
        for file in request.attached.values():
            copy = file.copy_at(route.deployment.id)
            if copy is None or copy.state == "ready":
                continue
            stored = await_processed(
                route.provider,
                file.raw_by_deployment[route.deployment.id],
                file.handed,
                "file_id",
                self._settings.file_wait_seconds,
            )
            with self._database.write() as session:
                rows.record_copy(session, copy.id, was="stored", **copy_facts(stored))

    def _vanished(self, request: _Request, route: Route) -> list[tuple[_Attached, Copy]]:
        """The files of a refused request that the deployment does not have any more."""
        held = [
            (file, copy)
            for file in request.attached.values()
            if file.held and (copy := file.copy_at(route.deployment.id))
        ]
        return [
            (file, copy)
            for file, copy in held
            if file.held and self._renewal.vanished(file.held, copy)
        ]

    def _try(
        self, request: _Request, route: Route, *, is_last: bool = False, is_again: bool = False
    ) -> Answer | None:
        """The answer of one deployment, None when another should be asked."""
        deployment_id = route.deployment.id
        self._await_processed(request, route)
        raw = {a.handed: a.raw_by_deployment[deployment_id] for a in request.attached.values()}
        body = _rendered(request, raw, route)
        self._router.begin(deployment_id)
        try:
            reply = _begun(self._ask(request, route, body, raw))
        except GatewayError as error:
            self._router.end(deployment_id)
            if not getattr(error, "retryable", False) or request.cancellation.is_cancelled:
                raise
            self._router.rest(deployment_id)
            log.warning("no answer", extra={"deployment": deployment_id, "error": error.message})
            if is_last:
                raise
            return None
        except BaseException:
            self._router.end(deployment_id)
            raise
        reply = replace(reply, close=_once(lambda: self._router.end(deployment_id), reply.close))
        if reply.status in _MOVE_ON or reply.status >= 500:
            self._router.rest(deployment_id, _retry_after(reply))
            if not is_last and not request.cancellation.is_cancelled:
                reply.close()
                return None
        if reply.status in _PERHAPS_GONE and request.attached and not is_again:
            gone = self._vanished(request, route)
            if gone:
                reply.close()
                try:
                    self._renew(gone)
                except FileExpired:
                    if is_last:
                        raise
                    return None
                return self._try(request, route, is_last=is_last, is_again=True)
        if reply.status in (401, 403):
            reply.close()
            raise UpstreamAuthFailed(
                f"{route.deployment.provider} refused the gateway's own credential",
                provider=route.deployment.provider,
                deployment=deployment_id,
            )
        return Answer(_handed_back(reply, {new: old for old, new in raw.items()}), route)

    @staticmethod
    def _ask(request: _Request, route: Route, body: bytes, raw: Mapping[str, str]) -> Reply:
        files = {
            raw[a.handed]: AttachedFile(a.held.file.filename, a.held.file.mime_type)
            if a.held
            else AttachedFile("", "")
            for a in request.attached.values()
        }
        return route.provider.infer(
            request.operation, body, route.upstream_model, request.cancellation, files
        )


_NO_HINTS = Hints()


def _attached(handed: str, found: Held) -> _Attached:
    held = {copy.deployment_id: copy.deployment_file_id or "" for copy in found.readable}
    at = (copy.model_name or copy.provider for copy in found.readable)
    return _Attached(handed, held, tuple(dict.fromkeys(at)), found)


def _holders(candidates: Sequence[Route], attached: Iterable[_Attached], model: str) -> list[Route]:
    """The candidates that hold every file. Raises FileNotAvailable naming the one that none has."""
    holders = list(candidates)
    for file in attached:
        holders = [r for r in holders if r.deployment.id in file.raw_by_deployment]
        if not holders:
            where = ", ".join(file.models) or "no model"
            raise FileNotAvailable(
                f"the file {file.handed} is not available to the model {model!r}; "
                f"it is at: {where}",
                param="file_id",
            )
    return holders


def _rendered(request: _Request, raw: Mapping[str, str], route: Route) -> bytes:
    document = request.document
    replaced: dict[Span, Any] = {span: raw[span.value] for span in request.spans}
    model = document.at([_MODEL])
    replaced.update(dict.fromkeys(model, route.upstream_model))
    return document.render(
        replaced,
        # OpenRouter's own `provider` is an object and none of ours.
        dropped=[key for key in _OWN_KEYS if isinstance(document.value(key), str | list)],
        added=None if model else {"model": route.upstream_model},
    )


def _begun(reply: Reply) -> Reply:
    """The reply with its first piece read: a connection that breaks before it can be mended."""
    try:
        first = next(reply.chunks, b"")
    except GatewayError as error:
        reply.close()
        error.retryable = True  # type: ignore[attr-defined]  # chunks raise UpstreamError only
        raise

    def chunks() -> Iterator[bytes]:
        if first:
            yield first
        yield from reply.chunks

    return replace(reply, chunks=chunks())


def _once(*actions: Any) -> Any:
    """A close that does its work the first time only."""
    pending = list(actions)

    def close() -> None:
        while pending:
            pending.pop(0)()

    return close


def _handed_back(reply: Reply, handed_by_raw: Mapping[str, str]) -> Reply:
    """The reply with the provider's file ids turned back into the caller's."""
    if not handed_by_raw or all(raw == handed for raw, handed in handed_by_raw.items()):
        return reply
    pairs = {raw.encode(): handed.encode() for raw, handed in handed_by_raw.items()}
    # A longer id may begin with a shorter one, and neither is a part of a third.
    either = b"|".join(re.escape(raw) for raw in sorted(pairs, key=len, reverse=True))
    pattern = re.compile(b"(?:" + either + rb")(?![\w-])")

    def swapped(text: bytes) -> bytes:
        return pattern.sub(lambda found: pairs[found[0]], text)

    # Events are passed on as they come, even by a server that knows how long all of them will be.
    is_short = reply.length is not None and reply.length <= _SHORT_BYTES
    if is_short and not reply.is_event_stream:
        try:
            whole = swapped(b"".join(reply.chunks))
        except BaseException:
            reply.close()
            raise
        return replace(reply, chunks=iter((whole,)), length=len(whole))

    def chunks() -> Iterator[bytes]:
        # Only what may be the beginning of an id is held back; an event ends with a newline.
        rest = b""
        for chunk in reply.chunks:
            text = rest + chunk
            cut = len(text) - max(_begun_at_end(text, raw) for raw in pairs)
            rest = text[cut:]
            if cut:
                yield swapped(text[:cut])
        if rest:
            yield swapped(rest)

    return replace(reply, chunks=chunks(), length=None)


def _begun_at_end(text: bytes, raw: bytes) -> int:
    """How many bytes of `raw` stand at the end of `text`."""
    lengths = range(min(len(text), len(raw)), 0, -1)
    return next((length for length in lengths if text.endswith(raw[:length])), 0)


def _retry_after(reply: Reply) -> float | None:
    with suppress(ValueError):
        seconds = float(reply.headers.get("Retry-After", ""))
        if seconds >= 0:  # Not so for "nan".
            return seconds
    return None


def _dotted(path: json_spans.Path) -> str:
    return ".".join(path)
