"""The verdict of a soak: what is flat passes, and each thing that is wrong is found."""

import random
from dataclasses import replace

import pytest

from tests.soak.verdict import MB, Call, Check, Observed, ProcessSample, Sample, judge

SECONDS, WARM_UP = 600.0, 100.0


def sample(at: float, *, mb: float = 100, descriptors: int = 40, threads: int = 20) -> Sample:
    size = int(mb * MB)
    first = ProcessSample("gateway", 1, size, size // 2, descriptors, threads)
    return Sample(at, (first, replace(first, name="worker", pid=2)))


def calls(first_ms: float = 100, last_ms: float = 100, number: int = 500) -> list[Call]:
    middle = (SECONDS + WARM_UP) / 2
    return [
        Call(at, "upload", (first_ms if at < middle else last_ms) / 1000)
        for at in (WARM_UP + n * (SECONDS - WARM_UP) / number for n in range(number))
    ]


def observed(**changes) -> Observed:
    """A run in which all is well: a little noise, and a warm-up that grows."""
    rng = random.Random(1)
    samples = [
        sample(at, mb=rng.gauss(100, 3) if at >= WARM_UP else at / 2)
        for at in map(float, range(0, 600, 5))
    ]
    good = Observed(SECONDS, WARM_UP, samples=samples, calls=calls())
    return replace(good, **changes)


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.passed]


def growing(**by) -> list[Sample]:
    """So much more of something at the end of the run than at its beginning."""
    start = {"mb": 100, "descriptors": 40, "threads": 20}
    return [
        sample(at, **{name: int(start[name] + more * at / SECONDS) for name, more in by.items()})
        for at in map(float, range(0, 600, 5))
    ]


def test_a_run_that_is_flat_passes():
    assert failed(judge(observed(), 2.0)) == []


def test_the_growth_of_the_warm_up_is_no_leak():
    samples = [sample(at, mb=20 if at < WARM_UP else 100) for at in map(float, range(0, 600, 5))]
    assert failed(judge(observed(samples=samples), 2.0)) == []


MEMORY = ["resident memory", "memory of no other process"]


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"samples": growing(mb=60)}, MEMORY),
        ({"samples": growing(descriptors=30)}, ["descriptors"]),
        ({"samples": growing(threads=24)}, ["threads"]),
        ({"samples": [sample(150), sample(300)]}, [*MEMORY, "descriptors", "threads"]),
        ({"lock_errors": ["database is locked"]}, ["lock errors"]),
        ({"error_lines": ["unexpected_error"]}, ["log lines at ERROR"]),
        ({"unexplained": ["retrieve: 500"]}, ["answers that no fault explains"]),
        ({"changed": ["file-1"]}, ["files lost or changed"]),
        ({"orphaned": ["file-1"]}, ["copies without a row, rows without a copy"]),
        ({"calls": calls(100, 300)}, ["p99 of upload"]),
        ({"calls": calls(number=20)}, ["p99"]),
    ],
    ids=lambda value: " and ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_found_and_nothing_else(wrong, found):
    assert failed(judge(observed(**wrong), 2.0)) == found


def test_little_growth_is_within_the_bounds():
    assert failed(judge(observed(samples=growing(mb=10, descriptors=3, threads=2)), 2.0)) == []


def test_a_process_that_was_replaced_is_noticed():
    samples = observed().samples
    last = samples[-1]
    other = Sample(last.at, (last.processes[0], replace(last.processes[1], pid=3)))
    assert failed(judge(observed(samples=[*samples[:-1], other]), 2.0)) == [
        "processes that came or went"
    ]


def test_the_factor_is_the_caller_s_and_quick_answers_are_not_compared():
    assert failed(judge(observed(calls=calls(100, 300)), 4.0)) == []
    assert failed(judge(observed(calls=calls(2, 20)), 2.0)) == []


def test_a_slow_warm_up_is_not_compared():
    slow = [Call(50.0, "upload", 9.0)] * 200
    assert failed(judge(observed(calls=[*slow, *calls()]), 2.0)) == []
