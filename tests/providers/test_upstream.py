"""Upstream against real sockets: what is sent, what is repeated, and how it fails."""

import gzip
import io
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from app.errors import (
    NotFound,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from app.providers.multipart import MultipartFile
from app.providers.upstream import Upstream, error_of
from app.transfers import Cancellation
from tests.builders import make_deployment, make_upload

Script = Callable[[socket.socket, bytes], None]


class Server:
    """Answers the n-th request with the n-th script, the last one for ever; keeps heads and bodies.

    A script gets the connection and the request; one that returns leaves the connection open.
    """

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.requests: list[bytes] = []
        self.connections = 0
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            while request := _request(connection):
                with self._lock:
                    self.requests.append(request)
                    script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                script(connection, request)

    def close(self) -> None:
        self._listener.close()
        for connection in self._open:
            connection.close()


def _request(connection: socket.socket) -> bytes:
    raw = b""
    while b"\r\n\r\n" not in raw:
        piece = connection.recv(65536)
        if not piece:
            return b""
        raw += piece
    head = raw.partition(b"\r\n\r\n")[0]
    found = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    whole = len(head) + 4 + (int(found[1]) if found else 0)
    while len(raw) < whole:
        raw += connection.recv(65536)
    return raw


def answer(status: int = 200, body: bytes = b"{}", **headers: str) -> Script:
    def script(connection: socket.socket, _: bytes) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    return script


def raw(text: bytes, *, then_close: bool = True) -> Script:
    def script(connection: socket.socket, _: bytes) -> None:
        connection.sendall(text)
        if then_close:
            connection.shutdown(socket.SHUT_RDWR)

    return script


def hang_up(connection: socket.socket, _: bytes) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def silence(connection: socket.socket, _: bytes) -> None:
    time.sleep(5)


@contextmanager
def serving(*scripts: Script) -> Iterator[Server]:
    server = Server(*scripts)
    try:
        yield server
    finally:
        server.close()


def speak_to(server: Server | str, *, retries: int = 0, timeout: float = 5.0) -> Upstream:
    address = server if isinstance(server, str) else server.address
    deployment = make_deployment(max_retries=retries, timeout_seconds=timeout)
    return Upstream(
        address,
        headers=lambda: {"Authorization": "Bearer sk-up"},
        deployment=deployment,
        pool_size=2,
    )


def upload_to(upstream: Upstream, content: bytes = b"abc") -> dict[str, object]:
    with MultipartFile({"purpose": "batch"}, make_upload(content)) as body:
        return upstream.send_body("/files", body, body.content_type)


def infer_at(upstream: Upstream, cancellation: Cancellation | None = None) -> bytes:
    reply = upstream.stream("POST", "/chat/completions", body=b"{}", cancellation=cancellation)
    try:
        return b"".join(reply.chunks())
    finally:
        reply.close()


# What is sent


def test_a_request_carries_the_credential_and_nothing_that_is_not_ours(monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login thief password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with serving(answer(200, b"{}", Set_Cookie="session=1; Path=/")) as server:
        upstream = speak_to(server)
        upstream.json("GET", "/files", params={"limit": "1"})
        upstream.json("GET", "/files")
        first, second = (request.decode() for request in server.requests)
    assert first.startswith("GET /v1/files?limit=1 HTTP/1.1\r\n")
    for request in (first, second):
        assert "authorization: bearer sk-up\r\n" in request.lower()
        assert "accept-encoding: identity\r\n" in request.lower()
        assert "cookie" not in request.lower()
    assert server.connections == 1, "the connection was not used again"


def test_the_credential_is_asked_for_anew_at_every_request():
    tokens = iter(["one", "two"])
    with serving(answer()) as server:
        upstream = Upstream(
            server.address + "/",
            headers=lambda: {"Authorization": next(tokens)},
            deployment=make_deployment(),
            pool_size=1,
        )
        upstream.json("GET", "/files")
        upstream.json("DELETE", "/files/a")
    assert [b"one" in r for r in server.requests] == [True, False]
    assert b"two" in server.requests[1]


def test_an_upload_has_a_length_and_is_sent_whole():
    with serving(answer(201, b'{"id": "file-1"}')) as server:
        assert upload_to(speak_to(server), b"x" * 3_000_000) == {"id": "file-1"}
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert b"transfer-encoding" not in head.lower()
    assert b"x" * 3_000_000 in body


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status):
    with serving(answer()) as thief, serving(answer(status, b"", Location=thief.address)) as server:
        upstream = speak_to(server, retries=2)
        for call in (
            lambda: upstream.json("GET", "/files"),
            lambda: upload_to(upstream),
            lambda: upstream.raise_for(upstream.stream("GET", "/files/a/content")),
        ):
            with pytest.raises(UpstreamError, match="redirect"):
                call()
    assert thief.requests == []


# Answers


@pytest.mark.parametrize(("status", "body"), [(204, b""), (200, b""), (200, b" \r\n")])
def test_an_empty_answer_is_an_empty_object(status, body):
    with serving(answer(status, body)) as server:
        assert speak_to(server).json("DELETE", "/files/a") == {}


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b'"text"', b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000],
    ids=["html", "list", "text", "null", "no UTF-8", "deep list", "deep object"],
)
def test_an_answer_that_is_no_object_is_an_upstream_error(body):
    with (
        serving(answer(200, body)) as server,
        pytest.raises(UpstreamError, match="not a JSON object"),
    ):
        speak_to(server).json("GET", "/files")


def test_a_compressed_answer_is_understood_though_it_was_not_asked_for():
    packed = gzip.compress(b'{"id": "file-1"}')
    with serving(answer(200, packed, Content_Encoding="gzip")) as server:
        upstream = speak_to(server)
        assert upstream.json("GET", "/files/a") == {"id": "file-1"}
        reply = upstream.stream("GET", "/files/a/content")
        assert reply.length is None, "that length is the packed one's"
        assert b"".join(reply.chunks()) == b'{"id": "file-1"}'
        reply.close()


def test_a_broken_compressed_answer_is_an_upstream_error():
    with serving(answer(200, b"no gzip at all", Content_Encoding="gzip")) as server:
        upstream = speak_to(server)
        with pytest.raises(UpstreamError):
            upstream.json("GET", "/files/a")
        with pytest.raises(UpstreamError):
            infer_at(upstream)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, UpstreamRejected),
        (401, UpstreamAuthFailed),
        (403, UpstreamAuthFailed),
        (404, NotFound),
        (409, UpstreamRejected),
        (413, UpstreamRejected),
        (422, UpstreamRejected),
        (429, UpstreamRejected),
        (500, UpstreamRejected),
        (529, UpstreamRejected),
    ],
)
def test_a_status_is_an_error_of_its_own(status, error):
    body = {"message": "no", "type": "some_type", "param": "purpose", "code": "some_code"}
    with (
        serving(answer(status, json.dumps({"error": body}).encode())) as server,
        pytest.raises(error) as failure,
    ):
        speak_to(server).json("GET", "/files")
    assert failure.value.status == (502 if status in (401, 403) else status)
    if error is UpstreamRejected:
        assert failure.value.body() == {"error": body}
    if error is UpstreamAuthFailed:
        assert failure.value.message != "no" and "sk-up" not in failure.value.message


@pytest.mark.parametrize(
    ("raw_error", "status", "message", "kind", "param", "code"),
    [
        (b"<html><h1>Bad Gateway</h1></html>", 502, "status 502", "server_error", None, None),
        (b"", 500, "status 500", "server_error", None, None),
        (b"\xff\xfe", 400, "status 400", "invalid_request_error", None, None),
        (
            b'{"object":"error","message":"too long","type":"BadRequestError","code":400}',
            400,
            "too long",
            "BadRequestError",
            None,
            "400",
        ),
        (
            b'{"error":{"code":"DeploymentNotFound","message":"gone"}}',
            404,
            "gone",
            "invalid_request_error",
            None,
            "DeploymentNotFound",
        ),
        (
            b'{"error":{"code":"429","message":"slow down"}}',
            429,
            "slow down",
            "rate_limit_error",
            None,
            "429",
        ),
        (b'{"error":"unauthorized"}', 400, "unauthorized", "invalid_request_error", None, None),
        (b'{"detail":"Not Found"}', 404, "Not Found", "invalid_request_error", None, None),
        (b'{"message":"Internal"}', 500, "Internal", "server_error", None, None),
        (b'{"error":null}', 500, "status 500", "server_error", None, None),
        (b'{"error":{"message":null}}', 500, "status 500", "server_error", None, None),
        (b'{"error":{"message":["a"]}}', 500, "status 500", "server_error", None, None),
        (b'{"error":[]}', 500, "status 500", "server_error", None, None),
        (b"[1]", 500, "status 500", "server_error", None, None),
        (b"null", 500, "status 500", "server_error", None, None),
        (b"[" * 100_000, 500, "status 500", "server_error", None, None),
        (
            b'{"error":{"message":"m","type":{},"param":["p"],"code":{"a":1}}}',
            400,
            "m",
            "invalid_request_error",
            None,
            None,
        ),
        (b'{"error":{"message":"a\\u0000b\\ud800c"}}', 400, "ab?c", None, None, None),
        (
            b'{"error":{"message":"m","type":"\\ud800","param":"\\u0000p","code":"\\udfff"}}',
            400,
            "m",
            "?",
            "p",
            "?",
        ),
    ],
)
def test_whatever_an_upstream_writes_becomes_openais_error(
    raw_error, status, message, kind, param, code
):
    error = error_of(raw_error, status)
    assert message in error["message"]
    assert "\0" not in error["message"]
    assert kind is None or error["type"] == kind
    assert (error["param"], error["code"]) == (param, code)
    json.dumps(error, ensure_ascii=False).encode()


def test_what_else_an_error_holds_is_kept():
    inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}}
    raw_error = {"error": {"message": "no", "code": "content_filter", "innererror": inner}}
    assert error_of(json.dumps(raw_error).encode(), 400)["innererror"] == inner


# Repeating


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize(
    "trouble",
    [answer(503), answer(500), answer(429, Retry_After="0"), answer(408), hang_up],
    ids=["503", "500", "429", "408", "broken"],
)
def test_what_may_be_repeated_is(method, trouble):
    with serving(trouble, answer(200, b'{"id": "a"}')) as server:
        assert speak_to(server, retries=1).json(method, "/files/a") == {"id": "a"}
    assert len(server.requests) == 2


@pytest.mark.parametrize("trouble", [answer(503), answer(500), hang_up], ids=["503", "500", "cut"])
def test_repeating_has_an_end(trouble):
    with serving(trouble) as server, pytest.raises(UpstreamError):
        speak_to(server, retries=2).json("GET", "/files/a")
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422])
def test_a_refusal_is_not_repeated(status):
    with serving(answer(status)) as server:
        upstream = speak_to(server, retries=2)
        with pytest.raises((UpstreamError, NotFound)):
            upstream.json("GET", "/files/a")
        with pytest.raises((UpstreamError, NotFound)):
            upload_to(upstream)
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_an_upload_that_was_not_taken_is_sent_again_from_its_first_byte(status):
    with serving(answer(status), answer(200, b'{"id": "a"}')) as server:
        upload_to(speak_to(server, retries=1), b"abc" * 100_000)
    first, second = (r.partition(b"\r\n\r\n")[2] for r in server.requests)
    assert first == second


@pytest.mark.parametrize(
    "trouble",
    [answer(500), answer(502), answer(504), answer(408), hang_up],
    ids=["500", "502", "504", "408", "broken"],
)
def test_an_upload_that_may_have_been_stored_is_not_sent_again(trouble):
    with serving(trouble) as server, pytest.raises(UpstreamError) as failure:
        upload_to(speak_to(server, retries=2))
    assert len(server.requests) == 1
    assert not failure.value.retryable


@pytest.mark.parametrize("trouble", [answer(503), answer(429), hang_up], ids=["503", "429", "cut"])
def test_inference_is_never_repeated_here(trouble):
    with serving(trouble) as server:
        with suppress(UpstreamError):
            infer_at(speak_to(server, retries=2))
        assert len(server.requests) == 1


@pytest.mark.parametrize("wait", ["soon", "0.05", "-1", "Wed, 21 Oct 2015 07:28:00 GMT", ""])
def test_a_strange_retry_after_does_not_hide_the_answer(wait):
    with serving(answer(429, Retry_After=wait)) as server:
        begun = time.monotonic()
        with pytest.raises(UpstreamRejected) as failure:
            speak_to(server, retries=1).json("GET", "/files")
    assert failure.value.status == 429
    assert len(server.requests) == 2
    assert time.monotonic() - begun < 2


def test_the_upstreams_wish_to_wait_reaches_the_client():
    headers = {"Retry_After": "17", "Retry_After_Ms": "17000", "Server": "secret"}
    with (
        serving(answer(429, b"{}", **headers)) as server,
        pytest.raises(UpstreamRejected) as failure,
    ):
        speak_to(server).json("GET", "/files")
    assert failure.value.headers == {"retry-after": "17", "retry-after-ms": "17000"}


# No answer


def calls(upstream: Upstream) -> list[Callable[[], object]]:
    return [
        lambda: upstream.json("GET", "/files"),
        lambda: upload_to(upstream),
        lambda: infer_at(upstream),
    ]


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("call", [0, 1, 2], ids=["json", "upload", "inference"])
def test_a_silent_upstream_is_a_timeout(retries, call):
    with serving(silence) as server, pytest.raises(UpstreamTimeout) as failure:
        calls(speak_to(server, retries=retries, timeout=0.15))[call]()
    assert (failure.value.status, failure.value.code) == (504, "upstream_timeout")
    assert failure.value.provider == "openai"
    # An upload may have been stored all the same.
    assert failure.value.retryable == (call == 2)


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("call", [0, 1, 2], ids=["json", "upload", "inference"])
def test_a_closed_port_cannot_be_reached(retries, call):
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    listener.close()
    with pytest.raises(UpstreamError, match="could not be reached") as failure:
        calls(speak_to(address, retries=retries))[call]()
    assert failure.value.retryable


def test_an_unknown_host_cannot_be_reached():
    with pytest.raises(UpstreamError, match="could not be reached") as failure:
        upload_to(speak_to("http://no-such-host.invalid/v1"))
    assert failure.value.retryable


@pytest.mark.parametrize("call", [0, 1, 2], ids=["json", "upload", "inference"])
@pytest.mark.parametrize(
    "script",
    [hang_up, raw(b"SSH-2.0-OpenSSH\r\n"), raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")],
    ids=["hangs up", "speaks no HTTP", "stops in the middle"],
)
def test_a_broken_connection_is_an_upstream_error(script, call):
    with serving(script) as server, pytest.raises(UpstreamError) as failure:
        calls(speak_to(server))[call]()
    assert failure.value.status == 502


# A body that is read piece by piece


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 10\r\n\r\nabcde",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nff\r\nabcde",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nzz\r\n",
    ],
    ids=["too short", "no last chunk", "short chunk", "no size"],
)
def test_a_body_that_ends_before_its_time_breaks(head):
    with serving(raw(b"HTTP/1.1 200 OK\r\n" + head)) as server:
        reply = speak_to(server).stream("GET", "/files/a/content")
        got = b""
        with pytest.raises(UpstreamError):
            for chunk in reply.chunks():
                got += chunk
        reply.close()
    assert b"abcde".startswith(got)


def test_pieces_are_not_held_back():
    go_on = threading.Event()

    def script(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        assert go_on.wait(5)
        connection.sendall(b"3\r\ntwo\r\n0\r\n\r\n")

    with serving(script) as server:
        reply = speak_to(server).stream("POST", "/x", body=b"{}")
        pieces = reply.chunks()
        assert next(pieces) == b"one"
        go_on.set()
        assert b"".join(pieces) == b"two"
        reply.close()


def test_a_pause_in_the_middle_of_a_body_is_a_timeout():
    def script(connection, request):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none")
        silence(connection, request)

    with serving(script) as server:
        pieces = speak_to(server, timeout=0.15).stream("GET", "/x").chunks()
        assert next(pieces) == b"one"
        with pytest.raises(UpstreamTimeout):
            next(pieces)


def test_a_body_that_is_not_read_to_its_end_closes_the_connection():
    with serving(answer(200, b"x" * 1_000_000)) as server:
        upstream = speak_to(server)
        for _ in range(2):
            reply = upstream.stream("GET", "/x")
            next(reply.chunks())
            reply.close()
        assert server.connections == 2
        reply = upstream.stream("GET", "/x")
        assert len(b"".join(reply.chunks())) == 1_000_000
        reply.close()
        infer_at(upstream)
    assert server.connections == 4, "inference has a pool of its own"


def test_an_error_body_is_read_up_to_a_limit():
    with serving(answer(400, b"x" * 1_000_000)) as server:
        reply = speak_to(server).stream("POST", "/x", body=b"{}")
        assert reply.read(10) == b"x" * 10
        reply.close()


def test_a_cancel_ends_the_wait_for_an_answer():
    cancellation = Cancellation()
    threading.Timer(0.1, cancellation.cancel).start()
    begun = time.monotonic()
    with serving(silence) as server, pytest.raises(UpstreamError) as failure:
        infer_at(speak_to(server), cancellation)
    assert time.monotonic() - begun < 2
    assert failure.value.retryable


def test_a_cancel_before_the_request_ends_it_at_once():
    cancellation = Cancellation()
    cancellation.cancel()
    begun = time.monotonic()
    with serving(silence) as server, pytest.raises(UpstreamError):
        infer_at(speak_to(server), cancellation)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"], ids=["kept", "closed"])
def test_a_cancel_ends_the_wait_for_the_next_piece(more):
    cancellation = Cancellation()

    def script(connection, request):
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + more)
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        silence(connection, request)

    with serving(script) as server:
        reply = speak_to(server).stream("POST", "/x", body=b"{}", cancellation=cancellation)
        pieces = reply.chunks()
        assert next(pieces) == b"one"
        threading.Timer(0.1, cancellation.cancel).start()
        begun = time.monotonic()
        with pytest.raises(UpstreamError):
            next(pieces)
        assert time.monotonic() - begun < 2
        reply.close()


def test_one_requests_cancel_does_not_touch_the_next():
    cancellation = Cancellation()
    with serving(answer(200, b"{}")) as server:
        upstream = speak_to(server)
        infer_at(upstream, cancellation)
        upstream.json("GET", "/files")
        # The socket of the first request is back in its pool, and the watch has ended by now.
        assert infer_at(upstream) == b"{}"


def test_the_proxy_of_the_environment_is_used(monkeypatch):
    with serving(answer(200, b'{"id": "by proxy"}')) as proxy:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, proxy.address.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("NO_PROXY", "")
        assert speak_to("http://upstream.test/v1").json("GET", "/a") == {"id": "by proxy"}
    assert proxy.requests[0].startswith(b"GET http://upstream.test/v1/a HTTP/1.1")


def test_a_server_that_is_not_who_it_says_is_not_spoken_to(tmp_path):
    import ssl

    import trustme

    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError, ssl.SSLError):
            while True:
                connection, _ = listener.accept()
                with suppress(OSError, ssl.SSLError):
                    secure = context.wrap_socket(connection, server_side=True)
                    answer(200, b'{"id": "a"}')(secure, _request(secure))
                    secure.close()

    threading.Thread(target=serve, daemon=True).start()
    address = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
    with pytest.raises(UpstreamError) as failure:
        upload_to(speak_to(address))
    assert failure.value.retryable, "nothing was sent"
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(bundle)
    os.environ["REQUESTS_CA_BUNDLE"] = str(bundle)
    try:
        assert speak_to(address).json("GET", "/files") == {"id": "a"}
    finally:
        del os.environ["REQUESTS_CA_BUNDLE"]
        listener.close()


def test_a_late_cancel_does_not_touch_who_has_the_connection_now():
    cancellation = Cancellation()

    def slowly(connection, request):
        cancellation.cancel()
        time.sleep(0.1)
        answer(200, b"second")(connection, request)

    with serving(answer(200, b"first"), slowly) as server:
        upstream = speak_to(server)
        assert infer_at(upstream, cancellation) == b"first"
        assert infer_at(upstream) == b"second"
        assert server.connections == 1


# What a request is made of


def test_a_small_body_comes_with_its_head(monkeypatch):
    sent: list[bytes] = []
    send = socket.socket.sendall

    def sendall(sock: socket.socket, data: bytes, *flags: int) -> None:
        if sock.getpeername() == at:
            sent.append(bytes(data))
        send(sock, data, *flags)

    with serving(answer()) as server:
        at = ("127.0.0.1", int(server.address.rpartition(":")[2].removesuffix("/v1")))
        monkeypatch.setattr(socket.socket, "sendall", sendall)
        upstream = speak_to(server)
        infer_at(upstream)
        upstream.post("/batches", {"a": "b"})
        upload_to(upstream, b"x" * 300_000)
    assert len(sent) >= 4, "what is large is not copied"
    assert sent[:2] == server.requests[:2]
    assert b"".join(sent[2:]) == server.requests[2]


class Dripping(io.RawIOBase):
    """A body that comes in small pieces, as from a slow client."""

    def __init__(self, pieces: int, size: int) -> None:
        self._left, self._size, self.len = pieces, size, pieces * size
        self.given = 0

    def readable(self) -> bool:
        return True

    def read(self, _size: int = -1) -> bytes:
        if not self._left:
            return b""
        self._left -= 1
        self.given += self._size
        return b"x" * self._size

    def __len__(self) -> int:
        return self.len

    def tell(self) -> int:
        return self.given


def test_a_body_that_comes_in_small_pieces_is_not_gathered(monkeypatch):
    sent: list[int] = []
    body = Dripping(1000, 1024)
    unsent: list[int] = []
    send = socket.socket.sendall

    def sendall(sock: socket.socket, data: bytes, *flags: int) -> None:
        if sock.getpeername() == at:
            sent.append(len(data))
            unsent.append(body.given - sum(sent))
        send(sock, data, *flags)

    with serving(answer()) as server:
        at = ("127.0.0.1", int(server.address.rpartition(":")[2].removesuffix("/v1")))
        monkeypatch.setattr(socket.socket, "sendall", sendall)
        speak_to(server).send_body("/files", body, "application/octet-stream")
    assert server.requests[0].endswith(b"x" * 1024_000)
    assert max(sent) <= 64 * 1024
    assert max(unsent) <= 1024, "nothing waits behind the first pieces"


@pytest.mark.parametrize(
    ("path", "params", "line"),
    [
        ("/files/file-1_a.b~c", None, b"GET /v1/files/file-1_a.b~c HTTP/1.1"),
        ("/files/a b", None, b"GET /v1/files/a%20b HTTP/1.1"),
        ("/files/a%2Fb", None, b"GET /v1/files/a%2Fb HTTP/1.1"),
        ("/files", {"after": "a&b"}, b"GET /v1/files?after=a%26b HTTP/1.1"),
        ("/files/\u00e4", None, b"GET /v1/files/%C3%A4 HTTP/1.1"),
    ],
)
def test_a_path_is_written_as_an_address_needs_it(path, params, line):
    with serving(answer()) as server:
        speak_to(server).json("GET", path, params=params)
    assert server.requests[0].splitlines()[0] == line


def test_a_request_says_no_more_of_itself_than_it_needs():
    with serving(answer()) as server:
        upstream = speak_to(server)
        upstream.json("GET", "/files")
        upstream.json("DELETE", "/files/1")
        upstream.post("/files/1/cancel")

    def headers(request: bytes) -> dict[str, str]:
        lines = request.decode().partition("\r\n\r\n")[0].split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    always = {
        "host": server.address.removeprefix("http://").removesuffix("/v1"),
        "accept": "*/*",
        "accept-encoding": "identity",
        "user-agent": "manifold",
        "authorization": "Bearer sk-up",
    }
    assert headers(server.requests[0]) == always
    assert headers(server.requests[1]) == {**always, "content-length": "0"}
    posted = {**always, "content-length": "0", "content-type": "application/json"}
    assert headers(server.requests[2]) == posted


def test_a_header_that_would_be_two_is_not_sent():
    with serving(answer()) as server, pytest.raises(UpstreamError):
        speak_to(server).stream("GET", "/files/1/content", headers={"Range": "bytes=0-1\r\nX: y"})
    assert server.requests == []
