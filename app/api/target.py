"""Where a request asks to go: model, target_model_names, provider; path, header, query, body."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from flask import request

from app.errors import InvalidRequest
from app.services.router import Hints

_SELECTORS = {
    "model": "model",
    "target_model_names": "target_model_names",
    "custom_llm_provider": "custom_llm_provider",
    "provider": "custom_llm_provider",
}
_HEADERS = {
    "x-litellm-model": "model",
    "x-litellm-target-model-names": "target_model_names",
    "custom-llm-provider": "custom_llm_provider",
}
_IN_ENVIRON = frozenset(f"HTTP_{name.upper().replace('-', '_')}" for name in _HEADERS)
_BRACKETS = re.compile(r"\[\d{0,4}\]$")
_LISTS = frozenset({"target_model_names"})

FORBIDDEN = frozenset(
    {
        "api_base",
        "base_url",
        "api_key",
        "api_version",
        "organization",
        "extra_headers",
        "extra_body",
        "litellm_params",
        "timeout",
        "proxy",
        "bucket_name",
    }
)
_FORBIDDEN_PREFIXES = ("s3_", "aws_", "vertex_", "gcs_", "azure_")


def hints(body: Mapping[str, Any] | None = None) -> Hints:
    """What this request says of where to go. `body`: its form fields or its JSON object.

    Raises InvalidRequest for a field that would choose an address or a credential: those come
    from the configuration alone.
    """
    places: list[_Place] = []
    if not _says_nothing():
        refuse_forbidden(request.args)
        places += _beside_body()
    if body:
        refuse_forbidden(body)
        places += _named("body", body.items())
    found = [(at, kind, values) for at, kind, raw in places if (values := _values(kind, raw))]
    return Hints(found) if found else _NO_HINTS


_NO_HINTS = Hints()
_Place = tuple[str, str, list[Any]]


def _says_nothing() -> bool:
    """Whether path, query and headers are without a word of it, as those of most requests are."""
    environ = request.environ
    return (
        not environ.get("QUERY_STRING")
        and _SELECTORS.keys().isdisjoint(request.view_args or ())
        and _IN_ENVIRON.isdisjoint(environ)
    )


def refuse_forbidden(names: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for the first name that would redirect the gateway's credentials."""
    for name in names:
        plain = name.partition("[")[0].lower()
        if plain in FORBIDDEN or plain.startswith(_FORBIDDEN_PREFIXES):
            raise InvalidRequest(
                f"{name[:80]!r} cannot be set by a request; it comes from the configuration",
                param=name[:80],
                code="forbidden_parameter",
            )


def _beside_body() -> Iterator[_Place]:
    for name, value in (request.view_args or {}).items():
        if name in _SELECTORS:
            yield "path", _SELECTORS[name], [value]
    for header, kind in _HEADERS.items():
        # WSGI has made one of several.
        if (value := request.headers.get(header)) is not None:
            yield f"header {header}", kind, [value]
    yield from _named("query", request.args.lists())


def _named(place: str, fields: Any) -> Iterator[_Place]:
    gathered: dict[str, list[Any]] = {}
    for name, value in fields:
        plain = _BRACKETS.sub("", name) if name.endswith("]") else name
        if plain == "provider" and isinstance(value, dict):
            continue  # OpenRouter's own, and none of ours.
        if plain in _SELECTORS:
            gathered.setdefault(plain, []).extend(value if isinstance(value, list) else [value])
    for plain, values in gathered.items():
        yield place, _SELECTORS[plain], values


def _values(kind: str, raw: list[Any]) -> tuple[str, ...]:
    texts = [text for text in raw if text is not None]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(f"{kind} must be text", param=kind)
    if kind not in _LISTS:
        return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    names = [name.strip() for text in texts for name in _split(text)]
    return tuple(dict.fromkeys(name for name in names if name))


def _split(text: str) -> list[str]:
    if text.lstrip().startswith("["):
        try:
            names = json.loads(text)
        except (ValueError, RecursionError):
            names = None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return [part for name in names for part in name.split(",")]
        raise InvalidRequest(
            "target_model_names is neither a list of names nor names with commas between them",
            param="target_model_names",
        )
    return text.split(",")
