"""What a soak prints: Markdown tables."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from tests.soak.verdict import MB, Check, Observed, Sample, halves, p99

_SHOWN = 5
"""So many of the things that must not be are printed, of each kind."""


def progress(sample: Sample) -> str:
    """One line, for who watches."""
    return (
        f"{sample.at:6.0f} s  {sample.total('rss') / MB:6.1f} MB resident  "
        f"{sample.total('uss') / MB:6.1f} MB unshared  {sample.total('descriptors')} descriptors  "
        f"{sample.total('threads')} threads"
    )


def markdown(observed: Observed, checks: Sequence[Check], used: Mapping[str, float]) -> str:
    """The verdict, what went wrong, the processes and the operations."""
    parts = [
        f"{observed.seconds / 60:g} minutes, {observed.warm_up:.0f} s of them to warm up; "
        f"{len(observed.calls)} timed operations.",
        _table(
            ("check", "before", "after", "bound", "verdict"),
            (
                (check.name, check.before, check.after, check.bound, "ok" if check.passed else "NO")
                for check in checks
            ),
        ),
        *_wrong(observed),
        _table(("process", "resident", "unshared", "descriptors", "threads"), _processes(observed)),
        _table(("operation", "calls", "p50", "p99, first half", "last half"), _calls(observed)),
        "Processor time: "
        + ", ".join(
            f"{name} {100 * seconds / observed.seconds:.0f} %" for name, seconds in used.items()
        )
        + " of one core.",
    ]
    return "\n\n".join(parts)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _wrong(observed: Observed) -> list[str]:
    found = []
    for texts in (
        observed.lock_errors,
        observed.error_lines,
        observed.unexplained,
        observed.changed,
        observed.orphaned,
    ):
        found += texts[:_SHOWN]
    return ["\n".join(f"- {text[:2000]}" for text in found)] if found else []


def _processes(observed: Observed) -> Iterable[Sequence[str]]:
    """Each process at the end of the warm-up and at the end."""
    samples = [sample for sample in observed.samples if sample.at >= observed.warm_up]
    if not samples:
        return
    first = {process.pid: process for process in samples[0].processes}
    for last in samples[-1].processes:
        begun = first.get(last.pid, last)
        yield (
            last.name,
            f"{begun.rss / MB:.1f} -> {last.rss / MB:.1f} MB",
            f"{begun.uss / MB:.1f} -> {last.uss / MB:.1f} MB",
            f"{begun.descriptors} -> {last.descriptors}",
            f"{begun.threads} -> {last.threads}",
        )


def _calls(observed: Observed) -> Iterable[Sequence[str]]:
    for operation, (before, after) in sorted(halves(observed).items()):
        yield (
            operation,
            str(len(before) + len(after)),
            f"{statistics.median([*before, *after]) * 1000:.0f} ms",
            f"{p99(before) * 1000:.0f} ms",
            f"{p99(after) * 1000:.0f} ms",
        )
