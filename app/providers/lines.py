"""Kept connections to one account: how a request goes over them, is repeated, and is cancelled."""

import http.client
import os
import re
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property, partial
from types import FunctionType
from typing import Any, Self

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import Retry

from app import signals, turns
from app.transfers import Cancellation

CHUNK_BYTES = 256 * 1024
_MOST_JOINED = 64 * 1024
"""How long a head and the beginning of its body may be to be sent together."""
_LONGEST_WAIT_SECONDS = 5
_PLAIN_FIELD = re.compile(rb"(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(?P<value>[!-~][ -~\t]*)?")
_MOST_FIELDS = 100
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/_.~-]*")
_OURS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "manifold"}


class Line:
    """Connections to one base URL, and the rule by which its requests are repeated.

    A `requests.Session` asks at each request what is the same for all of ours: environment,
    cookies, redirects, hooks. That took a third of a relayed chat; so the request is made here,
    and given to requests' adapter.
    """

    def __init__(self, base_url: str, pool_size: int, repeat: Retry) -> None:
        # Read once here instead of at every request. A .netrc, which would replace our
        # credential for the host, is not read at all.
        self._proxies = dict(requests.utils.get_environ_proxies(base_url))
        self._verify: bool | str = os.environ.get("REQUESTS_CA_BUNDLE") or True
        self._adapter = _Adapter(pool_connections=1, pool_maxsize=pool_size, max_retries=repeat)
        self._given_url = base_url

    @cached_property
    def _prepared(self) -> tuple[str, dict[str, str]]:
        """The base URL as requests writes it, and the headers of every request to it."""
        found = requests.Request("GET", self._given_url + "/", headers=_OURS).prepare()
        return (found.url or "").removesuffix("/"), dict(found.headers)

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None,
        data: Any,
        headers: Mapping[str, str],
        timeout: tuple[float, float],
    ) -> requests.Response:
        """The answer, whose body is still to be read. Raises requests.RequestException.

        `data` is bytes, nothing, or a stream that has a length and can be rewound.
        """
        request = requests.PreparedRequest()
        request.method = method
        if params or not _PLAIN_PATH.fullmatch(path):
            request.prepare_url(self._given_url + path, params)
        else:
            request.url = self._prepared[0] + path
        request.headers = found = CaseInsensitiveDict(self._prepared[1])
        for each in headers.items():
            requests.utils.check_header_validity(each)
            found[each[0]] = each[1]
        if data is None or isinstance(data, bytes):
            request.body = data or None
            if data or method not in ("GET", "HEAD"):
                found["Content-Length"] = str(len(data or b""))
        else:
            request.prepare_body(data, None)
        return self._adapter.send(
            request, stream=True, timeout=timeout, verify=self._verify, proxies=self._proxies
        )


class _Retry(Retry):
    """Retry that ends with a cancel, and takes no Retry-After of another form for a breakdown."""

    def increment(self, *args: Any, **named: Any) -> Self:
        tries = self.new(total=0) if is_cancelled() else self
        return Retry.increment(tries, *args, **named)

    def parse_retry_after(self, retry_after: str) -> float:
        try:
            return super().parse_retry_after(retry_after)
        except urllib3.exceptions.InvalidHeader:
            return 0.0


def repeated(total: int, *, status: tuple[int, ...] = (), read: int = 0, other: int = 0) -> Retry:
    """The rule that repeats a request: so often when it could not be connected, and as said."""
    return _Retry(
        total=total,
        connect=total,
        read=read,
        other=other,
        redirect=0,
        status=total if status else 0,
        status_forcelist=status,
        allowed_methods=None,
        backoff_factor=0.2,
        backoff_max=_LONGEST_WAIT_SECONDS,
        retry_after_max=_LONGEST_WAIT_SECONDS,
        respect_retry_after_header=bool(status),
        raise_on_status=False,
        raise_on_redirect=False,
    )


_this_thread = threading.local()


class cancelled_by:
    """Let a cancel end what this thread sends meanwhile."""

    def __init__(self, cancellation: Cancellation | None) -> None:
        self._cancellation = cancellation

    def __enter__(self) -> None:
        _this_thread.cancellation = self._cancellation

    def __exit__(self, *_: object) -> None:
        _this_thread.cancellation = None


def is_cancelled() -> bool:
    """Whether nobody waits any more for what this thread has sent."""
    found: Cancellation | None = getattr(_this_thread, "cancellation", None)
    return found is not None and found.is_cancelled


def _fields(file: Any) -> http.client.HTTPMessage:
    """The header fields of an answer, as http.client.parse_headers reads them.

    That one lets a parser for e-mail do it, which takes a third of the time that an answer's head
    does; it still reads what is not plain (folded, not ASCII) or is not here as a whole. Source:
    RFC 9112, section 5.
    """
    head, is_whole, _ = file.peek(1).partition(b"\r\n\r\n")
    fields = [_PLAIN_FIELD.fullmatch(line) for line in head.split(b"\r\n")]
    if not is_whole or len(fields) > _MOST_FIELDS or not all(fields):
        return http.client.parse_headers(file)
    file.read(len(head) + len(is_whole))
    message = http.client.HTTPMessage()
    for field in fields:
        assert field is not None  # noqa: S101  # all are
        message.set_raw(field["name"].decode(), (field["value"] or b"").decode())
    return message


def _await(file: Any) -> None:
    """Wait, with others, until an answer's first byte can be read from this file.

    Raises TimeoutError as a read would.
    """
    # A proxy's TLS inside of TLS has a class of its own, without more to be known.
    sock = file.raw._sock
    is_tls = isinstance(sock, ssl.SSLSocket)
    if is_tls and sock.pending():
        return
    turns.until_readable(sock)
    while is_tls and not _has_data(sock, file):
        # TLS has had something to say for itself, as after each handshake (RFC 8446, section 4.6).
        turns.until_readable(sock)


def _has_data(sock: ssl.SSLSocket, file: Any) -> bool:
    seconds = sock.gettimeout()
    sock.settimeout(0)
    try:
        file.peek(1)
    except ssl.SSLWantReadError:
        return False
    finally:
        sock.settimeout(seconds)
    return True


class _Response(http.client.HTTPResponse):
    """http.client's response, but for how it waits, and how it reads the header fields."""

    begin = FunctionType(
        http.client.HTTPResponse.begin.__code__,
        {**vars(http.client), "parse_headers": _fields},
        "begin",
    )

    _is_here = False

    def _read_status(self) -> Any:
        # What a server says before its answer may have brought the answer with it.
        if not self._is_here and turns.is_at_work():
            _await(self.fp)
        self._is_here = True
        return super()._read_status()  # type: ignore[misc]  # it is not told of


class _Connection(HTTPConnection):
    """A connection that a cancel of the request which it carries, and of no other, shuts."""

    response_class = _Response

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.Lock()
        self._carried: Cancellation | None = None
        self._held: bytes | None = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        with self._lock:
            self._carried = getattr(_this_thread, "cancellation", None)
        # http.client sends the head by itself: another system call, packet, and awakened reader.
        self._held = b""
        try:
            super().request(*args, **kwargs)
            self._let_go()
        finally:
            self._held = None

    def send(self, data: Any) -> None:
        if self._held is None:
            super().send(data)
        elif isinstance(data, bytes) and len(self._held) + len(data) <= _MOST_JOINED:
            self._held += data
        else:
            self._let_go()
            turns.leave()
            super().send(data)

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held:
            super().send(held)

    def connect(self) -> None:
        with turns.waiting():
            super().connect()

    def getresponse(self) -> Any:
        if self._carried is not None and self.sock is not None:
            # Taken now: http.client forgets the socket of an answer that ends with the connection.
            self._carried.then(partial(self._shut, self._carried, self.sock))
        return super().getresponse()

    def _shut(self, cancellation: Cancellation, sock: socket.socket) -> None:
        with self._lock, suppress(OSError):
            # A body that was read to its end has given the connection back: it may be another's.
            if self._carried is cancellation:
                # Not the method of an SSL socket, which would take the reader's state away from it.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _TLSConnection(_Connection, HTTPSConnection):
    pass


class _Told:
    """A pool that tells of its connections."""

    def _new_conn(self) -> Any:
        signals.tell().connected()
        return super()._new_conn()  # type: ignore[misc]  # the pool beside it has it

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)  # type: ignore[misc]  # likewise
        signals.tell().connections_in_use(1)
        return connection

    def _put_conn(self, conn: Any) -> None:
        signals.tell().connections_in_use(-1)
        super()._put_conn(conn)  # type: ignore[misc]  # likewise


class _Pool(_Told, HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(_Told, HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        # A body is sent in blocks of this size; http.client's own 16 KB costs a third more CPU.
        super().init_poolmanager(*args, blocksize=CHUNK_BYTES, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
        self._pool: Any = None

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        # One host, one way to it: what is found for the first request is right for all.
        if self._pool is None:
            self._pool = super().get_connection_with_tls_context(*args, **kwargs)
        return self._pool
