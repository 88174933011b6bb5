"""Messages of a chat: OpenAI's -> Gemini's contents and system instruction. Pure.

Source: OpenAI API reference, chat completions, messages; Gemini API, Content, and Function calling;
read 2026-11.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.errors import InvalidRequest
from app.providers.google import thought
from app.providers.google.chat_parts import (
    BLANK,
    Attach,
    Part,
    content_parts,
    listed,
    mapping,
    text,
    texts,
)

Content = dict[str, Any]


@dataclass
class _Call:
    """A function call of the model, and the part that answers it once it is there."""

    id: str
    name: str
    answer: Part | None = None


@dataclass
class Talk:
    """A conversation as Gemini takes it: `system` are the parts of the system instruction."""

    system: list[Part] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)

    def add(self, role: str, parts: list[Part]) -> None:
        """Say more; neighbours of the same role are one content, as Gemini wants it."""
        if self.contents and self.contents[-1]["role"] == role:
            self.contents[-1]["parts"].extend(parts)
        else:
            self.contents.append({"role": role, "parts": parts})


def talk(messages: Any, attach: Attach, *, needs_signatures: bool) -> Talk:
    """The conversation. With `needs_signatures` a lost thought signature is made good.

    Raises InvalidRequest naming the message that Gemini has no form for.
    """
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest(
            "messages must be a list of at least one message",
            param="messages",
            code="missing_required_parameter" if messages is None else None,
        )
    reader = _Reader(attach, needs_signatures)
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        reader.read(mapping(message, where), where)
    return reader.end()


class _Reader:
    """Reads the messages in order; results of parallel calls are gathered into one content."""

    def __init__(self, attach: Attach, needs_signatures: bool) -> None:
        self._attach = attach
        self._needs_signatures = needs_signatures
        self._talk = Talk()
        self._calls: list[_Call] = []
        self._beside: list[Part] = []

    def read(self, message: Mapping[str, Any], where: str) -> None:
        for key in ("attachments", "file_ids"):
            if message.get(key):
                raise InvalidRequest(
                    f"{where}.{key} is not supported here: put the file into the content",
                    param=f"{where}.{key}",
                )
        content, place = message.get("content"), f"{where}.content"
        match message.get("role"):
            case "system" | "developer":
                self._talk.system.extend({"text": said} for said in texts(content, place))
            case "user":
                self._settle(where)
                parts = content_parts(content, place, self._attach)
                self._talk.add("user", parts or [dict(BLANK)])
            case "assistant":
                self._settle(where)
                self._talk.add("model", self._said(message, where))
            case "tool" | "function":
                self._result(message, where)
            case other:
                raise InvalidRequest(
                    f"{where}.role is {other!r:.100}; it may be system, developer, user, "
                    "assistant, tool or function",
                    param=f"{where}.role",
                )

    def end(self) -> Talk:
        """The whole conversation; it begins with the user, as Gemini wants it."""
        self._settle(None)
        found = self._talk
        if not found.contents:
            found.contents = [{"role": "user", "parts": found.system or [dict(BLANK)]}]
            found.system = []
        elif found.contents[0]["role"] == "model":
            found.contents.insert(0, {"role": "user", "parts": [dict(BLANK)]})
        return found

    def _said(self, message: Mapping[str, Any], where: str) -> list[Part]:
        parts = content_parts(message.get("content"), f"{where}.content", self._attach)
        if message.get("refusal"):
            parts.append({"text": text(message["refusal"], f"{where}.refusal")})
        if message.get("images"):
            parts.extend(content_parts(message["images"], f"{where}.images", self._attach))
        if not parts and message.get("audio"):
            raise InvalidRequest(
                f"{where}.audio refers to a sound that is not kept here; give its transcript as "
                "content",
                param=f"{where}.audio",
            )
        calls = self._called(message, where)
        return [*parts, *calls] or [dict(BLANK)]

    def _called(self, message: Mapping[str, Any], where: str) -> list[Part]:
        parts = []
        for index, given in enumerate(
            listed(message.get("tool_calls") or [], f"{where}.tool_calls")
        ):
            place = f"{where}.tool_calls[{index}]"
            call = mapping(given, place)
            if call.get("type") not in (None, "function"):
                raise InvalidRequest(
                    f"{place}.type is {call['type']!r:.100}; only function is supported",
                    param=f"{place}.type",
                )
            call_id = text(call.get("id"), f"{place}.id")
            function = mapping(call.get("function"), f"{place}.function")
            part = _function_call(function, f"{place}.function", thought.google_id(call_id))
            if (signature := thought.signature(call)) is not None:
                part["thoughtSignature"] = signature
            self._calls.append(_Call(call_id, part["functionCall"]["name"]))
            parts.append(part)
        if message.get("function_call"):
            place = f"{where}.function_call"
            part = _function_call(mapping(message["function_call"], place), place, None)
            self._calls.append(_Call("", part["functionCall"]["name"]))
            parts.append(part)
        # Of parallel calls the first one alone has a signature.
        if parts and self._needs_signatures:
            parts[0].setdefault("thoughtSignature", thought.LOST)
        return parts

    def _result(self, message: Mapping[str, Any], where: str) -> None:
        call = self._answered(message, where)
        parts = content_parts(message.get("content"), f"{where}.content", self._attach)
        said = "".join(part["text"] for part in parts if "text" in part)
        self._beside.extend(part for part in parts if "text" not in part)
        response: Part = {"name": call.name, "response": _response(said)}
        if (known := thought.google_id(call.id)) is not None:
            response["id"] = known
        call.answer = {"functionResponse": response}

    def _answered(self, message: Mapping[str, Any], where: str) -> _Call:
        """The call that a message answers."""
        if message.get("role") == "function":
            key, wanted = "name", text(message.get("name"), f"{where}.name")
        else:
            key = "tool_call_id"
            wanted = text(message.get(key), f"{where}.{key}")
        for call in self._calls:
            if call.answer is None and (call.name if key == "name" else call.id) == wanted:
                return call
        raise InvalidRequest(
            f"{where} answers {wanted!r:.100}, which no assistant message before it has called "
            "and left without an answer",
            param=f"{where}.{key}",
        )

    def _settle(self, before: str | None) -> None:
        """Say the results of the calls so far, in the order of the calls.

        A conversation may end with calls that nobody has answered, but not go on.
        """
        calls, beside = self._calls, self._beside
        self._calls, self._beside = [], []
        missing = [call for call in calls if call.answer is None]
        if missing and (before is not None or len(missing) < len(calls)):
            names = (call.id.partition(thought.MARK)[0] or call.name for call in missing[:5])
            raise InvalidRequest(
                "every tool call needs a tool message that answers it; there is none for "
                + ", ".join(f"{name!r:.60}" for name in names),
                param=before or "messages",
            )
        answers = [call.answer for call in calls if call.answer is not None]
        if answers:
            self._talk.add("user", [*answers, *beside])


def _function_call(function: Mapping[str, Any], where: str, google_id: str | None) -> Part:
    name = text(function.get("name"), f"{where}.name")
    arguments = function.get("arguments")
    args = _object(arguments) if isinstance(arguments, str) and arguments.strip() else {}
    if args is None or not isinstance(arguments, str | None):
        raise InvalidRequest(
            f"{where}.arguments must be the JSON text of an object", param=f"{where}.arguments"
        )
    call: Part = {"name": name, "args": args}
    if google_id is not None:
        call["id"] = google_id
    return {"functionCall": call}


def _response(said: str) -> dict[str, Any]:
    found = _object(said)
    return {"output": said} if found is None else found


def _object(said: str) -> dict[str, Any] | None:
    """The JSON object that a text is, None for any other."""
    try:
        value = json.loads(said, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
