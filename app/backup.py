"""Backup and restore: the rows of one moment, and what this machine keeps for them."""

import datetime as dt
import errno
import fcntl
import json
import os
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

import app
from app.db import copying, migrate, snapshot
from app.db.engine import Database, connect
from app.errors import OperationRefused
from app.settings import Settings

FORMAT = 1
"""What the manifest says; a backup of another format is refused."""

_CONTENTS: Mapping[str, str] = {"local": "*", "kept": "*", "uploads": "part_*"}
"""The folders of the data directory that rows refer to, and which of their files. All of these are
made whole, under their last name, before a row names them, and go after their row has."""
_UNFINISHED = "tmp"
_KEYS = "master_key*"
_DATABASE = "manifold.db"
_MANIFEST = "manifest.json"
_LOCK = ".backup.lock"
_STAGING = ".backup-"
_RESTORING = ".restoring"
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK})

Tell = Callable[[str], None]
"""Takes a line about what has been done."""


@dataclass(frozen=True)
class Restored:
    """Where a backup's parts are now; `version` is that of the gateway it is from."""

    data_dir: Path
    database: str
    version: str
    taken_at: str


def write(settings: Settings, database: Database, target: Path) -> int:
    """Write a backup, a folder or, if `target` ends in `.tar`, one file; its size in bytes.

    The gateway may be working: first the contents are linked, which is most of the work, then for
    a moment no row changes, in which what is new is linked too. So no row of the backup lacks its
    content. Raises OperationRefused, with nothing at `target`, and DatabaseUnavailable.
    """
    if os.path.lexists(target):
        raise OperationRefused(f"{target} exists already")
    if not target.parent.is_dir():
        raise OperationRefused(f"{target.parent} is not a folder")
    with _explained(), _staging(settings.data_dir) as staging:
        _mirror_all(settings.data_dir, staging)
        snapshot.take(
            database, staging / _DATABASE, lambda: _mirror_all(settings.data_dir, staging)
        )
        (staging / _DATABASE).chmod(0o600)
        for left_by_the_driver in staging.glob(f"{_DATABASE}?*"):
            left_by_the_driver.unlink()
        for key in settings.data_dir.glob(_KEYS):
            _copy_secret(key, staging / key.name)
        _write_manifest(staging / _MANIFEST)
        size = _size(staging)
        if target.suffix == ".tar":
            _pack(staging, target)
        else:
            _move(staging, target)
    return size


def restore(settings: Settings, source: Path) -> Restored:
    """Put a backup into an empty data directory, and its rows where the settings say.

    Raises OperationRefused, with nothing changed, when the data directory or the database is not
    empty, or the backup is not whole.
    """
    data_dir = settings.data_dir
    if data_dir.exists() and any(data_dir.iterdir()):
        raise OperationRefused(f"{data_dir} is not empty; a backup is restored into an empty one")
    place = _sqlite_path(settings)
    if place is not None and place.exists():
        raise OperationRefused(f"{place} exists already")
    with _explained():
        was_there = data_dir.exists()
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return _restore(settings, source, place)
        except BaseException:
            for path in data_dir.iterdir():
                _remove(path)
            if not was_there:
                data_dir.rmdir()
            raise


def _restore(settings: Settings, source: Path, place: Path | None) -> Restored:
    unpacked = settings.data_dir / _RESTORING
    unpacked.mkdir(mode=0o700)
    if source.is_dir():
        _copy_tree(source, unpacked)
    else:
        _unpack(source, unpacked)
    manifest = _read_manifest(unpacked / _MANIFEST)
    snapshot.check(unpacked / _DATABASE)
    for path in unpacked.iterdir():
        if path.name in _CONTENTS or fnmatch(path.name, _KEYS):
            path.rename(settings.data_dir / path.name)
    # Last, for with the rows everything is there.
    if place is None:
        _fill(settings, unpacked / _DATABASE)
    else:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _place(unpacked / _DATABASE, place)
    shutil.rmtree(unpacked)
    shown = make_url(settings.resolved_database_url).render_as_string(hide_password=True)
    return Restored(settings.data_dir, shown, manifest["version"], manifest["taken_at"])


# The contents


def _mirror_all(data_dir: Path, staging: Path) -> None:
    for name, pattern in _CONTENTS.items():
        _mirror(data_dir / name, staging / name, pattern)


def _mirror(source: Path, target: Path, pattern: str) -> None:
    """Make the target hold links to what the source holds now, and no others."""
    folders, files = _listing(source, pattern)
    target.mkdir(mode=0o700, exist_ok=True)
    had_folders, had_files = _listing(target, "*")
    for name in files - had_files:
        with suppress(FileNotFoundError):
            _link(source / name, target / name)
    for name in had_files - files:
        (target / name).unlink()
    for name in had_folders - folders:
        shutil.rmtree(target / name)
    for name in folders:
        _mirror(source / name, target / name, pattern)


def _listing(folder: Path, pattern: str) -> tuple[set[str], set[str]]:
    """The names of the folders and of the files in a folder; none when it is not there."""
    folders, files = set(), set()
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.add(entry.name)
            elif fnmatch(entry.name, pattern):
                files.add(entry.name)
    return folders - {_UNFINISHED}, files


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copy2(source, target)


def _copy_secret(source: Path, target: Path) -> None:
    with open(target, "xb", opener=_private) as file:
        file.write(source.read_bytes())


@contextmanager
def _staging(data_dir: Path) -> Iterator[Path]:
    """A folder on the file system of the contents, for one backup at a time."""
    with open(data_dir / _LOCK, "w", opener=_private) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperationRefused("another backup is being taken") from None
        for left_by_a_crash in data_dir.glob(f"{_STAGING}*"):
            shutil.rmtree(left_by_a_crash)
        staging = data_dir / f"{_STAGING}{secrets.token_hex(8)}"
        staging.mkdir(mode=0o700)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


# The manifest


def _write_manifest(path: Path) -> None:
    told = {
        "format": FORMAT,
        "version": app.__version__,
        "taken_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
    path.write_text(json.dumps(told, indent=2) + "\n")
    path.chmod(0o600)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text())
        if told["format"] == FORMAT:
            return {"version": str(told["version"]), "taken_at": str(told["taken_at"])}
        found = f"a backup of format {told['format']}, and this version reads {FORMAT}"
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        found = "no backup of this gateway"
    raise OperationRefused(f"this is {found}")


# Coming and going


def _move(staging: Path, target: Path) -> None:
    try:
        staging.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        partial = _partial(target)
        try:
            partial.mkdir(mode=0o700)
            _copy_tree(staging, partial)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _copy_tree(source: Path, target: Path) -> None:
    """Copy everything below a folder; what is one file under several names stays one."""
    first_of: dict[tuple[int, int], Path] = {}
    for folder, names, files in os.walk(source):
        here = target / Path(folder).relative_to(source)
        for name in names:
            (here / name).mkdir(mode=0o700)
        for name in files:
            found = (Path(folder) / name).stat()
            key = (found.st_dev, found.st_ino)
            if found.st_nlink > 1 and key in first_of:
                _link(first_of[key], here / name)
            else:
                shutil.copy2(Path(folder) / name, here / name)
                first_of[key] = here / name


def _pack(staging: Path, target: Path) -> None:
    partial = _partial(target)
    try:
        with open(partial, "xb", opener=_private) as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                for path in sorted(staging.iterdir()):
                    archive.add(path, path.name)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _unpack(source: Path, target: Path) -> None:
    with tarfile.open(source, "r:") as archive:
        archive.extractall(target, filter="data")
    for folder, names, _ in os.walk(target):
        for name in names:
            (Path(folder) / name).chmod(0o700)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}")


def _fill(settings: Settings, file: Path) -> None:
    """Copy the rows of a backup into the empty database of the settings."""
    source = connect(f"sqlite:///{file}", pool_size=2)
    target = connect(settings.resolved_database_url, pool_size=2)
    try:
        migrate.upgrade(source)
        copying.copy(source, target)
    finally:
        source.engine.dispose()
        target.engine.dispose()


def _place(file: Path, place: Path) -> None:
    partial = _partial(place)
    try:
        shutil.copy2(file, partial)
        partial.rename(place)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _sqlite_path(settings: Settings) -> Path | None:
    """Where the settings' database is when it is a file."""
    url = make_url(settings.resolved_database_url)
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def _size(folder: Path) -> int:
    inodes = {}
    for parent, _, files in os.walk(folder):
        for name in files:
            found = (Path(parent) / name).stat()
            inodes[found.st_ino] = found.st_size
    return sum(inodes.values())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (OSError, tarfile.TarError) as error:
        told = getattr(error, "strerror", None) or error
        where = getattr(error, "filename", None)
        raise OperationRefused(f"{where}: {told}" if where else str(told)) from error
