"""Rows of a batch file: OpenAI's form -> Vertex AI's and AI Studio's. Pure.

Vertex AI gives a chat row's request back and nothing else of it, so the row's custom_id travels in
the request's labels; rows of embeddings, and every row at AI Studio, have a key of their own.
Source: Google Cloud, Batch inference with Gemini, and batch embeddings; Gemini API, Batch Mode;
Google Cloud, Requirements for labels; read 2026-11.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from app.errors import InvalidRequest
from app.providers.google.chat_request import Attach, generate_request
from app.providers.google.embeddings import question
from app.providers.wire.jsonl import Row, openai_url

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
ENDPOINTS = (CHAT, EMBEDDINGS)
"""What a batch may ask of Google's models."""

MOST_LABELS = 64
"""So many labels may a request have, each value of at most 63 characters."""

_LABEL = "manifold_custom_id_"
_LABEL_KEY = re.compile(re.escape(_LABEL) + "([0-9]{1,3})")
# In front of each piece, so that a value begins with a letter and is never empty.
_MARK = "c"
_PIECE = 63 - len(_MARK)
_CODED = "manifold:"
_LONE_HALF = re.compile("[\ud800-\udfff\0]")
_FORMATS = ("float", "base64")
# Batches at Vertex AI take these names only.
_VERTEX_OPTIONS = {"outputDimensionality": "output_dimensionality", "taskType": "task_type"}


def no_file(file_id: str) -> tuple[str, str]:
    """Refuse the id of a file: rows are written once for several accounts, each with its own."""
    raise InvalidRequest(
        f"the file {file_id!r:.100} cannot be used in a batch row; give its bytes (file_data) or "
        "an http address",
        param="file",
    )


def vertex_rows(
    rows: Iterable[Row | bytes], model: str, attach: Attach = no_file
) -> Iterator[bytes]:
    """The lines of a batch file for Vertex AI. `model` is empty when the rows name their own.

    Raises InvalidRequest naming the line that cannot be said in Google's form.
    """

    def chat(custom_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        request = generate_request(body, attach, labels=True)
        own = id_labels(custom_id)
        labels = request.get("labels") or {}
        # The caller's own, as far as there is room, and none that looks like one of these.
        given = [label for label in labels.items() if not _LABEL_KEY.fullmatch(label[0])]
        return {"request": {**request, "labels": {**dict(given[: MOST_LABELS - len(own)]), **own}}}

    def embeddings(custom_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        named = str(body.get("model"))
        if "gemini" not in named:
            # Their rows are bare texts, given back in any order: no id can go with them.
            raise InvalidRequest(
                f"the model {named!r:.100} has no batches of embeddings here; use one of the "
                "gemini-embedding models"
            )
        return _embedding_row(custom_id, body, _VERTEX_OPTIONS)

    return _translated(rows, model, chat, embeddings)


def studio_rows(
    rows: Iterable[Row | bytes], model: str, attach: Attach = no_file
) -> Iterator[bytes]:
    """The lines of a batch file for AI Studio, otherwise as `vertex_rows`."""

    def chat(custom_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return {"key": key_of(custom_id), "request": generate_request(body, attach, labels=False)}

    def embeddings(custom_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return _embedding_row(custom_id, body, {})

    return _translated(rows, model, chat, embeddings)


_Write = Callable[[str, Mapping[str, Any]], dict[str, Any]]


def _translated(
    rows: Iterable[Row | bytes], model: str, chat: _Write, embeddings: _Write
) -> Iterator[bytes]:
    url: str | None = None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Row):
            if row.strip():
                raise _bad(number, "is not a JSON object", "invalid_json_line")
            yield b""
            continue
        custom_id, found = row.custom_id, row.url
        if not isinstance(custom_id, str):
            raise _bad(row.number, "custom_id must be a string")
        if not isinstance(found, str) or openai_url(found) not in ENDPOINTS:
            raise _bad(
                row.number,
                f"url is {found!r:.100}; batches of this provider take: {', '.join(ENDPOINTS)}",
            )
        if url is not None and openai_url(found) != url:
            raise _bad(row.number, f"url is {found!r}, the rows before say {url!r}", "url_mismatch")
        url = openai_url(found)
        body = json.loads(row.document.text).get("body")
        if not isinstance(body, dict):
            raise _bad(row.number, "body must be a JSON object")
        write = chat if url == CHAT else embeddings
        try:
            line = write(custom_id, {**body, **({"model": model} if model else {})})
            yield json.dumps(line, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        except InvalidRequest as error:
            where = f" ({error.param})" if error.param not in (None, "file") else ""
            raise _bad(row.number, error.message + where, error.code) from error
        except (ValueError, RecursionError) as error:
            raise _bad(row.number, "has a number or a depth that JSON cannot say") from error


def _embedding_row(
    custom_id: str, body: Mapping[str, Any], spelt: Mapping[str, str]
) -> dict[str, Any]:
    asked = question(body, str(body.get("model")))
    if len(asked.texts) != 1:
        raise InvalidRequest(
            "input must be one text: a row of this provider's batches has one embedding",
            param="input",
        )
    options = {spelt.get(key, key): value for key, value in asked.options.items()}
    request = {"content": {"parts": [{"text": asked.texts[0]}]}, **options}
    return {"key": key_of(custom_id, asked.form), "request": request}


def id_labels(custom_id: str) -> dict[str, str]:
    """The labels that say a row's custom_id, whatever its characters. `labelled_id` reads them.

    A label takes lower-case letters, digits, `_` and `-` only, hence base32. Raises
    InvalidRequest for an id that is longer than 64 labels (2,480 bytes).
    """
    text = _base32(custom_id)
    pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)] or [""]
    if len(pieces) > MOST_LABELS:
        raise InvalidRequest(
            f"custom_id is too long: {MOST_LABELS * _PIECE * 5 // 8} bytes are allowed"
        )
    return {f"{_LABEL}{number}": _MARK + piece for number, piece in enumerate(pieces)}


def labelled_id(labels: object) -> str | None:
    """The custom_id that a request's labels say, None when they say none."""
    if not isinstance(labels, Mapping):
        return None
    pieces: dict[int, str] = {}
    for key, value in labels.items():
        if isinstance(value, str) and (found := _LABEL_KEY.fullmatch(str(key))):
            pieces[int(found[1])] = value
    if not pieces or sorted(pieces) != list(range(len(pieces))):
        return None
    if any(not piece.startswith(_MARK) for piece in pieces.values()):
        return None
    return _from_base32("".join(pieces[n].removeprefix(_MARK) for n in range(len(pieces))))


def key_of(custom_id: str, form: str = "float") -> str:
    """The key of a row: the custom_id itself, where nothing else must go with it.

    `form` is the encoding_format of an embedding, which no answer repeats.
    """
    is_plain = not _LONE_HALF.search(custom_id) and not custom_id.startswith(_CODED)
    if form == "float" and is_plain:
        return custom_id
    return f"{_CODED}{form}:{_base32(custom_id)}"


def keyed_id(key: str) -> tuple[str, str]:
    """The custom_id and the encoding_format that a row's key says."""
    form, _, text = key.removeprefix(_CODED).partition(":")
    if key.startswith(_CODED) and form in _FORMATS:
        custom_id = _from_base32(text)
        if custom_id is not None:
            return custom_id, form
    return key, "float"


def mark_of(request: Mapping[str, Any]) -> bytes:
    """16 bytes that tell a chat row's request from others, with or without its labels."""
    plain = {key: value for key, value in request.items() if key != "labels"}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def row_id(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The custom_id and the encoding_format of a row that was written here, or of its answer."""
    key, request = row.get("key"), row.get("request")
    if isinstance(key, str):
        return keyed_id(key)
    custom_id = labelled_id(request.get("labels")) if isinstance(request, Mapping) else None
    return None if custom_id is None else (custom_id, "float")


def _base32(text: str) -> str:
    raw = text.encode("utf-8", "surrogatepass")
    return base64.b32encode(raw).decode().rstrip("=").lower()


def _from_base32(text: str) -> str | None:
    try:
        raw = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
        return raw.decode("utf-8", "surrogatepass")
    except (binascii.Error, ValueError):
        return None


def _bad(number: int, what: str, code: str | None = None) -> InvalidRequest:
    return InvalidRequest(f"line {number}: {what}", param="file", code=code)
