"""A gateway that is killed at any step, or disturbed by its upstreams, loses and leaves nothing."""

from collections.abc import Iterator

import pytest

from tests.drills.drill import Range
from tests.drills.operations import OPERATIONS, Operation
from tests.drills.upstream_faults import FAULTS
from tests.drills.world import make_template
from tests.e2e.gateway import Upstream

NAMES = [operation.name for operation in OPERATIONS]
BRIEF = ("upload to four deployments", "delete", "create a batch")


@pytest.fixture(scope="module")
def drills(tmp_path_factory) -> Iterator[Range]:
    folder = tmp_path_factory.mktemp("drills")
    with Upstream(folder, name="drills-upstream") as upstream:
        yield Range(upstream, folder, make_template(folder))


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_killed_at_every_point_it_loses_and_leaves_nothing(drills: Range, operation: Operation):
    points = drills.points(operation)
    assert points, "nothing is marked in the code"
    verdicts = [drills.run(operation, kill) for kill in points]
    assert [verdict for verdict in verdicts if verdict.mistakes] == []
    # Side by side, a point may be reached once less often than before.
    assert sum(verdict.was_killed for verdict in verdicts) >= len(points) - 2


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.name in BRIEF], ids=BRIEF)
def test_whatever_an_upstream_does_nothing_is_lost_or_left(
    drills: Range, operation: Operation, fault: str
):
    assert drills.disturb(operation, "b", fault).mistakes == ()


def test_a_worker_that_is_killed_too_changes_nothing(drills: Range):
    operation = next(o for o in OPERATIONS if o.name == "upload while one region is down")
    [*_, kill] = drills.points(operation)
    seconds = drills.recovery_points(operation, kill)
    assert len(seconds) >= 5
    verdicts = [drills.run(operation, kill, second) for second in seconds]
    assert [verdict for verdict in verdicts if verdict.mistakes] == []
    assert all(verdict.was_killed for verdict in verdicts)
