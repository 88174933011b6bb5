"""One drill: an operation is killed at a point, the worker too perhaps; what is left is counted."""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.drills.operations import Operation
from tests.drills.upstream_faults import ASIDE, FAULTS, UNTRUSTED
from tests.drills.world import Ended, Kill, World
from tests.e2e.gateway import Upstream


@dataclass(frozen=True)
class Verdict:
    """What a drill found. `mistakes` is empty when nothing was lost and nothing left over."""

    operation: str
    point: str
    """Where it was killed, or what the upstream did."""
    second: str
    """Where the worker that came next was killed too, if it was."""
    mistakes: tuple[str, ...]
    took_place: bool
    """Whether the process died there, or the upstream was asked while it misbehaved."""

    @property
    def lost(self) -> int:
        return sum(text.startswith(("lost", "unreadable")) for text in self.mistakes)

    @property
    def orphaned(self) -> int:
        return len(self.mistakes) - self.lost


class Range:
    """Where drills take place: an upstream, a folder, and a database to begin from."""

    def __init__(
        self, upstream: Upstream, untrusted: Upstream, folder: Path, template: Path
    ) -> None:
        self._upstream = upstream
        self._untrusted = untrusted
        self._folder = folder
        self._template = template
        self._serial = count()

    def points(self, operation: Operation) -> list[Kill]:
        """Every point at which the operation can be killed, in order, each time it is reached."""
        with self._world(operation) as world:
            return list(_kills(_begun(operation, world, None).points))

    def recovery_points(self, operation: Operation, kill: Kill) -> list[Kill]:
        """Every point of the worker's first pass after the operation was killed."""
        with self._world(operation) as world:
            _begun(operation, world, kill)
            return list(_kills(world.recover().points))

    def run(self, operation: Operation, kill: Kill | None, second: Kill | None = None) -> Verdict:
        """Kill the operation, then the worker's first pass, let the worker pass, and look."""
        with self._world(operation) as world:
            ended = _begun(operation, world, kill)
            was_killed = ended.was_killed
            if second is not None:
                was_killed = world.recover(second).was_killed
            mistakes = world.aftermath(_acknowledged(world, ended))
        return Verdict(
            operation.name, str(kill or ""), str(second or ""), tuple(mistakes), was_killed
        )

    def disturb(
        self, operation: Operation, fault: str, accounts: tuple[str, ...] | None = None
    ) -> Verdict:
        """Let accounts fail once in the operation or right after, let the worker pass, and look."""
        accounts = accounts or operation.accounts
        with self._world(operation) as world:
            _prepare(operation, world)
            away: AbstractContextManager[None] = nullcontext()
            faults: list[int] = []
            if fault == UNTRUSTED:
                away = world.moved(accounts, f"{self._untrusted.url}/v1")
            else:
                action = {"times": 1, **FAULTS[fault]}
                faults = [world.accounts[account].fail(**action) for account in accounts]
            with away:
                ended = world.recover() if operation.is_worker else world.run(operation.act)
                took_place = fault == UNTRUSTED or self._upstream.hits(*faults) > 0
                if not took_place:
                    # The operation came to its end before; so the worker comes upon it.
                    world.recover()
                    took_place = self._upstream.hits(*faults) > 0
            self._upstream.clear_faults()
            if operation.is_repeated:
                # What an upstream has lost is only known once somebody asks for it.
                world.run(operation.act)
            mistakes = world.aftermath(_acknowledged(world, ended)) + self._strayed()
        return Verdict(operation.name, fault, "", tuple(mistakes), took_place)

    def _strayed(self) -> list[str]:
        """Requests that went where nobody may send any."""
        aside = self._upstream.requests(path_prefix=ASIDE)
        told = self._untrusted.requests()
        self._upstream.forget_requests()
        self._untrusted.forget_requests()
        return [f"strayed: {seen.method} {seen.path}" for seen in (*aside, *told)]

    @contextmanager
    def _world(self, operation: Operation) -> Iterator[World]:
        """A world; one in which a drill broke off stays for whoever looks into it."""
        number = next(self._serial)
        world = World(
            self._upstream,
            self._folder / f"world-{number}",
            self._template,
            number,
            content=operation.content,
            general=dict(operation.general),
        )
        yield world
        world.remove()


def _begun(operation: Operation, world: World, kill: Kill | None) -> Ended:
    _prepare(operation, world)
    return world.recover(kill) if operation.is_worker else world.run(operation.act, kill)


def _prepare(operation: Operation, world: World) -> None:
    if (step := operation.prepare) is None:
        return

    def prepare(client: object, world: World) -> object:
        step(client, world)
        return world.notes

    # Forked, so that the drill's own process has neither threads nor connections of a gateway.
    world.notes.update(world.run(prepare).result)


def _kills(points: tuple[str, ...]) -> Iterator[Kill]:
    seen: Counter[str] = Counter()
    for point in points:
        seen[point] += 1
        yield Kill(point, seen[point])


def _acknowledged(world: World, ended: Ended) -> str | None:
    """The file that a client was told of, if it was an upload."""
    is_upload = isinstance(ended.result, str) and not world.notes.get("file")
    return ended.result if is_upload else None
