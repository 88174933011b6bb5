"""Columns over time and bars beside names, as numbers for SVG; pure functions."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720, 180
LEFT, BOTTOM, TOP = 54, 24, 8
_TICKS = 3
_LABELS = 5


@dataclass(frozen=True)
class Bar:
    """A rectangle; `part` names which of the stacked values it is."""

    part: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Label:
    """Text at a place of an axis."""

    at: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Columns:
    """A chart of stacked columns over time, and the rows of the table that says the same."""

    bars: tuple[Bar, ...]
    lines: tuple[Label, ...]
    labels: tuple[Label, ...]
    rows: tuple[tuple[dt.datetime, tuple[int, ...]], ...]
    is_empty: bool
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    base: int = HEIGHT - BOTTOM


def columns(
    hours: Sequence[dt.datetime],
    parts: Sequence[tuple[str, Sequence[int]]],
    write: "Writer",
    *,
    days: bool = False,
) -> Columns:
    """Stacked columns, the first part at the bottom; `write` says how a value is written."""
    totals = [sum(values) for values in zip(*(values for _, values in parts), strict=True)]
    most = nice(max(totals, default=0))
    room, base = HEIGHT - BOTTOM - TOP, HEIGHT - BOTTOM
    step = (WIDTH - LEFT) / max(1, len(hours))
    gap = min(3.0, step * 0.25)
    bars = []
    for index in range(len(hours)):
        y = float(base)
        for name, values in parts:
            if not values[index]:
                continue
            # One failed request among a million is seen too.
            tall = max(1.5, room * values[index] / most)
            y -= tall
            bars.append(
                Bar(name, round(LEFT + index * step + gap / 2, 2), round(y, 2),
                    round(step - gap, 2), round(tall, 2))
            )  # fmt: skip
    lines = [
        Label(round(base - room * tick / _TICKS, 1), write(most * tick / _TICKS))
        for tick in range(_TICKS + 1)
    ]
    every = max(1, -(-len(hours) // _LABELS))
    labels = [
        Label(
            round(LEFT + (index + 0.5) * step, 1),
            f"{hour:%-d %b}" if days else f"{hour:%H:%M}",
        )
        for index, hour in enumerate(hours)
        if index % every == 0
    ]
    rows = tuple(zip(hours, zip(*(values for _, values in parts), strict=True), strict=True))
    return Columns(tuple(bars), tuple(lines), tuple(labels), rows, is_empty=not any(totals))


def nice(value: float) -> float:
    """The next value above that can be parted in three and read well: 3, 6, 15, 30, 60, 150 ..."""
    bound = 3.0
    while True:
        for factor in (1, 2, 5):
            if value <= bound * factor:
                return bound * factor
        bound *= 10


class Writer:
    """How a value on an axis is written: short."""

    def __call__(self, value: float) -> str:
        """`0`, `500`, `1.5k`, `20M`."""
        for bound, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= bound:
                return f"{value / bound:.1f}".removesuffix(".0") + unit
        return f"{value:.0f}"


class ByteWriter(Writer):
    """The same for bytes."""

    def __call__(self, value: float) -> str:
        """`0`, `30 MB`."""
        for bound, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
            if value >= bound:
                return f"{value / bound:.1f}".removesuffix(".0") + f" {unit}"
        return f"{value:.0f}"


def share_of(values: Sequence[float]) -> list[float]:
    """Each value in percent of the largest."""
    most = max(values, default=0.0) or 1.0
    return [round(100 * value / most, 2) for value in values]
