"""Rows on their way to the audit trail: on this machine's disk at once, in the database soon.

A row that is written here survives its process: whatever ends that, the next process on this
machine finds the file and takes its rows in. So a download need not wait for a commit.
"""

import atexit
import fcntl
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import GatewayError, StorageFull

log = logging.getLogger("manifold.audit")

FLUSH_SECONDS = 0.25
ADOPT_SECONDS = 30.0

Row = dict[str, Any]
"""The columns of a row as JSON can say them."""


@dataclass
class _Page:
    """One file of rows, held by its lock for as long as its process lives."""

    path: Path
    number: int
    size: int = 0
    rows: list[Row] = field(default_factory=list)

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.number)


class Journal:
    """Rows of this process, and those that others on this machine have left behind.

    `keep` puts rows into the database, where those that are there already are no error.
    """

    def __init__(self, folder: Path, keep: Callable[[Sequence[Row]], None]) -> None:
        self._folder = folder
        self._keep = keep
        self._writing = threading.Lock()
        self._flushing = threading.Lock()
        self._page: _Page | None = None
        self._full: list[_Page] = []
        self._thread: threading.Thread | None = None

    def write(self, row: Row) -> None:
        """Put one row on the disk. Raises StorageFull when there is no room for it."""
        line = json.dumps(row).encode() + b"\n"
        with self._writing:
            try:
                page = self._page = self._page or self._new_page()
                _append(page, line)
            except OSError as error:
                raise StorageFull("the audit trail cannot be written") from error
            page.rows.append(row)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
                self._thread.start()
                atexit.register(self._end)

    def flush(self) -> None:
        """Put this process's rows into the database. Raises DatabaseUnavailable; they stay then."""
        with self._flushing:
            with self._writing:
                if self._page is not None:
                    self._full.append(self._page)
                    self._page = None
            while self._full:
                self._keep(self._full[0].rows)
                self._full.pop(0).close()

    def adopt(self) -> None:
        """Take in the rows of processes that are gone. Raises DatabaseUnavailable."""
        for path in sorted(self._folder.glob("*.jsonl")):
            with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as page:
                fcntl.flock(page, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._keep(list(_rows(page)))
                path.unlink()

    def _new_page(self) -> _Page:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{uuid.uuid4().hex}.jsonl"
        # Under its own name once it is locked: before that, somebody would adopt it.
        hidden = path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        number = os.open(hidden, flags, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            hidden.rename(path)
        except OSError:
            os.close(number)
            hidden.unlink(missing_ok=True)
            raise
        return _Page(path, number)

    def _run(self) -> None:
        next_adoption = 0.0
        while True:
            time.sleep(FLUSH_SECONDS)
            try:
                self.flush()
                if time.monotonic() >= next_adoption:
                    self.adopt()
                    next_adoption = time.monotonic() + ADOPT_SECONDS
            except (GatewayError, OSError) as error:
                log.error("audit_waits", extra={"reason": str(error)})  # noqa: TRY400  # one line

    def _end(self) -> None:
        # What cannot be written now stays on the disk for the next process.
        with suppress(GatewayError, OSError):
            self.flush()


def _append(page: _Page, line: bytes) -> None:
    try:
        if os.write(page.number, line) < len(line):
            raise OSError("the disk is full")  # noqa: TRY301  # as write says it the next time
    except OSError:
        # Half a line would spoil the one behind it.
        os.ftruncate(page.number, page.size)
        raise
    page.size += len(line)


def _rows(lines: Any) -> Iterator[Row]:
    for line in lines:
        # A machine that lost power may leave half a line.
        with suppress(ValueError):
            yield json.loads(line)
