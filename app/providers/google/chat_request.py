"""A chat request: OpenAI's body -> the body of Gemini's generateContent. Pure.

What Gemini has no form for is refused by the name of its parameter, except for what changes
nothing in an answer's meaning (store, service_tier, prompt_cache_key, verbosity and the like).
Source: OpenAI API reference, chat completions, create; Gemini API, GenerationConfig, Tool,
ToolConfig and SafetySetting; Vertex AI, GenerateContent, request body; read 2026-11.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from app.errors import InvalidRequest
from app.providers.google.chat_messages import talk
from app.providers.google.chat_parts import Attach, is_file, listed, mapping, text
from app.providers.google.chat_tools import tool_config, tools

__all__ = ["Attach", "generate_request"]

_MOST_CANDIDATES = 8
_MOST_STOPS = 5
_MOST_TOP_LOGPROBS = 20
_MOST_LABELS = 64
_SEED = 2**31
_LARGEST = 2**63
_VERSION = re.compile(r"gemini-(\d{1,3})(?:\.(\d{1,3}))?(?![\d.])")
_LATEST = re.compile(r"gemini-(?:pro|flash|flash-lite)-latest")
_FIRST_TO_THINK = (2, 5)
_FIRST_WITH_LEVELS = (3, 0)
# Tokens for thinking. Source: Gemini API, OpenAI compatibility, Thinking; read 2026-11.
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576}
_LEVELS = {
    "none": "minimal",
    "minimal": "minimal",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
}
_MODALITIES = {"text": "TEXT", "image": "IMAGE", "audio": "AUDIO"}
_RESOLUTIONS = {"low": "MEDIA_RESOLUTION_LOW", "high": "MEDIA_RESOLUTION_HIGH"}
_THINKING_KEYS = {
    "include_thoughts": "includeThoughts",
    "thinking_budget": "thinkingBudget",
    "thinking_level": "thinkingLevel",
}
_SAFETY_KEYS = ("category", "threshold", "method")
# A label: lower-case letters, digits, - and _; a key begins with a letter. Source: Google Cloud,
# Requirements for labels; read 2026-11.
_NO_LABEL = re.compile(r"[^a-z0-9_-]")
_LABEL_LENGTH = 63
# What would be lost in silence: a file, or a form of answer that clients read elsewhere.
_REFUSED = {
    "attachments": "put the file into a message",
    "tool_resources": "put the file into a message",
    "functions": "use tools",
    "prompt": "use messages",
}


def generate_request(body: Mapping[str, Any], attach: Attach, *, labels: bool) -> dict[str, Any]:
    """The body of generateContent for a chat completion's.

    `attach` says under which address and MIME type Google reads a file, or raises InvalidRequest.
    `labels`: whether `metadata` goes as labels, which Vertex AI has and AI Studio has not. The
    model's name in `body` decides in which terms its thinking is asked for. Raises InvalidRequest
    naming the parameter that cannot be said to Gemini, and nothing else.
    """
    try:
        return _request(body, attach, labels=labels)
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply") from error


def _request(body: Mapping[str, Any], attach: Attach, *, labels: bool) -> dict[str, Any]:
    for key, instead in _REFUSED.items():
        if body.get(key):
            raise InvalidRequest(f"{key} is not supported by this model: {instead}", param=key)
    version = _version(body.get("model"))
    needs_signatures = version is not None and version >= _FIRST_WITH_LEVELS
    said = talk(body.get("messages"), attach, needs_signatures=needs_signatures)
    request: dict[str, Any] = {"contents": said.contents}
    if said.system:
        request["systemInstruction"] = {"parts": said.system}
    if found := tools(body):
        request["tools"] = found
    if config := tool_config(body, found):
        request["toolConfig"] = config
    own = _own(body)
    settings = {
        **_numbers(body),
        **_stops(body),
        **_form(body),
        **_logprobs(body),
        **_resolution(body, request["contents"]),
        **_thinking(body, own, version),
    }
    if settings:
        request["generationConfig"] = settings
    if safety := _safety(body, own):
        request["safetySettings"] = safety
    if cached := _either(body, own, "cached_content", "cachedContent"):
        request["cachedContent"] = text(cached, "cached_content")
    if labels and (named := _labels(body)):
        request["labels"] = named
    return request


def _version(model: Any) -> tuple[int, int] | None:
    """The version in a model's name, None when the name does not tell (a tuned one's number)."""
    name = model if isinstance(model, str) else ""
    if _LATEST.search(name):
        return _FIRST_WITH_LEVELS
    found = _VERSION.search(name)
    return (int(found[1]), int(found[2] or 0)) if found else None


def _own(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `google` object, as Google's own layer for OpenAI's clients reads it."""
    extra = body.get("extra_body")
    found = body.get("google") or (extra.get("google") if isinstance(extra, Mapping) else None)
    return mapping(found, "google") if found else {}


def _either(body: Mapping[str, Any], own: Mapping[str, Any], *keys: str) -> Any:
    values = (holder.get(key) for holder in (body, own) for key in keys)
    return next((value for value in values if value is not None), None)


def _numbers(body: Mapping[str, Any]) -> dict[str, Any]:
    key = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    found = {
        "maxOutputTokens": _whole(body, key, 1, _SEED - 1),
        "temperature": _number(body, "temperature"),
        "topP": _number(body, "top_p"),
        "topK": _whole(body, "top_k", 1, _SEED - 1),
        "candidateCount": _whole(body, "n", 1, _MOST_CANDIDATES),
        "seed": _whole(body, "seed", -_SEED, _SEED - 1),
        "presencePenalty": _number(body, "presence_penalty"),
        "frequencyPenalty": _number(body, "frequency_penalty"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _number(body: Mapping[str, Any], key: str) -> int | float | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{key} must be a number", param=key)
    if not -_LARGEST < value < _LARGEST:
        raise InvalidRequest(f"{key} is out of range", param=key)
    return value


def _whole(body: Mapping[str, Any], key: str, least: int, most: int) -> int | None:
    value = _number(body, key)
    if value is None:
        return None
    if value != math.floor(value) or not least <= value <= most:
        raise InvalidRequest(
            f"{key} is {value!r}; it may be a whole number from {least} to {most}", param=key
        )
    return int(value)


def _stops(body: Mapping[str, Any]) -> dict[str, Any]:
    given = body.get("stop")
    if given is None:
        return {}
    stops = [given] if isinstance(given, str) else listed(given, "stop")
    if len(stops) > _MOST_STOPS:
        raise InvalidRequest(f"stop has {len(stops)} entries; {_MOST_STOPS} at most", param="stop")
    found = [text(stop, "stop") for stop in stops]
    return {"stopSequences": found} if found else {}


def _form(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the answer is made of: response_format, modalities and audio."""
    return {**_response_format(body.get("response_format")), **_modalities(body)}


def _response_format(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    wanted = mapping(given, "response_format")
    match wanted.get("type"):
        case "text":
            return {}
        case "json_object":
            return {"responseMimeType": "application/json"}
        case "json_schema":
            where = "response_format.json_schema"
            schema = mapping(wanted.get("json_schema"), where).get("schema")
            form = {"responseMimeType": "application/json"}
            if schema is None:
                return form
            return {**form, "responseJsonSchema": mapping(schema, f"{where}.schema")}
    raise InvalidRequest(
        f"response_format.type is {wanted.get('type')!r:.100}; it may be text, json_object or "
        "json_schema",
        param="response_format.type",
    )


def _modalities(body: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    wanted = body.get("modalities")
    if wanted is not None:
        for kind in listed(wanted, "modalities"):
            if not isinstance(kind, str) or kind.lower() not in _MODALITIES:
                raise InvalidRequest(
                    f"modalities has {kind!r:.100}; it may have text, image and audio",
                    param="modalities",
                )
        kinds = [_MODALITIES[kind.lower()] for kind in wanted]
        if kinds and kinds != ["TEXT"]:
            found["responseModalities"] = kinds
    if body.get("audio") is None:
        return found
    sound = mapping(body["audio"], "audio")
    if sound.get("format") not in (None, "pcm16"):
        raise InvalidRequest(
            f"audio.format is {sound['format']!r:.100}; this model speaks pcm16 only",
            param="audio.format",
        )
    if sound.get("voice") is not None:
        name = text(sound["voice"], "audio.voice")
        found["speechConfig"] = {"voiceConfig": {"prebuiltVoiceConfig": {"voiceName": name}}}
    return found


def _logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    wanted = body.get("logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        raise InvalidRequest("logprobs must be true or false", param="logprobs")
    top = _whole(body, "top_logprobs", 0, _MOST_TOP_LOGPROBS)
    if top and not wanted:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    if not wanted:
        return {}
    return {"responseLogprobs": True, **({"logprobs": top} if top else {})}


def _resolution(body: Mapping[str, Any], contents: list[Any]) -> dict[str, Any]:
    """How closely pictures are looked at, when all of them ask for the same.

    Gemini takes it for the whole request, so it is left to Gemini where there are other files.
    """
    details = set()
    count = 0
    for message in body["messages"]:
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            image = part.get("image_url")
            if part.get("type") == "image_url":
                count += 1
                detail = image.get("detail") if isinstance(image, Mapping) else None
                details.add(detail if isinstance(detail, str) else None)
    files = sum(is_file(part) for content in contents for part in content["parts"])
    found = _RESOLUTIONS.get(next(iter(details)) or "") if len(details) == 1 else None
    return {"mediaResolution": found} if found and files == count else {}


def _thinking(
    body: Mapping[str, Any], own: Mapping[str, Any], version: tuple[int, int] | None
) -> dict[str, Any]:
    """How much the model thinks, in the terms of its version.

    `google.thinking_config` goes as it is. A model that does not think is not asked to.
    """
    given = _either(body, own, "thinking_config", "thinkingConfig")
    if given is not None:
        config = mapping(given, "thinking_config")
        return {"thinkingConfig": {_THINKING_KEYS.get(k, k): v for k, v in config.items()}}
    if body.get("thinking") is not None:
        return _anthropic_thinking(mapping(body["thinking"], "thinking"))
    effort = body.get("reasoning_effort")
    if effort is None:
        return {}
    if not isinstance(effort, str) or effort not in _BUDGETS:
        raise InvalidRequest(
            f"reasoning_effort is {effort!r:.100}; it may be {', '.join(_BUDGETS)}",
            param="reasoning_effort",
        )
    if version is None or _FIRST_TO_THINK <= version < _FIRST_WITH_LEVELS:
        return {"thinkingConfig": {"thinkingBudget": _BUDGETS[effort]}}
    if version < _FIRST_TO_THINK:
        return {}
    level = _LEVELS[effort]
    # The larger models have no level below this one.
    is_pro = "-pro" in str(body.get("model"))
    return {"thinkingConfig": {"thinkingLevel": "low" if is_pro and level == "minimal" else level}}


def _anthropic_thinking(given: Mapping[str, Any]) -> dict[str, Any]:
    """LiteLLM's `thinking`, in Anthropic's form."""
    if given.get("type") == "disabled":
        return {"thinkingConfig": {"thinkingBudget": 0}}
    budget = _whole(given, "budget_tokens", 0, _SEED - 1)
    limit = {} if budget is None else {"thinkingBudget": budget}
    return {"thinkingConfig": {"includeThoughts": True, **limit}}


def _safety(body: Mapping[str, Any], own: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = _either(body, own, "safety_settings", "safetySettings")
    found = []
    for index, setting in enumerate(listed(given, "safety_settings") if given else []):
        where = f"safety_settings[{index}]"
        pairs = mapping(setting, where).items()
        if unknown := [key for key, _ in pairs if key not in _SAFETY_KEYS]:
            raise InvalidRequest(f"{where} has the unknown key {unknown[0]!r:.100}", param=where)
        found.append({key: text(value, f"{where}.{key}") for key, value in pairs})
    return found


def _labels(body: Mapping[str, Any]) -> dict[str, str]:
    """Labels for the bill: `labels` when given, else `metadata`, each spelt as Google allows it."""
    given = body.get("labels")
    key = "metadata" if given is None else "labels"
    given = body.get(key)
    found: dict[str, str] = {}
    for name, value in mapping(given, key).items() if given is not None else ():
        spelt = _NO_LABEL.sub("_", str(name).lower()).lstrip("0123456789_-")[:_LABEL_LENGTH]
        if spelt and isinstance(value, str) and len(found) < _MOST_LABELS:
            found.setdefault(spelt, _NO_LABEL.sub("_", value.lower())[:_LABEL_LENGTH])
    return found
