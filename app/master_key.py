"""The administrator's key: made once when nobody configured one, and how one follows another.

A generated key is in the data directory. What an earlier key is remembered by is its hash.
"""

import datetime as dt
import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from app.errors import ConfigError
from app.settings import RetiringKey, Settings, is_usable_master_key

_WAY_OUT = "or set MANIFOLD_MASTER_KEY or general_settings.master_key"
_NAME = "master_key"
_PREVIOUS = "master_key.previous"


def ensure(settings: Settings, announce: Callable[[str], None]) -> Settings:
    """The settings with a master key: the configured one, else that of `data_dir/master_key`.

    When the file is missing it is made, readable by its owner only. Of several processes that
    start at once exactly one makes it and announces the key. Keys of before are accepted for a
    while: those of `previous_master_keys` from the first start with the present key on, a rotated
    one as long as the rotation said. Raises ConfigError when a file cannot be used.
    """
    path = settings.data_dir / _NAME
    is_generated = settings.master_key is None
    try:
        if is_generated:
            settings = replace(settings, master_key=_generated(path, announce))
        retiring = [*(_rotated(path.with_name(_PREVIOUS)) if is_generated else ())]
        if settings.previous_master_keys:
            retiring += _overlapping(settings)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; make it usable, {_WAY_OUT}"]) from error
    return replace(settings, retiring_master_keys=tuple(retiring)) if retiring else settings


def rotate(settings: Settings, grace: dt.timedelta) -> Path:
    """Put a new generated key in the place of the old one, which still works for `grace`.

    The path of the key. Processes that run know the new key after their next start. Raises
    ConfigError when there is no generated key.
    """
    path = settings.data_dir / _NAME
    if settings.master_key is not None:
        raise ConfigError(
            [
                "the master key is configured, not generated: change it where it stands, and name "
                "the old one in general_settings.previous_master_keys"
            ]
        )
    try:
        with _alone(path.parent):
            old = RetiringKey(_sha256(_read(path)), dt.datetime.now(dt.UTC) + grace)
            lines = [f"{key.sha256} {key.until.isoformat()}\n" for key in (*_rotated_of(path), old)]
            # First what still works, then what works from now on: no moment has neither.
            _replace(path.with_name(_PREVIOUS), "".join(lines))
            _replace(path, f"{_new_key()}\n")
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    return path


def _generated(path: Path, announce: Callable[[str], None]) -> str:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists() and _create(path, f"{_new_key()}\n"):
        announce(
            f"No master key is configured. This one was made and is kept in {path}: {_read(path)}"
        )
    return _read(path)


def _overlapping(settings: Settings) -> Iterator[RetiringKey]:
    """The keys of `previous_master_keys`, for as long as they still work."""
    present = _sha256(settings.master_key or "")
    # One file for each key that has others before it: when it was first started with.
    mark = settings.data_dir / f"master_key.since-{present[:16]}"
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not mark.exists():
        _create(mark, dt.datetime.now(dt.UTC).isoformat())
    until = _moment(mark, mark.read_text("ascii").strip()) + dt.timedelta(
        hours=settings.master_key_overlap_hours
    )
    return (RetiringKey(_sha256(key), until) for key in settings.previous_master_keys)


def _rotated_of(path: Path) -> list[RetiringKey]:
    moment = dt.datetime.now(dt.UTC)
    return [key for key in _rotated(path.with_name(_PREVIOUS)) if key.until > moment]


def _rotated(path: Path) -> list[RetiringKey]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text("ascii").splitlines():
        digest, _, until = line.partition(" ")
        found.append(RetiringKey(digest, _moment(path, until)))
    return found


def _moment(path: Path, text: str) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            [f"{path}: holds no moment that can be understood; delete it, and keys of before end"]
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No second process rotates meanwhile."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def _create(path: Path, content: str) -> bool:
    """Whether this process was the one to make the file."""
    with _written(path, content) as temporary:
        try:
            # A link appears whole or not at all, and only where nothing is yet.
            os.link(temporary, path)
        except FileExistsError:
            return False
    return True


def _replace(path: Path, content: str) -> None:
    with _written(path, content) as temporary:
        temporary.replace(path)


@contextmanager
def _written(path: Path, content: str) -> Iterator[Path]:
    """A file beside `path`, readable by its owner only, with the content on the disk for good."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


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


def _new_key() -> str:
    return f"sk-{secrets.token_urlsafe(32)}"


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
