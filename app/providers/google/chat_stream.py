"""A stream of generateContent -> OpenAI's stream of chat completion chunks.

Source: Gemini API, streamGenerateContent with alt=sse; OpenAI API reference, the chat completion
chunk object; WHATWG, Server-sent events, Parsing an event stream; read 2026-11.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import UpstreamError, UpstreamRejected
from app.providers.google.chat_answer import (
    annotations,
    answer_id,
    finish_reason,
    index_of,
    logprobs,
    media,
    objects,
    parts_of,
    said,
    thoughts,
    tool_call,
    usage,
)
from app.providers.google.errors import envelope

LONGEST_EVENT = 64 * 1024 * 1024
"""Bytes of one event: pictures and sound come whole."""

BOM = b"\xef\xbb\xbf"
DONE = b"data: [DONE]\n\n"
Failure = Callable[[str], UpstreamError]
"""Makes the error for an upstream of which the rest of the sentence is given."""

_PASSING = (408, 429)
_TOO_LONG = f"sent an event of over {LONGEST_EVENT} bytes"


def openai_events(
    source: Iterable[bytes],
    *,
    model: str,
    created: int,
    fallback_id: str,
    include_usage: bool = False,
    failure: Failure = UpstreamError,
) -> Iterator[bytes]:
    """OpenAI's events for the bytes of Google's, each as soon as its own is there.

    All chunks have one id, made of the first responseId or of `fallback_id`, and one `created`
    (Unix seconds). A stream that Google ends with an error, or before it has said why it ended,
    ends with an error event and without [DONE]. Raises UpstreamError before the first event only:
    another deployment may still be asked then.
    """
    state = _Stream(model, created, fallback_id, include_usage)
    has_begun = False
    try:
        for data in event_data(source, failure):
            if data.strip() == b"[DONE]":
                continue
            event = _read(data, failure)
            if "error" in event:
                status, raw, headers = envelope(200, data)
                if not has_begun and (status >= 500 or status in _PASSING):
                    raise _rejected(status, raw, headers, failure)
                yield _event(json.loads(raw))
                return
            for chunk in state.read(event):
                has_begun = True
                yield _event(chunk)
    except UpstreamError as error:
        if not has_begun:
            raise
        yield _event(error.body())
        return
    if not state.is_complete:
        cut = failure("ended the stream before the answer was whole")
        if not has_begun:
            raise cut
        yield _event(cut.body())
        return
    for chunk in state.end():
        yield _event(chunk)
    yield DONE


def event_data(source: Iterable[bytes], failure: Failure = UpstreamError) -> Iterator[bytes]:
    """The data of each event in a stream, whatever its line ends and wherever its bytes are cut.

    Raises UpstreamError for an event over LONGEST_EVENT.
    """
    data: list[bytes] = []
    size = 0
    for number, found in enumerate(_lines(source, failure)):
        line = found if number else found.removeprefix(BOM)
        if not line:
            if data:
                yield b"\n".join(data)
            data, size = [], 0
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
            size += len(line)
            if size > LONGEST_EVENT:
                raise failure(_TOO_LONG)
    # An end without a blank line has lost nothing when its data is whole, which the reader sees.
    if data:
        yield b"\n".join(data)


def _lines(source: Iterable[bytes], failure: Failure) -> Iterator[bytes]:
    """The lines, without their ends: LF, CRLF or CR."""
    kept: list[bytes] = []
    size = 0
    ends_with_cr = False
    for given in source:
        piece = given
        if ends_with_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        if not given:
            continue
        ends_with_cr = given.endswith(b"\r")
        *whole, rest = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for part in whole:
            yield b"".join((*kept, part))
            kept, size = [], 0
        if rest:
            kept.append(rest)
            size += len(rest)
            if size > LONGEST_EVENT:
                raise failure(_TOO_LONG)
    if kept:
        yield b"".join(kept)


@dataclass
class _Choice:
    """What is known of one choice so far."""

    index: int
    text: str = ""
    calls: int = 0
    images: int = 0
    reason: Any = None
    is_blocked: bool = False


class _Stream:
    """One answer on its way, event by event."""

    def __init__(self, model: str, created: int, fallback_id: str, include_usage: bool) -> None:
        self._model = model
        self._created = created
        self._id = ""
        self._fallback_id = fallback_id
        self._include_usage = include_usage
        self._usage: Any = None
        self._choices: dict[int, _Choice] = {}

    @property
    def is_complete(self) -> bool:
        """Whether Google has said of every choice why it ended."""
        choices = self._choices.values()
        return bool(choices) and all(choice.reason or choice.is_blocked for choice in choices)

    def read(self, event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """OpenAI's chunks for one event of Google's."""
        self._id = self._id or answer_id(event)
        self._usage = event.get("usageMetadata") or self._usage
        for candidate in objects(event.get("candidates")):
            yield from self._candidate(candidate)
        feedback = event.get("promptFeedback")
        if isinstance(feedback, Mapping) and feedback.get("blockReason") and not self._choices:
            yield from self._begin(0)
            self._choices[0].is_blocked = True

    def end(self) -> Iterator[dict[str, Any]]:
        """The last chunks: why each choice ended, then what was used, if that was asked for."""
        for choice in self._choices.values():
            reason = finish_reason(choice.reason, has_calls=choice.calls > 0)
            yield self._chunk(choice, {}, "content_filter" if choice.is_blocked else reason)
        if self._include_usage:
            yield {**self._frame(), "choices": [], "usage": usage(self._usage)}

    def _candidate(self, candidate: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        index = index_of(candidate)
        if index not in self._choices:
            yield from self._begin(index)
        choice = self._choices[index]
        choice.reason = candidate.get("finishReason") or choice.reason
        tokens = logprobs(candidate)
        for delta in self._deltas(choice, parts_of(candidate)):
            yield self._chunk(choice, delta, tokens=tokens)
            tokens = None
        if cited := annotations(candidate, choice.text):
            yield self._chunk(choice, {"annotations": cited})

    def _begin(self, index: int) -> Iterator[dict[str, Any]]:
        self._choices[index] = _Choice(index)
        yield self._chunk(self._choices[index], {"role": "assistant", "content": ""})

    def _deltas(self, choice: _Choice, parts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for part in parts:
            place = f"{self._own_id}/{choice.index}"
            if thinking := thoughts(part):
                yield {"reasoning_content": thinking}
            elif text := said(part):
                choice.text += text
                yield {"content": text}
            elif call := tool_call(part, f"{place}/{choice.calls}"):
                yield {"tool_calls": [{"index": choice.calls, **call}]}
                choice.calls += 1
            elif found := media([part], place):
                for image in found.get("images", ()):
                    image["index"] = choice.images
                    choice.images += 1
                yield found

    @property
    def _own_id(self) -> str:
        # Decided by the first chunk, for a later responseId would be another id.
        self._id = self._id or self._fallback_id
        return self._id

    def _frame(self) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._own_id}",
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
        }

    def _chunk(
        self,
        choice: _Choice,
        delta: dict[str, Any],
        reason: str | None = None,
        tokens: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        chunk = {
            **self._frame(),
            "choices": [
                {
                    "index": choice.index,
                    "delta": delta,
                    "logprobs": tokens,
                    "finish_reason": reason,
                }
            ],
        }
        # OpenAI has a null in every chunk before the one that tells.
        return {**chunk, "usage": None} if self._include_usage else chunk


def _read(data: bytes, failure: Failure) -> dict[str, Any]:
    event = _object(data)
    if event is None:
        raise failure("sent an event that is not a JSON object")
    return event


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data, parse_constant=lambda _name: None)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, dict) else None


def _event(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        return b"data: " + text.encode() + b"\n\n"
    except UnicodeEncodeError:
        # Half a surrogate pair is no UTF-8; its escape is JSON all the same.
        return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _rejected(
    status: int, raw: bytes, headers: Mapping[str, str], failure: Failure
) -> UpstreamRejected:
    error, known = json.loads(raw)["error"], failure("")
    return UpstreamRejected(
        error["message"],
        status=status,
        type=error["type"],
        code=error["code"],
        provider=known.provider,
        deployment=known.deployment,
        headers={name: value for name, value in headers.items() if name == "Retry-After"},
    )
