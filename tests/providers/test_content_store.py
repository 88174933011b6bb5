"""The content store: nothing lost, nothing left over, every content once."""

import errno
import hashlib
import os
import random
import threading
from pathlib import Path

import pytest

from app.errors import StorageFull, UpstreamError
from app.providers.content_store import ContentStore
from tests.builders import make_upload, path_of

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(root):
    return ContentStore(root, "deployment-1")


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def blob_of(root: Path, content: bytes) -> Path:
    name = hashlib.sha256(content).hexdigest()
    return root / "blobs" / name[:2] / name


def test_an_entry_holds_the_uploads_bytes(store, root):
    store.put(make_upload(CONTENT), root / "a" / "1")
    assert (root / "a" / "1").read_bytes() == CONTENT
    assert blob_of(root, CONTENT).read_bytes() == CONTENT


def test_the_same_content_is_kept_once(store, root):
    entries = [root / "a" / "1", root / "a" / "2", root / "b" / "1"]
    for entry in entries:
        store.put(make_upload(CONTENT), entry)
    inodes = {path.stat().st_ino for path in (*entries, blob_of(root, CONTENT))}
    assert len(inodes) == 1
    assert everything_below(root / "tmp") == set()


def test_the_content_goes_with_its_last_entry(store, root):
    upload = make_upload(CONTENT)
    store.put(upload, root / "a" / "1")
    store.put(upload, root / "a" / "2")
    store.drop(root / "a" / "1", upload.sha256)
    assert (root / "a" / "2").read_bytes() == CONTENT
    assert blob_of(root, CONTENT).exists()
    store.drop(root / "a" / "2", upload.sha256)
    assert everything_below(root) == set()


def test_dropping_what_is_gone_is_no_error(store, root):
    store.drop(root / "a" / "1", make_upload(CONTENT).sha256)
    store.drop(root / "a" / "1", None)


@pytest.mark.parametrize("sha256", ["0" * 64, "../../etc/passwd", "", "A" * 64])
def test_a_wrong_checksum_stores_nothing(store, root, sha256):
    upload = make_upload(CONTENT, sha256=sha256 or "z")
    with pytest.raises(UpstreamError) as failure:
        store.put(upload, root / "a" / "1")
    assert failure.value.deployment == "deployment-1"
    assert everything_below(root) == set()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_full_disk_stores_nothing(store, root, monkeypatch, call, number):
    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageFull):
        store.put(make_upload(CONTENT), root / "a" / "1")
    monkeypatch.undo()
    assert everything_below(root) == set()


def test_a_disk_that_fills_up_at_the_end_stores_nothing(store, root, monkeypatch):
    store.put(make_upload(b"other"), root / "a" / "2")
    before = everything_below(root)
    fsync, calls = os.fsync, []

    def last_one_fails(handle):
        calls.append(handle)
        if len(calls) == 4:  # The content's, then those of its folders.
            raise OSError(errno.ENOSPC, "no space")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", last_one_fails)
    with pytest.raises(StorageFull):
        store.put(make_upload(CONTENT), root / "a" / "1")
    assert len(calls) == 4
    assert everything_below(root) == before


def test_any_other_trouble_is_an_upstream_error_without_a_path(store, root, monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error", "/secret/path")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UpstreamError, match="Input/output error") as failure:
        store.put(make_upload(CONTENT), root / "a" / "1")
    assert "/secret/path" not in failure.value.message
    assert everything_below(root) == set()


def test_a_spool_file_that_is_gone_is_an_upstream_error(store, root):
    upload = make_upload(CONTENT)
    path_of(upload).unlink()
    with pytest.raises(UpstreamError):
        store.put(upload, root / "a" / "1")
    assert everything_below(root) == set()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_hard_links_every_entry_is_a_copy(store, root, monkeypatch, number):
    def no_link(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_link)
    upload = make_upload(CONTENT)
    store.put(upload, root / "a" / "1")
    store.put(upload, root / "a" / "2")
    store.drop(root / "a" / "1", upload.sha256)
    assert (root / "a" / "2").read_bytes() == CONTENT
    store.drop(root / "a" / "2", upload.sha256)
    assert everything_below(root) == set()


def test_a_blob_with_too_many_links_gets_a_successor(store, root, monkeypatch):
    upload = make_upload(CONTENT)
    store.put(upload, root / "a" / "1")
    link, full = os.link, blob_of(root, CONTENT).stat().st_ino

    def limited(source, target, **_):
        if Path(source).stat().st_ino == full:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        link(source, target)

    monkeypatch.setattr(os, "link", limited)
    store.put(upload, root / "a" / "2")
    store.put(upload, root / "a" / "3")
    entries = [root / "a" / name for name in "123"]
    assert [entry.read_bytes() for entry in entries] == [CONTENT] * 3
    assert entries[1].stat().st_ino == entries[2].stat().st_ino != full
    for entry in entries:
        store.drop(entry, upload.sha256)
    assert everything_below(root) == set()


def test_a_damaged_blob_is_not_handed_to_new_entries(store, root):
    blob = blob_of(root, CONTENT)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(CONTENT[:-1])
    store.put(make_upload(CONTENT), root / "a" / "1")
    assert (root / "a" / "1").read_bytes() == CONTENT
    assert blob.read_bytes() == CONTENT


def test_a_blobs_name_that_was_taken_away_is_put_back(store, root, monkeypatch):
    """A deletion counted the links, an upload linked the blob, the deletion went on."""
    upload = make_upload(CONTENT)
    store.put(upload, root / "a" / "1")
    blob, link = blob_of(root, CONTENT), os.link

    def overtaken(source, target, **_):
        link(source, target)
        if Path(source) == blob:
            blob.unlink()

    monkeypatch.setattr(os, "link", overtaken)
    store.put(upload, root / "a" / "2")
    monkeypatch.undo()
    assert blob.samefile(root / "a" / "2")


def test_sweeping_removes_what_a_crash_left_and_nothing_else(store, root):
    upload = make_upload(CONTENT)
    store.put(upload, root / "a" / "1")
    store.put(make_upload(b"orphan"), root / "a" / "2")
    (root / "a" / "2").unlink()  # A crash between an entry's removal and its blob's.
    (root / "tmp" / "half").write_bytes(b"ha")  # A crash while writing.
    store.sweep()
    assert blob_of(root, b"orphan").exists()
    assert (root / "tmp" / "half").exists()
    store.sweep(max_age_seconds=-1)
    assert everything_below(root) == {"a/1", str(blob_of(root, CONTENT).relative_to(root))}


def test_old_temporary_files_are_swept(store, root):
    (root / "tmp").mkdir(parents=True)
    (root / "tmp" / "old").write_bytes(b"")
    os.utime(root / "tmp" / "old", (0, 0))
    store.sweep()
    assert everything_below(root) == set()


def test_sweeping_a_store_that_was_never_used_is_no_error(store, root):
    store.sweep()
    assert not root.exists()


def test_a_crash_between_the_blob_and_the_entry_is_made_good_by_the_next_upload(store, root):
    blob = blob_of(root, CONTENT)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(CONTENT)
    upload = make_upload(CONTENT)
    store.put(upload, root / "a" / "1")
    assert blob.samefile(root / "a" / "1")
    store.drop(root / "a" / "1", upload.sha256)
    assert everything_below(root) == set()


def test_a_blob_that_no_entry_shares_is_named_and_removed(store, root):
    upload = make_upload(CONTENT)
    store.put(upload, root / "a" / "1")
    assert list(store.unused(-1)) == [] and not store.is_unused(upload.sha256)
    store.drop_unused(upload.sha256)
    assert blob_of(root, CONTENT).exists(), "somebody shares it"
    (root / "a" / "1").unlink()
    assert list(store.unused(60)) == [], "somebody may be at it"
    assert list(store.unused(-1)) == [upload.sha256] and store.is_unused(upload.sha256)
    store.drop_unused(upload.sha256)
    store.drop_unused(upload.sha256)
    assert everything_below(root) == set() and not store.is_unused(upload.sha256)


def test_nothing_further_shares_a_blob_that_is_damaged(store, root):
    upload = make_upload(CONTENT)
    store.put(upload, root / "a" / "1")
    store.distrust(upload.sha256)
    assert blob_of(root, CONTENT).exists(), "it is what its name says"
    blob_of(root, CONTENT).write_bytes(CONTENT[::-1])
    store.distrust(upload.sha256)
    store.distrust(upload.sha256)
    store.put(upload, root / "a" / "2")
    assert (root / "a" / "2").read_bytes() == CONTENT
    assert (root / "a" / "1").read_bytes() == CONTENT[::-1], "nobody's bytes are taken"
    assert store.digest(root / "a" / "2") == upload.sha256


def test_uploads_and_deletions_of_the_same_content_at_the_same_time(root):
    upload = make_upload(CONTENT)
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def hammer(seed: int) -> None:
        # Everyone has a store of his own, like the processes of a server.
        store, chance, mine = ContentStore(root), random.Random(seed), []
        start.wait()
        try:
            for number in range(60):
                entry = root / f"user-{seed}" / str(number)
                store.put(upload, entry)
                mine.append(entry)
                while mine and chance.random() < 0.55:
                    store.drop(mine.pop(chance.randrange(len(mine))), upload.sha256)
                assert all(path.read_bytes() == CONTENT for path in mine)
            for path in mine:
                store.drop(path, upload.sha256)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert everything_below(root) == set()
