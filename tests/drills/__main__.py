"""`python -m tests.drills [--random N] [--seed S] [--write PAGE]`: every drill, or N random ones.

Prints a Markdown table: what was done, how often it was cut off, what was lost or left over; with
`--write docs/drills.md` every point, every fault and every operation goes to that page. The exit
status says whether anything was lost or left over.
"""

import argparse
import random
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.drills import page
from tests.drills.drill import Range, Verdict
from tests.drills.operations import OPERATIONS
from tests.drills.points import points_in_code
from tests.drills.upstream_faults import FAULTS
from tests.drills.world import Kill, make_template
from tests.e2e.gateway import Upstream, secure_upstream_in

ACCOUNTS = ("a1", "a2", "b")


def every(drills: Range) -> Iterator[Verdict]:
    """Every operation killed at each of its points, and disturbed by each fault."""
    for operation in OPERATIONS:
        for kill in drills.points(operation):
            yield drills.run(operation, kill)
        for fault in FAULTS:
            yield drills.disturb(operation, fault)


def some(drills: Range, number: int, seed: int) -> Iterator[Verdict]:
    """Random drills: the worker that comes after a killed process may be killed too."""
    chance = random.Random(seed)  # to repeat a run, not to guard a secret
    points = {operation.name: drills.points(operation) for operation in OPERATIONS}
    seconds: dict[tuple[str, Kill], list[Kill]] = {}
    for _ in range(number):
        operation = chance.choice(OPERATIONS)
        if chance.random() < 0.3:
            yield drills.disturb(operation, chance.choice(list(FAULTS)), (chance.choice(ACCOUNTS),))
            continue
        kill = chance.choice(points[operation.name])
        second = None
        if chance.random() < 0.5:
            at = (operation.name, kill)
            if at not in seconds:
                seconds[at] = drills.recovery_points(operation, kill)
            second = chance.choice(seconds[at]) if seconds[at] else None
        yield drills.run(operation, kill, second)


def main() -> int:
    """Run the drills that are asked for; 1 when anything is lost, left over, or was not tried."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.drills")
    parser.add_argument("--random", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="not with --random")
    asked = parser.parse_args()
    if asked.random and asked.write:
        parser.error("--write is for every drill, not for random ones")
    found: dict[str, list[Verdict]] = defaultdict(list)
    is_whole = False
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="drills-")))
        upstream = stack.enter_context(Upstream(folder))
        untrusted = stack.enter_context(secure_upstream_in(folder))
        drills = Range(upstream, untrusted, folder, make_template(folder))
        verdicts = some(drills, asked.random, asked.seed) if asked.random else every(drills)
        # Whoever has seen enough gets the table of what there was until then.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            for verdict in verdicts:
                found[verdict.operation].append(verdict)
                if verdict.mistakes:
                    print(verdict, file=sys.stderr, flush=True)
            is_whole = True
    everything = [verdict for each in found.values() for verdict in each]
    if asked.write and is_whole:
        names = [operation.name for operation in OPERATIONS]
        page.write(asked.write, page.tables(names, points_in_code(), list(FAULTS), everything))
    print("| operation | drills | took place | lost | left over |\n|---|---|---|---|---|")
    for operation, all_of_it in [*found.items(), ("together", everything)]:
        took_place = sum(verdict.took_place for verdict in all_of_it)
        lost = sum(verdict.lost for verdict in all_of_it)
        orphaned = sum(verdict.orphaned for verdict in all_of_it)
        print(f"| {operation} | {len(all_of_it)} | {took_place} | {lost} | {orphaned} |")
    return int(not is_whole or any(verdict.mistakes for verdict in everything))


if __name__ == "__main__":
    sys.exit(main())
