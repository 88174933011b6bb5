"""Rows of a training file: OpenAI's chat form -> Gemini's. Pure.

Source: OpenAI API reference, Fine-tuning, chat training data; Google Cloud, Prepare supervised
fine-tuning data for Gemini; read 2026-11.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from app.errors import InvalidRequest
from app.providers.google.chat_request import generate_request

_KEYS = frozenset({"messages", "tools", "parallel_tool_calls", "functions"})
_SENT = ("systemInstruction", "contents", "tools")
_BOM = b"\xef\xbb\xbf"


def tuning_rows(lines: Iterable[bytes], model: str) -> Iterator[bytes]:
    """The lines of a training file for Vertex AI. Raises InvalidRequest naming the line."""
    is_empty = True
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(_BOM) if number == 1 else line
        if not text.strip():
            continue
        try:
            example = _example(_object(text), model)
            yield json.dumps(example, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        except InvalidRequest as error:
            where = f" ({error.param})" if error.param not in (None, "training_file") else ""
            raise InvalidRequest(
                f"line {number} of the training file: {error.message}{where}",
                param="training_file",
                code=error.code,
            ) from error
        is_empty = False
    if is_empty:
        raise InvalidRequest("the training file has no rows", param="training_file")


def _object(text: bytes) -> dict[str, Any]:
    try:
        row = json.loads(text)
        # What is no JSON, or nested too deeply to be written, is found here and not on the way.
        json.dumps(row, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("is not a JSON object", code="invalid_json_line") from error
    if not isinstance(row, dict):
        raise InvalidRequest("is not a JSON object", code="invalid_json_line")
    return row


def _example(row: Mapping[str, Any], model: str) -> dict[str, Any]:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages is missing; rows of other methods are not supported")
    if unknown := sorted(row.keys() - _KEYS):
        raise InvalidRequest(f"the key {unknown[0]!r:.100} means nothing to this provider")
    for message in messages:
        if isinstance(message, dict) and message.get("weight") not in (None, 1):
            raise InvalidRequest("weight is 0: this provider learns from every answer of a row")
    last = messages[-1]
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise InvalidRequest("the last message must be the assistant's")
    plain = [
        {key: value for key, value in message.items() if key != "weight"}
        if isinstance(message, dict)
        else message
        for message in messages
    ]
    request = generate_request({**row, "model": model, "messages": plain}, _no_file, labels=False)
    contents = [
        {**content, "parts": [_without_signature(part) for part in content["parts"]]}
        for content in request["contents"]
    ]
    if contents[-1].get("role") != "model":
        raise InvalidRequest("the last message has nothing to learn from")
    return {key: request[key] for key in _SENT if key in request} | {"contents": contents}


def _without_signature(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part as a person could have written it: a signature is of one conversation only."""
    return {key: value for key, value in part.items() if key != "thoughtSignature"}


def _no_file(file_id: str) -> tuple[str, str]:
    raise InvalidRequest(f"the file {file_id!r:.100} cannot be used in a training row")
