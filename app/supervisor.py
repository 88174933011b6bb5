"""`manifold serve`: gunicorn and the background worker, as one thing to start and to stop."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

log = logging.getLogger("manifold")

WORKER_STOP_SECONDS = 20
_RESTART_SECONDS = (1.0, 30.0)
_STEADY_SECONDS = 60.0
PARENT = "MANIFOLD_PARENT"
"""Set for the worker: the process without which it has nothing to do."""


def run(serve: Callable[[], NoReturn], worker: Sequence[str]) -> int:
    """Run both until the server ends; its exit status.

    `serve` is called in a child of this process, which has what this one has loaded. SIGTERM,
    SIGINT and SIGHUP go to the server, which lets its transfers finish. A worker that dies is
    started again, later each time.
    """
    sys.stdout.flush()
    server = os.fork()
    if server == 0:
        serve()
    is_gone = False

    def forward(number: int, _frame: FrameType | None) -> None:
        if not is_gone:
            os.kill(server, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, forward)
    is_over = threading.Event()
    keeper = threading.Thread(target=_keep, args=(worker, is_over), name="keeper")
    keeper.start()
    try:
        _, ended = os.waitpid(server, 0)
        is_gone = True
    finally:
        is_over.set()
        keeper.join()
    status = os.waitstatus_to_exitcode(ended)
    return status if status >= 0 else 128 - status


def _keep(command: Sequence[str], is_over: threading.Event) -> None:
    pause = _RESTART_SECONDS[0]
    while not is_over.is_set():
        begun = time.monotonic()
        worker = subprocess.Popen(  # noqa: S603  # our own command line
            command, env={**os.environ, PARENT: str(os.getpid())}
        )
        while worker.poll() is None and not is_over.wait(0.2):
            pass
        if is_over.is_set():
            _stop(worker)
            return
        if time.monotonic() - begun > _STEADY_SECONDS:
            pause = _RESTART_SECONDS[0]
        log.error("worker_ended", extra={"status": worker.returncode, "again_in_seconds": pause})
        is_over.wait(pause)
        pause = min(pause * 2, _RESTART_SECONDS[1])


def _stop(worker: "subprocess.Popen[bytes]") -> None:
    worker.terminate()
    try:
        worker.wait(WORKER_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def end_with_parent() -> None:
    """Stop this process when the one that started it is gone, however it went."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
