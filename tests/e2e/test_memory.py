"""Large files pass through without being held, and a client that goes away leaves nothing."""

import gzip
import hashlib
import random
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
import requests
from urllib3.filepost import encode_multipart_formdata

from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import Account, Gateway, Upstream, model, wait_until
from tests.e2e.inside import files_below, local_files, rows, spooled

MB = 1024 * 1024
LARGE = 64 * MB
MOST_GROWTH = 32 * MB
TARGETS = "one,two,azure,disk"


@dataclass
class Setting:
    gateway: Gateway
    accounts: list[Account]

    @property
    def everywhere(self) -> list[dict[str, Any]]:
        """What the accounts hold, with sha256 and size."""
        return [file for account in self.accounts for file in account.files()]

    def nothing_is_left(self) -> bool:
        inside = rows(self.gateway)
        files = [row for row in inside["files"] if "deleted" not in row]
        copies = [row for row in inside["copies"] if "deleted" not in row]
        return not (
            files or copies or spooled(self.gateway) or self.everywhere or local_files(self.gateway)
        )


@pytest.fixture(scope="module")
def setting(upstream: Upstream, start_gateway: StartGateway) -> Setting:
    accounts = [
        upstream.account("large-one", download_any=True),
        upstream.account("large-two", download_any=True),
        upstream.account("large-azure", "azure", download_any=True),
    ]
    one, two, azure = accounts
    config = {
        "model_list": [
            model("one", "openai/gpt-4o", one),
            model("two", "openai/gpt-4o", two),
            model("azure", "azure/gpt-4o", azure),
            {"model_name": "disk", "litellm_params": {"model": "local/disk"}},
        ]
    }
    gateway = start_gateway(config, workers=2, threads=8)
    # What every process loads once is no growth.
    for _ in range(6):
        made = upload(gateway, b"warm", TARGETS)
        gateway.api("GET", f"/v1/files/{made['id']}/content")
        gateway.api("DELETE", f"/v1/files/{made['id']}")
    return Setting(gateway, accounts)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.bin"
    with path.open("wb") as out:
        for n in range(LARGE // MB):
            out.write(random.Random(n).randbytes(MB))
    return path


def upload(gateway: Gateway, content: bytes, targets: str, name: str = "a.bin") -> dict[str, Any]:
    response = gateway.api(
        "POST",
        "/v1/files",
        files={"file": (name, content)},
        data={"purpose": "assistants", "target_model_names": targets},
    )
    assert response.status_code == 200, response.text
    return dict(response.json())


class Form:
    """A multipart body of one file that is read while it is sent."""

    def __init__(self, path: Path, targets: str) -> None:
        fields: dict[str, Any] = {
            "purpose": "assistants",
            "target_model_names": targets,
            "file": ("big.bin", b"@"),
        }
        body, self.content_type = encode_multipart_formdata(fields)
        self.head, self.tail = body.split(b"@", 1)
        self.path = path
        self.length = len(self.head) + path.stat().st_size + len(self.tail)

    def pieces(self) -> Iterator[bytes]:
        yield self.head
        with self.path.open("rb") as source:
            yield from iter(lambda: source.read(MB), b"")
        yield self.tail

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[bytes]:
        return self.pieces()


def sha256_of(source: IO[bytes] | requests.Response) -> str:
    digest = hashlib.sha256()
    pieces = (
        source.iter_content(MB)
        if isinstance(source, requests.Response)
        else iter(lambda: source.read(MB), b"")
    )
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


@pytest.mark.parametrize("how", ["with a length", "in chunks"])
def test_a_large_file_goes_to_four_targets_and_back_in_little_memory(
    setting: Setting, large: Path, how: str
):
    gateway = setting.gateway
    form = Form(large, TARGETS)
    with large.open("rb") as source:
        expected = sha256_of(source)

    with gateway.peak_memory() as up:
        response = gateway.api(
            "POST",
            "/v1/files",
            data=form if how == "with a length" else form.pieces(),
            headers={"Content-Type": form.content_type},
        )
    assert response.status_code == 200, response.text
    made = response.json()
    assert made["bytes"] == LARGE
    assert [(file["sha256"], file["size"]) for file in setting.everywhere] == [
        (expected, LARGE)
    ] * 3
    assert len(local_files(gateway)) == 1
    assert spooled(gateway) == []

    with gateway.peak_memory() as down:
        for _ in range(4):
            with gateway.api("GET", f"/v1/files/{made['id']}/content", stream=True) as download:
                assert download.headers["Content-Length"] == str(LARGE)
                assert sha256_of(download) == expected

    print(f"\n{how}: +{up.growth / MB:.1f} MB up, +{down.growth / MB:.1f} MB down")
    assert up.growth < MOST_GROWTH
    assert down.growth < MOST_GROWTH
    assert gateway.api("DELETE", f"/v1/files/{made['id']}").json()["deleted"]
    assert setting.nothing_is_left()


def half_sent(gateway: Gateway, form: Form, *, with_length: bool) -> socket.socket:
    """A connection over which half of the form has gone."""
    host, port = gateway.url.removeprefix("http://").split(":")
    length = f"Content-Length: {len(form)}" if with_length else "Transfer-Encoding: chunked"
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {gateway.master_key}"
        f"\r\nContent-Type: {form.content_type}\r\n{length}\r\n\r\n"
    )
    sock = socket.create_connection((host, int(port)), timeout=10)
    sock.sendall(head.encode())
    sent = 0
    for piece in form.pieces():
        if sent > len(form) // 2:
            break
        sock.sendall(piece if with_length else b"%x\r\n%s\r\n" % (len(piece), piece))
        sent += len(piece)
    return sock


@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.parametrize("with_length", [True, False], ids=["with a length", "in chunks"])
def test_a_client_that_leaves_half_way_leaves_nothing_behind(
    setting: Setting, upstream: Upstream, large: Path, how: str, with_length: bool
):
    gateway = setting.gateway
    with half_sent(gateway, Form(large, TARGETS), with_length=with_length) as sock:
        wait_until(lambda: spooled(gateway))
        if how == "resets":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    wait_until(setting.nothing_is_left, timeout=5)
    assert upstream.requests() == [] or setting.everywhere == []
    assert files_below(gateway.data_dir / "local" / "tmp") == []


def test_a_client_that_leaves_while_the_copies_are_made_leaves_nothing_half_done(
    setting: Setting, upstream: Upstream
):
    """The body was whole, so the file may be there; if so, it is whole and its owner's."""
    gateway = setting.gateway
    one, _two, _azure = setting.accounts
    fields: dict[str, Any] = {
        "purpose": "assistants",
        "target_model_names": TARGETS,
        "file": ("a.bin", b"x" * MB),
    }
    body, content_type = encode_multipart_formdata(fields)
    with one.changed(upload_delay_s=1.0):
        with pytest.raises(requests.ReadTimeout):
            requests.post(
                f"{gateway.url}/v1/files",
                data=body,
                headers={
                    "Content-Type": content_type,
                    "Authorization": f"Bearer {gateway.master_key}",
                },
                timeout=0.4,
            )
        wait_until(lambda: len(one.uploads()) == 1)
        wait_until(
            lambda: all({"ready", "deleted"} & set(row) for row in rows(gateway)["files"] if row),
            timeout=5,
        )
        time.sleep(0.2)

    listed = gateway.api("GET", "/v1/files").json()["data"]
    assert len(setting.everywhere) == 3 * len(listed)
    for file in listed:
        assert len(gateway.api("GET", f"/v1/files/{file['id']}/content").content) == MB
        assert gateway.api("DELETE", f"/v1/files/{file['id']}").json()["deleted"]
    wait_until(setting.nothing_is_left)


def test_a_client_that_leaves_a_download_frees_the_upstream(
    setting: Setting, upstream: Upstream, large: Path
):
    gateway = setting.gateway
    form = Form(large, "one")
    made = gateway.api(
        "POST", "/v1/files", data=form, headers={"Content-Type": form.content_type}
    ).json()
    with gateway.api("GET", f"/v1/files/{made['id']}/content", stream=True) as download:
        assert download.raw.read(1000)

    def hung_up() -> bool:
        seen = upstream.requests("large-one", method="GET")
        return bool(seen) and seen[-1].hung_up

    wait_until(hung_up, timeout=2)
    gateway.api("DELETE", f"/v1/files/{made['id']}")


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    pixels = b"".join(b"\0" + random.Random(n).randbytes(300) for n in range(100))
    header = struct.pack(">IIBBBBB", 100, 100, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


CONTENTS = {
    "every byte": (bytes(range(256)) * 4096, "all.bin", "application/octet-stream"),
    "one byte": (b"\0", "one.bin", "application/octet-stream"),
    "a picture": (png(), "a.png", "image/png"),
    "gzip": (gzip.compress(b"text " * 10_000), "a.gz", "application/gzip"),
    "no UTF-8": (b"gr\xfc\xdfe \xff\xfe\x80\n" * 1000, "a.txt", "text/plain"),
    "a mark at the front": (b"\xef\xbb\xbfwith BOM", "bom.txt", "text/plain"),
    "line ends": (b"\r\n\n\r\r\n--\r\n--boundary--\r\n\r\n", "lines.txt", "text/plain"),
    "a form": (encode_multipart_formdata({"file": ("x", b"y")})[0], "form.txt", "text/plain"),
    "line ends at a piece's border": (
        b"x" * 65_533 + b"\r\n--\r\n" * 30_000,
        "b.txt",
        "text/plain",
    ),
}


@pytest.mark.parametrize("target", ["one", "azure", "disk"])
@pytest.mark.parametrize(("content", "name", "mime_type"), CONTENTS.values(), ids=CONTENTS)
def test_every_byte_survives(
    setting: Setting, target: str, content: bytes, name: str, mime_type: str
):
    gateway = setting.gateway
    made = gateway.api(
        "POST",
        "/v1/files",
        files={"file": (name, content, mime_type)},
        data={"purpose": "assistants", "target_model_names": target},
    ).json()

    # The client asks for gzip, which must not be put on top of what is a file's own.
    got = gateway.api("GET", f"/v1/files/{made['id']}/content", headers={"Accept-Encoding": "gzip"})

    assert got.content == content
    assert got.headers["Content-Type"] == mime_type
    assert got.headers["Content-Length"] == str(len(content))
    assert "Content-Encoding" not in got.headers
    assert made["bytes"] == len(content)
    held = [file["sha256"] for file in setting.everywhere]
    assert held == ([] if target == "disk" else [hashlib.sha256(content).hexdigest()])
    gateway.api("DELETE", f"/v1/files/{made['id']}")
