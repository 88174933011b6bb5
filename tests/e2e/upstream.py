"""A fake of the providers: real HTTP, strictly separate accounts, remembers all, fails when told.

`python -m gunicorn --worker-class gthread --workers 1 ... 'tests.e2e.upstream:create()'` serves

    /v1/...                         OpenAI; the account is chosen by `Authorization: Bearer <key>`
    /openai/...?api-version=...     Azure OpenAI, classic: `api-key` or an Entra token
    /openai/v1/...                  Azure OpenAI, v1: `api-key`, or the key or a token as bearer
    /engine/v1/...                  an OpenAI-compatible engine that has no files
    /{tenant}/oauth2/v2.0/token     Entra's client credentials
    /_control/...                   for tests; see `Upstream` in gateway.py, which speaks it

What the answers look like to the byte is written down in shared/upstreams.md, A and B.
"""

import base64
import errno
import hashlib
import json
import os
import re
import secrets
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, quote

from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

PIECE = 64 * 1024  # Werkzeug's decoder gets slower with larger pieces.
FOREVER_S = 3600.0
TRICKLE = 16
"""Bytes at a time of an answer that trickles."""

OPENAI_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
AZURE_PURPOSES = ("assistants", "batch", "fine-tune")
DOWNLOADABLE = ("batch", "batch_output", "fine-tune", "fine-tune-results", "assistants_output")


@dataclass
class Account:
    """One account at one provider; every field can be set through the control API."""

    name: str
    key: str
    kind: str = "openai"
    """`openai`, `azure` or `engine`."""
    models: list[str] | None = None
    """Model names (Azure: deployments) that exist; None: every name does."""
    upload_delay_s: float = 0.0
    """Between having stored an upload and answering it."""
    chunk_delay_s: float = 0.0
    """Between two events of a stream."""
    chunks: int | None = None
    """Number of content events in a stream; None: pieces of 16 characters."""
    polls_until_processed: int = 0
    """So many retrieves of a file still say `uploaded` (Azure: `pending`)."""
    final_status: str = "processed"
    """What a file becomes after that: `processed` or `error`."""
    api_version_required: bool = True
    """Azure, classic paths: 404 without `api-version`."""
    delete_status: int = 200
    """Azure: 204 answers a delete with nothing."""
    download_any: bool = False
    """Give back the content of every purpose; the real ones refuse user_data and assistants."""
    pdf_only: bool = False
    """Chat refuses file ids of files that are not named *.pdf, as OpenAI's does."""
    page_size: int = 10_000
    """The longest page of a file list, whatever `limit` says."""
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret: str | None = None
    ad_token: str | None = None
    """An Entra token that is always good."""
    token_ttl_s: int = 3599
    """`expires_in` of the tokens handed out."""
    batch_delay_s: float = 0.3
    """From a batch's creation to its end: validating, in_progress from 1/4, finalizing from 3/4."""
    batch_polls: int | None = None
    """Instead: so many retrieves to the end; the create call does not count, nor do lists."""
    batch_stay: str | None = None
    """A batch does not leave this state by itself (`in_progress`, `cancelling`, ...)."""
    batch_end: str = "completed"
    """How a good batch ends: `completed`, `failed` or `expired` (with part of its output)."""
    capitalised: bool | None = None
    """Batches say `In_progress`; None: Azure's do."""
    iso_dates: bool = False
    """Batches have dates as text, as in some of Azure's examples."""
    sparse: bool = False
    """Batches have null as `endpoint` and `request_counts` and lack all that is not set."""
    list_as_value: bool = False
    """The list of batches is `{"value": [...]}`, as of an older preview of Azure."""
    cancel_refused_status: int | None = None
    """Of cancelling a batch that has ended; None: 409, Azure 400."""
    job_delay_s: float = 0.3
    """The same as for batches: validating_files, queued from 1/4, running from 1/2."""
    job_polls: int | None = None
    job_stay: str | None = None
    """A job does not leave this state by itself, in OpenAI's words (`running`, ...)."""
    job_end: str = "succeeded"
    """How a good job ends: `succeeded` or `failed`."""
    job_steps: int = 3
    """Steps of the training; each has an event and a checkpoint."""
    training_type_required: bool = True
    """Azure: 400 for a job without `trainingType`."""
    organization: str = "fake"
    """In the names of models that were tuned here."""
    tuned: list[str] = field(default_factory=list)
    """Those models; they exist beside `models`."""

    def knows(self, model: str) -> bool:
        return self.models is None or model in self.models or model in self.tuned


@dataclass
class Stored:
    """A file in an account; its bytes are on disk."""

    id: str
    account: str
    serial: int
    filename: str
    purpose: str
    content_type: str | None
    size: int
    sha256: str
    path: Path
    created_at: int
    polls_left: int
    expires_after: dict[str, Any] | None


@dataclass
class Fault:
    id: int
    account: str | None
    match: dict[str, str]
    action: dict[str, Any]
    times: int | None
    skip: int
    hits: int = 0


@dataclass
class Part:
    """A file part of a form, spooled to disk."""

    name: str
    filename: str
    content_type: str | None
    path: Path
    size: int = 0
    sha256: str = ""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes | Iterable[bytes]


@dataclass
class Exchange:
    """One request while it is being served."""

    environ: dict[str, Any]
    record: dict[str, Any]
    door: str
    rest: str
    account: Account | None = None
    parts: list[Part] = field(default_factory=list)

    @property
    def method(self) -> str:
        return str(self.environ["REQUEST_METHOD"])

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.environ.get("QUERY_STRING", ""), keep_blank_values=True))

    @property
    def json(self) -> dict[str, Any]:
        value = self.record["json"]
        if not isinstance(value, dict):
            raise Refusal(400, "We could not parse the JSON body of your request.")
        return value


class Refusal(Exception):
    """An error answer in the provider's own shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        azure_code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.type, self.param, self.code = type, param, code
        self.azure_code = azure_code or code or "invalidPayload"


class HungUp(Exception):
    """The client closed the connection before it had its answer."""


class Closed(Exception):
    """A test wants the connection closed without an answer."""


def json_answer(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(
        status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode()
    )


def sse(value: object, event: str | None = None) -> bytes:
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(value)}\n\n".encode()


def file_ids(node: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Every place and file id in a body, at any depth; `metadata` is the caller's own."""
    if isinstance(node, dict):
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            if key == "file_id" and isinstance(value, str):
                yield here, value
            elif key == "file_ids" and isinstance(value, list):
                yield from ((f"{here}[{n}]", str(each)) for n, each in enumerate(value))
            elif key != "metadata":
                yield from file_ids(value, here)
    elif isinstance(node, list):
        for n, value in enumerate(node):
            yield from file_ids(value, f"{path}[{n}]")


def pieces(text: str, number: int | None) -> list[str]:
    """`text` in so many pieces; blanks are added when it is too short for that."""
    if number is None:
        return [text[n : n + 16] for n in range(0, len(text), 16)]
    text = text.ljust(number)
    size, longer = divmod(len(text), number)
    cut, result = 0, []
    for n in range(number):
        end = cut + size + (n < longer)
        result.append(text[cut:end])
        cut = end
    return result


class FakeUpstream:
    """The WSGI application and everything it remembers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = threading.RLock()
        self.released = threading.Event()
        self.serial = 0
        self.accounts: dict[str, Account] = {}
        self.tokens: dict[str, tuple[str, float]] = {}
        self.files: dict[str, Stored] = {}
        self.records: list[dict[str, Any]] = []
        self.faults: list[Fault] = []
        self.inference = {
            "/chat/completions": self._chat,
            "/completions": self._completion,
            "/embeddings": self._embeddings,
            "/responses": self._responses,
        }
        # It builds on this module.
        from tests.e2e.upstream_jobs import UpstreamJobs

        self.jobs = UpstreamJobs(self)

    # ---------------------------------------------------------------- the course of a request

    def __call__(self, environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/_control"):
            answer = self._control(environ, path.removeprefix("/_control"))
            self._start(answer, start_response)
            assert isinstance(answer.body, bytes)
            return [answer.body]
        exchange = self._open(environ)
        try:
            answer = self._course(exchange)
        except (HungUp, Closed) as error:
            exchange.record["hung_up"] = isinstance(error, HungUp)
            self._finish(exchange)
            _shut(environ)
            # Gunicorn takes a broken pipe calmly and closes.
            raise BrokenPipeError(errno.EPIPE, "closed on purpose, or by the client") from error
        except BaseException:
            self._finish(exchange)
            raise
        exchange.record["status"] = answer.status
        self._start(answer, start_response)
        return self._sent(exchange, answer)

    def _course(self, exchange: Exchange) -> Answer:
        refusal = None
        try:
            self._identify(exchange)
        except Refusal as error:
            refusal = error
        action = self._take_fault(exchange)
        exchange.record["fault"] = bool(action)
        if action.get("early"):
            return self._scripted(action)
        if action.get("close") == "mid_request":
            _read_raw(exchange.environ, int(action.get("after_bytes", 0)))
            raise Closed
        self._read(exchange)
        # A scripted end means that nothing was done, unless `handle` says: done, answer lost.
        scripted = "status" in action or action.get("hang") is True
        scripted = scripted or action.get("close") == "before_body"
        handle = action.get("handle", not scripted)
        answer = self._handled(exchange, refusal) if handle else None
        self._pause(exchange, float(action.get("delay_s", 0)))
        if action.get("hang") is True:
            self._pause(exchange, FOREVER_S)
            raise Closed
        if action.get("close") == "before_body":
            raise Closed
        if "status" in action:
            answer = self._scripted(action)
        if answer is None:
            answer = self._handled(exchange, refusal)
        if action.get("close") == "mid_body" or action.get("hang") == "mid_body":
            answer.body = self._cut(exchange, answer, action)
        if "content_length" in action:
            self._send_misdeclared(exchange, answer, int(action["content_length"]))
        if "trickle_s" in action:
            answer.body = self._trickled(exchange, answer, float(action["trickle_s"]))
        return answer

    def _handled(self, exchange: Exchange, refusal: Refusal | None) -> Answer:
        try:
            if refusal:
                raise refusal
            answer = self._handler(exchange)
        except Refusal as error:
            answer = self._refused(exchange, error)
        headers = {"x-request-id": f"req_{secrets.token_hex(16)}"}
        if exchange.door.startswith("azure"):
            headers = {"apim-request-id": secrets.token_hex(16), "x-ms-region": "Fake Central"}
        answer.headers = {**headers, **answer.headers}
        return answer

    def _refused(self, exchange: Exchange, error: Refusal) -> Answer:
        if exchange.door.startswith("azure"):
            return json_answer(
                {"error": {"code": error.azure_code, "message": error.message}}, error.status
            )
        return json_answer(
            {
                "error": {
                    "message": error.message,
                    "type": error.type,
                    "param": error.param,
                    "code": error.code,
                }
            },
            error.status,
        )

    def _scripted(self, action: dict[str, Any]) -> Answer:
        body = action.get("body", {"error": {"message": "told to fail", "type": "server_error"}})
        kind = "application/json"
        if isinstance(body, str):
            kind = "text/plain"
        else:
            body = json.dumps(body)
        return Answer(
            int(action.get("status", 500)),
            {"Content-Type": kind, **action.get("headers", {})},
            body.encode(),
        )

    def _cut(self, exchange: Exchange, answer: Answer, action: dict[str, Any]) -> Iterator[bytes]:
        whole = answer.body
        if isinstance(whole, bytes):
            answer.headers["Content-Length"] = str(len(whole))
            whole = [whole]

        def sent() -> Iterator[bytes]:
            left = int(action.get("after_bytes", 0))
            yield b""  # The headers go, even when no byte of the body does.
            for piece in whole:
                if left > 0:
                    yield piece[:left]
                left -= len(piece)
                if left <= 0:
                    break
            if action.get("hang"):
                self._pause(exchange, FOREVER_S)
            _shut(exchange.environ)

        return sent()

    def _trickled(self, exchange: Exchange, answer: Answer, pause_s: float) -> Iterator[bytes]:
        whole = answer.body if isinstance(answer.body, bytes) else b"".join(answer.body)
        answer.headers["Content-Length"] = str(len(whole))

        def sent() -> Iterator[bytes]:
            for n in range(0, len(whole), TRICKLE):
                self._pause(exchange, pause_s)
                yield whole[n : n + TRICKLE]

        return sent()

    def _send_misdeclared(self, exchange: Exchange, answer: Answer, more: int) -> None:
        """Send an answer that has `more` bytes less than it says, or, below zero, that many more.

        Gunicorn would cut it to what it says. Who waits for the rest is kept waiting.
        """
        whole = answer.body if isinstance(answer.body, bytes) else b"".join(answer.body)
        answer.headers["Content-Length"] = str(len(whole) + more)
        head = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        sent = f"HTTP/1.1 {answer.status} Fake\r\n{head}\r\n".encode() + whole
        exchange.environ["gunicorn.socket"].sendall(sent)
        self._pause(exchange, FOREVER_S if more > 0 else 0.2)
        raise Closed

    def _start(self, answer: Answer, start_response: Callable) -> None:
        if isinstance(answer.body, bytes):
            answer.headers["Content-Length"] = str(len(answer.body))
        if answer.status == 204:
            del answer.headers["Content-Length"]
        start_response(f"{answer.status} Fake", list(answer.headers.items()))

    def _sent(self, exchange: Exchange, answer: Answer) -> Iterator[bytes]:
        body = [answer.body] if isinstance(answer.body, bytes) else answer.body
        try:
            for piece in body:
                # A client that has the last byte may ask for the record before we go on.
                self._stamp(exchange)
                yield piece
        except (GeneratorExit, HungUp):
            exchange.record["hung_up"] = True
            _shut(exchange.environ)
        finally:
            self._finish(exchange)

    def _pause(self, exchange: Exchange, seconds: float) -> None:
        """Wait, until the client hangs up (then raises HungUp) or a reset releases everybody."""
        end = time.monotonic() + seconds
        released = self.released
        watch = select.poll()
        watch.register(exchange.environ["gunicorn.socket"].fileno(), select.POLLRDHUP)
        while (left := end - time.monotonic()) > 0 and not released.is_set():
            if watch.poll(min(left, 0.2) * 1000):
                raise HungUp

    def _open(self, environ: dict[str, Any]) -> Exchange:
        raw = environ.get("RAW_URI", environ["PATH_INFO"]).partition("?")[0]
        headers = {
            name[5:].replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            if environ.get(name):
                headers[name.replace("_", "-").lower()] = environ[name]
        record: dict[str, Any] = {
            "method": environ["REQUEST_METHOD"],
            "path": raw,
            "query": dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)),
            "query_string": environ.get("QUERY_STRING", ""),
            "headers": headers,
            "account": None,
            "connection": int(environ.get("REMOTE_PORT") or 0),
            "fields": [],
            "form": {},
            "file": None,
            "json": None,
            "text": None,
            "body_size": 0,
            "status": None,
            "t_start": time.time(),
            "t_end": None,
            "m_start": time.monotonic(),
            "m_end": None,
            "done": False,
            "hung_up": False,
            "fault": False,
            "unexpected": False,
        }
        with self.lock:
            self.serial += 1
            record["n"] = self.serial
            self.records.append(record)
        door, rest = _door(environ["PATH_INFO"])
        return Exchange(environ, record, door, rest)

    def _stamp(self, exchange: Exchange) -> None:
        exchange.record["t_end"] = time.time()
        exchange.record["m_end"] = time.monotonic()

    def _finish(self, exchange: Exchange) -> None:
        self._stamp(exchange)
        exchange.record["done"] = True
        for part in exchange.parts:
            part.path.unlink(missing_ok=True)

    # ---------------------------------------------------------------- who calls

    def _identify(self, exchange: Exchange) -> None:
        headers = exchange.record["headers"]
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        bearer = bearer if scheme.lower() == "bearer" else ""
        with self.lock:
            if exchange.door.startswith("azure"):
                account = self._azure_account(exchange, headers.get("api-key", ""), bearer)
            else:
                account = self._by_key(exchange.door, bearer)
        if account is None and exchange.door in ("openai", "engine"):
            shown = f"{bearer[:8]}{'*' * 8}{bearer[-4:]}" if bearer else ""
            raise Refusal(
                401,
                f"Incorrect API key provided: {shown}. You can find your API key at "
                "https://platform.openai.com/account/api-keys.",
                code="invalid_api_key",
            )
        if account is None and exchange.door.startswith("azure"):
            raise Refusal(
                401,
                "Access denied due to invalid subscription key or wrong API endpoint. Make sure "
                "to provide a valid key for an active subscription and use a correct regional "
                "API endpoint for your resource.",
                azure_code="401",
            )
        exchange.account = account
        exchange.record["account"] = account.name if account else None

    def _by_key(self, kind: str, key: str) -> Account | None:
        found = (a for a in self.accounts.values() if a.kind == kind and a.key == key)
        return next(found, None)

    def _azure_account(self, exchange: Exchange, key: str, bearer: str) -> Account | None:
        if key:
            return self._by_key("azure", key)
        if not bearer:
            return None
        name, good_until = self.tokens.get(bearer, ("", 0.0))
        if name in self.accounts and time.monotonic() < good_until:
            return self.accounts[name]
        for account in self.accounts.values():
            if account.kind == "azure" and account.ad_token == bearer:
                return account
        return self._by_key("azure", bearer) if exchange.door == "azure_v1" else None

    def _token(self, exchange: Exchange) -> Answer:
        form = exchange.record["form"]
        tenant = exchange.environ["PATH_INFO"].split("/")[1]

        def refused(error: str, description: str, status: int) -> Answer:
            return json_answer({"error": error, "error_description": description}, status)

        if form.get("grant_type") != "client_credentials":
            return refused("unsupported_grant_type", "AADSTS70003: unsupported grant type", 400)
        if not form.get("scope", "").endswith("/.default"):
            return refused("invalid_scope", "AADSTS1002012: scope must end in /.default", 400)
        with self.lock:
            for account in self.accounts.values():
                if (account.tenant_id, account.client_id) == (tenant, form.get("client_id")):
                    break
            else:
                return refused("unauthorized_client", "AADSTS700016: no such application", 400)
            exchange.record["account"] = account.name
            if account.client_secret != form.get("client_secret"):
                return refused("invalid_client", "AADSTS7000215: Invalid client secret", 401)
            token = f"entra-{len(self.tokens) + 1}"
            self.tokens[token] = (account.name, time.monotonic() + account.token_ttl_s)
            seconds = account.token_ttl_s
        return json_answer({"token_type": "Bearer", "expires_in": seconds, "access_token": token})

    def _discovery(self, exchange: Exchange) -> Answer:
        tenant = exchange.environ["PATH_INFO"].split("/")[1]
        base = f"{exchange.environ['wsgi.url_scheme']}://{exchange.environ['HTTP_HOST']}/{tenant}"
        return json_answer(
            {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
            }
        )

    # ---------------------------------------------------------------- reading bodies

    def _read(self, exchange: Exchange) -> None:
        environ, record = exchange.environ, exchange.record
        kind, options = parse_options_header(environ.get("CONTENT_TYPE", ""))
        length = environ.get("CONTENT_LENGTH")

        def raw() -> Iterator[bytes]:
            try:
                while piece := environ["wsgi.input"].read(PIECE):
                    record["body_size"] += len(piece)
                    yield piece
            except Exception as error:
                raise HungUp from error
            if length and record["body_size"] < int(length):
                raise HungUp

        if kind == "multipart/form-data":
            self._read_form(exchange, raw(), options.get("boundary", ""))
            return
        body = b"".join(raw())
        if not body:
            return
        record["text"] = body.decode("utf-8", "replace")
        if kind == "application/x-www-form-urlencoded":
            record["fields"] = [list(pair) for pair in parse_qsl(record["text"])]
            record["form"] = dict(record["fields"])
        else:
            try:
                record["json"] = json.loads(body)
            except ValueError:
                record["json"] = None

    def _read_form(self, exchange: Exchange, raw: Iterator[bytes], boundary: str) -> None:
        record = exchange.record
        decoder = MultipartDecoder(boundary.encode())
        name, value = "", b""
        part: Part | None = None
        target: BinaryIO | None = None
        digest = hashlib.sha256()
        try:
            for piece in _with_end(raw):
                decoder.receive_data(piece)
                while not isinstance(event := decoder.next_event(), (NeedData, Epilogue)):
                    if isinstance(event, Field):
                        name, value, part = event.name, b"", None
                    elif isinstance(event, File):
                        handle, spooled = tempfile.mkstemp(dir=self.directory, prefix="part-")
                        target = os.fdopen(handle, "wb")
                        digest = hashlib.sha256()
                        part = Part(
                            event.name,
                            event.filename or "",
                            event.headers.get("content-type"),
                            Path(spooled),
                        )
                        exchange.parts.append(part)
                    elif isinstance(event, Data) and part is None:
                        value += event.data
                        if not event.more_data:
                            record["fields"].append([name, value.decode("utf-8", "replace")])
                    elif isinstance(event, Data) and part is not None and target is not None:
                        target.write(event.data)
                        digest.update(event.data)
                        part.size += len(event.data)
                        if not event.more_data:
                            target.close()
                            part.sha256 = digest.hexdigest()
                            record["fields"].append([part.name, None])
                            record["file"] = {
                                "field": part.name,
                                "filename": part.filename,
                                "content_type": part.content_type,
                                "size": part.size,
                                "sha256": part.sha256,
                            }
                if isinstance(event, Epilogue):
                    break
        except ValueError:
            record["fields"].append(["malformed multipart", ""])
        finally:
            if target is not None:
                target.close()
        for _ in raw:
            pass
        record["form"] = {key: text for key, text in record["fields"] if text is not None}

    # ---------------------------------------------------------------- where a path leads

    def _handler(self, exchange: Exchange) -> Answer:
        if exchange.door == "entra" and exchange.method == "POST":
            return self._token(exchange)
        if exchange.door == "discovery" and exchange.method == "GET":
            return self._discovery(exchange)
        account, door = exchange.account, exchange.door
        if account is None:
            exchange.record["unexpected"] = True
            raise Refusal(404, "nothing of the fake upstream's is here")
        if (
            door == "azure_classic"
            and account.api_version_required
            and not exchange.query.get("api-version")
        ):
            raise Refusal(404, "Resource not found", azure_code="404")
        with self.lock:
            self.jobs.settle()
        method, rest, deployment = exchange.method, exchange.rest, None
        if door == "azure_classic" and (match := re.fullmatch("/deployments/([^/]+)(/.+)", rest)):
            deployment, rest = match.groups()
        if door == "engine" and rest.startswith("/files"):
            exchange.record["unexpected"] = True
            return json_answer({"detail": "Not Found"}, 404)
        inference = self.inference
        # Classic Azure has all but responses below a deployment, and nothing else there.
        misplaced = door == "azure_classic" and (
            (deployment is None) == (rest in inference and rest != "/responses")
        )
        if method == "POST" and rest in inference and not misplaced:
            if door == "engine" and rest == "/responses":
                return json_answer({"detail": "Not Found"}, 404)
            return self._infer(exchange, account, deployment, inference[rest])
        if rest == "/files" and method == "POST":
            return self._create_file(exchange, account)
        if rest == "/files" and method == "GET":
            return self._list_files(exchange, account)
        if match := re.fullmatch(r"/files/([^/]+)(/content)?", rest):
            file_id, content = match.groups()
            if method == "GET" and content:
                return self._content(exchange, account, file_id)
            if method == "GET":
                return self._retrieve_file(exchange, account, file_id)
            if method == "DELETE" and not content:
                return self._delete_file(exchange, account, file_id)
        if match := re.fullmatch(r"/models(?:/(.+))?", rest):
            return self._models(account, match.group(1))
        if deployment is None and (answer := self.jobs.answer(exchange, account, rest)):
            return answer
        exchange.record["unexpected"] = True
        if door.startswith("azure"):
            raise Refusal(404, "Resource not found", azure_code="404")
        raise Refusal(404, f"Invalid URL ({method} {exchange.record['path']})")

    # ---------------------------------------------------------------- files

    def _file_object(self, account: Account, stored: Stored) -> dict[str, Any]:
        azure, waiting = account.kind == "azure", stored.polls_left > 0
        waiting_status = "pending" if azure else "uploaded"
        shown: dict[str, Any] = {
            "object": "file",
            "id": stored.id,
            "purpose": stored.purpose,
            "filename": stored.filename,
            "bytes": None if azure and waiting else stored.size,
            "created_at": stored.created_at,
            "status": waiting_status if waiting else account.final_status,
            "status_details": None,
        }
        if not waiting and account.final_status == "error":
            shown["status_details"] = "Line 1: told to fail"
        if stored.expires_after:
            shown["expires_at"] = stored.created_at + int(stored.expires_after["seconds"])
        elif not azure:
            shown["expires_at"] = None
        return shown

    def _create_file(self, exchange: Exchange, account: Account) -> Answer:
        azure = account.kind == "azure"
        form = exchange.record["form"]
        part = next((p for p in exchange.parts if p.name == "file"), None)
        for name, there in (("file", part), ("purpose", form.get("purpose"))):
            if not there:
                raise Refusal(
                    400,
                    f"Missing required parameter: '{name}'.",
                    param=name,
                    code="missing_required_parameter",
                    azure_code="invalidPayload",
                )
        assert part is not None
        purpose = form["purpose"]
        if azure and purpose not in AZURE_PURPOSES:
            raise Refusal(400, "Invalid value for purpose.", azure_code="invalidPayload")
        if purpose not in OPENAI_PURPOSES:
            raise Refusal(
                400,
                f"'{purpose}' is not one of {list(OPENAI_PURPOSES)} - 'purpose'",
                param="purpose",
            )
        if purpose in ("batch", "fine-tune") and not part.filename.endswith(".jsonl"):
            api = "Batch" if purpose == "batch" else "Fine-Tuning"
            raise Refusal(400, f"Invalid file format for {api} API. Must be .jsonl")
        expiry = self._expiry(exchange, form)
        with self.lock:
            self.serial += 1
            file_id = f"file-{secrets.token_hex(16 if azure else 11)}"
            stored = Stored(
                id=file_id,
                account=account.name,
                serial=self.serial,
                filename=part.filename,
                purpose=purpose,
                content_type=part.content_type,
                size=part.size,
                sha256=part.sha256,
                path=part.path.rename(self.directory / file_id),
                created_at=int(time.time()),
                # Azure's answer to an upload says pending even when the next poll will not.
                polls_left=account.polls_until_processed + azure,
                expires_after=expiry,
            )
            self.files[file_id] = stored
            shown = self._file_object(account, stored)
            stored.polls_left -= azure
        self._pause(exchange, account.upload_delay_s)
        if not azure:
            return json_answer(shown)
        return json_answer(shown, 201, {"Location": self.location(exchange, file_id)})

    def location(self, exchange: Exchange, made: str) -> str:
        """Where Azure says that something new is."""
        scheme, host = exchange.environ["wsgi.url_scheme"], exchange.environ["HTTP_HOST"]
        query = exchange.environ.get("QUERY_STRING", "")
        location = f"{scheme}://{host}{exchange.record['path']}/{made}"
        return f"{location}?{query}" if query else location

    def keep(
        self,
        account: Account,
        filename: str,
        purpose: str,
        content: bytes,
        expires_after: dict[str, Any] | None,
    ) -> Stored:
        """A file that the provider itself has made."""
        with self.lock:
            self.serial += 1
            file_id = f"file-{secrets.token_hex(16 if account.kind == 'azure' else 11)}"
            path = self.directory / file_id
            path.write_bytes(content)
            stored = Stored(
                id=file_id,
                account=account.name,
                serial=self.serial,
                filename=filename,
                purpose=purpose,
                content_type=None,
                size=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                path=path,
                created_at=int(time.time()),
                polls_left=0,
                expires_after=expires_after,
            )
            self.files[file_id] = stored
            return stored

    def _expiry(self, exchange: Exchange, form: dict[str, str]) -> dict[str, Any] | None:
        azure = exchange.door.startswith("azure")
        if exchange.door == "azure_classic" and exchange.query.get("api-version", "") < "2025":
            return None  # The versions before 2025 do not know the field.
        found = {
            name: form.get(f"expires_after[{name}]")
            or (azure and form.get(f"expires_after.{name}"))
            for name in ("anchor", "seconds")
        }
        if not any(found.values()):
            return None
        least = 1_209_600 if azure else 3_600
        seconds = str(found["seconds"] or "")
        if found["anchor"] != "created_at" or not seconds.isdigit():
            raise Refusal(
                400,
                "Missing required parameter: 'expires_after'.",
                param="expires_after",
                code="missing_required_parameter",
                azure_code="invalidPayload",
            )
        if not least <= int(seconds) <= 2_592_000:
            raise Refusal(
                400,
                f"Invalid 'expires_after.seconds': must be between {least} and 2592000.",
                param="expires_after.seconds",
                code="invalid_value",
                azure_code="invalidPayload",
            )
        return {"anchor": "created_at", "seconds": int(seconds)}

    def _list_files(self, exchange: Exchange, account: Account) -> Answer:
        query = exchange.query
        with self.lock:
            found = [f for f in self.files.values() if f.account == account.name]
            found = [f for f in found if query.get("purpose") in (None, f.purpose)]
            found.sort(key=lambda f: f.serial, reverse=query.get("order", "desc") != "asc")
            if account.kind == "azure":
                data = [self._file_object(account, f) for f in found]
                return json_answer({"object": "list", "data": data})
            limit = query.get("limit", "10000")
            if not limit.isdigit() or not 1 <= int(limit) <= 10_000:
                raise Refusal(
                    400,
                    f"Invalid 'limit': expected an integer from 1 to 10000, got {limit!r}.",
                    param="limit",
                    code="invalid_value",
                )
            if after := query.get("after"):
                ids = [f.id for f in found]
                if after not in ids:
                    raise Refusal(400, f"No such File object: {after}", param="after")
                found = found[ids.index(after) + 1 :]
            size = min(int(limit), account.page_size)
            data = [self._file_object(account, f) for f in found[:size]]
        return json_answer(
            {
                "object": "list",
                "data": data,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
                "has_more": len(found) > size,
            }
        )

    def _own(self, account: Account, file_id: str, param: str = "id", status: int = 404) -> Stored:
        with self.lock:
            stored = self.files.get(file_id)
        if stored is None or stored.account != account.name:
            raise Refusal(
                status, f"No such File object: {file_id}", param=param, azure_code="notFound"
            )
        return stored

    def _retrieve_file(self, exchange: Exchange, account: Account, file_id: str) -> Answer:
        with self.lock:
            stored = self._own(account, file_id)
            shown = self._file_object(account, stored)
            stored.polls_left = max(0, stored.polls_left - 1)
        return json_answer(shown)

    def _delete_file(self, exchange: Exchange, account: Account, file_id: str) -> Answer:
        with self.lock:
            self._forget(self._own(account, file_id))
        if account.kind == "azure" and account.delete_status == 204:
            return Answer(204, {}, b"")
        return json_answer({"id": file_id, "object": "file", "deleted": True})

    def _forget(self, stored: Stored) -> None:
        del self.files[stored.id]
        stored.path.unlink(missing_ok=True)

    def _content(self, exchange: Exchange, account: Account, file_id: str) -> Answer:
        with self.lock:
            stored = self._own(account, file_id)
            if stored.purpose not in DOWNLOADABLE and not account.download_any:
                raise Refusal(400, f"Not allowed to download files of purpose: {stored.purpose}")
            source = stored.path.open("rb")
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(stored.filename)}",
            "Accept-Ranges": "bytes",
        }
        first, end, status = 0, stored.size, 200
        asked = exchange.record["headers"].get("range", "")
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", asked):
            low, high = match.groups()
            if low:
                first, end = int(low), min(int(high) + 1 if high else stored.size, stored.size)
            elif high:
                first = max(0, stored.size - int(high))
            if first >= end:
                source.close()
                return json_answer(
                    {
                        "error": {
                            "message": "Range not satisfiable",
                            "type": "invalid_request_error",
                        }
                    },
                    416,
                    {"Content-Range": f"bytes */{stored.size}"},
                )
            status = 206
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{stored.size}"
        headers["Content-Length"] = str(end - first)

        def body() -> Iterator[bytes]:
            with source:
                source.seek(first)
                left = end - first
                while left:
                    piece = source.read(min(PIECE * 4, left))
                    left -= len(piece)
                    yield piece

        return Answer(status, headers, body())

    # ---------------------------------------------------------------- inference

    def _models(self, account: Account, name: str | None) -> Answer:
        names = [*(account.models or ["gpt-4o", "gpt-4o-mini"]), *account.tuned]
        data = [{"id": n, "object": "model", "created": 1, "owned_by": "fake"} for n in names]
        if name is None:
            return json_answer({"object": "list", "data": data})
        if name not in names:
            raise self._no_model(account, name)
        return json_answer(data[names.index(name)])

    def _no_model(self, account: Account, name: str) -> Refusal:
        if account.kind == "azure":
            return Refusal(
                404,
                "The API deployment for this resource does not exist. If you created the "
                "deployment within the last 5 minutes, please wait a moment and try again.",
                azure_code="DeploymentNotFound",
            )
        return Refusal(
            404,
            f"The model `{name}` does not exist or you do not have access to it.",
            code="model_not_found",
        )

    def _infer(
        self,
        exchange: Exchange,
        account: Account,
        deployment: str | None,
        make: Callable[[Exchange, Account, str, str], Answer],
    ) -> Answer:
        body = exchange.json
        model = deployment or body.get("model")
        if not model:
            raise Refusal(
                400,
                "you must provide a model parameter",
                param="model",
                code="missing_required_parameter",
            )
        if not account.knows(str(model)):
            raise self._no_model(account, model)
        found = list(file_ids(body))
        if account.kind == "engine" and found:
            raise Refusal(
                400,
                f"{found[0][0]}: file ids are not supported by this server",
                type="BadRequestError",
            )
        chat = exchange.rest.endswith("/chat/completions")
        for place, file_id in found:
            stored = self._own(account, file_id, place, 400 if chat else 404)
            if chat and account.pdf_only and not stored.filename.lower().endswith(".pdf"):
                raise Refusal(
                    400,
                    "Invalid file data. Expected a file with an application/pdf MIME type.",
                    param=place,
                    code="invalid_value",
                )
        echo: dict[str, Any] = {
            "account": account.name,
            "kind": account.kind,
            "model": body.get("model"),
            "deployment": deployment,
            "file_ids": [file_id for _, file_id in found],
            "filenames": [self.files[file_id].filename for _, file_id in found],
        }
        if account.kind == "engine":
            echo["body"] = body
        if custom_id := exchange.record.get("custom_id"):
            echo["custom_id"] = custom_id  # A row of a batch.
        return make(exchange, account, str(model), json.dumps(echo))

    def _usage(self, exchange: Exchange, text: str) -> dict[str, int]:
        sent, got = max(1, exchange.record["body_size"] // 4), max(1, len(text) // 4)
        return {"prompt_tokens": sent, "completion_tokens": got, "total_tokens": sent + got}

    def _streamed(self, exchange: Exchange, account: Account, events: Iterable[bytes]) -> Answer:
        def sent() -> Iterator[bytes]:
            for n, event in enumerate(events):
                if n:
                    self._pause(exchange, account.chunk_delay_s)
                yield event

        return Answer(200, {"Content-Type": "text/event-stream; charset=utf-8"}, sent())

    def _chat(self, exchange: Exchange, account: Account, model: str, text: str) -> Answer:
        body, azure = exchange.json, account.kind == "azure"
        if not isinstance(body.get("messages"), list):
            raise Refusal(
                400,
                "Missing required parameter: 'messages'.",
                param="messages",
                code="missing_required_parameter",
            )
        usage = self._usage(exchange, text)
        same: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": "fp_fake",
        }
        if not body.get("stream"):
            choice: dict[str, Any] = {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
            answer = {**same, "object": "chat.completion", "choices": [choice], "usage": usage}
            if azure:
                choice["content_filter_results"] = {}
                answer["prompt_filter_results"] = [{"prompt_index": 0}]
            return json_answer(answer)
        with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        same["object"] = "chat.completion.chunk"

        def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return sse({**same, "choices": [choice], **({"usage": None} if with_usage else {})})

        def events() -> Iterator[bytes]:
            if azure:
                first = {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
                yield sse({**same, "id": "", "model": "", **first})
            yield chunk({"role": "assistant", "content": "", "refusal": None})
            for piece in pieces(text, account.chunks):
                yield chunk({"content": piece})
            yield chunk({}, "stop")
            if with_usage:
                yield sse({**same, "choices": [], "usage": usage})
            yield b"data: [DONE]\n\n"

        return self._streamed(exchange, account, events())

    def _completion(self, exchange: Exchange, account: Account, model: str, text: str) -> Answer:
        same: dict[str, Any] = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion"}
        same |= {"created": int(time.time()), "model": model}

        def choice(piece: str, finish: str | None) -> dict[str, Any]:
            return {"index": 0, "text": piece, "logprobs": None, "finish_reason": finish}

        if not exchange.json.get("stream"):
            usage = self._usage(exchange, text)
            return json_answer({**same, "choices": [choice(text, "stop")], "usage": usage})

        def events() -> Iterator[bytes]:
            for piece in pieces(text, account.chunks):
                yield sse({**same, "choices": [choice(piece, None)]})
            yield sse({**same, "choices": [choice("", "stop")]})
            yield b"data: [DONE]\n\n"

        return self._streamed(exchange, account, events())

    def _embeddings(self, exchange: Exchange, account: Account, model: str, text: str) -> Answer:
        asked = exchange.json.get("input")
        data = []
        for n, value in enumerate(asked if isinstance(asked, list) else [asked]):
            digest = hashlib.sha256(json.dumps(value).encode()).digest()[:4]
            vector: Any = [byte / 256 for byte in digest]
            if exchange.json.get("encoding_format") == "base64":
                vector = base64.b64encode(struct.pack("<4f", *vector)).decode()
            data.append({"object": "embedding", "index": n, "embedding": vector})
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return json_answer({"object": "list", "data": data, "model": model, "usage": usage})

    def _responses(self, exchange: Exchange, account: Account, model: str, text: str) -> Answer:
        used = self._usage(exchange, text)
        item_id = f"msg_{secrets.token_hex(12)}"

        def part(shown: str) -> dict[str, Any]:
            return {"type": "output_text", "text": shown, "annotations": [], "logprobs": []}

        def item(status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
            kind = {"id": item_id, "type": "message", "role": "assistant"}
            return {**kind, "status": status, "content": content}

        whole = {
            "id": f"resp_{secrets.token_hex(12)}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "instructions": exchange.json.get("instructions"),
            "metadata": exchange.json.get("metadata") or {},
            "model": model,
            "output": [item("completed", [part(text)])],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": used["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": used["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": used["total_tokens"],
            },
        }
        if not exchange.json.get("stream"):
            return json_answer(whole)

        def shown() -> Iterator[dict[str, Any]]:
            begun = {**whole, "status": "in_progress", "output": [], "usage": None}
            at = {"item_id": item_id, "output_index": 0, "content_index": 0}
            yield {"type": "response.created", "response": begun}
            yield {"type": "response.in_progress", "response": begun}
            yield {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": item("in_progress", []),
            }
            yield {"type": "response.content_part.added", **at, "part": part("")}
            for piece in pieces(text, account.chunks):
                yield {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": []}
            yield {"type": "response.output_text.done", **at, "text": text, "logprobs": []}
            yield {"type": "response.content_part.done", **at, "part": part(text)}
            yield {
                "type": "response.output_item.done",
                "output_index": 0,
                "item": item("completed", [part(text)]),
            }
            yield {"type": "response.completed", "response": whole}

        events = (
            sse({**event, "sequence_number": n}, event["type"]) for n, event in enumerate(shown())
        )
        return self._streamed(exchange, account, events)

    # ---------------------------------------------------------------- faults and control

    def _take_fault(self, exchange: Exchange) -> dict[str, Any]:
        name, path = exchange.record["account"], exchange.record["path"]
        with self.lock:
            for fault in self.faults:
                match = fault.match
                if fault.account not in (None, name):
                    continue
                if match.get("method") not in (None, exchange.method):
                    continue
                if not path.startswith(match.get("path_prefix", "")):
                    continue
                if not re.search(match.get("path_regex", ""), path):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                if fault.times is not None and fault.hits >= fault.times:
                    continue
                fault.hits += 1
                return fault.action
        return {}

    def _control(self, environ: dict[str, Any], path: str) -> Answer:
        query = dict(parse_qsl(environ.get("QUERY_STRING", "")))
        raw = environ["wsgi.input"].read()
        with self.lock:
            try:
                return self._controlled(
                    environ["REQUEST_METHOD"], path, query, json.loads(raw) if raw else {}
                )
            except (KeyError, TypeError, ValueError) as error:
                return json_answer({"mistake": f"{type(error).__name__}: {error}"}, 400)

    def _controlled(
        self, method: str, path: str, query: dict[str, str], body: dict[str, Any]
    ) -> Answer:
        wanted = query.get("account")
        self.jobs.settle()
        match method, path:
            case "GET", "/requests":
                chosen = [r for r in self.records if wanted in (None, r["account"])]
                return json_answer(chosen)
            case "DELETE", "/requests":
                self.records = []
            case "GET", "/files":
                return json_answer(
                    [
                        {
                            **{f.name: getattr(stored, f.name) for f in fields(Stored)},
                            "path": str(stored.path),
                        }
                        for stored in self.files.values()
                        if wanted in (None, stored.account)
                    ]
                )
            case "GET", "/batches":
                return json_answer(self.jobs.inspect_batches(wanted))
            case "GET", "/jobs":
                return json_answer(self.jobs.inspect_jobs(wanted))
            case "GET", "/accounts":
                return json_answer([vars(a) for a in self.accounts.values()])
            case "POST", "/accounts":
                return self._define(Account(**body))
            case "PATCH", "/accounts":
                account = self.accounts[body.pop("name")]
                before = {name: getattr(account, name) for name in body}
                for name, value in body.items():
                    setattr(account, name, value)
                return json_answer(before)
            case "GET", "/faults":
                return json_answer([vars(f) for f in self.faults])
            case "POST", "/faults":
                return self._add_fault(**body)
            case "DELETE", "/faults":
                self._release()
                self.faults = []
            case "DELETE", "/tokens":
                self.tokens = {t: (name, 0.0) for t, (name, _) in self.tokens.items()}
            case "POST", "/reset":
                self._release()
                self.faults, self.records = [], []
                self.jobs.forget()
                for stored in list(self.files.values()):
                    self._forget(stored)
                if body.get("accounts"):
                    self.accounts, self.tokens = {}, {}
            case _:
                return json_answer({"mistake": f"no such control: {method} {path}"}, 404)
        return json_answer({})

    def _define(self, account: Account) -> Answer:
        if account.kind not in ("openai", "azure", "engine"):
            raise ValueError(f"unknown kind {account.kind!r}")
        for other in self.accounts.values():
            if other.name != account.name and (other.kind, other.key) == (
                account.kind,
                account.key,
            ):
                raise ValueError(f"{other.name!r} has that key already")
        self.jobs.forget(account.name)
        for stored in list(self.files.values()):
            if stored.account == account.name:
                self._forget(stored)
        self.accounts[account.name] = account
        return json_answer(vars(account))

    def _add_fault(
        self,
        action: dict[str, Any],
        account: str | None = None,
        match: dict[str, str] | None = None,
        times: int | None = None,
        skip: int = 0,
    ) -> Answer:
        known = {"status", "body", "headers", "delay_s", "close", "after_bytes"}
        known |= {"hang", "handle", "early", "trickle_s", "content_length"}
        if unknown := set(action) - known:
            raise ValueError(f"unknown in action: {sorted(unknown)}")
        if action.get("close") not in (None, "before_body", "mid_body", "mid_request"):
            raise ValueError(f"unknown close {action['close']!r}")
        if account is not None and account not in self.accounts:
            raise ValueError(f"no account {account!r}")
        self.serial += 1
        fault = Fault(self.serial, account, match or {}, action, times, skip)
        self.faults.append(fault)
        return json_answer({"id": fault.id})

    def _release(self) -> None:
        """Let everybody go who is being kept waiting."""
        self.released.set()
        self.released = threading.Event()


def _door(path: str) -> tuple[str, str]:
    for door, prefix in (
        ("openai", "/v1"),
        ("engine", "/engine/v1"),
        ("azure_v1", "/openai/v1"),
        ("azure_classic", "/openai"),
    ):
        if path.startswith(f"{prefix}/"):
            return door, path.removeprefix(prefix)
    if re.fullmatch(r"/[^/]+/oauth2/v2\.0/token", path):
        return "entra", path
    if re.fullmatch(r"/[^/]+(/v2\.0)?/\.well-known/openid-configuration", path):
        return "discovery", path
    return "nowhere", path


def _with_end(raw: Iterator[bytes]) -> Iterator[bytes | None]:
    yield from raw
    yield None


def _read_raw(environ: dict[str, Any], count: int) -> None:
    while count > 0:
        piece = environ["wsgi.input"].read(min(PIECE, count))
        if not piece:
            return
        count -= len(piece)


def _shut(environ: dict[str, Any]) -> None:
    """End the connection at once, whatever was promised."""
    try:
        environ["gunicorn.socket"].shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def create() -> FakeUpstream:
    """The application; its files live below FAKE_UPSTREAM_DIR."""
    return FakeUpstream(
        Path(tempfile.mkdtemp(prefix="fake-", dir=os.environ.get("FAKE_UPSTREAM_DIR")))
    )
