"""The administrator's key when nobody configured one: made once, kept in the data directory."""

import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from app.errors import ConfigError
from app.settings import Settings, is_usable_master_key

_WAY_OUT = "or set MANIFOLD_MASTER_KEY or general_settings.master_key"


def ensure(settings: Settings, announce: Callable[[str], None]) -> Settings:
    """The settings with a master key: the configured one, else that of `data_dir/master_key`.

    When the file is missing it is made, readable by its owner only. Of several processes that
    start at once exactly one makes it and announces the key. Raises ConfigError when the file
    cannot be used.
    """
    if settings.master_key is not None:
        return settings
    path = settings.data_dir / "master_key"
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists() and _create(path):
            announce(
                f"No master key is configured. This one was made and is kept in {path}: "
                f"{_read(path)}"
            )
        return replace(settings, master_key=_read(path))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; make it usable, {_WAY_OUT}"]) from error


def _create(path: Path) -> bool:
    """Whether this process was the one to make the file."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".master_key.")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"sk-{secrets.token_urlsafe(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        # A link appears whole or not at all, and only where nothing is yet.
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        Path(temporary).unlink()
    return True


def _read(path: Path) -> str:
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        key = file.read(4096).decode("ascii", "replace").strip()
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        what = f"other users may read or change it; run `chmod 600 {path}`"
    elif not key:
        what = "is empty; delete it and a new key will be made"
    elif not is_usable_master_key(key):
        what = "does not hold a key of printable ASCII; delete it and a new one will be made"
    else:
        return key
    raise ConfigError([f"{path}: {what}, {_WAY_OUT}"])
