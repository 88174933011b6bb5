"""A client of a running gateway, for the command line: JSON, streamed uploads, resumable downloads.

It needs an address and a key and nothing else of the machine that the gateway runs on. No file is
ever held in memory.
"""

import contextlib
import ipaddress
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from urllib3.exceptions import NewConnectionError

from app.errors import OperationRefused
from app.providers.multipart import MultipartFile
from app.transfers import Upload

Progress = Callable[[int], None]
"""Takes how many bytes have gone since it was last called; negative when some go once more."""

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 120.0
_STORED_SECONDS = 3600.0
"""How long the gateway may take to store an upload at its providers, after the last byte."""
_SILENCE_SECONDS = 60.0
_TRIES = 4
_NO_SUCH_RANGE = 416
_LONGEST_PAUSE_SECONDS = 30.0
_CHUNK = 1 << 20
_OVERLAP = 1 << 16
"""Bytes at the end of a part that must be the same again before a download goes on behind them."""


class GatewayAway(OperationRefused):
    """The gateway cannot be reached; `was_there`: it could be, and then the connection broke."""

    def __init__(self, message: str, *, was_there: bool = True) -> None:
        super().__init__(message)
        self.was_there = was_there


class Refused(OperationRefused):
    """The gateway answered with an error; `status` is HTTP's, `code` the envelope's."""

    def __init__(self, message: str, status: int, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Part:
    """What is on the disk of a download: of which file, how large that is, where it lies."""

    path: Path
    note: Path
    facts: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Bytes that have come so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self) -> int:
        """How many bytes of this very file there are; whatever else is there goes."""
        try:
            is_the_same = json.loads(self.note.read_text()) == self.facts
        except (OSError, ValueError):
            is_the_same = False
        if not is_the_same:
            self.path.unlink(missing_ok=True)
            self.note.write_text(json.dumps(self.facts))
        return self.size


class Gateway:
    """A gateway at `url` (with or without /v1), spoken to with one key."""

    def __init__(self, url: str, key: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OperationRefused(f"{url!r} is not an address such as https://host:4000")
        if parts.username is not None or parts.password is not None:
            raise OperationRefused("an address holds no credential; the key is given by itself")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._session = requests.Session()
        # Proxies and certificates of the environment count, but not on the way to this machine.
        self._session.trust_env = not is_this_machine(url)
        self._auth = _Bearer(key)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """A JSON answer; a query's None is left out. Raises Refused, GatewayAway."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._json("GET", path, params=given)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a change, which is done once however often it has to be sent."""
        return self._json("POST", path, json=dict(body), headers=_once())

    def delete(self, path: str) -> dict[str, Any]:
        """The answer to a delete; one that is sent twice deletes no more than the first."""
        return self._json("DELETE", path)

    def pages(self, path: str, limit: int, size: int, **query: Any) -> Iterator[dict[str, Any]]:
        """Up to `limit` objects of one of OpenAI's lists, `size` at a time."""
        while limit > 0:
            page = self.get(path, limit=min(limit, size), **query)
            yield from page["data"][:limit]
            limit -= len(page["data"])
            if not page.get("has_more") or not page["data"]:
                return
            query["after"] = page["data"][-1]["id"]

    def upload(
        self, path: Path, filename: str, mime_type: str, fields: Mapping[str, str], told: Progress
    ) -> dict[str, Any]:
        """The file object of a file that was sent. Interrupted, it leaves nothing behind."""
        upload = Upload(
            source=path,
            filename=filename,
            mime_type=mime_type,
            purpose=fields["purpose"],
            size=path.stat().st_size,
            sha256="",
        )
        with contextlib.closing(_Told(fields, upload, told)) as body:
            headers = {"Content-Type": body.content_type, **_once()}
            timeout = (_CONNECT_SECONDS, _STORED_SECONDS)
            return self._json("POST", "/v1/files", data=body, headers=headers, timeout=timeout)

    def read(self, file_id: str) -> Iterator[bytes]:
        """A file's bytes, once, as they come."""
        with self._content(file_id, {}) as response:
            yield from _chunks(response)

    def download(self, file_id: str, part: Part, told: Progress) -> None:
        """Bring a part that was begun to its end, however often the connection breaks.

        What is there already counts if its last bytes come the same again: the copies of one file
        at two providers need not be alike. Raises Refused, GatewayAway.
        """
        failures = 0
        while True:
            before = part.size
            try:
                self._append(file_id, part, told)
                break
            except GatewayAway:
                failures = 0 if part.size > before else failures + 1
                if failures >= _TRIES:
                    raise
                time.sleep(min(2.0**failures / 2, _LONGEST_PAUSE_SECONDS))
            except Refused as error:
                if error.status != _NO_SUCH_RANGE or not before:
                    raise
                # Longer than the file: of another copy.
                part.path.unlink()
                told(-before)
        part.note.unlink(missing_ok=True)

    def _append(self, file_id: str, part: Part, told: Progress) -> None:
        have = part.size
        begin = max(0, have - _OVERLAP)
        headers = {"Range": f"bytes={begin}-"} if have else {}
        with self._content(file_id, headers) as response, part.path.open("ab") as file:
            chunks = _chunks(response)
            if have and (response.status_code != 206 or not _is_at(response, begin)):
                # The whole comes, from its beginning.
                begin = have = self._restart(file, have, told)
            tail = b""
            if have:
                with part.path.open("rb") as reader:
                    reader.seek(begin)
                    tail = reader.read()
            for chunk in chunks:
                if tail:
                    if not tail.startswith(chunk[: len(tail)]):
                        # Another copy, another content: begin anew, from the first byte.
                        self._restart(file, have, told)
                        raise GatewayAway("the file's content is another one than before")
                    known = min(len(tail), len(chunk))
                    tail, chunk = tail[known:], chunk[known:]  # noqa: PLW2901  # what is new
                file.write(chunk)
                told(len(chunk))

    @staticmethod
    def _restart(file: Any, have: int, told: Progress) -> int:
        file.truncate(0)
        told(-have)
        return 0

    @contextlib.contextmanager
    def _content(self, file_id: str, headers: Mapping[str, str]) -> Iterator[requests.Response]:
        path = f"/v1/files/{quoted(file_id)}/content"
        timeout = (_CONNECT_SECONDS, _SILENCE_SECONDS)
        # As it is: a length that is announced must be the length that comes.
        headers = {**headers, "Accept-Encoding": "identity"}
        response = self._answer("GET", path, headers=headers, timeout=timeout, stream=True)
        with contextlib.closing(response):
            yield response

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        response = self._answer(method, path, **request)
        try:
            answer = response.json()
        except ValueError as error:
            raise OperationRefused(
                f"{self.url} does not answer as a gateway does (status {response.status_code})"
            ) from error
        if not isinstance(answer, dict):
            raise OperationRefused(f"{self.url} does not answer as a gateway does")
        return answer

    def _answer(self, method: str, path: str, **request: Any) -> requests.Response:
        """The answer, tried again where that does no harm. Raises Refused, GatewayAway."""
        for nth in range(1, _TRIES + 1):
            is_last = nth == _TRIES
            try:
                response = self._send(method, path, **request)
            except GatewayAway as error:
                if is_last or not error.was_there:
                    raise
                pause = 2.0 ** (nth - 1) / 2
            else:
                if response.status_code < 300:
                    return response
                refusal = _refusal(response, self.url)
                pause = _asked_to_wait(response)
                response.close()
                if is_last or pause < 0:
                    raise refusal
            _rewind(request.get("data"))
            time.sleep(min(pause, _LONGEST_PAUSE_SECONDS))
        raise AssertionError("the last try answers or raises")

    def _send(self, method: str, path: str, **request: Any) -> requests.Response:
        request.setdefault("timeout", (_CONNECT_SECONDS, _ANSWER_SECONDS))
        try:
            return self._session.request(
                method, self.url + path, auth=self._auth, allow_redirects=False, **request
            )
        except requests.RequestException as error:
            was_there = not isinstance(
                getattr(next(iter(error.args), None), "reason", None), NewConnectionError
            )
            why = f"{self.url} cannot be reached: {_why(error)}"
            raise GatewayAway(why, was_there=was_there) from error


class _Bearer(requests.auth.AuthBase):
    """The key as a header, which no .netrc of this machine replaces."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class _Told(MultipartFile):
    """A body that tells how far it is."""

    def __init__(self, fields: Mapping[str, str], upload: Upload, told: Progress) -> None:
        super().__init__(fields, upload)
        self._told = told

    def read(self, size: int = -1) -> bytes:
        piece = super().read(size)
        self._told(len(piece))
        return piece

    def rewind(self) -> None:
        """Begin anew."""
        self._told(-self.tell())
        self.seek(0)


def is_this_machine(url: str) -> bool:
    """Whether an address leads nowhere else than to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def quoted(text: str) -> str:
    """An id as one segment of a path."""
    return quote(text, safe="")


def _once() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(16)}


def _rewind(body: Any) -> None:
    if isinstance(body, _Told):
        body.rewind()


def _chunks(response: requests.Response) -> Iterator[bytes]:
    try:
        yield from response.iter_content(_CHUNK)
    except requests.RequestException as error:
        raise GatewayAway(f"the connection broke: {_why(error)}") from error


def _is_at(response: requests.Response, begin: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {begin}-")


def _asked_to_wait(response: requests.Response) -> float:
    """Seconds until this is worth another try; negative when it never is."""
    if response.headers.get("x-should-retry") == "false":
        return -1.0
    in_progress = response.headers.get("x-should-retry") == "true"
    if response.status_code not in (429, 503) and not in_progress:
        return -1.0
    try:
        return max(0.0, float(response.headers.get("Retry-After", "1")))
    except ValueError:
        return 1.0


def _refusal(response: requests.Response, url: str) -> Refused:
    """What went wrong, in the gateway's words, or in ours when somebody else has answered."""
    status = response.status_code
    try:
        error = response.json()["error"]
        message, code = str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError, requests.RequestException):
        message, code = f"{url} answers {status}, and not as a gateway does", None
        if location := response.headers.get("Location"):
            message += f"; it points to {location[:200]}"
        if status == 413:
            message = f"something before the gateway refuses a body of this size (status {status})"
    if status == 401:
        message += "; say which key with --key or MANIFOLD_API_KEY"
    return Refused(message, status, code if isinstance(code, str) else None)


def _why(error: BaseException) -> str:
    """The innermost reason, in one line and without addresses of objects."""
    text = str(error)
    for known, said in (
        ("Connection refused", "connection refused; is it running?"),
        ("Name or service not known", "there is no such host"),
        ("No address associated", "there is no such host"),
        ("nodename nor servname", "there is no such host"),
        ("CERTIFICATE_VERIFY_FAILED", "its certificate is not trusted (REQUESTS_CA_BUNDLE)"),
        ("WRONG_VERSION_NUMBER", "it does not speak TLS; try http://"),
        ("timed out", "no answer in time"),
    ):
        if known in text:
            return said
    return type(error).__name__
