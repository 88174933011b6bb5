"""One drill: an operation is killed at a point, the worker too perhaps; what is left is counted."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.drills.operations import Operation, Step
from tests.drills.upstream_faults import FAULTS
from tests.drills.world import OWNER, Ended, Kill, World
from tests.e2e.gateway import Upstream

_PASSES = 6
"""Passes of the worker until nothing may be unfinished; one that finds nothing looks thrice."""


@dataclass(frozen=True)
class Verdict:
    """What a drill found. `mistakes` is empty when nothing was lost and nothing left over."""

    operation: str
    kill: str
    mistakes: tuple[str, ...]
    was_killed: bool

    @property
    def lost(self) -> int:
        return sum(text.startswith(("lost", "unreadable")) for text in self.mistakes)

    @property
    def orphaned(self) -> int:
        return len(self.mistakes) - self.lost


class Range:
    """Where drills take place: an upstream, a folder, and a database to begin from."""

    def __init__(self, upstream: Upstream, folder: Path, template: Path) -> None:
        self._upstream = upstream
        self._folder = folder
        self._template = template
        self._serial = count()

    def points(self, operation: Operation) -> list[Kill]:
        """Every point at which the operation can be killed, in order, each time it is reached."""
        world = self._world(operation)
        return list(_kills(self._begun(operation, world, None).points))

    def recovery_points(self, operation: Operation, kill: Kill) -> list[Kill]:
        """Every point of the worker's first pass after the operation was killed."""
        world = self._world(operation)
        self._begun(operation, world, kill)
        return list(_kills(world.recover().points))

    def run(self, operation: Operation, kill: Kill | None, second: Kill | None = None) -> Verdict:
        """Kill the operation, then the worker's first pass, let the worker pass, and look."""
        world = self._world(operation)
        ended = self._begun(operation, world, kill)
        was_killed = ended.was_killed
        if second is not None:
            was_killed = world.recover(second).was_killed
        world.recover()
        mistakes = world.mistakes(settled=False)
        world.recover(passes=_PASSES)
        mistakes += world.mistakes(settled=True)
        mistakes += _unreadable(world, ended)
        what = " then ".join(str(each) for each in (kill, second) if each) or "-"
        return Verdict(operation.name, what, tuple(dict.fromkeys(mistakes)), was_killed)

    def disturb(self, operation: Operation, account: str, fault: str) -> Verdict:
        """Let an upstream fail once during the operation, let the worker pass, and look."""
        world = self._world(operation)
        world.notes.update(world.run(_preparing(operation)).result or {})
        world.accounts[account].fail(times=1, **FAULTS[fault])
        ended = world.recover() if operation.is_worker else world.run(operation.act)
        self._upstream.clear_faults()
        if operation.is_repeated:
            # What an upstream has lost is only known once somebody asks for it.
            world.run(operation.act)
        world.recover()
        mistakes = world.mistakes(settled=False)
        world.recover(passes=_PASSES)
        mistakes += world.mistakes(settled=True)
        mistakes += _unreadable(world, ended)
        return Verdict(operation.name, fault, tuple(dict.fromkeys(mistakes)), was_killed=False)

    def _world(self, operation: Operation) -> World:
        number = next(self._serial)
        return World(
            self._upstream,
            self._folder / f"world-{number}",
            self._template,
            number,
            general=dict(operation.general),
        )

    @staticmethod
    def _begun(operation: Operation, world: World, kill: Kill | None) -> Ended:
        # Forked, so that the drill's own process has neither threads nor connections of a gateway.
        world.notes.update(world.run(_preparing(operation)).result or {})
        return world.recover(kill) if operation.is_worker else world.run(operation.act, kill)


def _preparing(operation: Operation) -> Step:
    def prepare(client: object, world: World) -> object:
        operation.prepare(client, world)
        return world.notes

    return prepare


def _kills(points: tuple[str, ...]) -> Iterator[Kill]:
    seen: Counter[str] = Counter()
    for point in points:
        seen[point] += 1
        yield Kill(point, seen[point])


def _unreadable(world: World, ended: Ended) -> list[str]:
    """Files that were acknowledged, and cannot be read now."""
    file_id = ended.result
    if not isinstance(file_id, str) or world.notes.get("file"):
        return []  # Nothing was uploaded by it, or it made a job.

    def read(client: object, world: World) -> list[object]:
        answer = client.get(f"/v1/files/{file_id}/content", headers=OWNER)  # type: ignore[attr-defined]  # Flask's client
        return [answer.status_code, answer.data == world.content]

    status, same = world.run(read).result
    return [] if status == 200 and same else [f"unreadable: {file_id} gives {status}"]
