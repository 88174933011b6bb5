"""Embeddings: OpenAI's body -> the calls of Google's models, and their answers -> OpenAI's. Pure.

Source: OpenAI API reference, embeddings; Vertex AI, Text embeddings API (:predict) and
:embedContent; Gemini API, batchEmbedContents; google-genai 3.4.0, Models.embed_content, for which
model is asked in which way; read 2026-11.
"""

import base64
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.errors import InvalidRequest
from app.providers.google.chat_parts import text

Platform = Literal["vertex_ai", "ai_studio"]
"""Which of Google's two services is asked; they differ in labels and in embeddings."""

_MOST_TEXTS = 2048
_MOST_IN_CALL = 100
# One :predict takes 20,000 tokens; a token has three bytes or more in nearly every language.
_MOST_BYTES_IN_CALL = 50_000
_FORMATS = ("float", "base64")
_LARGEST_DIMENSION = 2**31


@dataclass(frozen=True)
class Question:
    """What is to be embedded and how. `options` are in Google's words."""

    model: str
    texts: tuple[str, ...]
    form: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """One call of a model's `method`, which gives `count` vectors."""

    method: str
    body: Mapping[str, Any]
    count: int


def question(body: Mapping[str, Any], model: str) -> Question:
    """What OpenAI's body asks. Raises InvalidRequest naming the parameter.

    `task_type` and `title` are Google's own and may be given beside OpenAI's.
    """
    given = body.get("input")
    texts: list[Any] = given if isinstance(given, list) else [given]
    if not texts or any(not isinstance(item, str) or not item for item in texts):
        raise InvalidRequest(
            "input must be a text or a list of texts, none of them empty; token numbers are those "
            "of another model",
            param="input",
        )
    if len(texts) > _MOST_TEXTS:
        raise InvalidRequest(f"input has {len(texts)} texts; {_MOST_TEXTS} at most", param="input")
    form = body.get("encoding_format")
    if form is not None and form not in _FORMATS:
        raise InvalidRequest(
            f"encoding_format is {form!r:.40}; it may be {' or '.join(_FORMATS)}",
            param="encoding_format",
        )
    options: dict[str, Any] = {}
    dimensions = body.get("dimensions")
    if dimensions is not None:
        if type(dimensions) is not int or not 0 < dimensions < _LARGEST_DIMENSION:
            raise InvalidRequest("dimensions must be a whole number above 0", param="dimensions")
        options["outputDimensionality"] = dimensions
    for key, name in (("task_type", "taskType"), ("title", "title")):
        if body.get(key) is not None:
            options[name] = text(body[key], key)
    return Question(model, tuple(texts), form or "float", options)


def calls(asked: Question, platform: Platform) -> Iterator[Call]:
    """The calls that answer a question, in the order of its texts."""
    on_vertex = platform == "vertex_ai"
    if on_vertex and "gemini" not in asked.model:
        for texts in _groups(asked.texts, _MOST_BYTES_IN_CALL):
            yield _predict(asked, texts)
        return
    for texts in _groups(asked.texts, None):
        contents = [{"content": {"parts": [{"text": item}]}} for item in texts]
        # A text that is too long is refused, as OpenAI does, instead of being cut in silence.
        config = {"embedContentConfig": {**asked.options, "autoTruncate": False}}
        if not on_vertex:
            named = {"model": f"models/{asked.model.removeprefix('models/')}"}
            requests = [{**named, **content, **asked.options} for content in contents]
            yield Call("batchEmbedContents", {"requests": requests}, len(texts))
        elif len(texts) == 1:
            yield Call("embedContent", {**contents[0], **config}, 1)
        else:
            requests = [{**content, **config} for content in contents]
            yield Call("batchEmbedContents", {"requests": requests}, len(texts))


def vectors(answer: Mapping[str, Any], count: int) -> tuple[list[list[float]], int] | None:
    """The vectors of one answer and the tokens that they took; None for any other answer."""
    tokens = 0
    if isinstance(predictions := answer.get("predictions"), list):
        found = [item.get("embeddings") if isinstance(item, dict) else None for item in predictions]
    elif isinstance(single := answer.get("embedding"), dict):
        found = [single]
    else:
        several = answer.get("embeddings")
        found = several if isinstance(several, list) else []
    values = []
    for embedding in found:
        if not isinstance(embedding, dict):
            return None
        vector = embedding.get("values")
        if not isinstance(vector, list) or not vector or not all(map(_is_number, vector)):
            return None
        values.append(vector)
        statistics = embedding.get("statistics")
        if isinstance(statistics, dict):
            tokens += _count(statistics.get("token_count", statistics.get("tokenCount")))
    usage = answer.get("usageMetadata")
    if isinstance(usage, dict):
        tokens = _count(usage.get("promptTokenCount")) or tokens
    return (values, tokens) if len(values) == count else None


def embedding_list(asked: Question, found: list[list[float]], tokens: int) -> dict[str, Any]:
    """OpenAI's list of embeddings; base64 is that of 32-bit floats, lowest byte first."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _spelt(vector, asked.form)}
            for index, vector in enumerate(found)
        ],
        "model": asked.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _groups(texts: tuple[str, ...], most_bytes: int | None) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for item in texts:
        length = len(item.encode("utf-8", "replace"))
        is_over = most_bytes is not None and size + length > most_bytes
        if group and (is_over or len(group) == _MOST_IN_CALL):
            yield group
            group, size = [], 0
        group.append(item)
        size += length
    yield group


def _predict(asked: Question, texts: list[str]) -> Call:
    names = {"taskType": "task_type", "title": "title"}
    own = {names[key]: value for key, value in asked.options.items() if key in names}
    parameters: dict[str, Any] = {"autoTruncate": False}
    if "outputDimensionality" in asked.options:
        parameters["outputDimensionality"] = asked.options["outputDimensionality"]
    instances = [{"content": item, **own} for item in texts]
    return Call("predict", {"instances": instances, "parameters": parameters}, len(texts))


def _spelt(vector: list[float], form: str) -> list[float] | str:
    if form == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _is_number(value: Any) -> bool:
    # Beyond a 32-bit float's range, base64 could not say it.
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e38


def _count(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    return value if type(value) is int and 0 <= value < 2**53 else 0
