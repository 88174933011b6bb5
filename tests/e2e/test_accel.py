"""Downloads that a real nginx sends from the gateway's disk, and what nobody gets out of that."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.e2e.conftest import StartGateway, missing
from tests.e2e.gateway import Account, Gateway, Upstream, model
from tests.e2e.nginx import Nginx, is_installed
from tests.e2e.test_nginx import answer, assert_envelope, log_line

CONTENT = os.urandom(3_000_000)
PREFIX = "/_manifold/"
NAME = "déjà vu.html"


@pytest.fixture(scope="module")
def account(upstream: Upstream) -> Account:
    return upstream.account("behind-accel", download_any=True)


@pytest.fixture(scope="module")
def gateway(start_gateway: StartGateway, account: Account) -> Gateway:
    kept = {"model_name": "kept", "litellm_params": {"model": "local/store"}}
    return start_gateway(
        {
            "model_list": [model("gpt", "openai/gpt-4o", account), kept],
            "general_settings": {"accel_redirect": PREFIX, "keep_content": True},
        },
        workers=1,
    )


@pytest.fixture(scope="module")
def nginx(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    if not is_installed():
        missing("nginx is not installed")
    behind = gateway.url.removeprefix("http://")
    with Nginx(tmp_path_factory.mktemp("nginx"), behind, files=gateway.data_dir) as running:
        yield running


@pytest.fixture(scope="module")
def files(gateway: Gateway) -> dict[str, str]:
    """An id for each place: what is kept of a provider's file, and a local model's own."""
    ids = {}
    with closing(gateway.client()) as client:
        for name, target in (("kept", "gpt"), ("local", "kept")):
            made = client.files.create(
                file=(NAME, CONTENT, "text/html"),
                purpose="user_data",
                extra_body={"target_model_names": target},
            )
            ids[name] = made.id
    return ids


def get(nginx: Nginx, gateway: Gateway, file_id: str, method: str = "GET", **headers: str) -> Any:
    told = {"Authorization": f"Bearer {gateway.master_key}", **headers}
    return nginx.api(method, f"/v1/files/{file_id}/content", headers=told)


def sent_by_nginx(gateway: Gateway, response: Any) -> bool:
    return bool(log_line(gateway, response.headers["x-request-id"]).get("by_nginx"))


def drop_own_words(headers: Any) -> dict[str, str]:
    """The headers but those that differ from one answer to the next, and between two servers."""
    own = ("date", "server", "connection", "x-request-id", "strict-transport-security")
    return {name.lower(): value for name, value in headers.items() if name.lower() not in own}


@pytest.mark.parametrize("place", ["kept", "local"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "byte_range", ["", "bytes=0-0", "bytes=1000-1999", "bytes=-5", "bytes=2999990-99999999"]
)
def test_nginx_says_the_same_as_the_gateway(
    nginx: Nginx,
    gateway: Gateway,
    files: dict[str, str],
    place: str,
    method: str,
    byte_range: str,
):
    asked = {"Range": byte_range} if byte_range else {}
    through = get(nginx, gateway, files[place], method, **asked)
    direct = gateway.api(method, f"/v1/files/{files[place]}/content", headers=asked)
    assert (through.status_code, through.content) == (direct.status_code, direct.content)
    said, ours = drop_own_words(through.headers), drop_own_words(direct.headers)
    if byte_range:
        # nginx takes a part for proof enough.
        assert ours.pop("accept-ranges") == "bytes"
    assert said == ours
    assert sent_by_nginx(gateway, through)
    assert not sent_by_nginx(gateway, direct)
    for response in (through, direct):
        if method == "GET":
            line = log_line(gateway, response.headers["x-request-id"])
            assert line["bytes_out"] == len(response.content)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Range": "bytes=0-1,5-6"}, id="two ranges"),
        pytest.param({"Range": "bytes=a-b"}, id="no range"),
        pytest.param({"If-Unmodified-Since": "Sat, 01 Jan 2000 00:00:00 GMT"}, id="unmodified"),
        pytest.param({"If-Modified-Since": "Sat, 01 Jan 2050 00:00:00 GMT"}, id="modified"),
        pytest.param({"Range": "bytes=0-1", "If-Range": '"x"'}, id="if-range"),
    ],
)
def test_what_nginx_reads_otherwise_is_the_gateway_s(
    nginx: Nginx, gateway: Gateway, files: dict[str, str], headers: dict[str, str]
):
    through = get(nginx, gateway, files["local"], **headers)
    direct = gateway.api("GET", f"/v1/files/{files['local']}/content", headers=headers)
    assert (through.status_code, through.content) == (direct.status_code, direct.content)
    assert not sent_by_nginx(gateway, through)


def test_a_range_behind_the_end_is_refused_in_the_envelope(
    nginx: Nginx, gateway: Gateway, files: dict[str, str]
):
    response = get(nginx, gateway, files["local"], Range="bytes=3000000-")
    assert response.status_code == 416
    assert response.headers["Content-Range"] == "bytes */3000000"
    assert "error" in response.json()


def test_a_stranger_gets_nothing(nginx: Nginx, gateway: Gateway, files: dict[str, str]):
    key = gateway.new_user(user_id="stranger")["key"]
    for file_id in files.values():
        refused = get(nginx, gateway, file_id, Authorization=f"Bearer {key}")
        assert refused.status_code == 403
        assert_envelope(refused.content, "permission_denied", "permission_error")


def paths(gateway: Gateway) -> list[str]:
    """Every file below the data directory, as nginx would be told of it."""
    found = [each for each in gateway.data_dir.rglob("*") if each.is_file()]
    told = [PREFIX + each.relative_to(gateway.data_dir).as_posix() for each in found]
    assert any("/kept/" in each for each in told)
    assert any(each.endswith(".bin") for each in told)
    assert any(each.endswith("manifold.db") for each in told)
    return told


def test_nobody_reaches_the_files_directly(nginx: Nginx, gateway: Gateway, files: dict[str, str]):
    key = {"Authorization": f"Bearer {gateway.master_key}"}
    for path in paths(gateway):
        for spelling in (path, path.replace(PREFIX, "/x/..//%5fmanifold/")):
            for method in ("GET", "HEAD", "POST"):
                with nginx.connect() as connection:
                    lines = [f"{method} {spelling} HTTP/1.1", "Host: localhost"]
                    lines += [f"{name}: {value}" for name, value in key.items()]
                    lines += [f"X-Accel-Redirect: {path}", "Content-Length: 0"]
                    connection.sendall("\r\n".join([*lines, "", ""]).encode())
                    if method == "HEAD":
                        assert b" 404 " in connection.recv(100)
                    else:
                        assert answer(connection)[0] == 404


def test_who_comes_without_nginx_gets_the_bytes(gateway: Gateway, files: dict[str, str]):
    """From another address a proxy's word is nobody's."""
    port = int(gateway.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 20, ("127.0.0.7", 0)) as connection:
        connection.sendall(
            f"GET /v1/files/{files['local']}/content HTTP/1.1\r\nHost: a\r\n"
            f"Authorization: Bearer {gateway.master_key}\r\nX-Manifold-Accel: {PREFIX}\r\n"
            f"x-manifold-accel: {PREFIX}\r\n\r\n".encode()
        )
        status, headers, body = answer(connection)
    assert (status, body) == (200, CONTENT)
    assert headers["X-Accel-Redirect"] is None
    # Nor does nginx believe its clients; another address than its own is nobody's either.
    said = gateway.api(
        "GET", f"/v1/files/{files['local']}/content", headers={"X-Manifold-Accel": "/elsewhere/"}
    )
    assert said.content == CONTENT


def test_an_upstream_sends_nobody_to_our_disk(
    nginx: Nginx, gateway: Gateway, account: Account, files: dict[str, str]
):
    """A header of an upstream's must not become an order to nginx."""
    stolen = next(each for each in paths(gateway) if each.endswith(".bin"))
    for status in (200, 400):
        account.fail(
            method="POST",
            path_regex="chat/completions$",
            status=status,
            body={"id": "x", "object": "chat.completion", "choices": [], "error": {"message": "m"}},
            headers={"X-Accel-Redirect": stolen, "X-Accel-Limit-Rate": "1"},
            times=1,
        )
        response = nginx.api(
            "POST",
            "/v1/chat/completions",
            headers={"Authorization": f"Bearer {gateway.master_key}"},
            json={"model": "gpt", "messages": [{"role": "user", "content": "hello"}]},
        )
        assert response.status_code == status
        assert CONTENT[:100] not in response.content
        json.loads(response.content)


# The last two, for they take files away.
def test_a_file_that_goes_while_nginx_sends_it_arrives_whole(
    nginx: Nginx, gateway: Gateway, files: dict[str, str]
):
    with nginx.connect() as connection:
        connection.sendall(
            f"GET /v1/files/{files['kept']}/content HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {gateway.master_key}\r\n\r\n".encode()
        )
        first = connection.recv(1000)
        deleted = gateway.api("DELETE", f"/v1/files/{files['kept']}")
        assert deleted.json()["deleted"]
        received = len(first.partition(b"\r\n\r\n")[2])
        while received < len(CONTENT):
            piece = connection.recv(65536)
            assert piece
            received += len(piece)


def test_a_file_that_nginx_does_not_find_is_told_in_the_envelope(
    nginx: Nginx, gateway: Gateway, files: dict[str, str]
):
    """As if it had been deleted between our answer and nginx's look."""
    nginx.stop()
    elsewhere = gateway.data_dir.parent / "elsewhere"
    elsewhere.mkdir()
    folder = gateway.data_dir.parent / "nginx-elsewhere"
    folder.mkdir()
    with Nginx(folder, gateway.url.removeprefix("http://"), files=elsewhere) as lost:
        response = get(lost, gateway, files["local"])
        assert response.status_code == 404
        assert_envelope(response.content, "not_found", "not_found_error")
        assert sent_by_nginx(gateway, response)
