"""How things are written for people, charts as numbers, and errors read from a batch's files."""

import datetime as dt
import json
from collections.abc import Iterator

import pytest

from app.console import charts, formats, rows

NOW = dt.datetime(2026, 11, 21, 12, 0, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KB"),
        (1536, "1.5 KB"),
        (512 * 1024 * 1024, "512 MB"),
        (10**10, "9.3 GB"),
        (None, "unknown"),
    ],
)
def test_sizes(count, shown):
    assert formats.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "just now"),
        (-59, "59 seconds ago"),
        (-60, "1 minute ago"),
        (-7200, "2 hours ago"),
        (86400 * 3, "in 3 days"),
        (-86400 * 400, "400 days ago"),
    ],
)
def test_moments(seconds, shown):
    assert formats.relative(NOW + dt.timedelta(seconds=seconds), NOW) == shown


def test_owners_and_shares():
    assert formats.owner("user:alice:x") == "alice:x"
    assert formats.owner("master") == "master key"
    assert formats.owner("key:" + "ab" * 32) == "key abababab…"
    assert formats.owner("deleted-user:bob:0011223344556677") == "bob (deleted)"
    assert [formats.share(p, 1000) for p in (0, 1, 50, 500)] == ["0 %", "0.1 %", "5.0 %", "50 %"]
    assert formats.share(3, 0) == "0 %"


def test_columns_stand_on_the_base_and_fit():
    hours = [NOW + dt.timedelta(hours=n) for n in range(24)]
    good, bad = [n * 10 for n in range(24)], [0] * 23 + [1]
    chart = charts.columns(hours, [("good", good), ("bad", bad)], charts.Writer())
    assert not chart.is_empty and len(chart.rows) == 24
    assert all(bar.y >= 0 and bar.y + bar.height <= chart.base + 0.02 for bar in chart.bars)
    assert all(bar.x >= chart.left and bar.x + bar.width <= chart.width for bar in chart.bars)
    [small] = [bar for bar in chart.bars if bar.part == "bad"]
    assert small.height >= 1.5, "one failure is seen too"
    assert [line.text for line in chart.lines] == ["0", "100", "200", "300"]
    assert charts.columns(hours, [("good", [0] * 24)], charts.Writer()).is_empty


@pytest.mark.parametrize(
    ("value", "bound"), [(0, 3), (3, 3), (4, 6), (14, 15), (31, 60), (1e9, 1.5e9)]
)
def test_an_axis_ends_at_a_round_number(value, bound):
    assert charts.nice(value) == bound


def line(custom_id, status=None, error=None, body=None):
    response = None if status is None else {"status_code": status, "body": body or {}}
    told = {"custom_id": custom_id, "response": response, "error": error}
    return json.dumps(told).encode() + b"\n"


def test_errors_are_found_in_error_and_output_files_however_they_are_cut():
    content = b"".join(
        [
            line("good", 200),
            line("bad", 400, body={"error": {"message": "no", "code": "invalid_value"}}),
            line("late", error={"code": "batch_expired", "message": "too late"}),
            b"not json\n[1]\n\n",
            line(7, 500),
        ]
    )
    for size in (1, 7, len(content)):
        chunks = [content[at : at + size] for at in range(0, len(content), size)]
        found = rows.read(chunks)
        assert found.is_all
        assert [(e.custom_id, e.status, e.code, e.message) for e in found.rows] == [
            ("bad", 400, "invalid_value", "no"),
            ("late", None, "batch_expired", "too late"),
            ("7", 500, "", "no message"),
        ]


def test_a_huge_file_is_not_read_to_its_end():
    sent = []

    def chunks() -> Iterator[bytes]:
        for number in range(10_000):
            sent.append(number)
            yield line("x", 400) * 100

    found = rows.read(chunks())
    assert not found.is_all and len(found.rows) == rows.MOST_ROWS and len(sent) < 10
    endless = rows.read(b"x" * 65536 for _ in range(10_000))
    assert not endless.is_all and endless.rows == ()
