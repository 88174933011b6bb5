"""What a run has found, as text, as Markdown and as charts."""

import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from benchmarks import peers
from benchmarks.bars import BARS, OURS
from benchmarks.gateways import GATEWAYS, Gateway
from benchmarks.results import Results
from benchmarks.works import FullManifold, Work

_FULL: type[Gateway] = FullManifold
_LABELS: dict[str, str] = {cls.name: cls.label for cls in (*GATEWAYS, _FULL)}
_COLUMNS = {
    "per_second": ("per s", "{:,.0f}"),
    "seconds": ("s", "{:.2f}"),
    "first_ever_s": ("first ever s", "{:.2f}"),
    "p50_ms": ("p50 ms", "{:.2f}"),
    "p99_ms": ("p99 ms", "{:.2f}"),
    "first_p50_ms": ("first p50 ms", "{:.2f}"),
    "first_p99_ms": ("first p99 ms", "{:.2f}"),
    "deep_p50_ms": ("deep p50 ms", "{:.2f}"),
    "deep_p99_ms": ("deep p99 ms", "{:.2f}"),
    "idle_p50_ms": ("idle p50 ms", "{:.2f}"),
    "idle_p99_ms": ("idle p99 ms", "{:.2f}"),
    "first_byte_ms": ("first byte ms", "{:.2f}"),
    "disk_s": ("written to a file s", "{:.2f}"),
    "hash_s": ("hashed s", "{:.2f}"),
    "starved": ("starved", "{:.0f}"),
    "mb_a_stream": ("MB a stream", "{:.2f}"),
    "idle_mb": ("idle MB, all", "{:.0f}"),
    "worker_mb": ("a worker MB", "{:.0f}"),
    "background_mb": ("background worker MB", "{:.0f}"),
    "peak_mb": ("peak MB", "{:.0f}"),
    "growth_mb": ("growth MB", "{:+.1f}"),
    "failures": ("failed", "{:.0f}"),
}
_MOST = {"failures", "growth_mb", "peak_mb", "starved"}
"""Figures of which the worst round counts, not the median."""


def head(results: Results, tool: str) -> str:
    """What was measured where, in a few lines."""
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {version}" for name, version in peers.versions().items())
    rounds = {about["rounds"] for about in results.about.values()}
    days = sorted({about["day"] for about in results.about.values()})
    return (
        f"{cores} cores, everything on this machine; {_said(rounds)} rounds, "
        f"interleaved; {_said(days)}; load by {tool}"
        + (f"; {versions}" if versions else "")
        + ". Medians; of memory, failures and starved streams the worst round."
    )


def _title(results: Results, work: Work) -> str:
    """As it was when it was done, perhaps at another scale."""
    return str(results.about[work.name]["title"])


def _said(values: Iterable[object]) -> str:
    return " or ".join(str(value) for value in sorted(values, key=str))


def rows(results: Results, work: Work) -> list[list[str]]:
    """A table: the column names, then a row for each gateway."""
    measured = results.figures.get(work.name, {})
    shown = [name for name in _COLUMNS if any(name in f for r in measured.values() for f in r)]
    has_ratio = OURS in measured and len(measured) > 1
    table = [["", *(_COLUMNS[name][0] for name in shown), *(["Manifold is"] if has_ratio else [])]]
    ours = results.median(work.name, OURS, work.main)
    for gateway in measured:
        cells = [_LABELS[gateway]]
        for name in shown:
            find = results.most if name in _MOST else results.median
            value = find(work.name, gateway, name)
            cells.append("" if value is None else _COLUMNS[name][1].format(value))
        if has_ratio:
            theirs = results.median(work.name, gateway, work.main)
            cells.append("" if gateway == OURS else _times(work, ours, theirs))
        table.append(cells)
    for gateway, why in results.failed.get(work.name, {}).items():
        table.append([_LABELS[gateway], f"failed: {why[:160]}"])
    return table


def _times(work: Work, ours: float | None, theirs: float | None) -> str:
    if not ours or not theirs:
        return ""
    times = ours / theirs if work.more_is_better else theirs / ours
    return f"{times:.2f} x as fast"


def bar_rows(results: Results) -> list[list[str]]:
    """Every bar: what it says, what was found, whether it is met; and what that is elsewhere."""
    table = [["work", "bar", "found", "from", "met", "at its machine's speed"]]
    for bar in BARS:
        found, there = bar.find(results), bar.there(results)
        if found is None:
            table.append([bar.work, bar.says, "", "not measured", "", ""])
        else:
            met = "yes" if bar.is_met(found) else "NO"
            told = "" if there is None else f"{there:.2f}"
            table.append([bar.work, bar.says, f"{found.value:.2f}", found.behind, met, told])
    return table


def text(results: Results, works: Sequence[Work], tool: str) -> str:
    """All of it for a terminal."""
    parts = [head(results, tool)]
    for work in works:
        if results.figures.get(work.name) or results.failed.get(work.name):
            parts.append(f"{_title(results, work)} ({work.name})\n{_aligned(rows(results, work))}")
    parts.append("Bars\n" + _aligned(bar_rows(results)))
    return "\n\n".join(parts)


def _aligned(table: list[list[str]]) -> str:
    full = [row for row in table if len(row) == len(table[0])]
    widths = [max(len(row[n]) for row in full) for n in range(len(table[0]))]
    lines = []
    for row in table:
        if len(row) < len(table[0]):
            lines.append("  " + "  ".join(row))
            continue
        first, *others = zip(row, widths, strict=True)
        is_words = table[0][0] == "work"
        cells = [first[0].ljust(first[1])]
        cells += [cell.ljust(w) if is_words else cell.rjust(w) for cell, w in others]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


_INTRODUCTION = """\
# How fast Manifold is, beside others

Written by `python -m benchmarks --write docs/benchmarks.md`; [development.md](development.md) tells
how to run it. Absolute figures move with the machine; ratios hold better.

Every gateway runs as its own command starts it, in front of the same fake upstream
(`benchmarks/upstream.py`), and does the same work in turns with the others. Manifold has two
workers, real keys, ownership and SQLite. "Bare Flask" is an application of this stack without any
rule (`benchmarks/bare.py`): what it does costs nothing but Flask, gunicorn and requests. With "two
commits" it does for a small upload what nothing that a crash may not lose can do without. LiteLLM's
managed files are measured with their database replaced by a table in memory, its best case.
Memory is the resident memory of all processes of a gateway together.

Large files are uploaded by the client that people have, `openai` for Python, from a file on disk;
to several targets directly, by as many of these clients at once. The upstream throws away what it
gets and takes no hash of it, which no provider does: that makes "directly" faster than it will be,
and every gateway seem slower beside it. Manifold takes the SHA-256 of every upload and has the
whole file on its disk before any account can store it. What the machine needs for these two by
themselves stands beside "directly", measured in the same rounds.

Milliseconds and seconds are a machine's own, and the bars in them were set on a faster one. There
bare Flask answered a file from SQLite in 0.23 ms, added 0.80 ms to a chat, took 0.70 ms for an
upload of 1 KB and 3.5 ms for the first byte of a download, and started in 0.16 s. The last column
of the bars is what was found, times what bare Flask needed there, over what it needed in this run.

[profile.md](profile.md) tells where the time goes, and what stands in the way of the bars that are
not met.
"""


def write(results: Results, works: Sequence[Work], tool: str, path: Path) -> list[Path]:
    """Write the page and its charts beside it; what was written."""
    charts = [
        (f"{path.stem}-{name}.svg", title, chart)
        for name, title, chart in _charts(results, works)
        if chart is not None
    ]
    parts = [_INTRODUCTION, head(results, tool)]
    parts += [f"![{html.escape(title)}]({name})" for name, title, _ in charts]
    parts.append("## Bars\n\n" + _markdown(bar_rows(results)))
    for work in works:
        if results.figures.get(work.name) or results.failed.get(work.name):
            parts.append(f"## {_title(results, work)}\n\n{_markdown(rows(results, work))}")
    path.write_text("\n\n".join(part.strip() for part in parts) + "\n")
    for name, _, chart in charts:
        assert chart is not None  # noqa: S101  # the others are left out above
        path.with_name(name).write_bytes(chart)
    return [path, *(path.with_name(name) for name, _, _ in charts)]


def _markdown(table: list[list[str]]) -> str:
    width = len(table[0])
    lines = ["| " + " | ".join(table[0]) + " |", "|" + "---|" * width]
    for row in table[1:]:
        cells = row + [""] * (width - len(row))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


_COLOURS = {
    "direct": "#9e9e9e",
    "manifold": "#1565c0",
    "bare": "#ef6c00",
    "bare-sqlite": "#ffb74d",
    "bare-stored": "#8d6e63",
    "litellm": "#6a1b9a",
    "litellm-managed": "#ba68c8",
    "portkey": "#2e7d32",
}

_CHARTS = (
    ("throughput", "Requests a second at 16 connections", "per_second"),
    ("latency", "Milliseconds to an answer, p50 at one connection", "p50_ms"),
    ("transfers", "Seconds for a large file", "seconds"),
)


def _charts(results: Results, works: Sequence[Work]) -> Iterable[tuple[str, str, bytes | None]]:
    for name, title, figure in _CHARTS:
        chosen = [
            work
            for work in works
            if work.main == figure
            and work.name.startswith(("upload", "download", "file", "list", "chat", "stream-first"))
            and results.figures.get(work.name)
        ]
        yield name, title, _chart(results, chosen, title, figure) if chosen else None


def _chart(results: Results, works: Sequence[Work], title: str, figure: str) -> bytes:
    # Whoever only looks at figures need not have it.
    import pygal  # noqa: PLC0415
    from pygal.style import Style  # noqa: PLC0415

    figures = {
        gateway: [results.median(work.name, gateway, figure) for work in works]
        for gateway in _COLOURS
    }
    shown = [gateway for gateway in _COLOURS if any(figures[gateway])]
    known = [value for gateway in shown for value in figures[gateway] if value]
    chart = pygal.Bar(
        title=f"{title} (logarithmic)",
        logarithmic=True,
        # Or the least of them has no height.
        range=(min(known) / 2, max(known) * 1.1),
        zero=min(known) / 2,
        style=Style(
            background="white",
            plot_background="white",
            colors=[_COLOURS[gateway] for gateway in shown],
        ),
        disable_xml_declaration=True,
        legend_at_bottom=True,
        legend_at_bottom_columns=4,
        truncate_legend=-1,
        truncate_label=-1,
        width=1000,
        height=520,
    )
    chart.x_labels = [_title(results, work).partition(",")[0] for work in works]
    for gateway in shown:
        chart.add(_LABELS[gateway], [_rounded(value) for value in figures[gateway]])
    drawn = chart.render_tree()
    # A picture in a page of documentation runs nothing.
    for parent in list(drawn.iter()):
        for script in [child for child in parent if str(child.tag).endswith("script")]:
            parent.remove(script)
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    return ElementTree.tostring(drawn)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
