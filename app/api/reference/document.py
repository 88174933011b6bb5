"""The OpenAPI document: every route of the url map, with what `operations` says of it.

Fields, types and limits come from the marshmallow schemas by apispec, the words from `glossary`,
the errors from `app.api.error_codes`. It holds no secret and nothing of the configuration, and is
the same for everybody.
Source: OpenAPI Specification 3.1.1; read 2026-11.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Flask
from marshmallow import Schema, fields

from app.api import admin_schemas, job_schemas
from app.api.auth import Guard
from app.api.error_codes import BY_NAME, ERRORS
from app.api.reference import answers, glossary
from app.api.reference.operations import (
    ANY,
    EVENTS,
    FORM,
    JSON,
    OPERATIONS,
    TAGS,
    Described,
)
from app.api.schemas import Limit

Document = dict[str, Any]
CONSOLE = "/ui"

_ANY_OF = re.compile(r"<any\(([^)]*)\):(\w+)>")
_PART = re.compile(r"<(?:(\w+):)?(\w+)>")
_NO_CONTROL = r"^[^\x00-\x1f\x7f-\x9f]*$"
_SERVED = {
    Guard.OPEN: "open: no key is needed",
    Guard.ANY_KEY: "any key",
    Guard.WRITE: "any key but a viewer's",
    Guard.ADMIN_READ: "administrators",
    Guard.ADMIN: "`proxy_admin`",
    Guard.METRICS: "administrators, and whoever has the `metrics_token`",
}
_ALWAYS = ("invalid_api_key", "rate_limit_exceeded", "internal_error", "database_unavailable")
_KEYS = (
    ("bearer", {"type": "http", "scheme": "bearer", "description": "As the `openai` client does."}),
    *(
        (name, {"type": "apiKey", "in": "header", "name": name})
        for name in ("x-litellm-api-key", "api-key", "x-api-key")
    ),
)

_INTRODUCTION = """\
A gateway that speaks the OpenAI API: one file id for every model provider.

**Where.** OpenAI's routes are shown with `/v1`; where else each of them stands is said with it
(without `/v1`, under `/openai` for the `AzureOpenAI` client, under `/{provider}/v1`), and in
`x-also-at`.

**Three ways.** `target_model_names` keeps a file at every account of every named model, under a
unified id. `model` keeps it at one account, under an encoded id. `custom_llm_provider` is the
provider's own API, with its own ids. Each may be a form or JSON field, a query parameter or a
header (`x-litellm-target-model-names`, `x-litellm-model`, `custom-llm-provider`); an id that the
gateway has a row for needs none.

**Answers.** Every one has an `x-request-id`: the caller's own, if it sent a sane one. Errors come
in one envelope; `components.examples` has one for each code there is. What an upstream refuses
keeps its own status and body (`4XX`). The server itself answers 405 with `Allow`, and
408, 414, 415, 417, 431 and 501, to what is no request that it takes. `HEAD` works wherever `GET`
does.

**Sent twice.** A POST with an `Idempotency-Key` happens once.
"""


@dataclass(frozen=True)
class _Route:
    """A method and a path in OpenAPI's spelling, with its view."""

    method: str
    path: str
    view: Callable[..., Any]


def build(app: Flask) -> Document:
    """The document of this app. Raises KeyError when its routes are not those of `OPERATIONS`."""
    spec = APISpec(
        title="Manifold",
        # The interface's version. Which release answers is shown to keys alone, by /health.
        version="1",
        openapi_version="3.1.0",
        plugins=[_words(MarshmallowPlugin(schema_name_resolver=_name_of))],
        info={"description": _INTRODUCTION, "license": {"name": "MIT", "identifier": "MIT"}},
        servers=[{"url": "/"}],
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    for name, scheme in _KEYS:
        spec.components.security_scheme(name, scheme)
    spec.components.schema("Error", schema=answers.Error)
    for name, header in _HEADERS.items():
        spec.components.header(name, header)
    for name, parameter in _PARAMETERS.items():
        spec.components.parameter(name, parameter["in"], parameter)
    for each in ERRORS:
        spec.components.example(each.name, {"summary": each.cause, "value": each.envelope()})
    grouped = _grouped(app)
    for key, told in OPERATIONS.items():
        routes = grouped[key]
        found = next(r for r in routes if f"{r.method} {r.path}" == key)
        also = sorted({route.path for route in routes} - {found.path})
        operation = _operation(found, told, also)
        spec.path(path=found.path, operations={found.method.lower(): operation})
    document: Document = spec.to_dict()
    for name, extra in _TOGETHER.items():
        document["components"]["schemas"][name].update(extra)
    for path in document["paths"].values():
        for operation in path.values():
            _say_nothing_of_null(operation["parameters"])
    return document


def _say_nothing_of_null(parameters: list[Document]) -> None:
    """A query has no null: a parameter that may be null is one that may be left out."""
    for schema in (each["schema"] for each in parameters if "schema" in each):
        if isinstance(schema.get("type"), list):
            (schema["type"],) = [name for name in schema["type"] if name != "null"]
        if "enum" in schema:
            schema["enum"] = [value for value in schema["enum"] if value is not None]
        if schema.get("default", "") is None:
            del schema["default"]


def routes_of(app: Flask) -> Iterator[_Route]:
    """Every route of the API; one with a choice of words in its path is one for each word.

    Pages for people are no part of it.
    """
    for rule in app.url_map.iter_rules():
        if is_page(rule.rule):
            continue
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            for path in _spelled(rule.rule):
                yield _Route(method, path, app.view_functions[rule.endpoint])


def is_page(rule: str) -> bool:
    """Whether this is a page of the console, which explains itself."""
    return rule == CONSOLE or rule.startswith(CONSOLE + "/")


def _spelled(rule: str) -> list[str]:
    choice = _ANY_OF.search(rule)
    if choice:
        words = [word.strip() for word in choice[1].split(",")]
        return [path for w in words for path in _spelled(rule.replace(choice[0], w, 1))]
    return [_PART.sub(r"{\2}", rule)]


def _grouped(app: Flask) -> Mapping[str, list[_Route]]:
    """The routes by their key in `OPERATIONS`: those with one view and one last word are one."""
    found: dict[tuple[str, int, str], list[_Route]] = defaultdict(list)
    for route in routes_of(app):
        last = route.path.rpartition("/")[2] if route.view.__name__ in ("steer", "details") else ""
        found[route.method, id(route.view), last].append(route)
    grouped = {}
    for routes in found.values():
        keys = [key for r in routes if (key := f"{r.method} {r.path}") in OPERATIONS]
        if len(keys) != 1:
            raise KeyError(f"{routes[0].method} {routes[0].path} is described {len(keys)} times")
        grouped[keys[0]] = routes
    return grouped


def _operation(route: _Route, told: Described, also: list[str]) -> Document:
    required: Guard = route.view.guard  # type: ignore[attr-defined]  # auth.guard puts it there
    is_open = required is Guard.OPEN
    texts = [told.text] if told.text else []
    texts.append(f"For {_SERVED[required]}." if not is_open else "Open: no key is needed.")
    if also:
        texts.append("Also at: " + ", ".join(f"`{path}`" for path in also) + ".")
    operation: Document = {
        "operationId": _operation_id(route),
        "tags": [told.tag],
        "summary": told.summary,
        "description": "\n\n".join(texts),
        "parameters": list(_parameters(route, told)),
        "responses": dict(_responses(route, told, required)),
        "security": [] if is_open else [{name: []} for name, _ in _KEYS],
    }
    if also:
        operation["x-also-at"] = also
    if told.body is not None:
        content: Document = {"schema": told.body}
        if told.examples:
            content["examples"] = {name: {"value": value} for name, value in told.examples.items()}
        if told.media == FORM:
            content["encoding"] = {
                name: {"contentType": "application/octet-stream, */*"}
                for name in ("file", "data")
                if name in told.body().fields
            }
        operation["requestBody"] = {
            "required": True,
            "content": {told.media: content},
        }
    return operation


def _operation_id(route: _Route) -> str:
    words = re.findall(r"\w+", route.path.removeprefix("/v1").replace("{", " ").replace("}", " "))
    return "_".join([route.method.lower(), *words]) if words else f"{route.method.lower()}_root"


def _parameters(route: _Route, told: Described) -> Iterator[Any]:
    for name in re.findall(r"\{(\w+)\}", route.path):
        meaning = glossary.PATHS[name]
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": meaning.text,
            "schema": {"type": "string", "minLength": 1, "examples": [meaning.example]},
        }
    if told.query is not None:
        yield {"in": "query", "schema": told.query}
    yield from told.query_names
    yield from told.header_names
    if told.selects:
        in_body = told.body().fields if told.body is not None else {}
        is_in_path = "{model}" in route.path
        yield from (
            name
            for name, field in _SELECTORS.items()
            if field not in in_body and not (is_in_path and field == "model")
        )
    if told.is_once:
        yield "Idempotency-Key"
    yield "x-request-id"


def _responses(route: _Route, told: Described, required: Guard) -> Iterator[tuple[str, Document]]:
    names = list(told.answer_headers) + (["Idempotent-Replayed"] if told.is_once else [])
    headers: Document = dict.fromkeys(["x-request-id", *names], None)
    headers = {name: name for name in headers}
    good: Document = {
        "description": told.summary + ".",
        "headers": headers,
        "content": {media: _content(media, told.answer) for media in told.answer_media},
    }
    yield "200", good
    for status, text in (told.statuses or {}).items():
        extra = {"Content-Range": "Content-Range"} if status == 206 else {}
        yield str(status), {**good, "description": text, "headers": {**headers, **extra}}
    errors = list(told.error_names)
    if required is not Guard.OPEN:
        errors += _ALWAYS
        if told.query or told.body or told.query_names or told.selects:
            errors.append("invalid_value")
        if required is not Guard.ANY_KEY:
            errors.append("permission_denied")
        if told.is_once or told.body is not None:
            errors.append("bad_request")
        if told.selects:
            # A selector that cannot be read, or an old client's body with one.
            errors += ["invalid_json", "request_too_large"]
    if told.statuses and 503 in told.statuses:
        errors = [name for name in errors if name != "database_unavailable"]
    by_status: dict[int, list[str]] = defaultdict(list)
    for name in dict.fromkeys(errors):
        by_status[BY_NAME[name].status].append(name)
    for status, found in sorted(by_status.items()):
        yield str(status), _refusal(HTTPStatus(status).phrase, found, status)
    if told.asks_upstream:
        text = "What the upstream refused: its own status, message, type, param and code."
        yield "4XX", _refusal(text, [], 400)
        yield "5XX", _refusal(text.replace("refused", "failed with"), [], 500)


def _content(media: str, answer: type[Schema] | None) -> Document:
    if media == EVENTS:
        return {
            # Of no type: some readers take it for that of an event, others for that of the whole.
            "schema": {"description": "OpenAI's server-sent events, `data: [DONE]` the last."},
            "examples": {
                "two events": {
                    "value": 'data: {"object": "chat.completion.chunk", "choices": [{"index": 0, '
                    '"delta": {"content": "Hello"}}]}\n\ndata: [DONE]\n\n'
                }
            },
        }
    if answer is None:
        return (
            {"schema": {"type": "string", "format": "binary"}}
            if media == ANY
            else {"schema": {"type": "string"}}
        )
    return {"schema": answer}


def _refusal(text: str, names: Iterable[str], status: int) -> Document:
    headers = {"x-request-id": "x-request-id"}
    if status == 401:
        headers["WWW-Authenticate"] = "WWW-Authenticate"
    if status in (409, 429, 503):
        headers["Retry-After"] = "Retry-After"
    if status in (409, 429, 507):
        headers["x-should-retry"] = "x-should-retry"
    content: Document = {"schema": answers.Error}
    examples = {name: name for name in names}
    if examples:
        content["examples"] = examples
    return {"description": text, "headers": headers, "content": {JSON: content}}


# Words and types


def _words(plugin: MarshmallowPlugin) -> MarshmallowPlugin:
    """The plugin, with what it cannot know of our own fields, and the glossary's words."""
    init_spec = plugin.init_spec

    def init(spec: APISpec) -> None:
        init_spec(spec)
        assert plugin.converter is not None  # noqa: S101  # init_spec makes it
        add: Callable[..., None] = plugin.converter.add_attribute_function
        add(_own_type)
        add(_meaning)

    plugin.init_spec = init  # type: ignore[method-assign]  # the one place to add functions
    return plugin


def _name_of(schema: Any) -> str:
    return (schema if isinstance(schema, type) else type(schema)).__name__


def _own_type(_converter: Any, field: fields.Field[Any], ret: Document) -> Document:
    """Type and limits of a field of ours, which apispec cannot know."""
    for kind, (type_, more) in _OWN_TYPES.items():
        if isinstance(field, kind):
            return {"type": [type_, "null"] if field.allow_none else type_, **more}
    if isinstance(field, Limit):
        return {"minimum": 1, "maximum": field.most}
    return {"pattern": _NO_CONTROL} if isinstance(field, admin_schemas.Text) else {}


def _meaning(_converter: Any, field: fields.Field[Any], ret: Document) -> Document:
    name = field.data_key or field.name
    if not name or not isinstance(field.parent, Schema) or "$ref" in ret:
        return {}
    schema = type(field.parent).__name__
    meaning = glossary.FIELDS.get(f"{schema}.{name}") or glossary.FIELDS.get(name)
    if meaning is None:
        return {}
    found: Document = {"description": meaning.text}
    if meaning.example is not None and "examples" not in ret:
        found["examples"] = [meaning.example]
    return found


_OWN_TYPES: Mapping[type[fields.Field[Any]], tuple[str, Document]] = {
    admin_schemas.Flag: ("boolean", {}),
    admin_schemas.End: ("string", {"pattern": r"^(?!0+[a-z])[0-9]{1,9}(s|m|h|d|w|mo)$"}),
    admin_schemas.Metadata: ("object", {}),
    job_schemas.Metadata: (
        "object",
        {
            "maxProperties": 16,
            "propertyNames": {"minLength": 1, "maxLength": 64},
            "additionalProperties": {"type": "string", "maxLength": 512},
        },
    ),
}
_TOGETHER: Mapping[str, Document] = {
    "KeyReference": {"anyOf": [{"required": ["key"]}, {"required": ["key_alias"]}]},
    "Renewal": {"anyOf": [{"required": ["key"]}, {"required": ["key_alias"]}]},
    "KeyDeletion": {"minProperties": 1},
    "UserDeletion": {"anyOf": [{"required": ["user_ids"]}, {"required": ["user_id"]}]},
}
"""What several fields of a body mean together; the schemas check it in Python."""


# Parameters and headers that many routes have


def _header(text: str, example: str | None = None) -> Document:
    schema: Document = {"type": "string"}
    if example is not None:
        schema["examples"] = [example]
    return {"description": text, "schema": schema}


_HEADERS: Mapping[str, Document] = {
    "x-request-id": _header("Names this request in the log.", "req_0f"),
    "Retry-After": _header("Seconds to wait before another try, where waiting helps.", "2"),
    "x-should-retry": _header("`false`: repeating does not help, or makes a second one.", "false"),
    "WWW-Authenticate": _header("How to send a key.", "Bearer"),
    "Idempotent-Replayed": _header("`true`: the answer of the first time.", "true"),
    "Content-Disposition": _header("The file's name.", "attachment; filename*=UTF-8''report.pdf"),
    "Content-Range": _header("Which part this is.", "bytes 0-9/1024"),
    "Accept-Ranges": _header("Parts can be asked for.", "bytes"),
    "llm-provider": _header("The kind of upstream that answered.", "openai"),
}


def _parameter(name: str, place: str, text: str, schema: Document | None = None) -> Document:
    return {
        "name": name,
        "in": place,
        "description": text,
        "schema": schema or {"type": "string"},
    }


_SELECTORS: Mapping[str, str] = {
    "query-target_model_names": "target_model_names",
    "query-model": "model",
    "query-custom_llm_provider": "custom_llm_provider",
    "x-litellm-target-model-names": "target_model_names",
    "x-litellm-model": "model",
    "custom-llm-provider": "custom_llm_provider",
}
"""Parameters by the field whose meaning they have."""

_PARAMETERS: Mapping[str, Document] = {
    **{
        name: _parameter(
            name.removeprefix("query-"),
            "query" if name.startswith("query-") else "header",
            glossary.FIELDS[field].text,
        )
        for name, field in _SELECTORS.items()
    },
    "include_copies": _parameter(
        "include",
        "query",
        "Adds where the copies are.",
        {"type": "string", "enum": ["copies"]},
    ),
    "include_state": _parameter(
        "include",
        "query",
        "Adds how the gateway is doing with it.",
        {"type": "string", "enum": ["state"]},
    ),
    "Range": _parameter(
        "Range", "header", "The part to send.", {"type": "string", "examples": ["bytes=0-9"]}
    ),
    "Idempotency-Key": _parameter(
        "Idempotency-Key",
        "header",
        "Chosen by the client, once for each thing that it wants.",
        {"type": "string", "minLength": 1, "maxLength": 255},
    ),
    "x-request-id": _parameter(
        "x-request-id",
        "header",
        "A name for this request; any but 1 to 128 letters, digits and `_.:-` is replaced.",
    ),
}
