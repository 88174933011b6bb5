"""What a file is called and of which type it is, by what its sender says."""

import mimetypes
import re
import unicodedata
from pathlib import PurePosixPath

MAX_FILENAME = 500
"""Characters of a file name that are kept."""

_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*")
_TYPES = mimetypes.MimeTypes()  # Python's own table: the same answer on every machine.
# What the table leaves out, or calls by an older name than providers do.
for _kind, _endings in (
    ("audio/flac", ".flac"),
    ("audio/mp4", ".m4a"),
    ("audio/ogg", ".ogg .oga"),
    ("audio/wav", ".wav"),
    ("image/webp", ".webp"),
    ("text/markdown", ".md .markdown"),
    ("application/epub+zip", ".epub"),
    ("application/rtf", ".rtf"),
    ("application/yaml", ".yaml .yml"),
    ("application/vnd.openxmlformats-officedocument.presentationml.presentation", ".pptx"),
    ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", ".xlsx"),
    ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", ".docx"),
):
    for _ending in _endings.split():
        _TYPES.add_type(_kind, _ending)
_OCTETS = "application/octet-stream"
_ESCAPED = {"%22": '"', "%0D": "", "%0A": ""}
_STEERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean_filename(name: str | None) -> str:
    """A file name in NFC, without path, control and text-direction characters; never empty.

    The openai client and browsers write quotes and line ends in percent form (HTML standard,
    multipart/form-data encoding algorithm).
    """
    text = name or ""
    for escaped, plain in _ESCAPED.items():
        text = text.replace(escaped, plain)
    text = text.replace("\\", "/").rsplit("/", 1)[-1]
    kept = [
        c
        for c in unicodedata.normalize("NFC", text)
        if unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") and c not in _STEERING
    ]
    text = "".join(kept).strip()
    if text in ("", ".", ".."):
        return "upload"
    if len(text) > MAX_FILENAME:
        stem, dot, ending = text.rpartition(".")
        ending = dot + ending if stem and len(ending) <= 20 else ""
        text = text[: MAX_FILENAME - len(ending)] + ending
    return text


def plain_type(declared: str) -> str | None:
    """A MIME type in lower case without its parameters, None for what is none."""
    plain = declared.partition(";")[0].strip().lower()
    return plain if len(plain) <= 127 and _TYPE.fullmatch(plain) else None


def mime_type(declared: str, filename: str) -> str:
    """The declared type, else by name: octet-stream is what clients say when they don't know."""
    plain = plain_type(declared)
    if plain is not None and plain != _OCTETS:
        return plain
    # Only the endings: of a whole name the library may take the beginning for a URL's.
    kind, packing = _TYPES.guess_type("a" + "".join(PurePosixPath(filename).suffixes[-2:]))
    if packing is not None:
        return "application/gzip" if packing == "gzip" else _OCTETS
    return kind or _OCTETS
