"""Prometheus metrics: each process counts into files of its own, and a scrape adds them up.

The files lie in `<data_dir>/metrics/<group>/`, a folder for each server and each worker of this
machine: they are mapped into memory, so counting costs no system call. A group's files live as long
as one of its processes does, for a sum must not become less when one of several dies; what is left
of groups that are gone is removed at the next start.
"""

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from app.signals import NO_ANSWER, Answered, Call, Header, Listener, Request

Role = Literal["server", "worker"]

# Seconds. Uploads and streams last, so the buckets go far.
LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PREFIXES = ("/openai/v1", "/<provider>/v1", "/openai", "/v1")
_LOCK = ".lock"


class Meters(Listener):
    """The metrics of this process. `role` tells the server's upstream calls from the worker's."""

    def __init__(self, role: Role) -> None:
        from prometheus_client import Counter, Gauge, Histogram  # noqa: PLC0415  # 60 ms

        def counter(name: str, text: str, *labels: str) -> Any:
            return Counter(f"manifold_{name}", text, labels, registry=None)

        def gauge(name: str, text: str, mode: Any) -> Any:
            return Gauge(f"manifold_{name}", text, registry=None, multiprocess_mode=mode)

        def latency(name: str, text: str, *labels: str) -> Any:
            return Histogram(f"manifold_{name}", text, labels, registry=None, buckets=LATENCY)

        where = ("route", "method")
        self._requests = counter("requests", "Requests that were answered.", *where, "status")
        self._seconds = latency(
            "request_seconds", "From a request's head to the last byte of its answer.", *where
        )
        self._bytes_in = counter("received_bytes", "Bytes of requests' bodies.", *where)
        self._bytes_out = counter("sent_bytes", "Bytes of answers' bodies.", *where)
        self._cut_off = counter("cut_off", "Answers that ended before their time.", *where)
        self._running = gauge(
            "requests_running", "Requests that are being answered now.", "livesum"
        )
        self._errors = counter("errors", "Errors that clients were shown, by code.", "code")
        self._inferred = counter(
            "inference", "Answers of upstreams that were relayed.", "model", "operation", "status"
        )
        at = ("provider", "deployment", "process")
        self._upstream = counter(
            "upstream_requests", "Requests to upstreams, by how they ended.", *at, "outcome"
        )
        self._upstream_seconds = latency(
            "upstream_first_byte_seconds", "From sending to the head of the answer.", *at
        )
        self._connected = counter("upstream_connections", "Connections made to upstreams.").inc
        self._in_use = gauge(
            "upstream_connections_in_use", "Connections that carry a request now.", "livesum"
        )
        self._rests = counter(
            "deployment_rests", "How often a deployment was left alone.", "deployment"
        )
        self._rests_until = Gauge(
            "manifold_deployment_rests_until_timestamp_seconds",
            "Until when a deployment is left alone.",
            ("deployment",),
            registry=None,
            multiprocess_mode="livemax",
        )
        self._database = gauge(
            "database_connections_in_use", "Connections to the database in use now.", "livesum"
        )
        self._database_most = gauge(
            "database_connections_max", "Connections to the database that there may be.", "livesum"
        )
        self._passes = counter("worker_passes", "How often the worker looked.", "outcome")
        self._pass_seconds = Histogram(
            "manifold_worker_pass_seconds", "Finding what is due.", registry=None, buckets=LATENCY
        )
        self._last_pass = gauge(
            "worker_last_success_timestamp_seconds", "When the worker last looked well.", "max"
        )
        self._looks = counter("worker_looks", "Rows that were looked at.", "chore", "outcome")
        self._processes = Gauge(
            "manifold_processes", "Processes.", ("process",), registry=None,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self._processes.labels(role).set(1)
        self._role = role
        self._counted = _Counted(self)
        self._by_request: dict[tuple[str | None, str, int], tuple[Any, ...]] = {}
        self._by_upstream: dict[tuple[str, str], _Upstream] = {}

    # What `signals` tells

    def begun(self, method: str, header: Header) -> Request:
        self._running.inc()
        return self._counted

    def over(self, answered: Answered) -> None:
        """Count a request that is over."""
        self._running.dec()
        key = (answered.route, answered.method, answered.status // 100)
        found = self._by_request.get(key)
        if found is None:
            found = self._by_request[key] = self._children(key)
        count, seconds, bytes_in, bytes_out, cut_off = found
        count.inc()
        seconds.observe(answered.seconds)
        if answered.bytes_in:
            bytes_in.inc(answered.bytes_in)
        if answered.bytes_out:
            bytes_out.inc(answered.bytes_out)
        if answered.is_cut_off:
            cut_off.inc()

    def _children(self, key: tuple[str | None, str, int]) -> tuple[Any, ...]:
        route, method, status = key
        where = (template(route), method if method in _METHODS else "other")
        return (
            self._requests.labels(*where, f"{status}xx"),
            *(
                each.labels(*where)
                for each in (self._seconds, self._bytes_in, self._bytes_out, self._cut_off)
            ),
        )

    def refused(self, code: str | None) -> None:
        self._errors.labels(code or "of the upstream").inc()

    def inferred(self, model: str, operation: str, status: int) -> None:
        self._inferred.labels(model, operation, f"{status // 100}xx").inc()

    def upstream_call(self, provider: str, deployment: str, method: str) -> Call:
        known = self._by_upstream.get((provider, deployment))
        if known is None:
            at = (provider, deployment, self._role)
            known = _Upstream(
                lambda outcome: self._upstream.labels(*at, outcome),
                self._upstream_seconds.labels(*at).observe,
            )
            self._by_upstream[provider, deployment] = known
        return _Timed(known)

    def connected(self) -> None:
        self._connected()

    def connections_in_use(self, more: int) -> None:
        self._in_use.inc(more)

    def rested(self, deployment: str, seconds: float) -> None:
        self._rests.labels(deployment).inc()
        self._rests_until.labels(deployment).set(time.time() + seconds)

    def passed(self, seconds: float, *, well: bool) -> None:
        self._passes.labels("well" if well else "failed").inc()
        self._pass_seconds.observe(seconds)
        if well:
            self._last_pass.set(time.time())

    def looked(self, chore: str, *, well: bool) -> None:
        self._looks.labels(chore, "well" if well else "failed").inc()

    # What is not a signal

    def watch_pool(self, most: int, on: Callable[[str, Callable[..., None]], None]) -> None:
        """Count the connections of a pool that calls back on "checkout" and on "checkin"."""
        self._database_most.set(most)
        on("checkout", lambda *_: self._database.inc())
        on("checkin", lambda *_: self._database.dec())


class _Counted(Request):
    """Any request: what is counted of one is told at its end."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters

    def over(self, answered: Answered) -> None:
        self._meters.over(answered)


class _Upstream:
    """What is counted of one deployment; its children are made once."""

    def __init__(self, child: Callable[[str], Any], observe: Callable[[float], None]) -> None:
        self._child = child
        self.observe = observe
        self._by_outcome: dict[int | str, Any] = {}

    def count(self, outcome: int | str) -> None:
        child = self._by_outcome.get(outcome)
        if child is None:
            child = self._by_outcome[outcome] = self._child(_word(outcome))
        child.inc()


def _word(outcome: int | str) -> str:
    if outcome == 429:
        return "429"
    return f"{outcome // 100}xx" if isinstance(outcome, int) else outcome or NO_ANSWER


class _Timed(Call):
    def __init__(self, known: _Upstream) -> None:
        self._known = known
        self._begun = time.perf_counter()

    def over(self, outcome: int | str) -> None:
        self._known.count(outcome)
        if isinstance(outcome, int):
            self._known.observe(time.perf_counter() - self._begun)


def template(route: str | None) -> str:
    """A route without the prefixes under which it stands once more; "none" for no route."""
    if route is None:
        return "none"
    for prefix in _PREFIXES:
        if route.startswith(prefix + "/"):
            return route.removeprefix(prefix)
    return route


# The files


class Metrics:
    """The folder into which the processes of one server, or of one worker, write their values.

    Making one opens it for this process; `leader` is the process that they have in common. Raises
    OSError.
    """

    def __init__(self, data_dir: Path, role: Role, leader: int) -> None:
        self._root = data_dir / "metrics"
        self._host = socket.gethostname()
        self._folder = self._root / f"{role}-{leader}-{self._host}"
        self._held = self._join()
        self._sweep()
        from prometheus_client import values  # noqa: PLC0415  # as above

        # The library's own way for processes that come to know their folder late.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self._folder)
        made: Callable[..., Any] = values.MultiProcessValue
        # Asked at every count, and the answer is always the same: nobody forks after this.
        process = os.getpid()
        values.ValueClass = made(lambda: process)
        self.meters = Meters(role)

    def _join(self) -> int:
        while True:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with suppress(FileNotFoundError):
                held = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    # Nobody else is here: what there is was left by processes of the same numbers.
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    for path in self._folder.glob("*.db"):
                        path.unlink()
                except BlockingIOError:
                    pass
                fcntl.flock(held, fcntl.LOCK_SH)
                # A sweep may have removed the folder between two of these lines.
                if (self._folder / _LOCK).stat().st_ino == os.fstat(held).st_ino:
                    return held
                os.close(held)

    def _sweep(self) -> None:
        """Remove the folders of groups that are gone."""
        for folder in self._root.iterdir():
            if folder == self._folder:
                continue
            with suppress(OSError):
                held = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(held)

    def collect(self) -> Iterator[Any]:
        """The values of all processes of this machine, as prometheus_client's families."""
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415  # as above

        for _ in range(3):
            with suppress(FileNotFoundError):
                # A group that ends at this moment takes its files with it.
                yield from MultiProcessCollector.merge(self._files())  # type: ignore[no-untyped-call]
                return

    def _files(self) -> list[str]:
        found = []
        for path in self._root.glob(f"*-{self._host}/*.db"):
            if path.name.startswith("gauge_live") and not _lives(path.stem.rpartition("_")[2]):
                path.unlink(missing_ok=True)
            elif path.stat().st_size:
                found.append(str(path))
        return found


def page(collectors: Iterable[Any], accept: str) -> tuple[bytes, str]:
    """What these collectors have, in the form that a scraper accepts, and its content type."""
    from prometheus_client import CollectorRegistry, exposition  # noqa: PLC0415  # as above

    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    write, content_type = exposition.choose_encoder(accept)
    return write(registry), content_type


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
