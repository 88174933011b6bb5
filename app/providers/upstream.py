"""What is asked of an upstream over HTTP: time-outs, retries, and failures as UpstreamError."""

import io
import json
import math
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypedDict

import requests
import urllib3

from app import signals, turns
from app.errors import (
    GatewayError,
    NotFound,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from app.providers.lines import CHUNK_BYTES, Line, cancelled_by, is_cancelled, repeated
from app.settings import Deployment
from app.transfers import Cancellation

CONNECT_TIMEOUT_SECONDS = 5.0
SHORT_BYTES = 16 * 1024
LARGE_BYTES = 16 * 1024 * 1024
LARGE_CHUNK_BYTES = 512 * 1024
"""From which length on a body is read in pieces of this size: a fifth less time than in those of
CHUNK_BYTES, for twice the memory."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""The largest JSON answer that is read whole; a list of 10,000 files has about 3 MB."""

# What a text or a number in JSON may be, and neither a database nor UTF-8 takes.
_SUSPICIOUS = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])|\xed[\xa0-\xbf]|[0-9][eE]\+?[0-9]{3}")

_BUSY = (429, 503)
_TROUBLE = (408, 429, 500, 502, 503, 504)
_CREDENTIALS = ("Authorization", "api-key", "x-api-key", "x-goog-api-key")

Headers = Mapping[str, str]
Refusal = Callable[[int, bytes], GatewayError | None]
"""What a provider makes of an error answer of its own form (status, body); None: the usual."""


class _Facts(TypedDict):
    provider: str
    deployment: str


class Upstream:
    """One base URL with its credential, shared by the server's threads.

    `headers` gives the credential anew for every request, since tokens are renewed. Requests that
    may be repeated (GET, DELETE) are, on trouble and broken connections. An upload is repeated
    only when the upstream cannot have stored it: no connection, 429 or 503. Inference is not
    repeated here: another deployment may be the better second try. Redirects are never followed,
    for they would carry the credential to another host. `refusal` is asked first what an error
    answer means, where a provider has errors of a form of its own.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Callable[[], Headers],
        deployment: Deployment,
        pool_size: int,
        refusal: Refusal = lambda _status, _body: None,
    ) -> None:
        self._refusal = refusal
        self.base_url = base_url.rstrip("/")
        self._headers = headers
        self._deployment = deployment
        self._timeout = (CONNECT_TIMEOUT_SECONDS, deployment.timeout_seconds)
        tries = deployment.max_retries
        self._repeatable = Line(
            self.base_url, pool_size, repeated(tries, status=_TROUBLE, read=tries, other=tries)
        )
        self._uploading = Line(self.base_url, pool_size, repeated(tries, status=_BUSY))
        self._once = Line(self.base_url, pool_size, repeated(0))

    def json(
        self, method: str, path: str, *, params: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The JSON object that a repeatable request is answered with, {} for an empty answer.

        Raises NotFound for 404, UpstreamRejected for other refusals, UpstreamAuthFailed for 401
        and 403, UpstreamTimeout, UpstreamError.
        """
        with self._send(self._repeatable, method, path, params=params) as answer:
            self._raise_for_status(answer)
            return self._object(answer)

    def send_body(self, path: str, body: io.RawIOBase, content_type: str) -> dict[str, Any]:
        """POST a body that has a length and can be rewound; the JSON object of the answer.

        An UpstreamError is `retryable` when the upstream has stored nothing for sure.
        """
        headers = {"Content-Type": content_type}
        with self._send(self._uploading, "POST", path, data=body, headers=headers) as answer:
            self._raise_for_status(answer)
            return self._object(answer)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """POST a small JSON body, once; the JSON object of the answer.

        An UpstreamError is `retryable` when the upstream has done nothing for sure.
        """
        data = b"" if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with self._send(self._uploading, "POST", path, data=data, headers=headers) as answer:
            self._raise_for_status(answer)
            return self._object(answer)

    def exchange(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | io.RawIOBase = b"",
        headers: Headers | None = None,
        repeatable: bool = False,
        allowed: tuple[int, ...] = (),
    ) -> "Answer":
        """One step of a protocol whose answer's headers count; the caller closes the answer.

        A body that is a stream has a length and can be rewound. Without `repeatable` the request
        is repeated only when the upstream cannot have acted on it. Raises what `json` raises,
        for a status of 300 and above that is not `allowed`; an UpstreamError is `retryable` when
        the upstream has done nothing for sure.
        """
        line = self._repeatable if repeatable else self._uploading
        response = self._send(line, method, path, params=params, data=body, headers=headers)
        answer = Answer(response, self._failure)
        if answer.status not in allowed:
            self.raise_for(answer)
        return answer

    def object_of(self, answer: "Answer") -> dict[str, Any]:
        """The JSON object that is an answer's body, {} for an empty one; the answer is closed."""
        with answer.response:
            return self._object(answer.response)

    def stream(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Headers | None = None,
        cancellation: Cancellation | None = None,
    ) -> "Answer":
        """An answer whose body is still to be read, whatever its status.

        Every UpstreamError of a request that was not answered is `retryable` here: the caller
        knows that nothing was stored by it.
        """
        line = self._repeatable if method == "GET" else self._once
        try:
            with cancelled_by(cancellation):
                response = self._send(line, method, path, data=body, headers=headers)
        except UpstreamError as error:
            error.retryable = True
            raise
        return Answer(response, self._failure)

    def raise_for(self, answer: "Answer") -> None:
        """Raise what `json` would raise for an answer with an error status, and close it."""
        if answer.status >= 300:
            with answer.response:
                self._raise_for_status(answer.response)

    def _send(
        self,
        line: Line,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        data: Any = None,
        headers: Headers | None = None,
    ) -> requests.Response:
        sent = {**self._headers(), **(headers or {})}
        call = signals.tell().upstream_call(self._deployment.provider, self._deployment.id, method)
        try:
            response = line.send(
                method,
                path,
                params=params,
                data=data,
                headers={**sent, **call.headers} if call.headers else sent,
                timeout=self._timeout,
            )
        except requests.RequestException as error:
            failure = self._failure(error)
            call.over(_outcome(failure))
            raise failure from error
        except BaseException:
            # The body's own: nobody waits for it any more.
            call.over(signals.GIVEN_UP)
            raise
        call.over(response.status_code)
        return response

    def _failure(self, error: Exception) -> UpstreamError:
        facts = self._facts()
        name = self._deployment.provider
        reason = _reason(error)
        if isinstance(error, requests.ConnectTimeout):
            return UpstreamTimeout(f"{name} did not accept the connection", retryable=True, **facts)
        if isinstance(reason, urllib3.exceptions.NewConnectionError):
            return UpstreamError(f"{name} could not be reached", retryable=True, **facts)
        if isinstance(reason, requests.Timeout | urllib3.exceptions.TimeoutError):
            return UpstreamTimeout(f"{name} did not answer in time", **facts)
        if isinstance(error, requests.exceptions.SSLError) and _is_untrusted(reason):
            return UpstreamError(
                f"{name} has a certificate that is not trusted", retryable=True, **facts
            )
        return UpstreamError(f"{name} broke the connection", **facts)

    def _object(self, answer: requests.Response) -> dict[str, Any]:
        raw = self._read(answer)
        if not raw.strip():
            return {}
        try:
            # NaN is no JSON, yet some upstreams write it among their metrics.
            value = json.loads(raw, parse_constant=lambda _name: None)
            value = _clean_value(value) if _SUSPICIOUS.search(raw) else value
        except (ValueError, RecursionError) as error:
            raise self.nonsense() from error
        if not isinstance(value, dict):
            raise self.nonsense()
        return value

    def _read(self, answer: requests.Response) -> bytes:
        try:
            raw: bytes = answer.raw.read(MAX_ANSWER_BYTES + 1, decode_content=True)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._failure(error) from error
        if len(raw) > MAX_ANSWER_BYTES:
            raise self.nonsense()
        return raw

    def nonsense(self, what: str = "gave an answer that is not a JSON object") -> UpstreamError:
        """The error for an answer that says yes and cannot be understood."""
        return UpstreamError(f"{self._deployment.provider} {what}", **self._facts())

    def _facts(self) -> _Facts:
        return {"provider": self._deployment.provider, "deployment": self._deployment.id}

    def _raise_for_status(self, answer: requests.Response) -> None:
        status = answer.status_code
        if status < 300:
            return
        name = self._deployment.provider
        facts = self._facts()
        if status < 400:
            raise UpstreamError(f"{name} answered with a redirect, which is not followed", **facts)
        raw = _without_credential(self._read(answer), answer)
        if (own := self._refusal(status, raw)) is not None:
            if isinstance(own, UpstreamError):
                own.provider, own.deployment = facts["provider"], facts["deployment"]
            raise own
        error = error_of(raw, status)
        message = error["message"]
        if status in (401, 403):
            raise UpstreamAuthFailed(f"{name} refused the gateway's own credential", **facts)
        if status == 404:
            raise NotFound(message, param=error["param"], code=error["code"] or "not_found")
        raise UpstreamRejected(
            message,
            status=status,
            type=error["type"],
            param=error["param"],
            code=error["code"],
            retryable=status in _BUSY,
            headers=_only(answer.headers, ("retry-after", "retry-after-ms")),
            **facts,
        )


class Answer:
    """An HTTP answer whose body is read piece by piece."""

    def __init__(
        self, response: requests.Response, failure: Callable[[Exception], UpstreamError]
    ) -> None:
        self.response = response
        self.status = response.status_code
        self.headers = response.headers
        # We ask for "identity"; some servers pack their answers all the same.
        self._is_packed = "content-encoding" in response.headers
        self._failure = failure

    @property
    def length(self) -> int | None:
        """How long the body is, None when it is chunked, packed, or ends with the connection."""
        length = self.headers.get("content-length", "")
        return int(length) if length.isdigit() and not self._is_packed else None

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives, in pieces of at most LARGE_CHUNK_BYTES, none held back.

        Raises UpstreamError when it ends before its time.
        """
        try:
            read = self.response.raw.read1
            # A short answer comes with its head; a long one, or a stream, is waited for.
            if self.length is None or self.length > SHORT_BYTES:
                turns.leave()
            most = LARGE_CHUNK_BYTES if (self.length or 0) > LARGE_BYTES else CHUNK_BYTES
            left = self.length
            while chunk := read(most, decode_content=self._is_packed):
                yield chunk
                if left is not None:
                    left -= len(chunk)
                # What is here as a whole is not waited for.
                if left != 0:
                    turns.leave()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._failure(error) from error

    def read(self, limit: int) -> bytes:
        """An error's body, cut off at `limit` bytes. Raises UpstreamError as `chunks` does."""
        pieces: list[bytes] = []
        size = 0
        for chunk in self.chunks():
            pieces.append(chunk)
            size += len(chunk)
            if size >= limit:
                break
        return _without_credential(b"".join(pieces)[:limit], self.response)

    def close(self) -> None:
        """Give the connection back when the body was read to its end, else close it."""
        self.response.close()


def _without_credential(raw: bytes, answer: requests.Response) -> bytes:
    """An error's body without our credential, which some servers repeat to whoever asks."""
    for name in _CREDENTIALS:
        sent = answer.request.headers.get(name) or ""
        value = sent.encode() if isinstance(sent, str) else sent
        if value := value.removeprefix(b"Bearer ").strip():
            raw = raw.replace(value, b"***")
    return raw


def error_of(raw: bytes, status: int) -> dict[str, Any]:
    """The inside of OpenAI's error envelope from whatever an upstream wrote.

    Azure leaves out `type` and `param`, older vLLM has no envelope, proxies answer HTML. Source:
    OpenAI API reference, errors; Azure OpenAI REST reference, errors; read 2026-11.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    error = value.get("error", value) if isinstance(value, dict) else None
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        error = {}
    message = next(
        (text for key in ("message", "detail") if isinstance(text := error.get(key), str)), ""
    )
    kind, param, code = (error.get(key) for key in ("type", "param", "code"))
    return {
        **error,
        "message": clean(message) or f"the upstream answered with status {status}",
        "type": clean(kind) if isinstance(kind, str) else _type_of(status),
        "param": clean(param) if isinstance(param, str) else None,
        "code": clean(str(code)) if isinstance(code, str | int) else None,
    }


def clean(text: str) -> str:
    """The text without what neither a database nor UTF-8 takes: NUL and half surrogate pairs."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _clean_value(value: Any) -> Any:
    """The same JSON with every text clean, and null for what is no number."""
    if isinstance(value, dict):
        return {clean(key): _clean_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return clean(value) if isinstance(value, str) else value


def _type_of(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def _only(headers: Headers, names: tuple[str, ...]) -> dict[str, str]:
    return {name: headers[name] for name in names if name in headers}


def _outcome(failure: UpstreamError) -> str:
    """Why there is no answer, in a word."""
    if is_cancelled():
        return signals.GIVEN_UP
    return "timeout" if isinstance(failure, UpstreamTimeout) else signals.NO_ANSWER


def _reason(error: Exception) -> Any:
    """What is behind an error of requests; of urllib3, once its tries have come to their end."""
    reason = error.args[0] if isinstance(error, requests.ConnectionError) and error.args else error
    return getattr(reason, "reason", reason)


def _is_untrusted(reason: Any) -> bool:
    """Whether a connection ended at the server's certificate, before a request was sent."""
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in reason.args)
