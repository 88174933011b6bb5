"""An answer of generateContent -> OpenAI's chat completion. Pure: the same answer, the same bytes.

Source: Gemini API, GenerateContentResponse, Candidate, FinishReason and UsageMetadata; OpenAI API
reference, the chat completion object; read 2026-11. `reasoning_content` and `images` are
extensions that LiteLLM has too.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from app.providers.google import thought

_FINISH = {
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    **dict.fromkeys(
        (
            *("SAFETY", "RECITATION", "LANGUAGE", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT"),
            *("SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"),
            *("IMAGE_OTHER", "NO_IMAGE", "ESCALATION", "MODEL_ARMOR"),
        ),
        "content_filter",
    ),
}
_MODALITIES = {"TEXT": "text_tokens", "IMAGE": "image_tokens", "AUDIO": "audio_tokens"}
_LARGEST = 2**53


def completion(
    answer: Mapping[str, Any], *, model: str, created: int, fallback_id: str = ""
) -> dict[str, Any]:
    """OpenAI's chat completion. `created` is in Unix seconds.

    The ids are made of Google's responseId, else of `fallback_id`, else of the answer itself.
    A prompt that was blocked gives one empty choice that ends with content_filter.
    """
    own_id = answer_id(answer) or fallback_id or _fingerprint(answer)
    candidates = objects(answer.get("candidates"))
    choices = [_choice(candidate, own_id) for candidate in candidates]
    return {
        "id": f"chatcmpl-{own_id}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": choices or [_blocked()],
        "usage": usage(answer.get("usageMetadata")),
    }


def answer_id(answer: Mapping[str, Any]) -> str:
    """Google's id of an answer, empty when it has none."""
    found = answer.get("responseId")
    return found if isinstance(found, str) else ""


def parts_of(candidate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a candidate's content."""
    content = candidate.get("content")
    return objects(content.get("parts")) if isinstance(content, Mapping) else []


def index_of(candidate: Mapping[str, Any]) -> int:
    """The number of the choice that a candidate is."""
    return _count(candidate.get("index"))


def finish_reason(reason: Any, *, has_calls: bool) -> str:
    """OpenAI's word for why an answer ended; calls of functions win over Google's STOP."""
    found = _FINISH.get(reason, "stop") if isinstance(reason, str) else "stop"
    return "tool_calls" if has_calls and found == "stop" else found


def said(part: Mapping[str, Any]) -> str:
    """What a part says to the reader, code that the model has run fenced; thoughts say nothing."""
    if part.get("thought") is True:
        return ""
    if isinstance(text := part.get("text"), str):
        return text
    if isinstance(code := part.get("executableCode"), Mapping):
        language = str(code.get("language") or "").lower()
        name = "" if language == "language_unspecified" else language
        return f"```{name}\n{code.get('code') or ''}\n```\n"
    if isinstance(result := part.get("codeExecutionResult"), Mapping):
        return f"```\n{result.get('output') or ''}\n```\n"
    return ""


def thoughts(part: Mapping[str, Any]) -> str:
    """What a part says of the model's thinking."""
    text = part.get("text")
    return text if part.get("thought") is True and isinstance(text, str) else ""


def tool_call(part: Mapping[str, Any], place: str) -> dict[str, Any] | None:
    """The tool call that a part is, if it is one. `place` makes an id where Google has none."""
    call = part.get("functionCall")
    if not isinstance(call, Mapping):
        return None
    args = call.get("args")
    return {
        "id": thought.handed(call.get("id"), part.get("thoughtSignature"), place),
        "type": "function",
        "function": {
            "name": str(call.get("name") or ""),
            "arguments": json.dumps(
                args if isinstance(args, Mapping) else {}, ensure_ascii=False, separators=(",", ":")
            ),
        },
    }


def media(parts: Iterable[Mapping[str, Any]], place: str) -> dict[str, Any]:
    """`audio` and `images` of a message, as far as there are any."""
    found: dict[str, Any] = {}
    images: list[dict[str, Any]] = []
    sound: list[str] = []
    for part in parts:
        blob = part.get("inlineData")
        if not isinstance(blob, Mapping) or part.get("thought") is True:
            continue
        mime_type, data = str(blob.get("mimeType") or ""), str(blob.get("data") or "")
        if mime_type.startswith("audio/"):
            sound.append(data)
        else:
            url = f"data:{mime_type};base64,{data}"
            images.append({"type": "image_url", "image_url": {"url": url}, "index": len(images)})
    if sound:
        number = hashlib.sha256(place.encode("utf-8", "replace")).hexdigest()[:24]
        # expires_at is OpenAI's; nothing is kept here, so it has expired when it arrives.
        found["audio"] = {
            "id": f"audio_{number}",
            "data": "".join(sound),
            "expires_at": 0,
            "transcript": "",
        }
    if images:
        found["images"] = images
    return found


def logprobs(candidate: Mapping[str, Any]) -> dict[str, Any] | None:
    """OpenAI's `logprobs` of a choice, None when there are none."""
    result = candidate.get("logprobsResult")
    if not isinstance(result, Mapping):
        return None
    chosen = objects(result.get("chosenCandidates"))
    top = objects(result.get("topCandidates"))
    content = []
    for number, token in enumerate(chosen):
        others = objects(top[number].get("candidates")) if number < len(top) else []
        content.append({**_token(token), "top_logprobs": [_token(other) for other in others]})
    return {"content": content, "refusal": None}


def annotations(candidate: Mapping[str, Any], text: str) -> list[dict[str, Any]]:
    """OpenAI's url_citation for every passage of `text` that Google names a page for.

    Google counts bytes of UTF-8, OpenAI characters.
    """
    grounding = candidate.get("groundingMetadata")
    if not isinstance(grounding, Mapping):
        return []
    chunks = grounding.get("groundingChunks")
    chunks = chunks if isinstance(chunks, list) else []
    ends = list(accumulate(len(char.encode("utf-8", "replace")) for char in text))
    found = []
    for support in objects(grounding.get("groundingSupports")):
        segment = support.get("segment")
        if not isinstance(segment, Mapping):
            continue
        start, end = (
            bisect_right(ends, _count(segment.get(key))) for key in ("startIndex", "endIndex")
        )
        for page in _pages(support, chunks):
            citation = {
                "start_index": start,
                "end_index": end,
                "title": str(page.get("title") or ""),
                "url": str(page.get("uri") or ""),
            }
            found.append({"type": "url_citation", "url_citation": citation})
    return found


def usage(metadata: Any) -> dict[str, Any]:
    """OpenAI's `usage`: thinking counts as completion, results of Google's tools as prompt."""
    counted = metadata if isinstance(metadata, Mapping) else {}
    thinking = _count(counted.get("thoughtsTokenCount"))
    prompt = _count(counted.get("promptTokenCount")) + _count(
        counted.get("toolUsePromptTokenCount")
    )
    answered = _count(counted.get("candidatesTokenCount")) + thinking
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answered,
        "total_tokens": _count(counted.get("totalTokenCount")) or prompt + answered,
        "prompt_tokens_details": {
            "cached_tokens": _count(counted.get("cachedContentTokenCount")),
            **_by_modality(counted.get("promptTokensDetails")),
        },
        "completion_tokens_details": {
            "reasoning_tokens": thinking,
            **_by_modality(counted.get("candidatesTokensDetails")),
        },
    }


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects in a list, none for what is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _choice(candidate: Mapping[str, Any], own_id: str) -> dict[str, Any]:
    index, parts = index_of(candidate), parts_of(candidate)
    calls: list[dict[str, Any]] = []
    for part in parts:
        if call := tool_call(part, f"{own_id}/{index}/{len(calls)}"):
            calls.append(call)
    reason = finish_reason(candidate.get("finishReason"), has_calls=bool(calls))
    content = "".join(map(said, parts))
    is_silent = not content and (calls or reason == "content_filter")
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if is_silent else content,
        "refusal": None,
    }
    if thinking := "".join(map(thoughts, parts)):
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = calls
    message.update(media(parts, f"{own_id}/{index}"))
    if cited := annotations(candidate, content):
        message["annotations"] = cited
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs(candidate),
        "finish_reason": reason,
    }


def _blocked() -> dict[str, Any]:
    """The choice of a prompt that the model was not shown."""
    return {
        "index": 0,
        "message": {"role": "assistant", "content": None, "refusal": None},
        "logprobs": None,
        "finish_reason": "content_filter",
    }


def _pages(support: Mapping[str, Any], chunks: list[Any]) -> Iterator[Mapping[str, Any]]:
    numbers = support.get("groundingChunkIndices")
    for number in numbers if isinstance(numbers, list) else ():
        chunk = chunks[number] if type(number) is int and 0 <= number < len(chunks) else None
        page = chunk.get("web") if isinstance(chunk, Mapping) else None
        if isinstance(page, Mapping):
            yield page


def _token(candidate: Mapping[str, Any]) -> dict[str, Any]:
    token, value = str(candidate.get("token") or ""), candidate.get("logProbability")
    return {
        "token": token,
        "logprob": value if isinstance(value, int | float) else 0.0,
        "bytes": list(token.encode("utf-8", "replace")),
    }


def _by_modality(details: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in objects(details):
        if (key := _MODALITIES.get(str(item.get("modality")))) is not None:
            found[key] = found.get(key, 0) + _count(item.get("tokenCount"))
    return found


def _count(value: Any) -> int:
    """A number of Google's, which may be a text as every 64-bit number in its JSON."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    return value if type(value) is int and 0 <= value < _LARGEST else 0


def _fingerprint(answer: Mapping[str, Any]) -> str:
    text = json.dumps(answer, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]
