"""A batch file line by line: check the rows, swap the model name and the url. Pure.

Source: OpenAI API reference, Batch, request input object; read 2026-11.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

from app.concurrency import let_others_run
from app.errors import InvalidRequest
from app.json_spans import Document, Path, Span, is_too_deep, parse, too_deep

BOM = b"\xef\xbb\xbf"
_CUSTOM_ID = ("custom_id",)
_METHOD = ("method",)
_URL = ("url",)
_BODY = ("body",)
_MODEL = ("body", "model")
_PATHS = (_CUSTOM_ID, _METHOD, _URL, _BODY, _MODEL)
REQUIRED = ("custom_id", "method", "url", "body")
ENDPOINTS = (
    "/v1/responses",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/videos",
)
"""What a batch may ask for. Source: OpenAI API reference, Batch, create; read 2026-11."""


def openai_url(url: str) -> str:
    """OpenAI's spelling of a row's url or of an endpoint: Azure's clients leave out /v1."""
    return url if url.startswith("/v1/") else f"/v1{url}"


@dataclass(frozen=True)
class Row:
    """One request of a batch file. `number` counts lines from 1; `ending` is its line end."""

    number: int
    document: Document
    ending: bytes

    @cached_property
    def _spans(self) -> dict[Path, Span]:
        return {span.path: span for span in self.document.spans}

    def _value(self, path: Path) -> object:
        span = self._spans.get(path)
        return None if span is None else span.value

    @property
    def custom_id(self) -> object:
        return self._value(_CUSTOM_ID)

    @property
    def method(self) -> object:
        return self._value(_METHOD)

    @property
    def url(self) -> object:
        return self._value(_URL)

    @property
    def model(self) -> object:
        return self._value(_MODEL)

    @property
    def has_body(self) -> bool:
        """Whether `body` is there and an object."""
        return self._value(_BODY) == {}

    def rewritten(self, model: str, spell: Callable[[str], str]) -> bytes:
        """The row with another model and the url as `spell` gives it, every other byte as it came.

        A row whose body names no model gets one: it means the model that the file is for. An empty
        model leaves what is there.
        """
        named, asked = self._spans.get(_MODEL), self._spans.get(_URL)
        replaced: dict[Span, str] = {named: model} if model and named else {}
        if asked and isinstance(asked.value, str) and (url := spell(asked.value)) != asked.value:
            replaced[asked] = url
        is_unnamed = bool(model) and not named and self.has_body
        inserted: dict[Path, dict[str, str]] = {_BODY: {"model": model}} if is_unnamed else {}
        return self.document.render(replaced, inserted=inserted) + self.ending


def lines(file: BinaryIO, longest: int) -> Iterator[bytes]:
    """The lines of a file with their ends. Raises InvalidRequest for one over `longest` bytes."""
    number = 0
    while line := file.readline(longest + 1):
        number += 1
        if len(line) > longest:
            raise InvalidRequest(
                f"line {number} is too long: {longest} bytes are allowed", param="file"
            )
        if number % 64 == 0:
            let_others_run()
        yield line


def rows(found: Iterable[bytes]) -> Iterator[Row]:
    """The rows of a batch file; a byte order mark and blank lines at the end are passed over.

    Raises InvalidRequest naming the line that is no JSON object, or that is blank before a row.
    """
    blank: int | None = None
    for number, line in enumerate(found, start=1):
        text = line.removeprefix(BOM) if number == 1 else line
        body = text.rstrip(b"\r\n")
        if not body.strip():
            blank = blank or number
            continue
        if blank is not None:
            raise InvalidRequest(f"line {blank} is empty", param="file", code="invalid_json_line")
        try:
            document = parse(body, _PATHS)
        except InvalidRequest as error:
            if is_too_deep(body):
                raise _too_deep(number) from error
            what = error.message if error.param else "is not a JSON object"
            raise InvalidRequest(
                f"line {number}: {what}", param="file", code="invalid_json_line"
            ) from error
        yield Row(number, document, text[len(body) :])


def readable(found: Iterable[bytes]) -> Iterator[Row | bytes]:
    """The rows of a file that nobody has checked: a line that is no row comes as it is.

    Raises InvalidRequest naming the line that is nested too deeply to be read.
    """
    for number, line in enumerate(found, start=1):
        text = line.removeprefix(BOM) if number == 1 else line
        body = text.rstrip(b"\r\n")
        try:
            yield Row(number, parse(body, _PATHS), text[len(body) :])
        except InvalidRequest as error:
            if is_too_deep(body):
                raise _too_deep(number) from error
            yield text


def of_one_model(parts: Iterable[Row | bytes], named: list[str]) -> Iterator[Row | bytes]:
    """The same parts; the one model that all of them name is put into `named`.

    Raises InvalidRequest for a row of another model: such a provider's batches are of one.
    """
    for number, part in enumerate(parts, start=1):
        if isinstance(part, Row):
            if not isinstance(part.model, str) or not part.model:
                raise _bad(part.number, "body.model is missing", "missing_required_parameter")
            if not named:
                named.append(part.model)
            if part.model != named[0]:
                raise _bad(
                    part.number,
                    f"the model is {part.model!r:.200}, the rows before say {named[0]!r:.200}; "
                    "a batch of this provider is for one model",
                    "invalid_value",
                )
        elif part.strip():
            raise _bad(number, "is not a JSON object", "invalid_json_line")
        yield part


def _bad(number: int, what: str, code: str) -> InvalidRequest:
    return InvalidRequest(f"line {number}: {what}", param="file", code=code)


def _too_deep(number: int) -> InvalidRequest:
    return too_deep(f"line {number}:", param="file", code="invalid_json_line")


def models_of(line: bytes) -> list[object]:
    """Every model that a lenient reader may find in a line that is no row, whichever it takes.

    Raises InvalidRequest for one that is nested too deeply to say.
    """
    try:
        values = [value for text in _texts(line) for value in _values(text)]
    except RecursionError as error:
        raise InvalidRequest("a line is nested too deeply", param="file") from error
    bodies = [body for value in values for key, body in _pairs(value) if key == "body"]
    return [model for body in bodies for key, model in _pairs(body) if key == "model"]


def _texts(line: bytes) -> Iterator[str]:
    """What the line says in UTF-8, UTF-16 and UTF-32: some servers read all of them."""
    yield line.decode(json.detect_encoding(line), "replace")
    if b"\0" in line:
        # The byte that ends a line is a part of a character there, and so are the bytes behind it.
        for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
            for start in range(4 if "32" in encoding else 2):
                text = line[start:].decode(encoding, "replace")
                yield text.strip("\ufeff\ufffd\0")


def _values(text: str) -> list[object]:
    try:
        return [json.loads(text, object_pairs_hook=_Pairs, strict=False)]
    except ValueError:
        return []


class _Pairs(list[tuple[str, object]]):
    """An object whose keys may stand twice."""


def _pairs(value: object) -> list[tuple[str, object]]:
    return value if isinstance(value, _Pairs) else []


def rewrite(
    parts: Iterable[Row | bytes], model: str, spell: Callable[[str], str]
) -> Iterator[bytes]:
    """The file with one upstream model in every row and each url as `spell` gives it.

    An empty model leaves those that the rows name. No byte order mark goes out, for it breaks a
    batch at Azure.
    """
    for part in parts:
        if isinstance(part, Row):
            yield part.rewritten(model, spell)
        else:
            yield part
