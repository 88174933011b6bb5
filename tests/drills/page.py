"""The tables of docs/drills.md: written from verdicts, and read again by a test."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.drills.drill import Verdict

MARK = "<!-- Written by `python -m tests.drills --write docs/drills.md`. -->"
"""Everything below this line of the page is written anew."""
KILLED, DISTURBED = "killed at", "the upstream's fault"
_ENDS = ("drills", "lost", "orphaned")


@dataclass(frozen=True)
class Table:
    """A table as it stands on the page: per row the cells by the numbers of operations."""

    rows: Mapping[str, Sequence[str]]
    ends: Mapping[str, tuple[int, int, int]]
    """Per row: drills, lost, orphaned."""


def tables(
    operations: Sequence[str],
    points: Sequence[str],
    faults: Sequence[str],
    verdicts: Iterable[Verdict],
) -> str:
    """Both tables and the list of operations that their columns are."""
    found = [verdict for verdict in verdicts if verdict.took_place]
    kills = [verdict for verdict in found if verdict.point not in faults]
    hits = [verdict for verdict in found if verdict.point in faults]
    lost, orphaned = (sum(getattr(v, name) for v in found) for name in ("lost", "orphaned"))
    numbered = "\n".join(f"{n}. {name}" for n, name in enumerate(operations, 1))
    return f"""
{len(found)} drills, {len(kills)} processes killed and {len(hits)} faults of an upstream:
{lost} lost, {orphaned} orphaned.

## Operations

{numbered}

## Killed

{_table(KILLED, points, operations, kills)}
## Disturbed

{_table(DISTURBED, faults, operations, hits)}"""


def _table(
    title: str, names: Sequence[str], operations: Sequence[str], verdicts: Sequence[Verdict]
) -> str:
    heads = [title, *(str(n) for n, _ in enumerate(operations, 1)), *_ENDS]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for name in names:
        row = [verdict for verdict in verdicts if verdict.point.partition(" (")[0] == name]
        cells = [_cell([v for v in row if v.operation == operation]) for operation in operations]
        ends = (len(row), sum(v.lost for v in row), sum(v.orphaned for v in row))
        lines.append(_line([name, *cells, *map(str, ends)]))
    return "\n".join(lines) + "\n"


def _cell(verdicts: Sequence[Verdict]) -> str:
    mistakes = sum(len(verdict.mistakes) for verdict in verdicts)
    return f"{len(verdicts) or ''}" + (f" ({mistakes} mistakes)" if mistakes else "")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write(path: Path, text: str) -> None:
    """Put the tables in the place of those that the page has."""
    above, mark, _ = path.read_text().partition(MARK)
    if not mark:
        raise SystemExit(f"{path} has no line {MARK}")
    path.write_text(f"{above}{MARK}\n{text}")


def operations_on(path: Path) -> list[str]:
    """The operations that the page numbers."""
    lines = path.read_text().partition(MARK)[2].splitlines()
    return [line.partition(". ")[2] for line in lines if line[:1].isdigit() and ". " in line[:5]]


def table_on(path: Path, title: str) -> Table:
    """The table of the page that begins with this title."""
    rows: dict[str, Sequence[str]] = {}
    ends: dict[str, tuple[int, int, int]] = {}
    below = path.read_text().partition(f"| {title} |")[2].splitlines()[2:]
    for line in below:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        drills, lost, orphaned = (int(cell) for cell in cells[-3:])
        rows[name], ends[name] = cells[:-3], (drills, lost, orphaned)
    return Table(rows, ends)
