"""gunicorn's settings: `gunicorn -c python:app.serving wsgi:app`.

Behind nginx (deploy/nginx.conf) this is a complete server. Without it, two limits are ours alone:
a request's head must arrive within HEAD_SECONDS, and a transfer may stand still for IDLE_SECONDS,
in either direction. A client that keeps both and is slow on purpose still holds one of `threads`.
"""

import errno
import ipaddress
import json
import os
import resource
import selectors
import socket
import struct
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from gunicorn import glogging
from gunicorn.http import errors as refused
from gunicorn.http.body import Body, LengthReader
from gunicorn.workers import gthread

HEAD_SECONDS = 30
"""How long a request's line and headers may take, from their first byte."""

IDLE_SECONDS = 300
"""How long a client may send nothing of a body, or take nothing of an answer."""

LINGER_SECONDS = 30
LINGER_IDLE_SECONDS = 2
"""How long, and across what gap, the rest of a refused body is read and thrown away."""


def _number(name: str, default: int) -> int:
    said = os.environ.get(name, "")
    if said and not (said.isdecimal() and int(said) > 0):
        raise SystemExit(f"{name}: {said!r} is not a positive number")
    return int(said) if said else default


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Log(glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's log, without a line a request: the application writes that one.

    gunicorn takes a `logconfig_dict` for the wish to have them, and then makes each, which is a
    fifth of a small request, whether or not anybody reads it.
    """

    def _compute_access_log_enabled(self) -> bool:
        return self.cfg.accesslog is not None


class _SlowHeadError(Exception):
    """The request's head did not arrive in time."""


class _Client(socket.socket):
    """A client's connection that is waited for with a limit wherever gunicorn would block.

    The kernel keeps the limit: Python's own time-outs cost two more system calls at each step,
    which is a quarter of a small request.
    """

    _deadline: float | None = None
    _is_readable = False

    def limit(self) -> None:
        """Wait for at most IDLE_SECONDS at a time, from now on."""
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", IDLE_SECONDS, 0))

    def expect_head(self) -> None:
        """A request's head begins; the poller has seen its first byte."""
        self._deadline = time.monotonic() + HEAD_SECONDS
        self._is_readable = True

    def expect_no_head(self) -> None:
        """The head is here, or is not waited for any more."""
        self._deadline = None

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        if self._deadline is not None and not self._is_readable:
            return self._recv_in_time(size, self._deadline)
        self._is_readable = False
        try:
            return super().recv(size, flags)
        except BlockingIOError as error:
            raise TimeoutError from error

    def _recv_in_time(self, size: int, deadline: float) -> bytes:
        # A byte now and then would never be idle; so the whole head has one deadline.
        self.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            return super().recv(size)
        except TimeoutError as error:
            raise _SlowHeadError from error
        finally:
            self.setblocking(True)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        try:
            super().sendall(data, flags)
        except BlockingIOError as error:
            raise ConnectionResetError(errno.ECONNRESET, "the client stopped reading") from error


class _Body:
    """A request's body that is asked for when it is read first, and that ends early as an error.

    gunicorn says `100 Continue` before the application has seen the key, and shows a connection
    that broke in the middle of a body as the body's end.
    """

    def __init__(self, reader: Any, sock: Any, expected: bool) -> None:
        self._reader = reader
        self._sock = sock
        self._left: int | None = getattr(reader, "length", None)
        self._is_plain = isinstance(reader, LengthReader)
        self.expected = expected

    def read(self, size: int) -> bytes:
        if self.expected:
            self.expected = False
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            data: bytes = self._recv(size) if self._is_plain else self._reader.read(size)
        except (refused.ParseException, TimeoutError) as error:
            # What an application knows of its server is OSError, so a bad chunk becomes one.
            raise ConnectionResetError(errno.ECONNRESET, "the body is malformed") from error
        if self._left is not None:
            self._left -= len(data)
            if size and not data and self._left > 0:
                raise ConnectionResetError(errno.ECONNRESET, "the body ended early")
        return data

    def _recv(self, size: int) -> bytes:
        """The next bytes of a body of known length, as many as there are, at most `size`.

        gunicorn reads far ahead and copies all of that at each call, which costs more than
        everything else that is done with a large upload.
        """
        reader = self._reader
        size = min(size, reader.length)
        held = reader.unreader.buf.getbuffer().nbytes
        if held:
            # It came with the head, and is all that was asked for: nothing is read ahead.
            data: bytes = reader.unreader.read(min(size, held))
        else:
            data = self._sock.recv(size) if size > 0 else b""
        reader.length -= len(data)
        return data


class _Input(Body):  # type: ignore[misc]  # gunicorn has no types
    """A body for the application: what is there is given at once, without another copy."""

    def read(self, size: int | None = None) -> bytes:
        """As a raw stream's: a positive `size` may give less than that, b"" is the end."""
        if size is None or size <= 0 or self.buf.tell():
            data: bytes = super().read(size)
            return data
        return self._read_reader(size)  # type: ignore[no-any-return]  # as above


class Worker(gthread.ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threaded worker, with answers in our envelope and no wait in its main loop.

    The heartbeat that `timeout` watches is beaten by the main loop, so it bounds no request; but
    everything that waits there stops all of them. New connections therefore wait for their first
    byte in the poller, not in a thread, and connections are closed by their own thread.
    """

    def accept(self, listener: Any) -> None:
        try:
            accepted, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self.log.critical("no more connections can be opened: %s", error.strerror)
                time.sleep(0.1)
            elif error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK, errno.ECONNABORTED):
                raise
            return
        self.nr_conns += 1
        kind = accepted.family, accepted.type, accepted.proto
        client = _Client(*kind, fileno=accepted.detach())
        client.limit()
        conn = gthread.TConn(self.cfg, client, address, listener.getsockname())
        conn.set_timeout()
        self.pending_conns.append(conn)
        readable = partial(self.on_pending_socket_readable, conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, readable)

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive and self.cfg.reuse_port:
            # This socket is ours alone: whoever the kernel goes on giving it would wait in vain.
            for listener in self.sockets:
                with selectors.DefaultSelector() as waiting:
                    waiting.register(listener, selectors.EVENT_READ)
                    while waiting.select(0):
                        self.accept(listener)
                listener.close()

    def handle(self, conn: Any) -> Any:
        if isinstance(conn.sock, _Client):
            conn.sock.expect_head()
        conn.unread = True
        again = super().handle(conn)
        if again is False:
            if conn.unread:
                _linger(conn.sock)
            conn.sock.close()
            conn.closed = True
        return again

    def handle_request(self, req: Any, conn: Any) -> Any:
        if isinstance(conn.sock, _Client):
            conn.sock.expect_no_head()
        conn.body = _Body(req.body.reader, conn.sock, req._expected_100_continue)
        req.body = _Input(conn.body)
        req._expected_100_continue = False
        # The connection may carry several clients' requests, one after the other.
        peer = conn.client
        conn.client = _caller(req, peer)
        try:
            return super().handle_request(req, conn)
        finally:
            conn.client = peer

    def _keepalive_after(self, conn: Any, keepalive: Any) -> bool:
        # A client that was never told to continue may send its body or not: nothing can follow.
        conn.unread = conn.body.expected or not super()._keepalive_after(conn, True)
        return bool(keepalive) and not conn.unread

    def finish_request(self, conn: Any, fs: Any) -> None:
        if getattr(conn, "closed", False):
            self.nr_conns -= 1
        else:
            super().finish_request(conn, fs)

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Answer what never reached the application, or broke its server side, and close."""
        request_id = f"req_{uuid.uuid4().hex}"
        status, code, message = _answer(exc)
        extra = {"request_id": request_id, "status": status, "client": addr[0] if addr else ""}
        if status == 500:
            self.log.error("unexpected_error", exc_info=exc, extra=extra)
        else:
            # The offending line itself may hold a key.
            self.log.warning("refused: %s", type(exc).__name__, extra=extra)
        kind = "server_error" if status >= 500 else "invalid_request_error"
        error = {"message": message, "type": kind, "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
            "Connection: close\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"{_HARDENING}"
            f"X-Request-Id: {request_id}\r\n\r\n"
        )
        try:
            client.sendall(head.encode() + body)
        except OSError:
            self.log.debug("the client left before it could be told")


# What app.api.security_headers puts on every answer of the application.
_HARDENING = (
    "X-Content-Type-Options: nosniff\r\n"
    "X-Frame-Options: DENY\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\n"
    "Content-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\n"
    "Cache-Control: no-store\r\n"
)
_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    414: "URI Too Long",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
}


def _answer(exc: Exception) -> tuple[int, str, str]:
    """Status, code and message of a refusal; a fault of ours is an internal error."""
    for kinds, answer in _ANSWERS:
        if isinstance(exc, kinds):
            return answer
    return _OURS


def _caller(req: Any, peer: Any) -> Any:
    """Who asks: the peer, or the last one that a trusted proxy names in X-Forwarded-For.

    Only the last is what the proxy itself has seen; those before it are the client's own words.
    """
    if not req._peer_is_trusted_proxy():
        return peer
    named = [value for name, value in req.headers if name == "X-FORWARDED-FOR"]
    last = named[-1].rpartition(",")[2].strip() if named else ""
    try:
        return str(ipaddress.ip_address(last)), 0
    except ValueError:
        return peer


def _linger(sock: Any) -> None:
    """Read on for a while after a last answer.

    Closing while the client still sends makes the kernel reset the connection, and a reset takes
    the answer away from a client that has not read it yet: an upload that is refused with 401
    would look like a broken network.
    """
    if isinstance(sock, _Client):
        sock.expect_no_head()
    end = time.monotonic() + LINGER_SECONDS
    try:
        sock.shutdown(socket.SHUT_WR)
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(min(left, LINGER_IDLE_SECONDS))
            if not sock.recv(65536):
                return
    except OSError:
        return


def on_starting(server: Any) -> None:
    """Refuse an address that somebody listens on, and allow as many open files as we may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = 65536 if most == resource.RLIM_INFINITY else min(most, 65536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    if not server.cfg.reuse_port or "GUNICORN_PID" in os.environ:
        return
    if any(isinstance(address, tuple) and address[1] == 0 for address in server.cfg.address):
        # Each worker would be given another port.
        server.cfg.set("reuse_port", False)
        return
    for address in server.cfg.address:
        # With reuse_port a second gateway would get half of the first one's connections.
        if isinstance(address, tuple):
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(address)
                except OSError as error:
                    raise RuntimeError(
                        f"cannot listen on {address[0]}:{address[1]}: {error.strerror}"
                    ) from error


def pre_fork(_server: Any, worker: Any) -> None:
    """Let the first worker alone say what is said once (see `app.start`)."""
    if worker.age > 1:
        os.environ["MANIFOLD_ANNOUNCED"] = "1"


bind = "127.0.0.1:4000"
proc_name = "manifold"
worker_class = Worker
workers = _number("WEB_CONCURRENCY", min(4, _cores()))
# A stream holds its thread from the first to the last word, so threads are what streams there
# can be at a time (per worker). An idle thread costs nothing until it has run once.
threads = _number("MANIFOLD_THREADS", 64)
worker_connections = 1000
# Seconds without a heartbeat. Migrating a large database happens before the first one.
timeout = 300
graceful_timeout = 120
# Longer than nginx keeps its own connections (60), so that nginx is the one who closes.
keepalive = 75
# Measured: on a shared socket a burst of connections can all land in one worker. A socket that
# systemd opened is shared whatever we say, and with reuse_port gunicorn would not look at it.
reuse_port = "LISTEN_FDS" not in os.environ
preload_app = False
# Only a proxy on this host may say who the client is and that it came by https, and none may
# rewrite the path.
forwarded_allow_ips = "127.0.0.1,::1"
forwarder_headers = ""
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190
control_socket_disable = True
# The heartbeat is a file's time stamp; on a busy disk touching it can take seconds.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
logger_class = Log
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": "INFO", "handlers": ["stderr"]},
    "loggers": {"gunicorn.error": {"handlers": [], "propagate": True}},
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "lines",
            "stream": "ext://sys.stderr",
        }
    },
    "formatters": {"lines": {"()": "app.logs.JsonLines"}},
}

_OURS = (500, "internal_error", "internal error")
# The first line that fits counts: those of a response are subclasses of those of a request.
_ANSWERS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], tuple[int, str, str]], ...] = (
    (
        (
            refused.InvalidResponseHeader,
            refused.InvalidResponseHeaderName,
            refused.ConfigurationProblem,
        ),
        _OURS,
    ),
    (
        _SlowHeadError,
        (
            408,
            "request_timeout",
            f"the request's line and headers took longer than {HEAD_SECONDS} seconds",
        ),
    ),
    (
        refused.LimitRequestLine,
        (
            414,
            "uri_too_long",
            f"the request's first line is longer than {limit_request_line} bytes",
        ),
    ),
    (
        refused.LimitRequestHeaders,
        (
            431,
            "headers_too_large",
            f"more than {limit_request_fields} headers, or one of more than "
            f"{limit_request_field_size} bytes",
        ),
    ),
    (
        refused.ExpectationFailed,
        (417, "expectation_failed", "only `Expect: 100-continue` is understood"),
    ),
    (
        refused.UnsupportedTransferCoding,
        (
            501,
            "unsupported_transfer_coding",
            "only the transfer coding `chunked` is understood",
        ),
    ),
    (
        (refused.InvalidHeader, refused.InvalidHeaderName, refused.ObsoleteFolding),
        (400, "bad_request", "a header of the request is malformed"),
    ),
    (
        refused.InvalidHTTPVersion,
        (400, "bad_request", "this version of HTTP is not understood"),
    ),
    (refused.ParseException, (400, "bad_request", "this is not a valid HTTP request")),
)
