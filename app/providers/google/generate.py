"""Chat and embeddings at Google: OpenAI's body in, OpenAI's answer out, over any Upstream."""

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidRequest, NotSupported, UpstreamError
from app.providers.google import embeddings
from app.providers.google.chat_answer import completion
from app.providers.google.chat_parts import Attach, is_at_google
from app.providers.google.chat_request import generate_request
from app.providers.google.chat_stream import openai_events
from app.providers.google.embeddings import Platform
from app.providers.google.errors import envelope
from app.providers.protocol import Operation
from app.providers.upstream import Answer, Upstream
from app.transfers import Cancellation, Reply

_ERROR_BYTES = 1024 * 1024
_JSON = {"Content-Type": "application/json"}
_EVENTS = {"Content-Type": "text/event-stream; charset=utf-8"}


def infer(
    upstream: Upstream,
    path: Callable[[str], str],
    operation: Operation,
    body: bytes,
    *,
    model: str,
    attach: Attach,
    cancellation: Cancellation,
    platform: Platform,
) -> Reply:
    """The answer to a chat or an embeddings request, as `Provider.infer` gives it.

    `path` says where a method of the model is ("generateContent",
    "streamGenerateContent?alt=sse", "predict", "embedContent", "batchEmbedContents"); `attach`
    under which address and MIME type Google reads a file. A stream is translated event by event.
    Raises InvalidRequest for what Google's models cannot be asked, NotSupported for any other
    operation, and UpstreamError, always `retryable`, when no answer came.
    """
    asked = _object(body)
    service = _Service(upstream, path, cancellation, platform)
    if operation == Operation.CHAT:
        return service.chat({**asked, "model": model}, attach)
    if operation == Operation.EMBEDDINGS:
        return service.embed(embeddings.question(asked, model))
    raise NotSupported(f"this provider does not support {operation.value}")


def has_files(body: bytes) -> bool:
    """Whether a chat body has files, which Google's surface for OpenAI's clients does not take.

    An address at Google counts, for there nobody would check whose file it is.
    """
    messages = _object(body).get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and _is_file(part):
                return True
    return False


def _is_file(part: Mapping[str, Any]) -> bool:
    kind = part.get("type")
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, dict) else given
    return kind in ("file", "image_file") or (isinstance(url, str) and is_at_google(url))


@dataclass(frozen=True)
class _Service:
    """One of Google's two services, asked on behalf of one request."""

    upstream: Upstream
    path: Callable[[str], str]
    cancellation: Cancellation
    platform: Platform

    def chat(self, body: Mapping[str, Any], attach: Attach) -> Reply:
        is_stream = _flag(body, "stream")
        options = body.get("stream_options")
        if options is not None and not isinstance(options, dict):
            raise InvalidRequest("stream_options must be an object", param="stream_options")
        include_usage = _flag(options or {}, "include_usage")
        request = generate_request(body, attach, labels=self.platform == "vertex_ai")
        model, created, fallback = str(body["model"]), int(time.time()), secrets.token_hex(12)
        method = "streamGenerateContent?alt=sse" if is_stream else "generateContent"
        answer = self._ask(method, request)
        if answer.status >= 300:
            return _refused(answer)
        if is_stream:
            events = openai_events(
                answer.chunks(),
                model=model,
                created=created,
                fallback_id=fallback,
                include_usage=include_usage,
                failure=self.upstream.nonsense,
            )
            return Reply(200, _EVENTS, events, answer.close)
        value = self._whole(answer)
        if "error" in value:
            return _failed(value)
        return _reply(completion(value, model=model, created=created, fallback_id=fallback))

    def embed(self, asked: embeddings.Question) -> Reply:
        found: list[list[float]] = []
        tokens = 0
        for call in embeddings.calls(asked, self.platform):
            answer = self._ask(call.method, call.body)
            if answer.status >= 300:
                return _refused(answer)
            value = self._whole(answer)
            if "error" in value:
                return _failed(value)
            vectors = embeddings.vectors(value, call.count)
            if vectors is None:
                raise _again(self.upstream.nonsense("did not give an embedding for every text"))
            found += vectors[0]
            tokens += vectors[1]
        return _reply(embeddings.embedding_list(asked, found, tokens))

    def _ask(self, method: str, request: Mapping[str, Any]) -> Answer:
        try:
            text = json.dumps(request, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        except (ValueError, RecursionError) as error:
            raise InvalidRequest("the body has a number or a depth that JSON cannot say") from error
        return self.upstream.stream(
            "POST",
            self.path(method),
            body=text.encode("utf-8", "replace"),
            headers=_JSON,
            cancellation=self.cancellation,
        )

    def _whole(self, answer: Answer) -> dict[str, Any]:
        try:
            return self.upstream.object_of(answer)
        except UpstreamError as error:
            raise _again(error) from error


def _again(error: UpstreamError) -> UpstreamError:
    """The error, marked as one after which another deployment may be asked."""
    error.retryable = True
    return error


def _refused(answer: Answer) -> Reply:
    with answer.response:
        raw = answer.read(_ERROR_BYTES)
    # A redirect is not followed, and its page means nothing to the caller.
    status, body, headers = envelope(answer.status, raw if answer.status >= 400 else b"")
    if "Retry-After" in answer.headers:
        headers.setdefault("Retry-After", answer.headers["Retry-After"])
    return Reply(status, headers, iter((body,)), length=len(body))


def _failed(value: Mapping[str, Any]) -> Reply:
    """The reply for an error inside of an answer that had begun well."""
    status, body, headers = envelope(200, json.dumps(value).encode())
    return Reply(status, headers, iter((body,)), length=len(body))


def _reply(value: Mapping[str, Any]) -> Reply:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    body = text.encode("utf-8", "replace")
    return Reply(200, _JSON, iter((body,)), length=len(body))


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("the body is not JSON") from error
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


def _flag(body: Mapping[str, Any], key: str) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{key} must be true or false", param=key)
    return bool(value)
