"""Processes that are measured: started on a free port, watched with all their children, ended."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.content import MB

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 90.0
STOP_SECONDS = 15.0


def free_port() -> int:
    """A port that nobody listened on a moment ago, for programs that want to bind it themselves."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """This one's environment, without what would make a gateway another one than is shipped."""
    strangers = (
        *("MANIFOLD_", "LITELLM_", "OPENAI_", "PYTEST_", "WEB_CONCURRENCY", "DATABASE_URL"),
        # A gateway that is installed has compiled modules.
        "PYTHONDONTWRITEBYTECODE",
    )
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(strangers) and not name.lower().endswith("_proxy")
    }
    return {**kept, "PYTHONPATH": str(ROOT), **more}


@dataclass
class Peak:
    """The most memory that a process tree had at once; bytes."""

    bytes: int


class Tree:
    """A process and all its children. Its output is in a file, shown when it does not start."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        self._name = name
        self._log = folder / f"{name}.log"
        self.begun = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own command lines
                command,
                cwd=folder,
                env=environment() if env is None else dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                start_new_session=True,
            )

    def processes(self) -> list[psutil.Process]:
        """The process and all its descendants that are alive."""
        try:
            top = psutil.Process(self._process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def rss_bytes(self) -> int:
        """Resident memory of the whole tree; pages that are shared count in each process."""
        return _rss_bytes(self.processes())

    def largest_rss_bytes(self, named: str = "") -> int:
        """Resident memory of the largest process of the tree with this on its command line."""
        return max(
            (_rss_bytes([p]) for p in self.processes() if named in " ".join(p.cmdline())),
            default=0,
        )

    @contextlib.contextmanager
    def peak_memory(self, every_s: float = 0.01) -> Iterator[Peak]:
        """Watch the tree's memory for as long as the block runs."""
        # Who is in the tree is looked up once, for that takes longer than looking at all of them.
        tree = self.processes()
        peak, over = Peak(_rss_bytes(tree)), threading.Event()

        def watch() -> None:
            while not over.wait(every_s):
                peak.bytes = max(peak.bytes, _rss_bytes(tree))

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            yield peak
        finally:
            over.set()
            watching.join()
            peak.bytes = max(peak.bytes, self.rss_bytes())

    def wait_ready(self, port: int, path: str) -> float:
        """Seconds from the start to the first answer 200. Raises RuntimeError with the log."""
        asked = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        while time.perf_counter() < self.begun + READY_SECONDS:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._name} ended\n{self.log_text()}")
            if _answers(port, asked):
                return time.perf_counter() - self.begun
            time.sleep(0.005)
        raise RuntimeError(f"{self._name} is not ready\n{self.log_text()}")

    def log_text(self) -> str:
        """The end of what it has printed."""
        return self._log.read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        """Ask it to end; what has not ended in time is killed, with all of its group."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it at once, with all of its group; it has the children that outlived their parent."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _answers(port: int, asked: bytes) -> bool:
    with contextlib.suppress(OSError):
        connection = socket.create_connection(("127.0.0.1", port), timeout=5)
        with connection:
            connection.sendall(asked)
            return connection.recv(12).endswith(b" 200")
    return False


def _rss_bytes(processes: Sequence[psutil.Process]) -> int:
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


class Upstream:
    """One account of the fake upstream, in a process of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.port = int(listening.getsockname()[1])
            command = [sys.executable, "-m", "benchmarks.upstream", "--fd", str(listening.fileno())]
            self.tree = Tree(name, command, folder, fds=[listening.fileno()])
        self.tree.wait_ready(self.port, "/ready")

    @property
    def base(self) -> str:
        """What belongs in `api_base`."""
        return f"http://127.0.0.1:{self.port}/v1"


def megabytes(size: float) -> float:
    """Bytes as MB of 1024 * 1024."""
    return size / MB
