"""What Gemini models answer, at Vertex AI and at AI Studio alike: what they have seen."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Answer = tuple[int, dict[str, str], bytes]

KEYS = frozenset(
    {
        *("contents", "systemInstruction", "generationConfig", "tools", "toolConfig"),
        *("safetySettings", "cachedContent"),
    }
)


class Refused(Exception):
    """An error answer of Google's form."""

    def __init__(self, code: int, status: str, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message = code, message
        error: dict[str, Any] = {"code": code, "message": message, "status": status}
        if reason:
            kind = "type.googleapis.com/google.rpc.ErrorInfo"
            error["details"] = [{"@type": kind, "reason": reason, "domain": "googleapis.com"}]
        self.answer = as_json({"error": error}, code)


def as_json(value: Any, status: int = 200) -> Answer:
    headers = {"Content-Type": "application/json; charset=UTF-8"}
    return status, headers, json.dumps(value).encode()


def content(
    request: Mapping[str, Any],
    look: Callable[[Mapping[str, Any]], str],
    keys: frozenset[str] = KEYS,
) -> dict[str, Any]:
    """The answer to generateContent; `look` says what a fileData part is, or refuses it."""
    unknown = set(request) - keys
    if unknown:
        raise Refused(400, "INVALID_ARGUMENT", f"Unknown name {sorted(unknown)[0]!r}")
    contents = request.get("contents")
    if not isinstance(contents, list) or not contents:
        raise Refused(400, "INVALID_ARGUMENT", "contents must not be empty")
    if contents[-1].get("role") != "user":
        raise Refused(400, "INVALID_ARGUMENT", "the last content must be the user's")
    seen = []
    for each in contents:
        for part in each["parts"]:
            if not part or part.get("text") == "":
                raise Refused(400, "INVALID_ARGUMENT", "an empty part")
            if "fileData" in part:
                seen.append(look(part["fileData"]))
            elif "text" in part:
                seen.append(part["text"])
    text = "saw " + " ".join(seen)
    if "fail" in text:
        raise Refused(400, "INVALID_ARGUMENT", "told to fail")
    if "too long" in text:
        raise Refused(
            400,
            "INVALID_ARGUMENT",
            "The input token count (1048577) exceeds the maximum number of tokens allowed",
        )
    answer: dict[str, Any] = {
        "usageMetadata": {
            "promptTokenCount": 5,
            "candidatesTokenCount": 7,
            "totalTokenCount": 12,
        },
        "modelVersion": "gemini-2.0-flash",
        "responseId": "response-1",
    }
    if "blocked" in text:
        return {**answer, "promptFeedback": {"blockReason": "SAFETY"}}
    parts: list[dict[str, Any]] = [{"text": text}]
    if request.get("tools") and "call" in text:
        name = request["tools"][0]["functionDeclarations"][0]["name"]
        parts = [{"functionCall": {"name": name, "args": {"city": "Köln"}}}]
    made = {"role": "model", "parts": parts}
    return {**answer, "candidates": [{"index": 0, "content": made, "finishReason": "STOP"}]}


def events(answer: Mapping[str, Any]) -> Answer:
    """The same as a stream, a word an event."""
    [candidate] = answer["candidates"]
    [part] = candidate["content"]["parts"]
    pieces = (
        [{"text": word} for word in re.findall(r"\S+\s*", part["text"])]
        if "text" in part
        else [part]
    )
    told = []
    for number, piece in enumerate(pieces, start=1):
        one: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": [piece]}}
        if number == len(pieces):
            one["finishReason"] = "STOP"
        told.append({**answer, "candidates": [one]})
    text = "".join(f"data: {json.dumps(event)}\r\n\r\n" for event in told)
    return 200, {"Content-Type": "text/event-stream"}, text.encode()
