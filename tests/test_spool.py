"""A process's own folder: there while it lives, swept when it has died."""

import os
import signal
import time

from app.spool import Spool


def test_a_process_has_one_folder(tmp_path):
    spool = Spool(tmp_path / "spool")
    folder = spool.folder()
    assert folder == spool.folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_living_processs_folder_is_not_swept(tmp_path):
    spool = Spool(tmp_path)
    (spool.folder() / "upload-1").write_bytes(b"x")
    # POSIX locks are a process's: only another one can see that it is held.
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        removed = Spool(tmp_path).sweep()
        os.write(writing, str(removed).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    assert os.read(reading, 10) == b"0"
    os.close(reading)
    assert (spool.folder() / "upload-1").exists()


def test_a_dead_processs_folder_goes(tmp_path):
    if (pid := os.fork()) == 0:
        (Spool(tmp_path).folder() / "upload-1").write_bytes(b"x")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(list(tmp_path.glob("*/upload-1"))) == 1
    assert Spool(tmp_path).sweep() == 1
    assert list(tmp_path.iterdir()) == []


def test_a_forked_process_has_a_folder_of_its_own(tmp_path):
    spool = Spool(tmp_path)
    mine = spool.folder()
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writing, spool.folder().name.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    assert os.read(reading, 100).decode() not in ("", mine.name)
    os.close(reading)


def test_what_is_left_can_be_looked_at_before_it_goes(tmp_path):
    spool = Spool(tmp_path)
    mine = spool.folder()
    if (pid := os.fork()) == 0:
        (Spool(tmp_path).folder() / "upload-1").write_bytes(b"x")
        os._exit(0)
    os.waitpid(pid, 0)
    [left] = spool.leftovers()
    assert left != mine
    assert spool.holds_something(left) and not spool.holds_something(mine)
    spool.remove(left)
    spool.remove(left)
    assert spool.leftovers() == [] and not spool.holds_something(left)


def test_what_is_no_processs_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    assert Spool(tmp_path).sweep() == 0
    assert Spool(tmp_path / "nowhere").sweep() == 0


def test_a_folder_that_somebody_removed_is_made_anew(tmp_path):
    spool = Spool(tmp_path / "spool")
    folder = spool.folder()
    (folder / ".lock").unlink()
    folder.rmdir()
    assert spool.folder().is_dir()


def test_a_folder_in_the_making_is_left_alone_whoever_makes_it(tmp_path):
    """Containers may share a folder, and the process id of one is nobody's in the other."""
    hidden = tmp_path / ".4194305-ab12cd34"  # More than the kernel ever gives.
    hidden.mkdir()
    assert Spool(tmp_path).sweep() == 0
    long_ago = time.time() - 3600
    os.utime(hidden, (long_ago, long_ago))
    assert Spool(tmp_path).sweep() == 1
    assert not hidden.exists()
