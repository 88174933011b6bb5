"""The worker's ticks: every chore's due rows are looked at, the sweep comes once a minute."""

import subprocess
import sys
from pathlib import Path

import pytest
from huey import MemoryHuey

from app import worker

ROOT = Path(__file__).parent.parent


class Recorded:
    """A chore that remembers its looks."""

    def __init__(self, name: str, *due: str) -> None:
        self.name = name
        self._due = list(due)
        self.looks: list[str] = []

    def due(self) -> list[str]:
        return self._due

    def look(self, row_id: str) -> bool:
        self.looks.append(row_id)
        return True


class Sweeps:
    """A sweeper that counts."""

    def __init__(self) -> None:
        self.count = 0

    def run(self) -> None:
        self.count += 1


@pytest.fixture
def queue() -> MemoryHuey:
    return MemoryHuey("manifold", immediate=True, results=False, utc=True)


def test_a_tick_looks_at_all_that_is_due_and_sweeps_once(queue):
    jobs, copies, sweeps = Recorded("jobs", "1", "2"), Recorded("copies", "3"), Sweeps()
    worker.prepare(queue, [jobs, copies], sweeps)  # type: ignore[arg-type]  # stands in for it
    [tick] = [task for name, task in queue._registry._registry.items() if name.endswith("tick")]
    for _ in range(3):
        queue.execute(tick())
    assert (jobs.looks, copies.looks) == (["1", "2"] * 3, ["3"] * 3)
    assert sweeps.count == 1


def test_the_consumer_ticks_every_few_seconds(queue):
    consumer = worker.prepare(queue, [], Sweeps())  # type: ignore[arg-type]  # likewise
    assert consumer.scheduler_class.periodic_task_seconds == worker.TICK_SECONDS


def test_drivers_that_the_queue_does_not_need_are_not_loaded(tmp_path):
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from app.settings import Settings\n"
        "from app.worker import make_queue\n"
        "make_queue(Settings(data_dir=Path(sys.argv[1])))\n"
        "drivers = {'redis', 'psycopg', 'gevent'}\n"
        "assert not drivers & set(sys.modules), drivers & set(sys.modules)\n"
        "import redis, psycopg\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=ROOT)
