"""A gateway that is killed at any step, or disturbed by its upstreams, loses and leaves nothing."""

from collections.abc import Iterator

import pytest

from tests.drills import page
from tests.drills.drill import Range, Verdict
from tests.drills.operations import OPERATIONS, Operation
from tests.drills.points import points_in_code
from tests.drills.upstream_faults import FAULTS
from tests.drills.world import make_template
from tests.e2e.gateway import ROOT, Upstream

PAGE = ROOT / "docs" / "drills.md"
NAMES = [operation.name for operation in OPERATIONS]
BRIEF = ("upload to four deployments", "delete", "create a batch")
NOT_SURE = "copy recorded"
"""A point that is reached where answers do not come together, which a busy machine decides."""
LEAST = 200
"""So many drills are run here at least, each of which killed a process or disturbed it."""


@pytest.fixture(scope="module")
def drills(tmp_path_factory, secure_upstream: Upstream) -> Iterator[Range]:
    folder = tmp_path_factory.mktemp("drills")
    with Upstream(folder, name="drills-upstream") as upstream:
        yield Range(upstream, secure_upstream, folder, make_template(folder))


@pytest.fixture(scope="module")
def done() -> list[Verdict]:
    """What every drill of this module has found."""
    return []


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_killed_at_every_point_it_loses_and_leaves_nothing(
    drills: Range, done: list[Verdict], operation: Operation
):
    points = drills.points(operation)
    assert points, "nothing is marked in the code"
    verdicts = [drills.run(operation, kill) for kill in points]
    done += verdicts
    assert [verdict for verdict in verdicts if verdict.mistakes] == []
    # Side by side, a point may be reached once less often than before.
    sure = [verdict for verdict in verdicts if not verdict.point.startswith(NOT_SURE)]
    assert sum(verdict.took_place for verdict in sure) >= len(sure) - 2
    assert {kill.point for kill in points} | {NOT_SURE} == told(operation) | {NOT_SURE}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.name in BRIEF], ids=BRIEF)
def test_whatever_an_upstream_does_nothing_is_lost_or_left(
    drills: Range, done: list[Verdict], operation: Operation, fault: str
):
    verdict = drills.disturb(operation, fault)
    done.append(verdict)
    assert verdict.took_place
    assert verdict.mistakes == ()


def test_a_worker_that_is_killed_too_changes_nothing(drills: Range, done: list[Verdict]):
    operation = next(o for o in OPERATIONS if o.name == "upload while one region is down")
    [*_, kill] = drills.points(operation)
    seconds = drills.recovery_points(operation, kill)
    assert len(seconds) >= 5
    verdicts = [drills.run(operation, kill, second) for second in seconds]
    done += verdicts
    assert [verdict for verdict in verdicts if verdict.mistakes] == []
    assert all(verdict.took_place for verdict in verdicts)


def test_there_were_as_many_drills_as_are_told_of(
    done: list[Verdict], request: pytest.FixtureRequest
):
    here = [item for item in request.session.items if item.path == request.path]
    if len(here) < len(OPERATIONS) + len(BRIEF) * len(FAULTS):
        return  # Somebody asked for some of them only.
    assert sum(verdict.took_place for verdict in done) >= LEAST


# ------------------------------------------------------- docs/drills.md


def told(operation: Operation) -> set[str]:
    """The points at which the page says that this operation was killed."""
    rows = page.table_on(PAGE, page.KILLED).rows
    return {name for name, cells in rows.items() if cells[OPERATIONS.index(operation)]}


def test_the_page_names_every_operation_point_and_fault_of_today_and_no_other():
    killed, disturbed = (page.table_on(PAGE, title) for title in (page.KILLED, page.DISTURBED))
    assert page.operations_on(PAGE) == NAMES
    assert list(killed.rows) == points_in_code()
    assert list(disturbed.rows) == list(FAULTS)
    for table in (killed, disturbed):
        for name, cells in table.rows.items():
            assert len(cells) == len(OPERATIONS), name
            drills, *mistakes = table.ends[name]
            assert drills == sum(int(cell or 0) for cell in cells) > 0, name
            assert mistakes == [0, 0], name
    assert all(all(cells) for cells in disturbed.rows.values())


def test_the_totals_of_the_page_are_those_of_its_tables():
    ends = [page.table_on(PAGE, title).ends for title in (page.KILLED, page.DISTURBED)]
    kills, hits = (sum(row[0] for row in table.values()) for table in ends)
    said = (
        f"{kills + hits} drills, {kills} processes killed and {hits} faults of an upstream:\n"
        "0 lost, 0 orphaned.\n"
    )
    assert PAGE.read_text().count(page.MARK) == 1
    assert said in PAGE.read_text()
