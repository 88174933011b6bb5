"""The machine: the data directory and its disk, open files, the master key."""

import os
import resource
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from app.doctor.findings import Finding, fault, ok, warning
from app.settings import Settings

MB = 1024 * 1024

_NETWORKED = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs")
_PASSING = ("tmpfs", "ramfs", "overlay")
_SLOW_FSYNC_SECONDS = 0.25
_FEW_FILES, _ENOUGH_FILES = 512, 2048
_SHORT_KEY = 24
_KNOWN_KEYS = ("sk-1234", "sk-12345", "sk-master", "sk-litellm", "sk-test", "changeme", "secret")

Statvfs = Callable[[Path], os.statvfs_result]


def disk(settings: Settings, statvfs: Statvfs = os.statvfs) -> Iterator[Finding]:
    """The data directory: may it be written, is it safe there, is there room?"""
    place = settings.data_dir
    standing = _standing(place)
    try:
        seconds = _written(standing)
    except OSError as error:
        yield fault(
            "disk",
            f"{place}: cannot be written ({error.strerror})",
            "database, uploads and local files are kept there",
            f"give it to the user that runs Manifold (chown, chmod 700), mount it read-write, or "
            f"name another place in general_settings.data_dir (this user: uid {os.getuid()})",
        )
        return
    if seconds > _SLOW_FSYNC_SECONDS:
        yield warning(
            "disk",
            f"{place}: fsync takes {seconds * 1000:.0f} ms",
            "every upload waits for some of them",
            "put the data directory on a local disk, an SSD if there is one",
        )
    if place.is_dir() and stat.S_IMODE(place.stat().st_mode) & 0o077:
        yield warning(
            "disk",
            f"{place}: other users of this machine may look into it",
            "it holds other people's files and, maybe, the master key",
            f"chmod 700 {place}",
        )
    yield from _kind_of_disk(settings, standing)
    yield from _room(settings, standing, statvfs)


def _standing(place: Path) -> Path:
    """The place, or where it will be made."""
    place = place.absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    return place


def _written(folder: Path) -> float:
    """How long it takes to write a little for good; seconds."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".manifold-doctor-") as file:
        file.write(b"x" * 4096)
        file.flush()
        begun = time.monotonic()
        os.fsync(file.fileno())
        return time.monotonic() - begun


def _kind_of_disk(settings: Settings, standing: Path) -> Iterator[Finding]:
    kind = file_system_of(standing)
    if kind in _NETWORKED or kind.startswith("fuse."):
        if settings.database_url is None:
            yield fault(
                "disk",
                f"{settings.data_dir} is on {kind}, and SQLite's file is in it",
                "locks are not kept there as SQLite needs them: the database will be damaged",
                "put the data directory on a local disk, or use PostgreSQL "
                "(general_settings.database_url, `manifold db copy`)",
            )
        else:
            yield warning(
                "disk",
                f"{settings.data_dir} is on {kind}",
                "uploads wait for the network",
                "put the data directory on a local disk, unless several nodes share it on purpose",
            )
    elif kind in _PASSING:
        yield warning(
            "disk",
            f"{settings.data_dir} is on {kind}",
            "what is there is gone after a restart of the machine or the container",
            "mount a volume there",
        )


def file_system_of(folder: Path) -> str:
    """The kind of file system, empty where the system does not say."""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in mounts:
        _, point, found, *_ = line.split()
        point = point.replace("\\040", " ")
        if len(point) >= len(best) and folder.is_relative_to(point):
            best, kind = point, found
    return kind


def _room(settings: Settings, standing: Path, statvfs: Statvfs) -> Iterator[Finding]:
    told = statvfs(standing)
    free = told.f_bavail * told.f_frsize // MB
    share = told.f_bavail / max(told.f_blocks, 1)
    cure = "free some, grow the disk, or lower max_file_size_mb and spool_max_mb"
    if free < settings.max_file_size_mb:
        yield fault(
            "disk",
            f"{settings.data_dir}: {free} MB are free",
            f"a file of max_file_size_mb ({settings.max_file_size_mb}) is refused with 507",
            cure,
        )
    elif free < settings.spool_max_mb or share < 0.05:
        yield warning(
            "disk",
            f"{settings.data_dir}: {free} MB are free, {share:.0%} of the disk",
            f"uploads are kept there while they are stored, up to spool_max_mb "
            f"({settings.spool_max_mb})",
            cure,
        )
    else:
        yield ok("disk", f"{settings.data_dir}: {free} MB are free")
    if told.f_files and told.f_favail < 10_000:
        yield warning(
            "disk",
            f"{settings.data_dir}: room for {told.f_favail} more files",
            "each stored file takes two",
            "remove small files, or make a file system with more inodes",
        )


def open_files(soft: int | None = None) -> Iterator[Finding]:
    """How many files and connections one process may have open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if soft is None else soft
    if limit == resource.RLIM_INFINITY or limit >= _ENOUGH_FILES:
        yield ok("open files", "no limit" if limit == resource.RLIM_INFINITY else f"{limit}")
        return
    level = fault if limit < _FEW_FILES else warning
    yield level(
        "open files",
        f"a process may have {limit} open",
        "each stream and each upload needs several; requests fail when they run out",
        "LimitNOFILE=65536 in the systemd unit, or `ulimit -n 65536` before the start",
    )


def master_key(settings: Settings) -> Iterator[Finding]:
    """Whether the administrator's key can be guessed, or read."""
    key, path = settings.master_key, settings.data_dir / "master_key"
    if key is not None:
        if key.lower() in _KNOWN_KEYS:
            yield fault(
                "master key",
                "it stands in every tutorial",
                "whoever tries it may do everything",
                "delete it from the configuration, and one is made; or set MANIFOLD_MASTER_KEY to "
                "sk- and 32 random characters",
            )
        elif len(key) < _SHORT_KEY or len(set(key)) < 8:
            yield warning(
                "master key",
                f"it has {len(key)} characters, {len(set(key))} different ones",
                "it can be guessed",
                "set MANIFOLD_MASTER_KEY to sk- and 32 random characters, and name the old one in "
                "general_settings.previous_master_keys",
            )
        else:
            yield ok("master key", "configured")
        return
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        yield ok("master key", "will be made at the first start")
        return
    except OSError as error:
        yield warning(
            "master key",
            f"{path}: {error.strerror}",
            "it cannot be looked at",
            "run this as the user that runs Manifold",
        )
        return
    if mode & 0o077:
        yield fault(
            "master key",
            f"{path}: other users may read or change it",
            "the gateway does not start with it",
            f"chmod 600 {path}, and `manifold master-key rotate` if somebody may have read it",
        )
    else:
        yield ok("master key", f"in {path}")
