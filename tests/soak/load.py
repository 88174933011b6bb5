"""The clients of a soak: each does one thing after the other, at its pace, until told to end."""

import io
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import openai
import requests
from urllib3.filepost import encode_multipart_formdata

from tests.drills.upstream_faults import FAULTS, UNTRUSTED
from tests.e2e import batching
from tests.e2e.asking import ask
from tests.e2e.upstream_jobs import rows
from tests.soak.setting import GONE, USERS, Kept, Setting, User, content_of
from tests.soak.verdict import Call

SMALLEST, LARGEST = 1024, 8 * 1024 * 1024
KEPT = 48
"""About as many files there are, once the first of them have been made."""
PARTS = 3


class Client:
    """One client. `wrong` holds every answer that it did not expect."""

    faulty = threading.Lock()
    """Held while an upstream misbehaves, so that every fault meets who has asked for it."""

    def __init__(self, setting: Setting, seed: int, pause: float, begun: float) -> None:
        self._setting = setting
        self._chance = random.Random(seed)
        self._pause = pause
        self._begun = begun
        self._session = requests.Session()
        self._session.trust_env = False
        self.calls: list[Call] = []
        self.wrong: list[str] = []
        self.done: dict[str, int] = {}

    def run(self, is_over: threading.Event) -> None:
        """Go on until told to end; one thing every `pause` seconds in the mean."""
        with self._session:
            while not is_over.wait(self._chance.expovariate(1 / self._pause)):
                action = self._choose()
                self.done[action.__name__] = self.done.get(action.__name__, 0) + 1
                try:
                    action(self._user())
                except (openai.OpenAIError, requests.RequestException, AssertionError) as error:
                    self.wrong.append(f"{action.__name__}: {error!r:.300}")

    def _choose(self) -> Callable[[User], None]:
        is_full = len(self._setting.shelf.files) >= KEPT
        weights: dict[Callable[[User], None], float] = {
            self.upload: 6 if is_full else 10,
            self.upload_in_parts: 1,
            self.delete: 9 if is_full else 2,
            self.download: 8,
            self.download_a_range: 6,
            self.retrieve: 10,
            self.list: 5,
            self.chat: 8,
            self.stream: 6,
            self.batch: 1.5,
            self.ask_wrongly: 4,
            self.key: 2,
            self.hang_up: 3,
            self.disturb: 1,
            self.be_refused: 1.5,
        }
        return self._chance.choices(list(weights), list(weights.values()))[0]

    def _user(self) -> User:
        return self._chance.choice(self._setting.users)

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        taken = time.monotonic() - begun
        self.calls.append(Call(begun - self._begun, operation, taken))

    def _new_content(self, largest: int = LARGEST) -> tuple[int, bytes]:
        """A seed and its content: as many small ones as large ones, by orders of magnitude."""
        seed = self._chance.getrandbits(48)
        size = int(SMALLEST * (largest / SMALLEST) ** self._chance.random())
        return seed, content_of(seed, size)

    def _ask(self, user: User, method: str, path: str, **more: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {user.key}", **more.pop("headers", {})}
        url = self._setting.gateway.url + path
        return self._session.request(method, url, headers=headers, timeout=60, **more)

    # Files

    def upload(self, user: User) -> None:
        targets = self._chance.choice((["one"], ["two"], ["one", "two"], ["one", "disk"]))
        seed, content = self._new_content()
        with self._timed(f"upload to {len(targets)}"):
            made = user.client.files.create(
                file=("soak.bin", content),
                purpose="user_data",
                extra_body={"target_model_names": ",".join(targets)},
            )
        self._keep(made.id, user, targets[0], seed, len(content))

    def _keep(self, file_id: str, user: User, model: str, seed: int, size: int) -> None:
        number = self._setting.users.index(user)
        self._setting.shelf.put(Kept(file_id, number, model, seed, size))

    def upload_in_parts(self, user: User) -> None:
        seed, content = self._new_content()
        size = len(content) // PARTS + 1
        with self._timed("upload in parts"):
            begun = user.client.uploads.create(
                bytes=len(content),
                filename="parts.bin",
                mime_type="application/octet-stream",
                purpose="user_data",
                extra_body={"target_model_names": "two"},
            )
            parts = [
                user.client.uploads.parts.create(begun.id, data=io.BytesIO(content[at : at + size]))
                for at in range(0, len(content), size)
            ]
            ids = [part.id for part in parts]
            made = user.client.uploads.complete(begun.id, part_ids=ids)
        assert made.file is not None
        self._keep(made.file.id, user, "two", seed, len(content))

    def download(self, _user: User) -> None:
        with self._setting.shelf.borrowed(self._chance) as kept:
            if kept is None:
                return
            with self._timed("download"):
                got = self._owner(kept).client.files.content(kept.id).read()
            assert got == kept.content, "other bytes than were uploaded"

    def download_a_range(self, _user: User) -> None:
        with self._setting.shelf.borrowed(self._chance) as kept:
            if kept is None:
                return
            start = self._chance.randrange(kept.size)
            end = min(kept.size - 1, start + self._chance.randrange(256 * 1024))
            headers = {"Range": f"bytes={start}-{end}"}
            path = f"/v1/files/{kept.id}/content"
            with self._timed("download of a range"):
                got = self._ask(self._owner(kept), "GET", path, headers=headers)
            assert got.status_code == 206, f"{got.status_code} {got.text:.200}"
            assert got.content == kept.content[start : end + 1], "other bytes than were uploaded"

    def _owner(self, kept: Kept) -> User:
        return self._setting.users[kept.user]

    def retrieve(self, _user: User) -> None:
        with self._setting.shelf.borrowed(self._chance) as kept:
            if kept is not None:
                with self._timed("retrieve"):
                    file = self._owner(kept).client.files.retrieve(kept.id)
                assert (file.id, file.bytes) == (kept.id, kept.size)

    def list(self, user: User) -> None:
        with self._timed("list"):
            page = user.client.files.list(limit=20)
        files = page.data
        assert len({file.id for file in files}) == len(files), "a list that names a file twice"
        # Nobody else knows of these.
        for file in files:
            if file.filename == GONE:
                with suppress(openai.NotFoundError):
                    user.client.files.delete(file.id)

    def delete(self, _user: User) -> None:
        kept = self._setting.shelf.take(self._chance)
        if kept is not None:
            with self._timed("delete"):
                assert self._owner(kept).client.files.delete(kept.id).deleted

    # Models and batches

    def chat(self, _user: User) -> None:
        with self._setting.shelf.borrowed(self._chance) as kept:
            if kept is None:
                return
            with self._timed("chat"):
                self._owner(kept).client.chat.completions.create(
                    model=kept.model, messages=ask(kept.id)
                )

    def stream(self, _user: User) -> None:
        with self._setting.shelf.borrowed(self._chance) as kept:
            if kept is None:
                return
            with self._timed("chat, streamed"):
                events = self._owner(kept).client.chat.completions.create(
                    model=kept.model, messages=ask(kept.id), stream=True
                )
                assert sum(1 for _ in events) > 2

    def batch(self, user: User) -> None:
        """From its file to its output, and nothing of it stays."""
        with self._timed("batch, created"):
            file_id = batching.upload(user.client, rows(3, "one"), target_model_names="one")
            batch = batching.start(user.client, file_id)
        ended = batching.ended(user.client, batch.id, timeout=60)
        assert ended.status == "completed", ended.status
        assert len(user.client.files.content(ended.output_file_id).read().splitlines()) == 3
        for made in (file_id, ended.output_file_id, ended.error_file_id):
            if made:
                assert user.client.files.delete(made).deleted

    # Mistakes and administration

    def ask_wrongly(self, user: User) -> None:
        with self._setting.shelf.borrowed(self._chance) as kept:
            others = [n for n in range(USERS) if kept is not None and n != kept.user]
            chosen = self._chance.randrange(5)
            with self._timed("bad request"):
                if chosen == 0:
                    got, status = self._ask(user, "GET", "/v1/files/file-nobody-has"), 404
                elif chosen == 1 and kept is not None:
                    other = self._setting.users[self._chance.choice(others)]
                    got, status = self._ask(other, "GET", f"/v1/files/{kept.id}"), 403
                elif chosen == 2:
                    path, body = "/v1/chat/completions", b'{"model": "one", "messages": ['
                    got, status = self._ask(user, "POST", path, data=body), 400
                elif chosen == 3:
                    form = {"purpose": "user_data", "target_model_names": "no-such-model"}
                    files = {"file": ("a.bin", b"x" * 1000)}
                    got, status = self._ask(user, "POST", "/v1/files", data=form, files=files), 400
                else:
                    bad = {"Authorization": "Bearer sk-of-nobody"}
                    got, status = self._ask(user, "GET", "/v1/files", headers=bad), 401
        assert got.status_code == status, f"{chosen}: {got.status_code} {got.text:.200}"

    def key(self, user: User) -> None:
        gateway = self._setting.gateway
        admin = User("root", gateway.master_key, user.client)
        with self._timed("key made and deleted"):
            made = self._ask(admin, "POST", "/key/generate", json={"user_id": user.name})
            assert made.status_code == 200, made.text
            mine = User(user.name, made.json()["key"], user.client)
            assert self._ask(mine, "GET", "/v1/models").status_code == 200
            gone = self._ask(admin, "POST", "/key/delete", json={"keys": [mine.key]})
            assert gone.status_code == 200, gone.text
            assert self._ask(mine, "GET", "/v1/models").status_code == 401

    def be_refused(self, user: User) -> None:
        """What one target takes and the other one refuses is taken back."""
        _, content = self._new_content(64 * 1024)
        form = {"purpose": "user_data", "target_model_names": "one,picky"}
        files = {"file": ("refused.bin", content)}
        with self._timed("upload refused"):
            got = self._ask(user, "POST", "/v1/files", data=form, files=files)
        assert got.status_code == 400, f"{got.status_code} {got.text:.200}"

    # What goes wrong

    def hang_up(self, user: User) -> None:
        how = self._chance.choice(
            (
                self._leave_an_upload,
                self._leave_unanswered,
                self._leave_a_download,
                self._leave_chat,
            )
        )
        how(user)

    def _leave_an_upload(self, user: User) -> None:
        body, head = self._form(user)
        with self._connected() as sock:
            sock.sendall(head + body[: len(body) // 2])
            if self._chance.random() < 0.5:  # a reset instead of an orderly end
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _leave_unanswered(self, user: User) -> None:
        """The body was whole, so the file may be there: `list` removes it."""
        body, head = self._form(user)
        with self._connected() as sock:
            sock.sendall(head + body)

    def _form(self, user: User) -> tuple[bytes, bytes]:
        _, content = self._new_content(1024 * 1024)
        fields: dict[str, Any] = {
            "purpose": "user_data",
            "target_model_names": "one",
            "file": (GONE, content),
        }
        body, content_type = encode_multipart_formdata(fields)
        head = (
            "POST /v1/files HTTP/1.1\r\nHost: gateway\r\n"
            f"Authorization: Bearer {user.key}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return body, head.encode()

    def _connected(self) -> socket.socket:
        host, port = self._setting.gateway.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=30)

    def _leave_a_download(self, _user: User) -> None:
        with self._setting.shelf.borrowed(self._chance) as kept:
            if kept is None:
                return
            path = f"/v1/files/{kept.id}/content"
            with self._ask(self._owner(kept), "GET", path, stream=True) as answer:
                assert answer.status_code == 200, answer.text[:200]
                answer.raw.read(min(1000, kept.size))

    def _leave_chat(self, _user: User) -> None:
        with self._setting.shelf.borrowed(self._chance) as kept:
            if kept is None:
                return
            body = {"model": kept.model, "messages": ask(kept.id), "stream": True}
            path = "/v1/chat/completions"
            data = json.dumps(body).encode()
            with self._ask(self._owner(kept), "POST", path, data=data, stream=True) as answer:
                assert answer.status_code == 200, answer.text[:200]
                answer.raw.read(10)

    def disturb(self, user: User) -> None:
        """The upstream misbehaves once: whatever is answered is explained, and nothing may stay."""
        if not self.faulty.acquire(blocking=False):
            return
        try:
            fault = self._chance.choice([name for name in FAULTS if name != UNTRUSTED])
            account = self._setting.accounts["flaky"]
            account.fail(times=1, **FAULTS[fault])
            form = {"purpose": "user_data", "target_model_names": "flaky"}
            files = {"file": (GONE, self._new_content(64 * 1024)[1])}
            got = self._ask(user, "POST", "/v1/files", data=form, files=files)
            self._setting.upstream.clear_faults()
        finally:
            self.faulty.release()
        if got.status_code == 200:
            gone = self._ask(user, "DELETE", f"/v1/files/{got.json()['id']}")
            assert gone.status_code == 200, f"{gone.status_code} {gone.text:.200}"
