"""How fast large files pass through Manifold, beside the same transfers without it.

    python -m benchmarks.transfers --size-mb 512 --targets 3 --rounds 3

Everything runs on this machine: one fake upstream process for each target, the gateway as it is
shipped, and one client. A file goes to all targets through Manifold, then straight to all of them
at once, in turns; then back from one of them. Medians are printed, and by how much the memory of
all processes of the gateway grew at most. Nothing is left behind.
"""

import argparse
import hashlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import requests

from tests.e2e.gateway import Account, Gateway, Peak, Upstream, model

MB = 1024 * 1024
PIECE = MB
_BOUNDARY = "benchmark-of-transfers"


class Form:
    """An upload's form, read from disk while it is sent."""

    content_type = f"multipart/form-data; boundary={_BOUNDARY}"

    def __init__(self, path: Path, **fields: str) -> None:
        self._path = path
        opening = "".join(
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        )
        disposition = 'Content-Disposition: form-data; name="file"; filename="large.bin"'
        self._head = f"{opening}--{_BOUNDARY}\r\n{disposition}\r\n\r\n".encode()
        self._tail = f"\r\n--{_BOUNDARY}--\r\n".encode()

    def __len__(self) -> int:
        return len(self._head) + self._path.stat().st_size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        with self._path.open("rb") as source:
            yield from iter(lambda: source.read(PIECE), b"")
        yield self._tail


@dataclass
class Measured:
    """Seconds of each round, and the most memory that the gateway grew by in any of them."""

    manifold: list[float] = field(default_factory=list)
    direct: list[float] = field(default_factory=list)
    growth: int = 0

    def line(self, what: str, size_mb: int) -> str:
        manifold, direct = statistics.median(self.manifold), statistics.median(self.direct)
        return (
            f"{what:<24} {manifold:>8.2f} s {direct:>8.2f} s {manifold / direct:>7.2f} "
            f"{size_mb / manifold:>9.0f} MB/s {self.growth / MB:>8.1f} MB"
        )


class Bench:
    """The gateway, its upstreams and the file that goes round."""

    def __init__(self, folder: Path, stack: ExitStack, size_mb: int, targets: int) -> None:
        self.path = folder / "large.bin"
        self.sha256 = _write(self.path, size_mb)
        self.size = size_mb * MB
        upstreams = [
            stack.enter_context(Upstream(folder, name=f"upstream-{n}")) for n in range(targets)
        ]
        self.accounts = [
            upstream.account(f"account-{n}", download_any=True)
            for n, upstream in enumerate(upstreams)
        ]
        self.names = [f"model-{n}" for n in range(targets)]
        config = {
            "model_list": [
                model(name, "openai/gpt-4o", account)
                for name, account in zip(self.names, self.accounts, strict=True)
            ],
            "general_settings": {"max_file_size_mb": max(512, size_mb)},
        }
        self.gateway = stack.enter_context(Gateway(folder, config))
        self.session = stack.enter_context(requests.Session())
        self.session.trust_env = False

    def through_manifold(self) -> str:
        """Upload to all targets; the id."""
        form = Form(self.path, purpose="user_data", target_model_names=",".join(self.names))
        made = self._post(self.gateway.url + "/v1", self.gateway.master_key, form)
        self._check_copies()
        return made

    def straight(self) -> list[str]:
        """Upload to every target at once without Manifold; the ids."""
        ids: list[str] = []

        def send(account: Account) -> None:
            form = Form(self.path, purpose="user_data")
            ids.append(self._post(account.api_base, account.key, form))

        threads = [threading.Thread(target=send, args=(account,)) for account in self.accounts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._check_copies()
        return ids

    def download(self, base: str, key: str, file_id: str) -> None:
        """Read the file; it must be the one that was sent."""
        url = f"{base}/files/{file_id}/content"
        digest, size = hashlib.sha256(), 0
        with self.session.get(url, headers=_bearer(key), stream=True, timeout=600) as answer:
            answer.raise_for_status()
            while piece := answer.raw.read(PIECE):
                size += len(piece)
                digest.update(piece)
        if (size, digest.hexdigest()) != (self.size, self.sha256):
            raise SystemExit("the file came back changed")

    def forget(self) -> None:
        """Delete the file everywhere."""
        base, key = self.gateway.url + "/v1", self.gateway.master_key
        for file in self.session.get(f"{base}/files", headers=_bearer(key)).json()["data"]:
            gone = self.session.delete(f"{base}/files/{file['id']}", headers=_bearer(key))
            gone.raise_for_status()
        for account in self.accounts:
            for held in account.files():
                url = f"{account.api_base}/files/{held['id']}"
                self.session.delete(url, headers=_bearer(account.key)).raise_for_status()

    def _post(self, base: str, key: str, form: Form) -> str:
        headers = {**_bearer(key), "Content-Type": form.content_type}
        # A session is not for several threads at once.
        with requests.Session() as session:
            session.trust_env = False
            answer = session.post(f"{base}/files", data=form, headers=headers, timeout=600)
        if answer.status_code != 200:
            raise SystemExit(f"an upload was answered with {answer.status_code}: {answer.text}")
        return str(answer.json()["id"])

    def _check_copies(self) -> None:
        for account in self.accounts:
            if [file["sha256"] for file in account.files()] != [self.sha256]:
                raise SystemExit(f"{account.name} did not get the file")


def _write(path: Path, size_mb: int) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for _ in range(size_mb):
            piece = os.urandom(MB)
            digest.update(piece)
            out.write(piece)
    return digest.hexdigest()


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(bench: Bench, rounds: int) -> tuple[Measured, Measured]:
    """Uploads and downloads, with Manifold and without in turns."""
    up, down = Measured(), Measured()
    gateway = bench.gateway

    def watched(times: list[float], measured: Measured, work: Callable[[], object]) -> None:
        peak: Peak
        with gateway.peak_memory() as peak:
            times.append(_timed(work))
        measured.growth = max(measured.growth, peak.growth)

    for _ in range(rounds):
        watched(up.manifold, up, bench.through_manifold)
        bench.forget()
        up.direct.append(_timed(bench.straight))
        bench.forget()
    file_id = bench.through_manifold()
    account = bench.accounts[0]
    held = account.files()[0]["id"]
    for _ in range(rounds):
        base, key = gateway.url + "/v1", gateway.master_key
        watched(down.manifold, down, lambda: bench.download(base, key, file_id))  # noqa: B023
        down.direct.append(_timed(lambda: bench.download(account.api_base, account.key, held)))
    bench.forget()
    return up, down


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast large files pass through Manifold.")
    parser.add_argument("--size-mb", type=int, default=512)
    parser.add_argument("--targets", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="32 MB, one round")
    asked = parser.parse_args()
    size_mb, rounds = (32, 1) if asked.quick else (asked.size_mb, asked.rounds)
    with tempfile.TemporaryDirectory(prefix="manifold-bench-") as folder, ExitStack() as stack:
        bench = Bench(Path(folder), stack, size_mb, asked.targets)
        bench.through_manifold()  # What is loaded once is neither time nor memory of a transfer.
        bench.forget()
        bench.straight()
        bench.forget()
        up, down = measure(bench, rounds)
    cores = len(os.sched_getaffinity(0))
    print(f"{size_mb} MB, {rounds} rounds, medians, {cores} cores, all parts on this machine\n")
    print(f"{'':<24} {'Manifold':>10} {'direct':>10} {'ratio':>7} {'':>14} {'memory':>11}")
    print(up.line(f"upload to {asked.targets} targets", size_mb))
    print(down.line("download", size_mb))


if __name__ == "__main__":
    main()
