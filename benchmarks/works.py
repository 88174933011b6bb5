"""The works: what every gateway is made to do, and what is looked at meanwhile.

A work is measured once a round, on one gateway after the other. Its answers must be right: status
200 everywhere, and large files go round once before anything is timed, with their SHA-256 taken at
the far end. While time is measured their sizes alone are checked, for taking the hash would be
half of the work.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import content
from benchmarks.client import Connection
from benchmarks.content import MB
from benchmarks.gateways import FILE_KB, ROWS_TARGETS, Direct, Gateway, Manifold, Setting
from benchmarks.load import (
    FailedError,
    Figures,
    Target,
    client,
    closed_loop,
    milliseconds,
    percentile,
    side_by_side,
    while_probing,
)
from benchmarks.processes import Peak, megabytes
from benchmarks.upstream import PAUSE_SECONDS


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    rounds: int = 3
    seconds: float = 3.0
    """How long each load lasts."""
    sizes_mb: tuple[int, ...] = (64, 512)
    checked_mb: int = 512
    """The most that goes round before anything is timed, to see that it arrives as it was."""
    batch_mb: int = 200
    streams: int = 200
    steps: int = 20
    """Events of each of them."""
    first_events: int = 100
    keys: int = 500_000
    deep: int = 10_000
    is_quick: bool = False


FULL = Scale()
QUICK = Scale(
    rounds=1,
    seconds=0.25,
    sizes_mb=(64,),
    checked_mb=32,
    batch_mb=30,
    first_events=40,
    keys=50_000,
    is_quick=True,
)
SMOKE = Scale(1, 0.1, (2, 3), 1, 1, 4, 4, 3, 100, 50)
"""Sizes that show nothing but that everything works."""


@dataclass
class Bench:
    """Everything that a work may need."""

    setting: Setting
    scale: Scale
    prepared: dict[str, str] = field(default_factory=dict)
    """What works have prepared, by names of their own."""
    before: dict[str, int] = field(default_factory=dict)
    """What memory each gateway had before this work was prepared; bytes."""
    extra: list[Gateway] = field(default_factory=list)
    """Gateways that one work alone needs."""

    def end_extra(self) -> None:
        """Stop what a work has started for itself."""
        for gateway in self.extra:
            gateway.kill()
        self.extra.clear()

    def checked(self) -> list[tuple[int, str]]:
        """Size and SHA-256 of what the upstream was sent to be checked since the last look."""
        with Connection(self.setting.upstream.port) as connection:
            _, body = connection.ask(b"GET /checked HTTP/1.1\r\n\r\n")
        return [(size, sha256) for size, sha256 in json.loads(body)["data"]]


Measure = Callable[[Bench, Gateway], Figures]


@dataclass(frozen=True)
class Work:
    """One work: what it is called, who can do it, and how it is done."""

    name: str
    title: str
    main: str
    """The figure that is compared."""
    can: Callable[[Gateway], bool]
    measure: Measure
    prepare: Callable[[Bench, Gateway], None] | None = None
    gateways: Callable[[Bench, list[Gateway]], list[Gateway]] | None = None
    """Others than those of the run, when there are any."""

    @property
    def is_long(self) -> bool:
        return self.name.startswith(
            ("upload-medium", "upload-large", "download", "stream", "start")
        )

    @property
    def more_is_better(self) -> bool:
        return self.main == "per_second"


def _able(what: str, targets: int = 1) -> Callable[[Gateway], bool]:
    return lambda gateway: what in gateway.can and gateway.most_targets >= targets


def _with_memory(bench: Bench, gateway: Gateway, work: Callable[[], Figures]) -> Figures:
    """The figures, with the peak of memory, and how much more that is than before the work."""
    assert gateway.tree is not None  # noqa: S101  # it was started
    at_start = gateway.tree.rss_bytes()
    peak: Peak
    with gateway.tree.peak_memory() as peak:
        figures = work()
    # A collector may have given back since then what others' works had taken.
    before = min(bench.before[gateway.name], at_start)
    grown = megabytes(peak.bytes - before)
    return {**figures, "peak_mb": megabytes(peak.bytes), "growth_mb": grown}


# ------------------------------------------------------------------ small requests


def _loaded(target: Callable[[Gateway], Target], connections: int) -> Measure:
    def measure(bench: Bench, gateway: Gateway) -> Figures:
        asked = target(gateway)
        return _with_memory(
            bench,
            gateway,
            lambda: closed_loop(
                gateway.folder, asked.port, [asked.request], connections, bench.scale.seconds
            ),
        )

    return measure


def _small_upload(targets: int) -> Callable[[Gateway], Target]:
    def target(gateway: Gateway) -> Target:
        [form] = gateway.forms(FILE_KB * 1024, targets)
        return Target(form.port, form.request)

    return target


def _not_direct(what: str, targets: int) -> Callable[[Gateway], bool]:
    able = _able(what, targets)
    return lambda gateway: able(gateway) and not isinstance(gateway, Direct)


def _fill_list(_bench: Bench, gateway: Gateway) -> None:
    if isinstance(gateway, Manifold) and not gateway.deep_id:
        gateway.fill_list()


def _deep_list(bench: Bench, gateway: Gateway) -> Figures:
    """The first page and a deep one in turns, by the same user on one connection."""
    assert isinstance(gateway, Manifold)  # noqa: S101  # no other can
    headers = {"Authorization": f"Bearer {gateway.deep_key}"}
    figures: Figures = {}
    for name, path in (
        ("first", "/files?limit=20"),
        ("deep", f"/files?limit=20&after={gateway.deep_id}"),
    ):
        asked = gateway.request("GET", path, headers=headers)
        _require_rows(asked, 20)
        seen = closed_loop(gateway.folder, asked.port, [asked.request], 1, bench.scale.seconds)
        figures |= {f"{name}_{figure}": value for figure, value in seen.items()}
    return figures


def _require_rows(asked: Target, number: int) -> None:
    with Connection(asked.port) as connection:
        status, body = connection.ask(asked.request)
    if status != 200 or len(json.loads(body)["data"]) != number:
        raise FailedError(f"a page was answered with {status} {body[:300]!r}")


# ------------------------------------------------------------------ large transfers


def _go_round(size_mb: int, targets: int) -> Callable[[Bench, Gateway], None]:
    """One upload that is not timed, and whose every copy must be what was sent."""

    def prepare(bench: Bench, gateway: Gateway) -> None:
        size = min(size_mb, bench.scale.checked_mb) * MB
        forms = gateway.forms(size, targets, checked=True)
        bench.checked()
        seen = client("upload", forms=[vars(form) for form in forms])
        if seen["failures"]:
            raise FailedError(f"an upload failed: {seen['first_failure']}")
        if bench.checked() != [(size, content.sha256(size))] * targets:
            raise FailedError("what arrived is not what was sent")

    return prepare


def _upload(size_mb: int, targets: int) -> Measure:
    """By the client that people have: `openai`, a process for each upload, from a file on disk.

    A bare socket that sends one block again and again brings 512 MB to our upstream in 0.17 s,
    twice as fast as that client: nobody's upload is as fast, and every relay would be measured
    against what does not happen.
    """

    def measure(bench: Bench, gateway: Gateway) -> Figures:
        calls = gateway.calls(str(_content_path(bench, size_mb)), targets)

        def work() -> Figures:
            seconds, seen = side_by_side("upload_as_usual", calls)
            wrong = [each for each in seen if each["failures"] or each["bytes"] != size_mb * MB]
            if wrong:
                raise FailedError(f"an upload failed: {wrong[0]}")
            return {"seconds": seconds, "failures": 0}

        if not isinstance(gateway, Direct):
            return _with_memory(bench, gateway, work)
        return _with_memory(bench, gateway, work) | _by_themselves(bench, size_mb * MB)

    return measure


def _by_themselves(bench: Bench, size: int) -> Figures:
    """How long so many bytes take to be written to a new file, and to be hashed, once each."""
    path = bench.setting.folder / "by-itself.bin"
    begun = time.perf_counter()
    with path.open("wb", buffering=0) as out:
        for piece in content.pieces(size):
            out.write(piece)
    written = time.perf_counter()
    path.unlink()
    hashed = time.perf_counter()
    digest = hashlib.sha256()
    for piece in content.pieces(size):
        digest.update(piece)
    return {"disk_s": written - begun, "hash_s": time.perf_counter() - hashed}


def _content_path(bench: Bench, size_mb: int) -> Path:
    path = bench.setting.folder / f"content-{size_mb}.bin"
    if not path.exists():
        with path.open("wb") as out:
            out.writelines(content.pieces(size_mb * MB))
    return path


def _store_for_download(size_mb: int) -> Callable[[Bench, Gateway], None]:
    def prepare(bench: Bench, gateway: Gateway) -> None:
        for size in {min(size_mb, bench.scale.checked_mb), size_mb}:
            stored = bench.prepared[f"{gateway.name} {size}"] = gateway.store_large(size * MB)
            is_checked = size <= bench.scale.checked_mb
            seen = _downloaded(gateway, stored, size, is_checked=is_checked)
            if is_checked and seen["sha256"] != content.sha256(size * MB):
                raise FailedError("what came back is not what was sent")

    return prepare


def _downloaded(
    gateway: Gateway, file_id: str, size_mb: int, *, is_checked: bool
) -> dict[str, Any]:
    asked = gateway.content(file_id)
    seen = client(
        "download",
        port=asked.port,
        request=asked.request.decode(),
        size=size_mb * MB,
        is_checked=is_checked,
    )
    if seen["failures"]:
        raise FailedError(f"a download failed: {seen['first_failure']}")
    return seen


def _download(size_mb: int) -> Measure:
    def measure(bench: Bench, gateway: Gateway) -> Figures:
        def work() -> Figures:
            stored = bench.prepared[f"{gateway.name} {size_mb}"]
            seen = _downloaded(gateway, stored, size_mb, is_checked=False)
            first = 1000 * seen["first_byte_seconds"]
            return {"seconds": seen["seconds"], "first_byte_ms": first, "failures": 0}

        return _with_memory(bench, gateway, work)

    return measure


# ------------------------------------------------------------------ streams


def _first_event(bench: Bench, gateway: Gateway) -> Figures:
    asked = gateway.chat(stream=True)
    times = bench.scale.first_events

    def work() -> Figures:
        text = asked.request.decode()
        seen = client("first_events", port=asked.port, request=text, times=times)
        return {**milliseconds(seen["seconds"]), "failures": seen["failures"]}

    return _with_memory(bench, gateway, work)


def _many_streams(bench: Bench, gateway: Gateway) -> Figures:
    asked = gateway.chat(stream=True, steps=bench.scale.steps)
    number, lasts = bench.scale.streams, bench.scale.steps * PAUSE_SECONDS

    def work() -> Figures:
        text = asked.request.decode()
        seen = client("streams", port=asked.port, request=text, number=number)
        first, last = seen["first_seconds"], seen["last_seconds"]
        if not last:
            raise FailedError("every stream failed")
        return {
            "seconds": max(last),
            # Who waits for so long has waited for another one to end.
            "starved": sum(waited > lasts for waited in first),
            "first_p50_ms": 1000 * statistics.median(first),
            "first_p99_ms": 1000 * percentile(first, 99),
            "failures": seen["failures"],
        }

    figures = _with_memory(bench, gateway, work)
    return {**figures, "mb_a_stream": figures["growth_mb"] / number}


# ------------------------------------------------------------------ batch files

_PROBES, _PROBE_PAUSE_SECONDS = 4, 0.02
"""Little enough that nobody waits for a probe, over enough connections to meet every worker."""


def _rows(size: int, model: str) -> Iterator[bytes]:
    """Rows of a batch file, together at most `size` bytes when the model is called `rows`."""
    question = "What does a gateway do with this? " * 120
    for n in range(size // 4300):
        asked = {"model": model, "messages": [{"role": "user", "content": question}]}
        row = {"custom_id": f"row-{n:06}", "method": "POST", "url": "/v1/chat/completions"}
        yield json.dumps({**row, "body": asked}).encode() + b"\n"


def _rows_path(bench: Bench) -> Path:
    path = bench.setting.folder / "rows.jsonl"
    if not path.exists():
        with path.open("wb") as out:
            out.writelines(_rows(bench.scale.batch_mb * MB, "rows"))
    return path


def _batch_file(bench: Bench, gateway: Gateway) -> Figures:
    path = _rows_path(bench)
    size = path.stat().st_size
    is_direct = isinstance(gateway, Direct)
    fields = {} if is_direct else {"target_model_names": "rows"}
    targets = ROWS_TARGETS if is_direct else 1
    sent = gateway.forms(
        size, targets, purpose="batch", fields=fields, path=str(path), checked=True
    )
    forms = [vars(form) for form in sent]
    bench.checked()
    begun = time.perf_counter()
    seen: dict[str, float] = {}

    def upload() -> None:
        answered = client("upload", forms=forms)
        if answered["failures"]:
            raise FailedError(f"an upload failed: {answered['first_failure']}")
        seen["seconds"] = answered["seconds"]

    if is_direct:
        upload()
        return {"seconds": seen["seconds"], "failures": 0}
    other = gateway.file()
    figures = _with_memory(
        bench, gateway, lambda: while_probing(other, _PROBES, _PROBE_PAUSE_SECONDS, upload)
    )
    taken = time.perf_counter() - begun
    _require_rewritten(bench, size)
    idle = while_probing(
        other, _PROBES, _PROBE_PAUSE_SECONDS, lambda: time.sleep(min(5.0, max(1.0, taken)))
    )
    return {**figures, **seen, "idle_p50_ms": idle["p50_ms"], "idle_p99_ms": idle["p99_ms"]}


def _require_rewritten(bench: Bench, size: int) -> None:
    """Each account must have been sent the rows with its own name for the model."""
    wanted = set()
    for n in range(ROWS_TARGETS):
        digest = hashlib.sha256()
        for row in _rows(bench.scale.batch_mb * MB, f"gpt-4o-{n}"):
            digest.update(row)
        wanted.add(digest.hexdigest())
    if {sha256 for _, sha256 in bench.checked()} != wanted:
        raise FailedError(f"the accounts did not get their own names in {size} bytes")


# ------------------------------------------------------------------ keys


class FullManifold(Manifold):
    """Another Manifold, with very many keys."""

    name = "manifold-full"
    label = "Manifold with very many keys"


def _and_a_full_one(bench: Bench, gateways: list[Gateway]) -> list[Gateway]:
    [manifold] = [gateway for gateway in gateways if isinstance(gateway, Manifold)]
    full = FullManifold(bench.setting)
    bench.extra.append(full)
    full.start()
    full.prepare()
    full.secrets = full.fill_keys(bench.scale.keys)
    return [manifold, full]


def _key_lookup(bench: Bench, gateway: Gateway) -> Figures:
    assert isinstance(gateway, Manifold)  # noqa: S101  # no other can
    requests = [
        gateway.request("GET", "/models", headers={"Authorization": f"Bearer {secret}"}).request
        for secret in gateway.secrets
    ]
    return closed_loop(gateway.folder, gateway.port, requests, 1, bench.scale.seconds)


# ------------------------------------------------------------------ starts


def _cold_start(bench: Bench, gateway: Gateway) -> Figures:
    """A start in an empty folder, a few requests, a look at the idle memory, a second start."""
    folder = bench.setting.folder / f"start-{len(gateway.started_seconds)}"
    folder.mkdir(exist_ok=True)
    fresh = type(gateway)(replace(bench.setting, folder=folder))
    try:
        first = fresh.start()
        gateway.started_seconds.append(first)
        fresh.prepare()
        for _ in range(8):
            with Connection(fresh.port) as connection:
                connection.ask(fresh.file().request)
        time.sleep(0.5)
        assert fresh.tree is not None  # noqa: S101  # it was started
        figures = {
            "first_ever_s": first,
            "seconds": first,
            "idle_mb": megabytes(fresh.tree.rss_bytes()),
            "failures": 0,
        }
        if isinstance(fresh, Manifold):
            figures["worker_mb"] = megabytes(fresh.tree.largest_rss_bytes("serve"))
            figures["background_mb"] = megabytes(fresh.tree.largest_rss_bytes("app.cli worker"))
            # The others keep nothing that would make a second start another one.
            fresh.stop()
            figures["seconds"] = fresh.start()
        return figures
    finally:
        fresh.kill()


# ------------------------------------------------------------------ all of them


def _transfers(scale: Scale) -> Iterator[Work]:
    for size in scale.sizes_mb:
        for targets in (1, 2, 4):
            said = "one target" if targets == 1 else f"{targets} targets"
            yield Work(
                f"upload-{'large' if size == scale.sizes_mb[-1] else 'medium'}-{targets}",
                f"{size} MB upload to {said}",
                "seconds",
                _able("large", targets),
                _upload(size, targets),
                _go_round(size, targets),
            )
    size = scale.sizes_mb[-1]
    yield Work(
        "download-large",
        f"{size} MB download",
        "seconds",
        _able("download"),
        _download(size),
        _store_for_download(size),
    )


def all_works(scale: Scale) -> list[Work]:
    """Every work there is, in the order in which they are done."""
    file, page = Gateway.file, Gateway.page
    works = []
    for what, said, target, able in (
        ("file-read", "file read", file, "file"),
        ("list", "list of 20", page, "list"),
        ("chat", "chat with a file", Gateway.chat, "chat"),
        ("upload-1kb", "1 KB upload to one target", _small_upload(1), "upload"),
    ):
        for connections, main in ((1, "p50_ms"), (16, "per_second")):
            ending = f", {connections} connection{'s' if connections > 1 else ''}"
            measure = _loaded(target, connections)
            works.append(Work(f"{what}-{connections}", said + ending, main, _able(able), measure))
    works += [
        Work(
            f"upload-1kb-to-{targets}",
            f"1 KB upload to {targets} targets, 1 connection",
            "p50_ms",
            _not_direct("upload", targets),
            _loaded(_small_upload(targets), 1),
        )
        for targets in (2, 4)
    ]
    works.append(
        Work(
            "list-deep",
            f"list of 20, first page and {scale.deep:,} files deep",
            "deep_p50_ms",
            _able("deep"),
            _deep_list,
            _fill_list,
        )
    )
    works += _transfers(scale)
    number = f"{scale.streams} streams of {scale.steps * PAUSE_SECONDS:g} s at once"
    works += [
        Work("stream-first", "stream, first event", "p50_ms", _able("stream"), _first_event),
        Work("stream-many", number, "seconds", _able("stream"), _many_streams),
        Work(
            "batch",
            f"{scale.batch_mb} MB batch file to {ROWS_TARGETS} accounts",
            "seconds",
            lambda gateway: "batch" in gateway.can or isinstance(gateway, Direct),
            _batch_file,
        ),
        Work(
            "keys",
            f"key look-up with 10 and {scale.keys:,} keys",
            "p50_ms",
            _able("keys"),
            _key_lookup,
            gateways=_and_a_full_one,
        ),
        Work("start", "cold start and idle memory", "seconds", _able("start"), _cold_start),
    ]
    return works
