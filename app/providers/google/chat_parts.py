"""Parts of a message's content: OpenAI's -> Gemini's. Pure.

Source: OpenAI API reference, chat completions, content parts; Gemini API, Content and Part; Vertex
AI, GenerateContent, FileData and Blob; read 2026-11.
"""

import base64
import mimetypes
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from app.errors import InvalidRequest
from app.providers.wire.inline import Inlined

Part = dict[str, Any]
Attach = Callable[[str], tuple[str, str]]
"""The address and the MIME type under which Google reads a file, given its id here or its address
at Google. Raises InvalidRequest for one that this request may not use."""

BLANK: Part = {"text": " "}
"""Stands for an empty message: parts without text are refused."""

# Python's own table: the same answer on every machine.
_TYPES = mimetypes.MimeTypes()
_SAME = {
    "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/vnd.wave": "audio/wav",
    "image/jpg": "image/jpeg",
}
_OCTETS = ("", "application/octet-stream", "binary/octet-stream")
_NO_ADDRESS = re.compile(r"[\x00-\x20\x7f]")


def content_parts(content: Any, where: str, attach: Attach) -> list[Part]:
    """The parts of a message's `content`, which stands at `where`; none for an empty one.

    Raises InvalidRequest naming the part that Gemini has no form for.
    """
    if content is None:
        return []
    if isinstance(content, str):
        return [{"text": content}] if content else []
    parts: list[Part] = []
    for index, part in enumerate(listed(content, where)):
        place = f"{where}[{index}]"
        parts.extend(_part(mapping(part, place), place, attach))
    return parts


def texts(content: Any, where: str) -> list[str]:
    """The texts of a `content` that has no others, none for an empty one."""
    parts = content_parts(content, where, _no_files)
    if any("text" not in part for part in parts):
        raise InvalidRequest(f"{where} takes text only", param=where)
    return [part["text"] for part in parts]


def is_file(part: Mapping[str, Any]) -> bool:
    """Whether a part is media of any kind."""
    return "inlineData" in part or "fileData" in part


def is_at_google(url: str) -> bool:
    """Whether it is an object in a bucket or a file of AI Studio, however it is written.

    Google would read it with our rights, whoever asks: so it is somebody's file and not a page.
    """
    if url[:5].lower() == "data:":
        return False
    plain = unicodedata.normalize("NFKC", unquote(url)).strip().lower()
    return plain.startswith("gs:") or "generativelanguage" in plain


def _no_files(address: str) -> tuple[str, str]:
    raise InvalidRequest("a file cannot stand here; put it into a user message", param="file")


def _part(part: Mapping[str, Any], where: str, attach: Attach) -> list[Part]:
    kind = part.get("type")
    match kind:
        case "text" | "refusal":
            said = text(part.get(kind), f"{where}.{kind}")
            return [{"text": said}] if said else []
        case "image_url" | "video_url":
            return [_addressed(part.get(kind), f"{where}.{kind}", attach)]
        case "input_audio":
            return [_audio(mapping(part.get(kind), f"{where}.{kind}"), f"{where}.{kind}")]
        case "file" | "image_file":
            return [_file(mapping(part.get(kind), f"{where}.{kind}"), f"{where}.{kind}", attach)]
    raise InvalidRequest(
        f"{where}.type is {kind!r:.100}; this model takes text, image_url, video_url, "
        "input_audio and file",
        param=f"{where}.type",
    )


def _addressed(given: Any, where: str, attach: Attach) -> Part:
    """A picture or a film, by its address or with its bytes in a data URL."""
    if isinstance(given, str):
        given = {"url": given}
    else:
        where += ".url"
    holder = mapping(given, where)
    url = text(holder.get("url"), where)
    if url[:5].lower() == "data:":
        return _inline(*_split(url, where), "", where)
    scheme, host, path = _pieces(url)
    if is_at_google(url):
        return _attached(url, attach)
    if scheme not in ("http", "https") or not host:
        raise InvalidRequest(
            f"{where} is {url!r:.100}; it may be an http or https address or a data URL",
            param=where,
        )
    fallback = "video/mp4" if where.removesuffix(".url").endswith("video_url") else "image/jpeg"
    mime_type = holder.get("format")
    if not isinstance(mime_type, str) or not mime_type:
        mime_type = _mime("", path) or fallback
    return {"fileData": {"fileUri": url, "mimeType": mime_type}}


def _pieces(url: str) -> tuple[str, str, str]:
    """Scheme, host and path of an address, empty when it is none."""
    try:
        parsed = urlsplit(url)
    except ValueError:
        return "", "", ""
    if _NO_ADDRESS.search(url):
        return "", "", ""
    return parsed.scheme, parsed.netloc, parsed.path


def _audio(sound: Mapping[str, Any], where: str) -> Part:
    data = text(sound.get("data"), f"{where}.data")
    if data[:5].lower() == "data:":
        return _inline(*_split(data, f"{where}.data"), "", f"{where}.data")
    form = text(sound.get("format"), f"{where}.format")
    return _inline(f"audio/{form.lower()}", data, "", f"{where}.data")


def _file(file: Mapping[str, Any], where: str, attach: Attach) -> Part:
    file_id, data = file.get("file_id"), file.get("file_data")
    if file_id is not None:
        return _attached(text(file_id, f"{where}.file_id"), attach)
    if data is None:
        raise InvalidRequest(
            f"{where} needs file_id or file_data", param=where, code="missing_required_parameter"
        )
    given = file.get("filename")
    name = given if isinstance(given, str) else ""
    data = text(data, f"{where}.file_data")
    if data[:5].lower() == "data:":
        return _inline(*_split(data, f"{where}.file_data"), name, f"{where}.file_data")
    return _inline("" if name else "application/pdf", data, name, f"{where}.file_data")


def _attached(address: str, attach: Attach) -> Part:
    uri, mime_type = attach(address)
    return {"fileData": {"fileUri": uri, "mimeType": mime_type}}


def _inline(mime_type: str, data: str, name: str, where: str) -> Part:
    if not data:
        raise InvalidRequest(f"{where} is empty", param=where)
    found = _mime(mime_type, name)
    if not found:
        raise InvalidRequest(
            f"{where} does not say what it is: give its MIME type in a data URL", param=where
        )
    return {"inlineData": {"mimeType": found, "data": data}}


def _mime(mime_type: str, name: str) -> str:
    """The type as Gemini knows it, empty when neither tells: whatever is text goes as plain text,
    for JSON, code and the like are refused by their own names."""
    given = mime_type.partition(";")[0].strip().lower()
    if given in _OCTETS:
        given = _TYPES.guess_type(name)[0] or ""
    kind = Inlined(name, given, b"").kind
    if kind == "text":
        return "text/plain"
    found = given or kind or mime_type
    return _SAME.get(found, found)


def _split(url: str, where: str) -> tuple[str, str]:
    """The MIME type and the base64 of a data URL."""
    head, comma, data = url[5:].partition(",")
    if not comma:
        raise InvalidRequest(f"{where} is not a whole data URL", param=where)
    if head.lower().endswith(";base64"):
        return head[: -len(";base64")], data
    plain = unquote_to_bytes(data.encode("utf-8", "replace"))
    return head or "text/plain", base64.b64encode(plain).decode()


def text(value: Any, where: str) -> str:
    """The value, a string. Raises InvalidRequest naming where it stands."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{where} must be a string", param=where)
    return value


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """The value, an object. Raises InvalidRequest naming where it stands."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{where} must be an object", param=where)
    return value


def listed(value: Any, where: str) -> list[Any]:
    """The value, a list. Raises InvalidRequest naming where it stands."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{where} must be a list", param=where)
    return value
