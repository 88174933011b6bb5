"""What is judged of a soak: pure functions over what was observed."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

MB = 1024 * 1024
FLAT = 1.05
"""The memory of the last third may be so many times that of the one before."""
SLACK = 5
"""By so many descriptors or threads two medians may differ: connections come and go, and a pool
gets one more thread whenever more is asked at once than ever before."""
ENOUGH = 100
"""An operation with fewer calls in a half has no 99th percentile worth the name."""
QUICK_S = 0.05
"""Below this a 99th percentile is the scheduler's, and not compared."""


@dataclass(frozen=True)
class ProcessSample:
    """One process at one moment; bytes and numbers."""

    name: str
    pid: int
    rss: int
    uss: int
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Sample:
    """All processes of the gateway and its worker, so many seconds after the start."""

    at: float
    processes: tuple[ProcessSample, ...]

    def total(self, what: str) -> int:
        """The sum of one figure over all processes."""
        return sum(getattr(process, what) for process in self.processes)

    @property
    def pids(self) -> frozenset[int]:
        return frozenset(process.pid for process in self.processes)


@dataclass(frozen=True)
class Call:
    """One thing that a client did, begun so many seconds after the start, and how long it took."""

    at: float
    operation: str
    seconds: float


@dataclass
class Observed:
    """Everything that a run has shown. The lists of texts hold what must not be."""

    seconds: float
    warm_up: float
    samples: list[Sample] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    lock_errors: list[str] = field(default_factory=list)
    error_lines: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    """Answers of 5xx, and all others that nobody expected."""
    changed: list[str] = field(default_factory=list)
    """Files that were acknowledged, not deleted, and are not what they were."""
    orphaned: list[str] = field(default_factory=list)
    """What is at an upstream without a row, or the other way round."""


@dataclass(frozen=True)
class Check:
    """One line of the verdict: what was found before and after, and what it may be."""

    name: str
    before: str
    after: str
    bound: str
    passed: bool


def judge(observed: Observed, p99_factor: float) -> list[Check]:
    """Every check of a run. What was measured during the warm-up counts for none of the figures.

    Memory, descriptors and threads are sums over all processes. What is left after the warm-up is
    cut into thirds, and the medians of the second and the last third are compared: the first third
    may still grow into its pools and caches, and a median does not mind the transfers that happen
    to be under way when a sample is taken. Latencies are compared between the two halves.
    """
    samples = [sample for sample in observed.samples if sample.at >= observed.warm_up]
    checks = [
        _flat(samples, "rss", "resident memory"),
        _flat(samples, "uss", "memory of no other process"),
        _not_growing(samples, "descriptors"),
        _not_growing(samples, "threads"),
        _same_processes(samples),
        *_latencies(observed, p99_factor),
    ]
    for name, found in (
        ("lock errors", observed.lock_errors),
        ("log lines at ERROR", observed.error_lines),
        ("answers that no fault explains", observed.unexplained),
        ("files lost or changed", observed.changed),
        ("copies without a row, rows without a copy", observed.orphaned),
    ):
        checks.append(Check(name, "", str(len(found)), "0", not found))
    return checks


def _medians(samples: Sequence[Sample], what: str) -> tuple[float, float] | None:
    """Of the second and the last third; None when there are too few samples to tell."""
    third = len(samples) // 3
    if third < 3:
        return None
    totals = [sample.total(what) for sample in samples]
    return statistics.median(totals[third : 2 * third]), statistics.median(totals[2 * third :])


def _flat(samples: Sequence[Sample], what: str, name: str) -> Check:
    def shown(size: float) -> str:
        return f"{size / MB:.1f} MB"

    return _compared(
        name, _medians(samples, what), lambda before: before * FLAT, shown, "at most 5 % more"
    )


def _not_growing(samples: Sequence[Sample], what: str) -> Check:
    return _compared(
        what,
        _medians(samples, what),
        lambda before: before + SLACK,
        lambda number: f"{number:g}",
        f"at most {SLACK} more",
    )


def _compared(
    name: str,
    medians: tuple[float, float] | None,
    bound: Callable[[float], float],
    shown: Callable[[float], str],
    said: str,
) -> Check:
    if medians is None:
        return Check(name, "", "too few samples", said, passed=False)
    before, after = medians
    return Check(name, shown(before), shown(after), said, after <= bound(before))


def _same_processes(samples: Sequence[Sample]) -> Check:
    """A process that died and was replaced gives back what it had leaked."""
    ids = {sample.pids for sample in samples}
    return Check("processes that came or went", "", str(len(ids) - 1), "0", len(ids) == 1)


def halves(observed: Observed) -> dict[str, tuple[list[float], list[float]]]:
    """The seconds of each operation in the first and the last half after the warm-up."""
    middle = (observed.warm_up + observed.seconds) / 2
    found: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for call in observed.calls:
        if call.at >= observed.warm_up:
            found[call.operation][call.at >= middle].append(call.seconds)
    return dict(found)


def p99(seconds: Sequence[float]) -> float:
    """The 99th percentile; of few values, the largest."""
    if len(seconds) < 2:
        return max(seconds, default=0.0)
    return min(statistics.quantiles(seconds, n=100)[98], max(seconds))


def _latencies(observed: Observed, factor: float) -> list[Check]:
    checks = []
    for operation, (before, after) in sorted(halves(observed).items()):
        if min(len(before), len(after)) < ENOUGH:
            continue
        first, last = p99(before), p99(after)
        bound = max(first, QUICK_S) * factor
        checks.append(
            Check(
                f"p99 of {operation}",
                f"{first * 1000:.0f} ms",
                f"{last * 1000:.0f} ms",
                f"at most {bound * 1000:.0f} ms",
                last <= bound,
            )
        )
    if not checks:
        checks.append(Check("p99", "", "too few calls", f"at most {factor:g} times", passed=False))
    return checks
