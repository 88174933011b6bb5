"""Who makes the load: wrk where it is installed, else a client of ours; each in its own process."""

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, environment

Figures = dict[str, float]
"""What one measurement has shown, by names that tell the unit."""

_LUA = ROOT / "benchmarks" / "wrk.lua"
_WRK_BEGINS_SECONDS = 0.05
_MOST_SECONDS = 15.0
_CLIENT = (sys.executable, "-m", "benchmarks.client")


class FailedError(Exception):
    """A measurement that shows nothing, because the answers were not what was asked for."""


@dataclass(frozen=True)
class Target:
    """Where a request goes and the bytes that it is."""

    port: int
    request: bytes


def tool() -> str:
    """What makes the load, for the head of a report."""
    return "wrk" if shutil.which("wrk") else "benchmarks/client.py"


def closed_loop(
    folder: Path, port: int, requests: Sequence[bytes], connections: int, seconds: float
) -> Figures:
    """Ask on each connection again as soon as it is answered; rate, p50, p99 and failures.

    It lasts longer than `seconds` where nothing was answered in that time.
    """
    if shutil.which("wrk"):
        seen = _wrk(folder, port, requests, connections, seconds)
    else:
        texts = [request.decode() for request in requests]
        seen = client("load", port=port, requests=texts, connections=connections, seconds=seconds)
        seen |= milliseconds(seen.pop("waited") or [0.0])
    if not seen["requests"] and seconds < _MOST_SECONDS:
        return closed_loop(folder, port, requests, connections, seconds * 4)
    answered = seen["requests"] - seen["failures"]
    if answered <= 0:
        raise FailedError(f"every one of {seen['requests']} requests failed")
    return {
        "per_second": answered / seen["seconds"],
        "p50_ms": seen["p50_ms"],
        "p99_ms": seen["p99_ms"],
        "failures": seen["failures"],
    }


def _wrk(
    folder: Path, port: int, requests: Sequence[bytes], connections: int, seconds: float
) -> dict[str, Any]:
    asked = folder / "requests"
    asked.write_bytes(b"".join(b"%d\n%s" % (len(request), request) for request in requests))
    # wrk knows whole seconds alone, and ends by itself in good order when it is interrupted.
    command = ["wrk", "-t1", f"-c{connections}", "-d60s", "--timeout", "30s", "-s", str(_LUA)]
    with subprocess.Popen(  # noqa: S603  # our own command line
        [*command, f"http://127.0.0.1:{port}/", "--", str(asked)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        time.sleep(seconds + _WRK_BEGINS_SECONDS)
        running.send_signal(signal.SIGINT)
        printed, _ = running.communicate()
    shown = [line for line in printed.splitlines() if line.startswith("{")]
    if not shown:
        raise FailedError(f"wrk: {printed}")
    found: dict[str, Any] = json.loads(shown[0])
    return found


def client(work: str, **asked: Any) -> dict[str, Any]:
    """What a work of benchmarks/client.py has seen."""
    done = subprocess.run(  # noqa: S603  # our own command line
        _CLIENT,
        cwd=ROOT,
        env=environment(),
        input=json.dumps({"work": work, **asked}) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FailedError(done.stderr.strip().splitlines()[-1] if done.stderr else "no client")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def side_by_side(
    work: str, asked: Sequence[Mapping[str, Any]]
) -> tuple[float, list[dict[str, Any]]]:
    """How long clients, each a process, take for works that all begin at once; what each has seen.

    A client says when it is ready, and begins when it is told to.
    """
    with ExitStack() as stack:
        clients = [
            stack.enter_context(
                subprocess.Popen(  # noqa: S603  # our own command line
                    _CLIENT,
                    cwd=ROOT,
                    env=environment(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in asked
        ]
        for running, each in zip(clients, asked, strict=True):
            _tell(running, json.dumps({"work": work, **each}))
        ready = [_heard(running) for running in clients]
        begun = time.perf_counter()
        for running in clients:
            _tell(running, "")
        shown = [_heard(running) for running in clients]
        seconds = time.perf_counter() - begun
    if not all(ready) or not all(shown):
        raise FailedError("no client")
    return seconds, [json.loads(line) for line in shown]


def _tell(running: "subprocess.Popen[str]", line: str) -> None:
    assert running.stdin is not None  # noqa: S101  # it is a pipe
    with suppress(BrokenPipeError):
        running.stdin.write(f"{line}\n")
        running.stdin.flush()


def _heard(running: "subprocess.Popen[str]") -> str:
    assert running.stdout is not None  # noqa: S101  # it is a pipe
    return running.stdout.readline()


def while_probing(
    target: Target, connections: int, pause_seconds: float, work: Callable[[], None]
) -> Figures:
    """How long others' requests took while `work` was done."""
    asked = {
        "work": "probe",
        "port": target.port,
        "request": target.request.decode(),
        "connections": connections,
        "pause_seconds": pause_seconds,
    }
    with subprocess.Popen(  # noqa: S603  # our own command line
        _CLIENT,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as probing:
        assert probing.stdin is not None and probing.stdout is not None  # noqa: S101
        probing.stdin.write(json.dumps(asked) + "\n")
        probing.stdin.flush()
        probing.stdout.readline()
        try:
            work()
        finally:
            shown, _ = probing.communicate()
    seen = json.loads(shown)
    return {**milliseconds(seen["seconds"]), "failures": seen["failures"]}


def milliseconds(seconds: Sequence[float]) -> Figures:
    """p50 and p99 of a number of durations."""
    return {
        "p50_ms": 1000 * statistics.median(seconds),
        "p99_ms": 1000 * percentile(seconds, 99),
    }


def percentile(values: Sequence[float], which: float) -> float:
    """The value that `which` per cent of all are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * which / 100))]
