"""Results of a batch: Vertex AI's and AI Studio's rows -> OpenAI's output and error lines. Pure.

The same row always gives the same bytes: ids are made of the job's and the row's.
Source: OpenAI API reference, Batch, request output; Google Cloud, Batch inference with Gemini, and
batch embeddings; Gemini API, Batch Mode; read 2026-11.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.providers.google.batch_rows import row_id
from app.providers.google.chat_answer import answer_id, completion
from app.providers.google.embeddings import Question, embedding_list, vectors
from app.providers.google.errors import envelope
from app.providers.google.resources import count
from app.providers.openai_jobs import seconds

LONGEST_LINE = 64 * 1024 * 1024
"""Bytes of one result; a request with its pictures comes back with it."""

_NAMESPACE = uuid.UUID("0b9f7a52-6a8c-4c39-9f58-2f3b2d1f6c55")

# Some errors carry the number of gRPC instead of HTTP's. Source: google/rpc/code.proto.
_RPC = {
    1: 499,
    2: 500,
    3: 400,
    4: 504,
    5: 404,
    6: 409,
    7: 403,
    8: 429,
    9: 400,
    10: 409,
    11: 400,
    12: 501,
    13: 500,
    14: 503,
    15: 500,
    16: 401,
}
# Some are a sentence that begins with the name of HTTP's status.
_SAID = {
    "bad request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not found": 404,
    "too many requests": 429,
    "internal": 500,
    "service unavailable": 503,
    "unavailable": 503,
}


@dataclass(frozen=True)
class Job:
    """What lines are made with: the job's id, its model, and when it was made (Unix seconds)."""

    id: str
    model: str
    created_at: int


@dataclass(frozen=True)
class Result:
    """One line of the output file, or of the error file, with its line end.

    `usage` is that of a chat completion or of an embedding, as OpenAI counts it.
    """

    custom_id: str
    line: bytes
    is_error: bool
    usage: Mapping[str, Any] = field(default_factory=dict)


Lookup = Callable[[Mapping[str, Any]], str | None]
"""The custom_id of a request that came back without its labels."""


def result(raw: bytes, job: Job, lookup: Lookup = lambda _request: None) -> Result | None:
    """OpenAI's line for one of Google's, None for what is no row or whose custom_id is lost."""
    row = row_of(raw)
    known = _known(row, lookup)
    if known is None:
        return None
    custom_id, form = known
    line_id = _line_id(job, custom_id)
    status, body = _answer(row, job, form, line_id)
    response = row.get("response")
    line = {
        "id": line_id,
        "custom_id": custom_id,
        "response": {
            "status_code": status,
            "request_id": answer_id(response) if isinstance(response, dict) else "",
            "body": body,
        },
        "error": None,
    }
    usage = body.get("usage")
    return Result(custom_id, _text(line), status != 200, usage if isinstance(usage, dict) else {})


def custom_id(raw: bytes, lookup: Lookup = lambda _request: None) -> str | None:
    """The custom_id of a row, of its result, or None as `result` gives it."""
    known = _known(row_of(raw), lookup)
    return None if known is None else known[0]


def unfinished(custom_id: str, job: Job, code: str, message: str) -> Result:
    """The error line of a row that has no result."""
    line = {
        "id": _line_id(job, custom_id),
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }
    return Result(custom_id, _text(line), is_error=True)


def lines(chunks: Iterable[bytes], longest: int = LONGEST_LINE) -> Iterator[bytes]:
    """The lines in a stream of bytes, without their ends.

    Of a line over `longest` bytes only an unreadable beginning is given.
    """
    kept = bytearray()
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            if len(kept) <= longest:
                kept += part
            yield bytes(kept)
            kept.clear()
        if len(kept) <= longest:
            kept += rest
    if kept:
        yield bytes(kept)


def row_of(raw: bytes) -> dict[str, Any]:
    """The JSON object of one line, {} for what is none."""
    try:
        # What is no JSON would be none in our own line either.
        row = json.loads(raw, parse_constant=lambda _name: None)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _known(row: Mapping[str, Any], lookup: Lookup) -> tuple[str, str] | None:
    request = row.get("request")
    if (known := row_id(row)) is not None or not isinstance(request, dict):
        return known
    found = lookup(request)
    return None if found is None else (found, "float")


def _answer(
    row: Mapping[str, Any], job: Job, form: str, line_id: str
) -> tuple[int, dict[str, Any]]:
    """HTTP's status and the body that the row's request alone would have been answered with."""
    response = row.get("response")
    if (error := _error(row)) is not None or not isinstance(response, dict):
        return _failure(error or {})
    if "embedding" in response or "embeddings" in response:
        found, tokens = vectors(response, 1) or ([], 0)
        asked = Question(job.model, (), form, {})
        return 200, embedding_list(asked, found, tokens or count(response.get("tokenCount")))
    moment = seconds(response.get("createTime")) or seconds(row.get("processed_time"))
    created = moment or job.created_at
    return 200, completion(response, model=job.model, created=created, fallback_id=line_id)


def _error(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a row says of its failure, None for one that was answered."""
    said, response = row.get("status"), row.get("response")
    if isinstance(said, str) and said.strip():
        return _told(said)
    answer: dict[str, Any] = response if isinstance(response, dict) else {}
    for found in (row.get("error"), said, answer.get("error")):
        if isinstance(found, dict) and found:
            return found
    if not answer:
        return {"code": 500, "message": "the provider gave no answer for this row"}
    is_embedding = "embedding" in answer or "embeddings" in answer
    if is_embedding and vectors(answer, 1) is None:
        return {"code": 500, "message": "the provider gave no embedding for this row"}
    return None


def _told(said: str) -> dict[str, Any]:
    """The error that a sentence says, often `Bad Request: {json of an error}`."""
    words, brace, rest = said.partition("{")
    try:
        value = json.loads(brace + rest) if brace else {}
    except (ValueError, RecursionError):
        value = {}
    inner = value.get("error", value) if isinstance(value, dict) else {}
    if isinstance(inner, dict) and inner.get("message"):
        return inner
    begin = words.strip().lower()
    code = next((code for name, code in _SAID.items() if begin.startswith(name)), 400)
    return {"code": code, "message": said.strip()}


def _failure(error: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    code = error.get("code")
    status = code if type(code) is int else 500
    status = _RPC.get(status, status)
    status = status if 400 <= status < 600 else 500
    raw = json.dumps({"error": {**error, "code": status}}).encode()
    status, body, _ = envelope(status, raw)
    return status, dict(json.loads(body))


def _line_id(job: Job, custom_id: str) -> str:
    name = f"{job.id}/".encode() + custom_id.encode("utf-8", "surrogatepass")
    return f"batch_req_{uuid.uuid5(_NAMESPACE, name.hex()).hex}"


def _text(line: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:
        # Half a surrogate pair is no UTF-8; its escape is JSON all the same.
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"
