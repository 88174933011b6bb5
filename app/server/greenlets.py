"""gunicorn's gevent worker: a greenlet for each connection, all in one thread of the process.

What is of use here and imported before must not remember anything that gevent replaces: requests,
ssl's users, SQLAlchemy and the application are imported by the worker, after its patch.
"""

import errno
import socket
import sys
import time
import warnings
from typing import Any

try:
    from gevent.event import Event
except ImportError:
    sys.exit("the worker class gevent needs: pip install 'manifold-gateway[gevent]'")

from gevent.monkey import MonkeyPatchWarning
from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.socket import socket as Socket
from gevent.socket import wait_read
from gunicorn import http
from gunicorn.workers import ggevent
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER

from app.server import limits
from app.server.bodies import Arriving, Input
from app.server.peers import caller
from app.server.refusals import Refusing, SlowHeadError, linger

_OUT_OF_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_TOO_EARLY = ("requests", "urllib3", "sqlalchemy", "psycopg")
"""What holds locks, sockets or classes of before the patch if it is there by then."""
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF)


class Client(Socket):  # type: ignore[misc]  # gevent's is made in C
    """A client's connection that is waited for with a limit at each step."""

    _deadline: float | None = None

    def wait(self, seconds: float) -> bool:
        """Whether the first byte of a request, or the end, comes within that time."""
        try:
            wait_read(self.fileno(), timeout=seconds)
        except (TimeoutError, OSError):
            return False
        return True

    def expect_head(self) -> None:
        """A request's head begins."""
        self._deadline = time.monotonic() + limits.HEAD_SECONDS

    def expect_no_head(self) -> None:
        """The head is here, or is not waited for any more."""
        self._deadline = None
        self.settimeout(limits.IDLE_SECONDS)

    def recv(self, *args: Any) -> Any:
        if self._deadline is None:
            return super().recv(*args)
        # A byte now and then would never be idle; so the whole head has one deadline.
        self.settimeout(max(0.001, self._deadline - time.monotonic()))
        try:
            return super().recv(*args)
        except TimeoutError as error:
            raise SlowHeadError from error

    def sendall(self, data: Any, flags: int = 0) -> None:
        # gevent's own has one limit for all of it, which a slow client would meet.
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self.send(rest, flags) :]
        except TimeoutError as error:
            raise ConnectionResetError(errno.ECONNRESET, "the client stopped reading") from error


class _Server(StreamServer):  # type: ignore[misc]  # as above
    """Accepts connections; what hinders that is one line in the log."""

    def __init__(self, log: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._log = log

    def do_read(self) -> Any:
        try:
            return super().do_read()
        except OSError as error:
            if error.errno in _OUT_OF_ROOM:
                self._log.critical("no more connections can be opened: %s", error.strerror)
                self.stop_accepting()
                self._timer = self.loop.timer(0.1)
                self._timer.start(self._start_accepting_if_started)
            elif error.errno != errno.ECONNABORTED:
                raise
            return None

    def accept_the_rest(self) -> None:
        """Take every connection that waits already."""
        while (taken := self.do_read()) is not None:
            self.do_handle(*taken)


class Worker(Refusing, ggevent.GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's gevent worker, with the limits and the answers of the threaded one.

    The heartbeat that `timeout` watches is a greenlet's: whatever holds up the process for so
    long, holds up everybody, and the worker is replaced.
    """

    _stopping: Event

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._idle: set[Client] = set()

    def patch(self) -> None:
        with warnings.catch_warnings():
            # gunicorn itself has imported ssl, and uses of it only what comes after this.
            warnings.simplefilter("ignore", MonkeyPatchWarning)
            super().patch()
        stale = [name for name in _TOO_EARLY if name in sys.modules]
        if stale:
            raise RuntimeError(f"imported before gevent's patch: {', '.join(stale)}")

    def init_signals(self) -> None:
        self._stopping = Event()
        super().init_signals()

    def handle_exit(self, sig: Any, frame: Any) -> None:
        super().handle_exit(sig, frame)
        self._stopping.set()

    def run(self) -> None:
        options = {}
        if self.cfg.is_ssl:
            options["ssl_context"] = ggevent.ssl_context(self.cfg)
        pool = Pool(self.worker_connections)
        servers = [self._serve(listener, pool, options) for listener in self.sockets]
        while self.alive:
            self.notify()
            # `alive` ends by other ways than a signal too.
            self._stopping.wait(1.0)
        for server in servers:
            if self.cfg.reuse_port:
                # This socket is ours alone: who the kernel has given it already waits for us.
                server.accept_the_rest()
            server.close()
        self._finish(pool)

    def _serve(self, listener: Any, pool: Pool, options: dict[str, Any]) -> _Server:
        listener.setblocking(True)

        def handle(client: Any, address: Any) -> None:
            self.handle(listener, client, address)

        server = _Server(self.log, listener, handle=handle, spawn=pool, **options)
        if self.cfg.workers > 1 and not self.cfg.reuse_port:
            server.max_accept = 1
        server.start()
        return server

    def _finish(self, pool: Pool) -> None:
        """Wait until the requests at hand are answered, within `graceful_timeout`."""
        begun = time.monotonic()
        while len(pool):
            waited = time.monotonic() - begun
            if waited > self.cfg.graceful_timeout:
                self.log.warning("Worker graceful timeout (pid:%s)", self.pid)
                pool.kill(timeout=1)
                return
            if waited > STOP_KEEPALIVE_LINGER:
                for client in list(self._idle):
                    # Wakes up its greenlet, which finds the end.
                    client.shutdown(socket.SHUT_RDWR)
            self.notify()
            pool.join(timeout=0.2)

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Answer the requests of one connection, one after the other."""
        unread = True
        try:
            if not self.cfg.is_ssl:
                client = Client(client.family, client.type, client.proto, client.detach())
                client.expect_no_head()
            unread = self._converse(listener.getsockname(), client, addr)
            if unread:
                linger(client)
        except OSError as error:
            if error.errno not in _GONE:
                self.log.exception("the connection broke")
        finally:
            client.close()

    def _converse(self, server: Any, client: Any, peer: Any) -> bool:
        """Whether the client may still be sending when there is nothing more to answer."""
        parser = http.get_parser(self.cfg, client, peer)
        while self._has_more(client, parser):
            req = None
            try:
                _expect_head(client)
                req = next(parser)
                _expect_no_head(client)
                body = Arriving(req.body.reader, client, req._expected_100_continue)
                req.body = Input(body)
                req._expected_100_continue = False
                # The connection may carry several clients' requests, one after the other.
                asking = caller(req, peer, is_trusted=req._peer_is_trusted_proxy())
                super().handle_request(server, req, client, asking)
            except (http.errors.NoMoreData, StopIteration) as error:
                self.log.debug("the connection ends: %s", error)
                if req is None:
                    return False
                keeps = False
            except OSError as error:
                if error.errno not in _GONE:
                    self.log.exception("the connection broke")
                return True
            except Exception as error:  # noqa: BLE001  # the connection's border
                _expect_no_head(client)
                self.handle_error(req, client, peer, error)
                return True
            else:
                keeps = self.alive
            # A client that was never told to continue may send its body or not.
            if body.expected or not _is_read(parser):
                return True
            if not keeps:
                return False
        return False

    def _has_more(self, client: Any, parser: Any) -> bool:
        """Whether another request comes, before the connection has been idle for too long."""
        if parser.unreader.buf.getbuffer().nbytes or not isinstance(client, Client):
            return True
        self._idle.add(client)
        try:
            return client.wait(self.cfg.keepalive)
        finally:
            self._idle.discard(client)


def _expect_head(client: Any) -> None:
    if isinstance(client, Client):
        client.expect_head()


def _expect_no_head(client: Any) -> None:
    if isinstance(client, Client):
        client.expect_no_head()


def _is_read(parser: Any) -> bool:
    """Whether the body of the last request is read to its end, or could be at once."""
    try:
        return bool(parser.finish_body(deadline=time.monotonic() + limits.DRAIN_SECONDS))
    except (OSError, http.errors.ParseException):
        return False
