"""`python -m tests.soak [--minutes 60] [--rate N]`: a gateway under a steady load, and a verdict.

Runs the gateway as it is shipped (gunicorn with two workers, SQLite, `manifold worker` beside it)
in front of a fake upstream in a process of its own. Several users upload, download, list, delete,
chat, run batches, make keys, ask wrongly and hang up, at random and at a steady rate; now and then
the upstream misbehaves. The number of files stays about the same.

Prints Markdown: the verdict, the processes, the operations. The exit status is 1 when a check
fails. What is checked, and how, is said in tests/soak/verdict.py.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.gateway import Server
from tests.soak import report
from tests.soak.load import Client
from tests.soak.setting import Setting
from tests.soak.verdict import Observed, ProcessSample, Sample, judge

CLIENTS = 8
EVERY_SECONDS = 5.0
LEAST_MINUTES = 5.0
BUSY_FACTOR = 8.0


def main() -> int:
    """Run the soak that the command line asks for; 1 when something is wrong."""
    asked = _asked()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        setting = Setting(folder, stack)
        observed, used = soak(setting, asked.minutes * 60, asked.rate)
        factor = BUSY_FACTOR if asked.busy else asked.p99_factor
        checks = judge(observed, factor)
        if any(not check.passed for check in checks) and asked.keep_logs:
            asked.keep_logs.write_text("\n".join(_texts(setting)))
    print(report.markdown(observed, checks, used))
    if asked.json:
        made: dict[str, Any] = {"checks": [asdict(c) for c in checks], **asdict(observed)}
        asked.json.write_text(json.dumps(made))
    return int(any(not check.passed for check in checks))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="A gateway under a steady mixed load."
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--rate", type=float, default=8.0, help="things that clients do, a second (%(default)s)"
    )
    parser.add_argument(
        "--p99-factor",
        type=float,
        default=2.0,
        help="how much longer the slowest of a hundred may take in the second half (%(default)s)",
    )
    parser.add_argument(
        "--busy",
        action="store_true",
        help=f"the machine has other work, which comes and goes and moves the slowest answers with "
        f"it: the factor is {BUSY_FACTOR:g}; every other bound stays",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample and call, as JSON")
    parser.add_argument(
        "--keep-logs", type=Path, metavar="FILE", help="the logs, if something is wrong"
    )
    asked = parser.parse_args()
    if asked.minutes < LEAST_MINUTES:
        parser.error(f"--minutes: at least {LEAST_MINUTES:g}, for there is a warm-up of one")
    return asked


def soak(setting: Setting, seconds: float, rate: float) -> tuple[Observed, dict[str, float]]:
    """What was seen in so many seconds of so many actions each, and the processor time it took."""
    observed = Observed(seconds, warm_up=max(60.0, seconds / 6))
    begun = time.monotonic()
    clients = [Client(setting, seed, CLIENTS / rate, begun) for seed in range(CLIENTS)]
    is_over = threading.Event()
    threads = [threading.Thread(target=client.run, args=(is_over,)) for client in clients]
    used = _processor_seconds(setting)
    for thread in threads:
        thread.start()
    try:
        while (at := time.monotonic() - begun) < seconds:
            observed.samples.append(_sample(setting, at))
            # The fake upstream remembers every request, and nobody asks here.
            setting.upstream.forget_requests()
            if len(observed.samples) % 12 == 0:
                print(report.progress(observed.samples[-1]), file=sys.stderr, flush=True)
            time.sleep(EVERY_SECONDS)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    used = {name: after - used[name] for name, after in _processor_seconds(setting).items()}
    for client in clients:
        observed.calls += client.calls
        observed.unexplained += client.wrong
    observed.calls.sort(key=lambda call: call.at)
    setting.clear_away()
    setting.settle()
    observed.changed = setting.changed()
    observed.orphaned = setting.orphaned()
    for line in "\n".join(_texts(setting)).splitlines():
        if "database is locked" in line or "database_unavailable" in line:
            observed.lock_errors.append(line)
        if '"level": "ERROR"' in line or '"level": "CRITICAL"' in line or "Traceback" in line:
            observed.error_lines.append(line)
    return observed, used


def _servers(setting: Setting) -> list[Server]:
    worker = setting.gateway.worker
    return [setting.gateway, *([worker] if worker else [])]


def _texts(setting: Setting) -> list[str]:
    return [server.log_text() for server in _servers(setting)]


def _sample(setting: Setting, at: float) -> Sample:
    found = []
    for server in _servers(setting):
        for n, process in enumerate(server.processes()):
            with suppress(psutil.NoSuchProcess), process.oneshot():
                memory = process.memory_full_info()
                found.append(
                    ProcessSample(
                        f"{server.name} {n}" if n else server.name,
                        process.pid,
                        memory.rss,
                        memory.uss,
                        process.num_fds(),
                        process.num_threads(),
                    )
                )
    return Sample(at, tuple(found))


def _processor_seconds(setting: Setting) -> dict[str, float]:
    trees = {
        "gateway and worker": [p for server in _servers(setting) for p in server.processes()],
        "fake upstream": setting.upstream.processes(),
        "clients": [psutil.Process()],
    }
    return {
        name: sum(process.cpu_times().user + process.cpu_times().system for process in processes)
        for name, processes in trees.items()
    }


if __name__ == "__main__":
    sys.exit(main())
