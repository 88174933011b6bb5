"""Where files lie while they are under way: a folder for each process, swept when it has died."""

import fcntl
import os
import secrets
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

_LOCK = ".lock"
_HIDDEN_SECONDS = 60
"""A folder is locked and gets its name long before."""


class Spool:
    """A process's folder below `root`, made when it is first asked for.

    The process holds a lock in it for as long as it lives, so another one can tell whether what
    lies there is still needed: the kernel lets go of the lock however the process ends.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._guard = threading.Lock()
        self._pid: int | None = None
        self._folder = root
        self._held: int | None = None

    def folder(self) -> Path:
        """The folder for this process's temporary files. Raises OSError."""
        with self._guard:
            # A forked child has its own: locks are not inherited.
            if self._pid != os.getpid() or not self._folder.is_dir():
                self._make()
            return self._folder

    def _make(self) -> None:
        folder = self._root / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        hidden = self._root / f".{folder.name}"
        hidden.mkdir(mode=0o700)
        held = os.open(hidden / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.lockf(held, fcntl.LOCK_EX)
        # Visible to a sweep only now that it is locked.
        hidden.rename(folder)
        self._folder, self._held, self._pid = folder, held, os.getpid()

    def sweep(self) -> int:
        """Remove what processes that are gone have left; how many folders and files that were."""
        left = self.leftovers()
        for entry in left:
            self.remove(entry)
        return len(left)

    def leftovers(self) -> list[Path]:
        """What processes that are gone have left."""
        found: list[Path] = []
        with suppress(FileNotFoundError):
            for entry in list(self._root.iterdir()):
                if entry == self._folder and self._pid == os.getpid():
                    continue
                if _is_left(entry):
                    found.append(entry)
        return found

    @staticmethod
    def holds_something(leftover: Path) -> bool:
        """Whether there is more in it than its lock: a process that ends well leaves that."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return any(entry.name != _LOCK for entry in leftover.iterdir())
        return False

    def remove(self, leftover: Path) -> None:
        """Remove one of them. One that is gone is no error."""
        shutil.rmtree(leftover, ignore_errors=True)


def _is_left(entry: Path) -> bool:
    if entry.name.startswith("."):
        # Its process died, or is, in the few microseconds before it was renamed. The number in the
        # name tells nothing: in another container, on the same folder, it is another process's.
        with suppress(FileNotFoundError):
            return entry.is_dir() and time.time() - entry.stat().st_mtime > _HIDDEN_SECONDS
        return False
    try:
        held = os.open(entry / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(held)
    return True
