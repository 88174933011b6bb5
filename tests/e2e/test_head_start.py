"""A file is on its way to its deployments before it has arrived, and nothing of it counts before.

Here a client sends a form piece by piece and looks in between at what the accounts have got.
"""

import hashlib
import io
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from app import transfers
from app.factory import create_app
from app.spool import Spool
from app.start import prepare
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import MASTER_KEY, Account, Gateway, Upstream, model, wait_until
from tests.e2e.inside import rows, spooled

MB = 1024 * 1024
CONTENT = bytes(range(256)) * (4 * MB // 256)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
BOUNDARY = "a-boundary"


@pytest.fixture(scope="module")
def accounts(upstream: Upstream) -> list[Account]:
    return [upstream.account(f"early-{n}", download_any=True) for n in range(3)]


@pytest.fixture(scope="module")
def gateway(accounts: list[Account], start_gateway: StartGateway) -> Gateway:
    one, two, other = accounts
    return start_gateway(
        {
            "model_list": [
                model("one", "openai/gpt-4o", one),
                model("two", "openai/gpt-4o", two),
                model("other", "openai/gpt-4o", other),
            ],
            "general_settings": {"default_target_model_names": ["other"]},
        }
    )


def field(name: str, value: str) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
    return f"{head}{value}\r\n".encode()


FILE_HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n'
    "Content-Type: application/x-thing\r\n\r\n"
).encode()
END = f"--{BOUNDARY}--\r\n".encode()
FIELDS = field("purpose", "user_data") + field("target_model_names", "one,two")


class Sending:
    """A request that is sent as it pleases the test."""

    def __init__(self, gateway: Gateway, length: int, **headers: str) -> None:
        host, port = gateway.url.removeprefix("http://").split(":")
        self._sock = socket.create_connection((host, int(port)), timeout=20)
        lines = {
            "Host": "gateway",
            "Authorization": f"Bearer {gateway.master_key}",
            "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
            "Content-Length": str(length),
            "Connection": "close",
            **headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._sock.sendall(f"POST /v1/files HTTP/1.1\r\n{head}\r\n".encode())

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def answer(self) -> tuple[int, dict[str, Any]]:
        raw = b"".join(iter(lambda: self._sock.recv(65536), b""))
        head, _, body = raw.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    def close(self) -> None:
        self._sock.close()


@contextmanager
def sending(gateway: Gateway, length: int, **headers: str) -> Iterator[Sending]:
    request = Sending(gateway, length, **headers)
    try:
        yield request
    finally:
        request.close()


def begun(accounts: list[Account]) -> bool:
    """Whether uploads have come to the first two accounts, whole or not."""
    return bool(accounts[0].uploads() and accounts[1].uploads())


def held(accounts: list[Account]) -> list[tuple[str, str]]:
    return [(account.name, file["sha256"]) for account in accounts for file in account.files()]


def nothing_is_left(gateway: Gateway, accounts: list[Account]) -> bool:
    files = [row for row in rows(gateway)["files"] if "deleted" not in row]
    return not (files or held(accounts) or spooled(gateway))


@pytest.fixture(autouse=True)
def clean(gateway: Gateway, accounts: list[Account]) -> Iterator[None]:
    yield
    for file in gateway.api("GET", "/v1/files").json()["data"]:
        gateway.api("DELETE", f"/v1/files/{file['id']}")
    wait_until(lambda: nothing_is_left(gateway, accounts))


def test_it_goes_on_while_it_arrives_and_is_stored_once_complete(gateway, accounts):
    body = FIELDS + FILE_HEAD + CONTENT + b"\r\n" + END
    with sending(gateway, len(body)) as request:
        request.send(body[: 2 * MB])
        # Both accounts are being sent to, half a file before its end.
        wait_until(lambda: begun(accounts))
        request.send(body[2 * MB : -20])
        time.sleep(0.3)
        assert held(accounts) == []
        assert nothing_is_recorded(gateway)
        request.send(body[-20:])
        status, made = request.answer()
    assert status == 200, made
    assert made["bytes"] == len(CONTENT)
    assert held(accounts) == [("early-0", SHA256), ("early-1", SHA256)]
    # What was sent early is what is on record: no copy went a second time.
    assert [len(account.uploads()) for account in accounts] == [1, 1, 0]
    got = gateway.api("GET", f"/v1/files/{made['id']}/content").content
    assert hashlib.sha256(got).hexdigest() == SHA256


def nothing_is_recorded(gateway: Gateway) -> bool:
    return all("deleted" in row for row in rows(gateway)["files"])


LATE = {
    "the targets": (
        field("purpose", "user_data"),
        field("target_model_names", "two"),
        [("early-1", SHA256)],
    ),
    "the purpose": (
        field("target_model_names", "two"),
        field("purpose", "user_data"),
        [("early-1", SHA256)],
    ),
    "all of it": (b"", field("purpose", "user_data"), [("early-2", SHA256)]),
    "when it expires": (
        FIELDS,
        field("expires_after[anchor]", "created_at") + field("expires_after[seconds]", "3600"),
        [("early-0", SHA256), ("early-1", SHA256)],
    ),
}


@pytest.mark.parametrize(("before", "after", "expected"), LATE.values(), ids=LATE)
def test_what_the_form_says_last_counts_too(gateway, accounts, before, after, expected):
    body = before + FILE_HEAD + CONTENT + b"\r\n" + after + END
    with sending(gateway, len(body)) as request:
        request.send(body[: 3 * MB])
        time.sleep(0.2)
        request.send(body[3 * MB :])
        status, made = request.answer()
    assert status == 200, made
    assert held(accounts) == expected
    if b"expires" in after:
        assert made["expires_at"] == made["created_at"] + 3600


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (field("purpose", "vision"), 400),
        (field("target_model_names", "nobody"), 400),
        (FILE_HEAD + b"again\r\n", 400),
        (b"--" + BOUNDARY.encode() + b"\r\nno head", 400),
    ],
    ids=["another purpose", "another target", "another file", "no form"],
)
def test_what_the_form_says_last_may_spoil_it(gateway, accounts, last, status):
    body = FIELDS + FILE_HEAD + CONTENT + b"\r\n" + last + END
    with sending(gateway, len(body)) as request:
        request.send(body)
        got, answer = request.answer()
    assert got == status, answer
    time.sleep(0.2)
    assert held(accounts) == []
    assert nothing_is_recorded(gateway)


def test_a_client_that_pauses_is_waited_for_and_its_file_sent_again(
    accounts, tmp_path, monkeypatch
):
    monkeypatch.setattr(transfers, "STALL_SECONDS", 0.1)
    one, two, _ = accounts
    body = FIELDS + FILE_HEAD + CONTENT + b"\r\n" + END
    config = {
        "model_list": [model("one", "openai/gpt-4o", one), model("two", "openai/gpt-4o", two)],
        "general_settings": {"master_key": MASTER_KEY, "data_dir": str(tmp_path / "data")},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    client = create_app(prepare(str(tmp_path / "config.yaml"), {})).test_client()

    class Pausing(io.BytesIO):
        def readinto(self, into: Any) -> int:
            if self.tell() > 2 * MB and len(one.uploads()) < 2:
                # The first attempt has ended before the rest comes, and the second not begun.
                wait_until(lambda: [seen.done for seen in one.uploads()] == [True])
                wait_until(lambda: [seen.done for seen in two.uploads()] == [True])
            return super().readinto(into)

    answer = client.post(
        "/v1/files",
        input_stream=Pausing(body),
        headers={"Authorization": f"Bearer {MASTER_KEY}", "Content-Length": str(len(body))},
        content_type=f"multipart/form-data; boundary={BOUNDARY}",
    )
    assert answer.status_code == 200, answer.data
    assert held(accounts) == [("early-0", SHA256), ("early-1", SHA256)]
    assert [len(account.uploads()) for account in (one, two)] == [2, 2]
    path = f"/v1/files/{answer.get_json()['id']}"
    gone = client.delete(path, headers={"Authorization": f"Bearer {MASTER_KEY}"})
    assert gone.status_code == 200


def test_an_account_that_refuses_at_first_gets_it_from_the_spool(gateway, accounts):
    accounts[0].fail(times=1, method="POST", status=503)
    body = FIELDS + FILE_HEAD + CONTENT + b"\r\n" + END
    with sending(gateway, len(body)) as request:
        request.send(body[: 2 * MB])
        time.sleep(0.2)
        request.send(body[2 * MB :])
        status, made = request.answer()
    assert status == 200, made
    assert held(accounts) == [("early-0", SHA256), ("early-1", SHA256)]


def test_a_refusal_takes_back_what_the_others_have(gateway, accounts):
    accounts[1].fail(times=1, method="POST", status=400)
    body = FIELDS + FILE_HEAD + CONTENT + b"\r\n" + END
    with sending(gateway, len(body)) as request:
        request.send(body)
        status, answer = request.answer()
    assert status == 400, answer
    assert "two" in answer["error"]["message"]
    assert held(accounts) == []


def test_a_gateway_that_dies_before_the_end_has_stored_nothing(gateway, accounts):
    body = FIELDS + FILE_HEAD + CONTENT + b"\r\n" + END
    with sending(gateway, len(body)) as request:
        request.send(body[:-20])
        wait_until(lambda: begun(accounts))
        gateway.kill()
    gateway.start()
    assert held(accounts) == []
    assert nothing_is_recorded(gateway)
    assert Spool(gateway.data_dir / "spool").sweep() > 0


def test_the_same_key_and_file_again_is_not_sent_again(gateway, accounts):
    body = FIELDS + FILE_HEAD + CONTENT + b"\r\n" + END
    answers = []
    for _ in range(2):
        with sending(gateway, len(body), **{"Idempotency-Key": "early"}) as request:
            request.send(body)
            answers.append(request.answer())
    assert answers[0] == answers[1]
    assert answers[0][0] == 200
    assert held(accounts) == [("early-0", SHA256), ("early-1", SHA256)]
