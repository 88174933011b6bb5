"""gunicorn's threaded worker: a thread for each request at hand."""

import errno
import selectors
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.workers import gthread

from app import turns
from app.server import limits
from app.server.answers import Answer
from app.server.bodies import Arriving, Input
from app.server.peers import caller
from app.server.refusals import Refusing, SlowHeadError, linger
from app.server.watch import Watch


class Client(socket.socket):
    """A client's connection that is waited for with a limit wherever gunicorn would block.

    The kernel keeps the limit: Python's own time-outs cost two more system calls at each step,
    which is a quarter of a small request.
    """

    _deadline: float | None = None
    _is_readable = False

    def setblocking(self, flag: bool, /) -> None:
        """As a socket's, without a system call for what is so already."""
        if self.gettimeout() != (None if flag else 0):
            super().setblocking(flag)

    def limit(self) -> None:
        """Wait for at most IDLE_SECONDS at a time, from now on."""
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", limits.IDLE_SECONDS, 0))

    def expect_head(self) -> None:
        """A request's head begins; the poller has seen its first byte."""
        self._deadline = time.monotonic() + limits.HEAD_SECONDS
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
            with turns.waiting():
                return super().recv(size)
        except TimeoutError as error:
            raise SlowHeadError from error
        finally:
            self.setblocking(True)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        try:
            super().sendall(data, flags)
        except BlockingIOError as error:
            raise ConnectionResetError(errno.ECONNRESET, "the client stopped reading") from error


class _Threads(ThreadPoolExecutor):
    """The threads of a worker."""

    @property
    def is_short(self) -> bool:
        """Whether a request waits for a thread."""
        return not self._work_queue.empty()


class Worker(Refusing, gthread.ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threaded worker, with answers in our envelope and no wait in its main loop.

    The heartbeat that `timeout` watches is beaten by the main loop, so it bounds no request; but
    everything that waits there stops all of them. New connections therefore wait for their first
    byte in the poller, not in a thread, and connections are closed by their own thread.
    """

    alive: bool

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
        client = Client(*kind, fileno=accepted.detach())
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

    def get_thread_pool(self) -> "_Threads":
        return _Threads(max_workers=self.cfg.threads)

    def init_process(self) -> None:
        self.watch = Watch(
            give_back=lambda conn: self._hand_in(conn, True),
            call=lambda: self._submit(self._follow),
            is_short=lambda: self.tpool.is_short,
        )
        # Each request looks up a dozen settings, through a method that makes each value anew. What
        # the class itself answers goes before this.
        self.cfg.__dict__.update({name: each.get() for name, each in self.cfg.settings.items()})
        super().init_process()

    def enqueue_req(self, conn: Any) -> None:
        self._submit(partial(self._follow, conn))

    def _submit(self, work: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the worker ends, and all its connections with it
            self.tpool.submit(work)

    def _follow(self, first: Any = None) -> None:
        """Answer what this connection asks, and then whatever else is asked."""
        try:
            if first is not None and not self._serve(first):
                return
            while (conn := self.watch.next()) is not None:
                self._serve(conn)
        finally:
            # It may have come to lead while it waited for an answer.
            self.watch.hand_over()

    def _serve(self, conn: Any) -> bool:
        """Answer all requests that are here; whether the connection is watched after that."""
        again: Any = False
        try:
            again = self._one(conn)
            while again is True and self.alive and conn.parser.unreader.buf.getvalue():
                again = self._one(conn)
        finally:
            is_watched = again is True and self.alive and isinstance(conn.sock, Client)
            if is_watched:
                self.watch.rest(conn)
            else:
                self._hand_in(conn, again)
        return is_watched

    def _hand_in(self, conn: Any, again: Any) -> None:
        """Leave the connection to the main loop."""
        result: Future[Any] = Future()
        result.set_result(again)
        self.method_queue.defer(self.finish_request, conn, result)

    def _one(self, conn: Any) -> Any:
        if isinstance(conn.sock, Client):
            conn.sock.expect_head()
        conn.unread = True
        turns.take(self.watch)
        try:
            again = self.handle(conn)
            if again is False and conn.unread:
                turns.leave()
        finally:
            turns.done()
        if again is False:
            if conn.unread:
                if isinstance(conn.sock, Client):
                    conn.sock.expect_no_head()
                linger(conn.sock)
            conn.sock.close()
            conn.closed = True
        return again

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Let the application answer; whether the connection may carry another request."""
        if isinstance(conn.sock, Client):
            conn.sock.expect_no_head()
        conn.body = Arriving(req.body.reader, conn.sock, req._expected_100_continue)
        req.body = Input(conn.body)
        req._expected_100_continue = False
        # The connection may carry several clients' requests, one after the other.
        if not hasattr(conn, "is_trusted"):
            conn.is_trusted = req._peer_is_trusted_proxy()
        peer = caller(req, conn.client, is_trusted=conn.is_trusted)
        begun = datetime.now()  # gunicorn's log wants a difference of two such
        answer, environ = wsgi.create(req, conn.sock, peer, conn.server, self.cfg, Answer)
        environ["wsgi.multithread"] = True
        answer.arriving = conn.body
        self._count_request(answer)
        try:
            self._answer(environ, answer)
        except OSError:
            raise
        except (Exception, SystemExit):
            if not answer.headers_sent:
                raise
            # A second answer on this connection would be taken for a part of the first.
            self.log.exception("Error handling request")
            util.close_graceful(conn.sock)
            raise StopIteration from None
        finally:
            self.log.access(answer, req, environ, datetime.now() - begun)  # as above
        return not answer.should_close()

    def _count_request(self, answer: Answer) -> None:
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
        if not self.alive or len(self.keepalived_conns) >= self.max_keepalived:
            answer.force_close()

    def _answer(self, environ: dict[str, Any], answer: Answer) -> None:
        chunks = self.wsgi(environ, answer.start_response)
        try:
            if isinstance(chunks, environ["wsgi.file_wrapper"]):
                answer.write_file(chunks)
            else:
                for chunk in chunks:
                    answer.write(chunk)
            answer.close()
        finally:
            if hasattr(chunks, "close"):
                chunks.close()

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
