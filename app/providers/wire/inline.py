"""OpenAI request body + file contents -> the body for an engine without a files API.

File parts become what such engines take: text, data URLs, base64 audio. Every other byte of the
body stays. Pure: the contents come from the caller's `fetch`.
Source: OpenAI API reference, Chat completions and Responses, input parts; read 2026-11.
"""

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from app.errors import InvalidRequest
from app.json_spans import parse

Part = dict[str, Any]
Images = Literal["file_data", "image_url"]
"""How a chat engine takes an image that was sent as a file part."""

_PARTS = (
    ("messages", "*", "content", "*"),
    ("input", "*", "content", "*"),
    ("input", "*", "output", "*"),
)
_CANNOT_INLINE = (
    ("messages", "*", "attachments", "*", "file_id"),
    ("input", "*", "output", "file_id"),
    ("tools", "*", "container", "file_ids"),
    ("tools", "*", "environment", "file_ids"),
    ("tools", "*", "input_image_mask", "file_id"),
    ("tool_resources", "code_interpreter", "file_ids"),
)

_TEXT_TYPES = frozenset(
    f"application/{name}"
    for name in (
        *("json", "jsonl", "x-jsonl", "jsonlines", "x-jsonlines", "ndjson", "x-ndjson", "json5"),
        *("xml", "xhtml", "yaml", "x-yaml", "toml", "csv", "markdown", "x-tex", "x-latex", "sql"),
        *("javascript", "x-javascript", "ecmascript", "typescript", "x-typescript", "graphql"),
        *("x-python", "x-python-code", "x-ruby", "x-perl", "x-php", "x-httpd-php", "x-sh"),
        *("x-shellscript", "x-sql", "x-subrip"),
    )
)
_TEXT_NAME = re.compile(
    r"txt|text|md|markdown|rst|tex|log|csv|tsv|json|jsonl|ndjson|json5|xml|yaml|yml|toml|"
    r"ini|cfg|conf|properties|env|html|htm|css|scss|js|mjs|cjs|jsx|ts|tsx|vue|py|pyi|rb|pl|"
    r"php|sh|bash|zsh|ps1|bat|c|h|cc|cpp|cxx|hpp|cs|java|kt|kts|scala|go|rs|swift|m|r|jl|"
    r"lua|sql|graphql|proto|diff|patch|srt|vtt|tf|dart|ex|exs|erl|hs|clj|svg"
)
_AUDIO_TYPES = {
    **dict.fromkeys(("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"), "wav"),
    **dict.fromkeys(("audio/mpeg", "audio/mp3", "audio/mpeg3", "audio/x-mpeg-3"), "mp3"),
}
_NAMED_TYPES = {
    "pdf": "application/pdf",
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
}


@dataclass(frozen=True)
class Inlined:
    """A file as it goes into a body."""

    filename: str
    mime_type: str
    data: bytes

    @property
    def kind(self) -> str:
        """The MIME type when engines take it as it is, "text", or "" when nothing fits.

        What the MIME type leaves open (octet-stream, a code file's odd type) the name decides.
        """
        mime_type = self.mime_type.partition(";")[0].strip().lower()
        by_name = PurePosixPath(self.filename).suffix.lower().removeprefix(".")
        for found in (_kind(mime_type), "text" if _TEXT_NAME.fullmatch(by_name) else ""):
            if found:
                return found
        return _NAMED_TYPES.get(by_name, "")

    @property
    def base64(self) -> str:
        """The bytes in base64."""
        return base64.b64encode(self.data).decode()

    @property
    def data_url(self) -> str:
        """The bytes as a data URL."""
        return f"data:{self.kind};base64,{self.base64}"


Fetch = Callable[[str], Inlined]


def inline_files(body: bytes, fetch: Fetch, images: Images) -> bytes:
    """The body with every file part that has a file id replaced by the file's content.

    `fetch` raises NotFound for an id that is not there. Raises InvalidRequest for a file that
    engines cannot take, and for a file id where no content can stand.
    """
    document = parse(body, (*_PARTS, *_CANNOT_INLINE))
    for span in document.at(_CANNOT_INLINE):
        if span.value:
            raise InvalidRequest(
                f"this model takes files only as parts of messages, not in {'.'.join(span.path)}",
                param=span.path[0],
            )
    replaced = {}
    for span in document.at(_PARTS):
        part = _inlined_part(span.value, fetch, images, span.path[0])
        if part is not None:
            replaced[span] = part
    return document.render(replaced) if replaced else body


def _inlined_part(part: Any, fetch: Fetch, images: Images, param: str) -> Part | None:
    kind = part.get("type") if isinstance(part, dict) else None
    holder = part.get(kind) if kind in ("file", "image_file") else part
    file_id = holder.get("file_id") if isinstance(holder, dict) else None
    if not isinstance(file_id, str):
        return None
    match kind:
        case "file":
            new = _chat_part(fetch(file_id), images, param)
        case "image_file":
            url = _image(fetch(file_id), param).data_url
            new = {"type": "image_url", "image_url": {"url": url, **_detail(holder)}}
        case "input_file":
            new = _responses_part(fetch(file_id), part, param)
        case "input_image":
            url = _image(fetch(file_id), param).data_url
            new = {"type": "input_image", "image_url": url, **_detail(part)}
        case _:
            return None
    return new


def _chat_part(file: Inlined, images: Images, param: str) -> Part:
    kind = file.kind
    if kind == "text":
        return {"type": "text", "text": _text(file, param)}
    if kind in _AUDIO_TYPES:
        return _audio(file)
    if kind.startswith("image/") and images == "image_url":
        return {"type": "image_url", "image_url": {"url": file.data_url}}
    if kind:
        return {"type": "file", "file": {"filename": _name(file), "file_data": file.data_url}}
    raise _cannot_take(file, param)


def _responses_part(file: Inlined, part: Part, param: str) -> Part:
    kind = file.kind
    if kind == "text":
        return {"type": "input_text", "text": _text(file, param)}
    if kind in _AUDIO_TYPES:
        return _audio(file)
    if kind.startswith("image/"):
        return {"type": "input_image", "image_url": file.data_url, **_detail(part)}
    if kind:
        return {"type": "input_file", "filename": _name(file), "file_data": file.data_url}
    raise _cannot_take(file, param)


def _audio(file: Inlined) -> Part:
    sound = {"data": file.base64, "format": _AUDIO_TYPES[file.kind]}
    return {"type": "input_audio", "input_audio": sound}


def _image(file: Inlined, param: str) -> Inlined:
    if file.kind.startswith("image/"):
        return file
    raise InvalidRequest(
        f"file {file.filename!r} is {file.mime_type or 'of no known type'}, not an image",
        param=param,
    )


def _text(file: Inlined, param: str) -> str:
    try:
        text = file.data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"file {file.filename!r} ({file.mime_type}) is not UTF-8 text", param=param
        ) from error
    return f"File: {_name(file)}\n{text}"


def _name(file: Inlined) -> str:
    """The name on one line, in characters that UTF-8 has."""
    return " ".join(file.filename.encode(errors="replace").decode().split())


def _detail(part: Part) -> Part:
    return {"detail": part["detail"]} if part.get("detail") is not None else {}


def _kind(mime_type: str) -> str:
    if mime_type in _TEXT_TYPES or mime_type.endswith(("+json", "+xml", "+yaml")):
        return "text"
    if mime_type.startswith("text/"):
        return "text"
    if mime_type in _AUDIO_TYPES or mime_type == "application/pdf":
        return mime_type
    return mime_type if mime_type.startswith("image/") else ""


def _cannot_take(file: Inlined, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"file {file.filename!r} ({file.mime_type}) cannot be put into a message: this model takes "
        "text, PDF, images, wav and mp3",
        param=param,
    )
