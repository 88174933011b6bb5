"""A file that is read while it is written."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app import transfers
from app.transfers import HELD_BYTES, Arriving, GivenUpError

SIZE = HELD_BYTES + 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(bytes(range(200)) * (SIZE // 200 + 1))
    with found.open("r+b") as file:
        file.truncate(SIZE)
    return found


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except GivenUpError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def test_what_is_there_is_read_and_the_rest_waited_for(path):
    arriving = Arriving(path, SIZE)
    with arriving.open() as reader:
        thread, got = in_thread(lambda: reader.read(600))
        time.sleep(0.05)
        assert got == []
        arriving.wrote(500)
        thread.join(5)
        assert got == [path.read_bytes()[:500]]
        arriving.let_go()
        assert reader.read() == path.read_bytes()[500:]
        assert reader.read(10) == b""


def test_the_end_is_held_back_until_it_is_let_go(path):
    arriving = Arriving(path, SIZE)
    arriving.wrote(SIZE)
    with arriving.open() as reader:
        assert reader.read(SIZE) == path.read_bytes()[:1000]
        thread, got = in_thread(lambda: reader.read(SIZE))
        time.sleep(0.05)
        assert got == []
        arriving.let_go()
        thread.join(5)
        assert got == [path.read_bytes()[1000:]]


def test_each_reader_has_its_own_pace_and_can_begin_anew(path):
    arriving = Arriving(path, SIZE)
    arriving.wrote(300)
    with arriving.open() as one, arriving.open() as other:
        assert (one.read(200), other.read(50)) == (
            path.read_bytes()[:200],
            path.read_bytes()[:50],
        )
        one.seek(0)
        assert one.read(SIZE) == path.read_bytes()[:300]


def test_who_waits_is_told_when_it_is_given_up(path):
    arriving = Arriving(path, SIZE)
    with arriving.open() as reader:
        thread, got = in_thread(lambda: reader.read(1))
        arriving.give_up()
        thread.join(5)
        assert isinstance(got[0], GivenUpError)
        with pytest.raises(GivenUpError):
            reader.read(1)
        arriving.wrote(500)
        with pytest.raises(GivenUpError):
            reader.read(1)


def test_what_was_let_go_cannot_be_given_up(path):
    arriving = Arriving(path, SIZE)
    arriving.let_go()
    arriving.give_up()
    with arriving.open() as reader:
        assert reader.read() == path.read_bytes()


def test_nobody_waits_for_ever(path, monkeypatch):
    monkeypatch.setattr(transfers, "STALL_SECONDS", 0.05)
    arriving = Arriving(path, SIZE)
    arriving.wrote(10)
    with arriving.open() as reader:
        assert len(reader.read(100)) == 10
        with pytest.raises(GivenUpError):
            reader.read(100)
